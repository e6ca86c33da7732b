//! Norms and gates with their way back, for learning in plain code.
//!
//! ```text
//! r = 1 / √(mean(x²) + ε)     y = γ x r       ∂x = r γ g − x r³ mean(γ g x)
//! y = a σ(a) u                                ∂a = g u σ(a) (1 + a (1 − σ(a)))      ∂u = g a σ(a)
//! ```
//!
//! Neighbours: [`super::gate`] is the gate of inference, `taper_core::nn::tracked` the same gradients for candle,
//! [`super::attention::back`] attention's.

use rayon::prelude::*;

use super::{smooth::exp, widest};

/// Lanes of a sum.
const LANES: usize = 16;
/// Values per task.
const STRETCH: usize = 1 << 14;

/// γ x / √(mean(x²) + ε), row by row.
pub(crate) fn rms_norm(x: &[f32], gamma: &[f32], eps: f32) -> Vec<f32> {
    let mut y = x.to_vec();
    let together = (STRETCH / gamma.len() + 1) * gamma.len();
    y.par_chunks_mut(together).for_each(|y| norm(y, gamma, eps));
    y
}

/// sum ← sum + ∂x, where `g` is the gradient of the norm's result.
pub(crate) fn add_rms_norm_gradient(x: &[f32], gamma: &[f32], eps: f32, g: &[f32], sum: &mut [f32]) {
    let together = (STRETCH / gamma.len() + 1) * gamma.len();
    let parts = sum.par_chunks_mut(together).zip(x.par_chunks(together).zip(g.par_chunks(together)));
    parts.for_each(|(sum, (x, g))| norm_back(x, gamma, eps, g, sum));
}

/// Turns a and u, whose gate's result has the gradient g, into ∂a and ∂u.
pub(crate) fn silu_gate_gradient(a: &mut [f32], u: &mut [f32], g: &[f32]) {
    let parts = a.par_chunks_mut(STRETCH).zip(u.par_chunks_mut(STRETCH)).zip(g.par_chunks(STRETCH));
    parts.for_each(|((a, u), g)| gate_back(a, u, g));
}

widest! {
    fn norm = norm_body; (y: &mut [f32], gamma: &[f32], eps: f32)
}

widest! {
    fn norm_back = norm_back_body; (x: &[f32], gamma: &[f32], eps: f32, g: &[f32], sum: &mut [f32])
}

widest! {
    fn gate_back = gate_back_body; (a: &mut [f32], u: &mut [f32], g: &[f32])
}

#[inline(always)]
fn norm_body(y: &mut [f32], gamma: &[f32], eps: f32) {
    for y in y.chunks_exact_mut(gamma.len()) {
        let r = inverse_root(y, eps);
        y.iter_mut().zip(gamma).for_each(|(y, gamma)| *y *= r * gamma);
    }
}

#[inline(always)]
fn norm_back_body(x: &[f32], gamma: &[f32], eps: f32, g: &[f32], sum: &mut [f32]) {
    let n = gamma.len();
    for ((x, g), sum) in x.chunks_exact(n).zip(g.chunks_exact(n)).zip(sum.chunks_exact_mut(n)) {
        let r = inverse_root(x, eps);
        let pull = lanes(n, |i| gamma[i] * g[i] * x[i]);
        let c = r * r * r * pull / n as f32;
        for i in 0..n {
            sum[i] += r * gamma[i] * g[i] - c * x[i];
        }
    }
}

#[inline(always)]
fn gate_back_body(a: &mut [f32], u: &mut [f32], g: &[f32]) {
    for ((a, u), g) in a.iter_mut().zip(u).zip(g) {
        let s = 1.0 / (1.0 + exp(-*a));
        let value = *a * s;
        let slope = s + value * (1.0 - s);
        *a = g * *u * slope;
        *u = g * value;
    }
}

#[inline(always)]
fn inverse_root(x: &[f32], eps: f32) -> f32 {
    (lanes(x.len(), |i| x[i] * x[i]) / x.len() as f32 + eps).sqrt().recip()
}

/// Σ term(i) in fixed lanes.
#[inline(always)]
pub(super) fn lanes(n: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    let whole = n / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += term(start + lane);
        }
    }
    let total: f32 = sums.iter().sum();
    total + (whole..n).map(term).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, phase: f32) -> Vec<f32> {
        (0..n).map(|i| 1.3 * (i as f32 * 0.7 + phase).sin()).collect()
    }

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    /// Central differences of Σ g y(x).
    fn differences(x: &[f32], g: &[f32], y: impl Fn(&[f32]) -> Vec<f32>) -> Vec<f64> {
        let at = |i: usize, by: f32| {
            let mut x = x.to_vec();
            x[i] += by;
            dot(&y(&x), g)
        };
        (0..x.len()).map(|i| (at(i, 1e-2) - at(i, -1e-2)) / 2e-2).collect()
    }

    fn close(found: &[f32], expected: &[f64]) {
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 2e-3, "{found} instead of {expected}");
        }
    }

    #[test]
    fn gradients_of_norms_are_central_differences() {
        let (x, gamma, g) = (wave(3 * 37, 0.0), wave(37, 1.0), wave(3 * 37, 2.0));
        let mut found = vec![0.0; x.len()];
        add_rms_norm_gradient(&x, &gamma, 1e-5, &g, &mut found);
        close(&found, &differences(&x, &g, |x| rms_norm(x, &gamma, 1e-5)));
    }

    #[test]
    fn gradients_of_gates_are_central_differences() {
        let (a, u, g) = (wave(50, 0.0), wave(50, 1.0), wave(50, 2.0));
        let y = |a: &[f32], u: &[f32]| -> Vec<f32> {
            a.iter().zip(u).map(|(a, u)| a / (1.0 + (-a).exp()) * u).collect()
        };
        let (mut da, mut du) = (a.clone(), u.clone());
        silu_gate_gradient(&mut da, &mut du, &g);
        close(&da, &differences(&a, &g, |a| y(a, &u)));
        close(&du, &differences(&u, &g, |u| y(&a, u)));
    }
}
