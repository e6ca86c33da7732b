//! Reference vectors made with the published programs.

use serde_json::Value;
use taper_prune::{Bitmask, slice::prune_lowest};

use crate::{shared, tensor};

fn goldens() -> Option<Value> {
    let text = std::fs::read_to_string(shared("reference/goldens.json")?).unwrap();
    Some(serde_json::from_str(&text).unwrap())
}

/// The reference matrix: 8 × 16 values of a chirp.
fn chirp() -> Vec<f32> {
    (0..128).map(|k| (0.61 * f64::from(k * k) + 0.25).sin() as f32).collect()
}

/// The program that made the vector prunes every |w| `<=` the n-th smallest of a sort that counts from 0, which is one
/// more than the n asked for; it says so itself ("prunes n+1"). Taper prunes exactly n, so its mask is the reference's
/// and the weight of the threshold itself, which is the largest one pruned there.
#[test]
fn magnitude_keeps_what_the_reference_keeps_and_the_one_it_prunes_too_many() {
    let Some(goldens) = goldens() else { return };
    let key = "magnitude.local50%.keepmask (wanda repo '<=thresh': prunes n+1)";
    let reference: Vec<bool> = goldens[key]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|row| row.as_str().unwrap().bytes().map(|b| b == b'1'))
        .collect();
    assert_eq!(goldens["magnitude.nnz"], 63);
    let scores: Vec<f32> = chirp().iter().map(|w| w.abs()).collect();
    assert_eq!(prune_lowest(&scores, 65), reference, "at 65 of 128 pruned the masks are the same");
    let ours = prune_lowest(&scores, 64);
    let differ: Vec<usize> = (0..128).filter(|&i| ours[i] != reference[i]).collect();
    let [one] = differ[..] else { panic!("{differ:?}") };
    assert!(ours[one]);
    let pruned_there = scores.iter().zip(&reference).filter(|(_, keep)| !**keep).map(|(s, _)| *s);
    assert_eq!(scores[one], pruned_there.fold(0.0, f32::max));
}

/// The reference packs |x| > 0.5 of two rows of twelve; x = sin(0.9 k) has exactly that pattern.
#[test]
fn bits_stand_where_the_reference_puts_them() {
    let Some(goldens) = goldens() else { return };
    let reference: Vec<u8> = goldens["bitmask.little(|x|>0.5, 2x12)"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|row| row.as_array().unwrap().iter().map(|b| b.as_u64().unwrap() as u8))
        .collect();
    let x: Vec<f32> = (0..24).map(|k| (0.9 * f64::from(k)).sin() as f32).collect();
    let x: Vec<f32> = x.into_iter().map(|x| if x.abs() > 0.5 { x } else { 0.0 }).collect();
    let weight = Bitmask::from_dense(&tensor(x, &[2, 12])).unwrap();
    assert_eq!(weight.mask(), reference);
    assert_eq!(reference, [102, 3, 155, 13]);
}
