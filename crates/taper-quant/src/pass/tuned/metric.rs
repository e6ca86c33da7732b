//! What an error behind a block costs: the Fisher information of the model's output in the hidden state.
//!
//! ```text
//! loss of a block    Σ_t rᵀ M r        r = ŷ − y, the error of a token's state
//! M = (1 − φ) I + φ F / mean(diag F)   F = E[g gᵀ],  g = ∂ log p(v) / ∂y,  v drawn from the model's own p
//! ```
//!
//! To second order KL(p ‖ p̂) is ½ E[(Σ_t g_tᵀ r_t)²], so that errors are weighed by what they do to the model's output. F is
//! that of the whole rest of the model, the original one, on some sequences of the calibration; tokens are averaged. Outputs
//! that are vectors are probed with directions drawn from a normal distribution: E[g gᵀ] = Jᵀ J.
//!
//! The idea is that of second-order pruning (Hassibi & Stork 1993); for rounding see Kim et al., arXiv 2505.07004.
//! Neighbours: [`super::block`] learns by it. One matrix of the state's width squared is held for each block.

use candle_core::{Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use taper_core::{
    Blocks, Checkpoint, Hidden, Result,
    blocks::Output,
    kernel::{Arithmetic, Operand, Sizes, multiply},
};

use super::{
    streams::{Streams, builder},
    way::values,
};

/// Sequences that are taken back through the whole model.
const SEQUENCES: usize = 8;

/// Keeps the stream of numbers apart from those that draw batches.
const STREAM: u64 = 0x4669_7368_6572;

/// M of one block, `[width, width]`.
pub(super) struct Metric {
    m: Vec<f32>,
    width: usize,
}

impl Metric {
    /// r M, row by row.
    pub(super) fn pull(&self, r: &[f32]) -> Vec<f32> {
        let sizes = Sizes { rows: r.len() / self.width, columns: self.width, depth: self.width };
        multiply(Operand::Along(r), Operand::Along(&self.m), sizes, Arithmetic::F32)
    }
}

/// The metrics of all blocks; `streams` stand before the first one, `share` is φ.
pub(super) fn metrics(
    blocks: &dyn Blocks,
    original: &Checkpoint,
    streams: &Streams,
    share: f32,
    seed: u64,
) -> Result<Vec<Metric>> {
    let weights = builder(original);
    let count = blocks.prefixes(original)?.len();
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ STREAM);
    let mut sums: Vec<Vec<f32>> = vec![Vec::new(); count];
    let every = streams.len().div_ceil(SEQUENCES);
    for sequence in (0..streams.len()).step_by(every) {
        for task in streams.tasks(&[sequence])? {
            let mut states = vec![task.input];
            for index in 0..count {
                let x = blocks.block(&weights, index)?.forward(&states[index])?.x.detach();
                states.push(states[index].with(x));
            }
            let exit = blocks.exit(&weights)?;
            let kind = exit.output();
            let mut g = back(&states[count], |h| exit.forward(h), |y| probe(y, kind, &mut rng))?;
            for index in (0..count).rev() {
                add_gram(&g, &mut sums[index])?;
                if index > 0 {
                    let block = blocks.block(&weights, index)?;
                    g = back(&states[index], |h| Ok(block.forward(h)?.x), |_| Ok(g.clone()))?;
                }
            }
        }
    }
    Ok(sums.into_iter().map(|sum| metric(sum, share)).collect())
}

/// The gradient at a hidden state, by that at what `forward` makes of it; 0 at padding.
fn back(
    hidden: &Hidden,
    forward: impl FnOnce(&Hidden) -> Result<Tensor>,
    gradient: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let x = Var::from_tensor(&hidden.x)?;
    let y = forward(&hidden.with(x.as_tensor().clone()))?;
    let g = gradient(&y.detach())?;
    let grads = (y * g)?.sum_all()?.backward()?;
    let g = match grads.get(&x) {
        Some(g) => g.clone(),
        None => x.zeros_like()?,
    };
    Ok(match &hidden.mask {
        Some(mask) => g.broadcast_mul(&mask.to_dtype(g.dtype())?.unsqueeze(2)?)?,
        None => g,
    })
}

/// A direction at the output whose gradients have the Fisher information as their second moment.
fn probe(y: &Tensor, kind: Output, rng: &mut ChaCha8Rng) -> Result<Tensor> {
    let mut g = values(y)?;
    match kind {
        Output::Vectors => g.iter_mut().for_each(|g| *g = normal(rng)),
        Output::Logits => {
            let width = y.dim(candle_core::D::Minus1)?;
            g.chunks_exact_mut(width).for_each(|row| drawn(row, rng.random()));
        }
    }
    Ok(Tensor::from_vec(g, y.shape(), y.device())?)
}

/// Logits to p − e_v, v being the first of which the sum of p reaches `at`.
fn drawn(row: &mut [f32], at: f32) {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
    let mut left = f64::from(at);
    let mut chosen = row.len() - 1;
    for (i, x) in row.iter_mut().enumerate() {
        let p = f64::from(*x - most).exp() / total;
        if left >= 0.0 && left < p {
            chosen = i;
        }
        left -= p;
        *x = p as f32;
    }
    row[chosen] -= 1.0;
}

/// A number from the normal distribution (Box & Muller 1958).
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let (radius, angle): (f32, f32) = (rng.random(), rng.random());
    (-2.0 * (1.0 - radius).ln()).sqrt() * (std::f32::consts::TAU * angle).cos()
}

fn add_gram(g: &Tensor, sum: &mut Vec<f32>) -> Result<()> {
    let width = g.dim(candle_core::D::Minus1)?;
    sum.resize(width * width, 0.0);
    let g = values(g)?;
    let sizes = Sizes { rows: width, columns: width, depth: g.len() / width };
    let (a, b) = (Operand::Across(&g), Operand::Across(&g));
    taper_core::kernel::multiply::add_product(a, b, sizes, Arithmetic::F32, sum);
    Ok(())
}

/// (1 − φ) I + φ F / mean(diag F); I where the output does not depend on the state.
fn metric(mut m: Vec<f32>, share: f32) -> Metric {
    let width = m.len().isqrt();
    let mean = (0..width).map(|i| m[i * width + i]).sum::<f32>() / width.max(1) as f32;
    let factor = if mean > 0.0 { share / mean } else { 0.0 };
    m.iter_mut().for_each(|m| *m *= factor);
    let rest = if mean > 0.0 { 1.0 - share } else { 1.0 };
    (0..width).for_each(|i| m[i * width + i] += rest);
    Metric { m, width }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// E[(p − e_v)(p − e_v)ᵀ] = diag(p) − p pᵀ.
    #[test]
    fn drawn_directions_have_the_fisher_information_of_a_softmax() {
        let logits = [0.3f32, -1.0, 1.1];
        let total: f32 = logits.iter().map(|x| x.exp()).sum();
        let p: Vec<f32> = logits.iter().map(|x| x.exp() / total).collect();
        let (n, mut sums) = (20_000, [0f64; 9]);
        for i in 0..n {
            let mut g = logits;
            drawn(&mut g, (i as f32 + 0.5) / n as f32);
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum += f64::from(g[j / 3] * g[j % 3]) / f64::from(n);
            }
        }
        for (j, found) in sums.iter().enumerate() {
            let (a, b) = (j / 3, j % 3);
            let expected = f64::from(if a == b { p[a] } else { 0.0 }) - f64::from(p[a] * p[b]);
            assert!((found - expected).abs() < 1e-3, "{a} {b}: {found} instead of {expected}");
        }
    }

    #[test]
    fn numbers_are_normal() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let x: Vec<f64> = (0..50_000).map(|_| normal(&mut rng).into()).collect();
        let moment = |k: i32| x.iter().map(|x| x.powi(k)).sum::<f64>() / x.len() as f64;
        assert!(moment(1).abs() < 0.02 && (moment(2) - 1.0).abs() < 0.03 && (moment(4) - 3.0).abs() < 0.2);
    }

    #[test]
    fn a_metric_is_one_on_average_and_the_identity_without_a_share() {
        let fisher = vec![3.0, 1.0, 1.0, 1.0];
        assert_eq!(metric(fisher.clone(), 0.0).m, [1.0, 0.0, 0.0, 1.0]);
        assert_eq!(metric(fisher, 1.0).pull(&[2.0, 4.0]), [5.0, 3.0]);
        assert_eq!(metric(vec![0.0; 4], 1.0).m, [1.0, 0.0, 0.0, 1.0]);
    }
}
