//! Several recordings as one: what threads saw each for itself, or several machines.
//!
//! ```text
//! n = Σ n_i      mean = Σ n_i mean_i / n      Σ x xᵀ = Σ_i Σ x xᵀ, half by half
//! ```
//!
//! Sums are added in the order in which recordings are given: the same bits whichever thread was first, where each recording is
//! of the same inputs. Neighbours: [`crate::observe`] records.

use std::{collections::BTreeMap, sync::Arc};

use super::{Gram, InputStats, Stats};
use crate::{Error, Result, linalg::Symmetric};

impl Stats {
    /// The statistics of all inputs of these recordings together, in this order. A layer that only some of them saw has what
    /// those saw; layers that share their inputs in all recordings share one value.
    ///
    /// # Errors
    /// A layer whose recordings are of different widths, or of which some have Gram matrices and some do not.
    pub fn merged<'a>(parts: impl IntoIterator<Item = &'a Self>) -> Result<Self> {
        let mut seen: BTreeMap<&str, Vec<&'a Arc<InputStats>>> = BTreeMap::new();
        for (name, stats) in parts.into_iter().flat_map(Self::iter) {
            seen.entry(name).or_default().push(stats);
        }
        let mut done: Vec<(Vec<&Arc<InputStats>>, Arc<InputStats>)> = Vec::new();
        let mut all = BTreeMap::new();
        for (name, parts) in seen {
            let same = |known: &[&Arc<InputStats>]| {
                known.len() == parts.len() && known.iter().zip(&parts).all(|(a, b)| Arc::ptr_eq(a, b))
            };
            let known = done.iter().find(|(known, _)| same(known)).map(|(_, sum)| Arc::clone(sum));
            let sum = match known {
                Some(sum) => sum,
                None => {
                    let sum = Arc::new(together(name, &parts)?);
                    done.push((parts, Arc::clone(&sum)));
                    sum
                }
            };
            all.insert(name.to_owned(), sum);
        }
        Ok(Self(all))
    }
}

/// The statistics of one layer.
fn together(site: &str, parts: &[&Arc<InputStats>]) -> Result<InputStats> {
    let first = parts[0];
    let fits = |other: &InputStats| {
        other.inputs() == first.inputs()
            && other.mean.len() == first.mean.len()
            && other.gram.is_some() == first.gram.is_some()
            && other.cross.is_some() == first.cross.is_some()
    };
    if !parts.iter().all(|part| fits(part)) {
        let message =
            "its recordings are of different widths or of different kinds; record all with the same needs";
        return Err(Error::Stats { site: site.to_owned(), message: message.into() });
    }
    let count: u64 = parts.iter().map(|p| p.count).sum();
    let mean = |of: fn(&InputStats) -> &[f32]| -> Vec<f32> {
        let sum = |j: usize| parts.iter().map(|p| p.count as f64 * f64::from(of(p)[j])).sum::<f64>();
        (0..of(first).len()).map(|j| (sum(j) / count.max(1) as f64) as f32).collect()
    };
    let extreme = |of: fn(&InputStats) -> &[f32], better: fn(f32, f32) -> f32| -> Vec<f32> {
        (0..of(first).len()).map(|j| parts.iter().map(|p| of(p)[j]).fold(of(first)[j], better)).collect()
    };
    let wide = |of: &dyn Fn(&InputStats) -> Option<Vec<f64>>| -> Option<Vec<f64>> {
        parts.iter().try_fold(Vec::new(), |sum: Vec<f64>, part| {
            let part = of(part)?;
            Some(if sum.is_empty() { part } else { sum.iter().zip(part).map(|(a, b)| a + b).collect() })
        })
    };
    Ok(InputStats {
        count,
        mean: mean(|p| &p.mean),
        min: extreme(|p| &p.min, f32::min),
        max: extreme(|p| &p.max, f32::max),
        mean_abs: mean(|p| &p.mean_abs),
        sum_squares: wide(&|p| Some(p.sum_squares.clone())).unwrap_or_default(),
        gram: grams(parts),
        cross: wide(&|p| p.cross.clone()),
    })
}

fn grams(parts: &[&Arc<InputStats>]) -> Option<Gram> {
    let mut sum = Gram::zeros(parts[0].gram.as_ref()?.inputs());
    for gram in parts.iter().filter_map(|p| p.gram.as_ref()) {
        for half in 0..2 {
            sum.counts[half] += gram.counts[half];
            let added: &mut Symmetric = &mut sum.halves[half];
            for (row, other) in
                added.rows_mut().into_iter().enumerate().map(|(i, r)| (r, gram.halves[half].row(i)))
            {
                row.iter_mut().zip(other).for_each(|(x, y)| *x += y);
            }
        }
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Needs, stats::Accumulator};

    fn recorded(rows: &[f32], inputs: usize) -> Arc<InputStats> {
        let mut sums = Accumulator::new(inputs, Needs::Gram);
        sums.add("x", rows).unwrap();
        Arc::new(sums.finish("x").unwrap())
    }

    fn rows(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 300.0).collect()
    }

    #[test]
    fn parts_together_are_the_whole() {
        let all = rows(3 * 600);
        let (whole, parts) = (recorded(&all, 3), [&all[..3 * 200], &all[3 * 200..]].map(|r| recorded(r, 3)));
        let stats = parts.each_ref().map(|part| {
            ["a", "b"].map(|name| (name.to_owned(), Arc::clone(part))).into_iter().collect::<Stats>()
        });
        let merged = Stats::merged(&stats).unwrap();
        let (a, b) = (merged.shared("a").unwrap(), merged.shared("b").unwrap());
        assert!(Arc::ptr_eq(a, b), "layers that share their inputs still do");
        assert_eq!((a.count, &a.min, &a.max), (600, &whole.min, &whole.max));
        for j in 0..3 {
            assert!(
                (a.mean[j] - whole.mean[j]).abs() < 1e-6 && (a.mean_abs[j] - whole.mean_abs[j]).abs() < 1e-6
            );
            for i in 0..3 {
                let (got, want) =
                    (a.gram.as_ref().unwrap().get(i, j), whole.gram.as_ref().unwrap().get(i, j));
                assert!((got - want).abs() < 1e-4 * (1.0 + want.abs()), "{got} {want}");
            }
        }
    }

    #[test]
    fn threads_that_record_for_themselves_give_the_same_bits_whoever_is_first() {
        let all = rows(4 * 900);
        let merged = |first: usize| {
            let (send, receive) = std::sync::mpsc::channel();
            let order = if first == 0 { [0, 1, 2] } else { [2, 0, 1] };
            for thread in order {
                let (send, part) = (send.clone(), all[thread * 1200..(thread + 1) * 1200].to_vec());
                let run = std::thread::spawn(move || send.send((thread, recorded(&part, 4))).unwrap());
                run.join().unwrap();
            }
            drop(send);
            let by_thread: BTreeMap<usize, Stats> =
                receive.iter().map(|(t, s)| (t, [("a".to_owned(), s)].into_iter().collect())).collect();
            Stats::merged(by_thread.values()).unwrap().get("a").unwrap().clone()
        };
        assert_eq!(merged(0), merged(2));
    }

    #[test]
    fn recordings_of_different_widths_are_an_error() {
        let of =
            |inputs: usize| [("a".to_owned(), recorded(&rows(12), inputs))].into_iter().collect::<Stats>();
        let error = Stats::merged([&of(3), &of(4)]).unwrap_err().to_string();
        assert!(error.contains("`a`") && error.contains("different widths"), "{error}");
    }
}
