//! What the passes promise, checked against plain oracles, reference vectors and models computed by hand.

mod bitmask;
mod drop_layers;
mod goldens;
mod llama;
mod magnitude;
mod n_of_m;
mod structured;
mod structured_conv;

use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::{path::PathBuf, sync::Arc};
use taper_core::{Checkpoint, Context, Pass, Result, Silent, weight::to_f32_vec};

/// Uniform values in −1..1 from a seed.
fn uniform(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

fn tensor(values: Vec<f32>, shape: &[usize]) -> Tensor {
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A checkpoint in memory.
fn checkpoint(weights: impl IntoIterator<Item = (&'static str, Tensor)>) -> Checkpoint {
    let mut checkpoint = Checkpoint::new(serde_json::Map::new());
    for (name, weight) in weights {
        checkpoint.insert(name, Arc::new(weight));
    }
    checkpoint
}

/// Runs a pass without a driver.
fn run(pass: &impl Pass, checkpoint: Checkpoint) -> Result<Checkpoint> {
    pass.run(checkpoint, &Context::new(None, 0, &Silent))
}

/// The values of a weight as f32.
fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    to_f32_vec(checkpoint.get(name).unwrap().as_ref()).unwrap()
}

/// Which values are not zero.
fn support(values: &[f32]) -> Vec<bool> {
    values.iter().map(|&v| v != 0.0).collect()
}

/// What the lowest `prune` by |w| and then by index leave, by sorting.
fn sorted_support(values: &[f32], prune: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].abs().total_cmp(&values[b].abs()).then(a.cmp(&b)));
    let mut keep = vec![true; values.len()];
    order[..prune].iter().for_each(|&i| keep[i] = false);
    keep
}

/// A file or folder of the shared references and models; `None` (said aloud) where they are not on this machine.
fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("TAPER_SHARED")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from);
    let full = root.join(path);
    if full.exists() {
        return Some(full);
    }
    assert!(std::env::var_os("CI").is_none(), "`{}` is missing", full.display());
    eprintln!("SKIPPED: `{}` is not on this machine; set TAPER_SHARED", full.display());
    None
}
