//! From the Gram matrix of calibration to a factor that can be relied on, in a given order of inputs.
//!
//! ```text
//! R = S⁻¹ G S⁻¹   (ones on the diagonal)      R_α = (1 − α) R + α I      R_α = L D Lᵀ      H = S R_α S / n
//! ```
//!
//! The order is that in which inputs are settled: the first of it is settled first, and so comes *last* in the factor.
//! Inputs that were always 0 (dead ones) get a row of the identity: they influence nothing and nothing influences them.
//!
//! α comes from the data (see [`super::shrink`]) or from the caller. If R_α cannot be factored at that α in f32, f64 is
//! tried; then α grows, step by step. What happened is in [`Damped`]; there is no other way out than an error.

use super::{Ldl, Symmetric, kernel::Real, shrink};
use crate::{
    kernel::fresh,
    stats::{Gram, InputStats},
};
use rayon::prelude::*;
use std::sync::{Arc, Mutex, PoisonError};

/// How far correlations are shrunk.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Shrinkage {
    /// As far as the two halves of the calibration disagree; see [`super::shrink`].
    #[default]
    CrossValidated,
    /// By this α between 0 and 1, whatever the data.
    Fixed(f64),
}

/// α where the halves cannot say (fewer than a few tokens in one of them): little was seen, so little is believed.
const UNKNOWN: f64 = 0.9;

/// Steps of α / (1 − α) on the damping ladder; the first is taken where α was 0.
const FIRST_STEP: f64 = 1e-4;
const STEP: f64 = 10.0;

/// In what precision the factor was computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// f32 sufficed.
    Single,
    /// f64 was needed.
    Double,
}

/// What it took to factor a Gram matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Damped {
    /// α that was wished for: by the caller, or by the data.
    pub wished: f64,
    /// α that was used; above `wished` where that could not be factored.
    pub factor: f64,
    /// Values of α that were tried; 1 where the first did.
    pub tries: u32,
    /// Of the last try.
    pub precision: Precision,
    /// Inputs that were always 0.
    pub dead: usize,
}

/// A factored Gram matrix.
#[derive(Debug, Clone)]
pub struct Factor {
    /// H = L D Lᵀ with inputs in reverse order of settling, in units of the mean over tokens.
    pub ldl: Ldl<f32>,
    /// What it took.
    pub damped: Damped,
}

impl Factor {
    /// Factors a Gram matrix; `order` lists the inputs in the order in which they will be settled.
    ///
    /// `None` where no shrinkage below 1 gives a matrix that can be factored: it holds numbers that are not finite.
    #[must_use]
    pub fn new(gram: &Gram, order: &[usize], shrinkage: Shrinkage) -> Option<Self> {
        let reversed: Vec<usize> = order.iter().rev().copied().collect();
        let scales = scales(gram, &reversed);
        let wished = match shrinkage {
            Shrinkage::Fixed(alpha) => alpha.clamp(0.0, 1.0),
            Shrinkage::CrossValidated => {
                let halves = [&gram.halves[0], &gram.halves[1]];
                shrink::cross_validated(halves, gram.counts, &reversed).unwrap_or(UNKNOWN)
            }
        };
        let dead = scales.iter().filter(|s| **s == 0.0).count();
        let count = gram.count().max(1) as f64;
        // Dead inputs keep a row of the identity, which no scale may undo.
        let back: Vec<f64> = scales.iter().map(|&s| if s > 0.0 { s / count.sqrt() } else { 1.0 }).collect();
        let (mut alpha, mut tries) = (wished, 1);
        loop {
            let damped = |precision| Damped { wished, factor: alpha, tries, precision, dead };
            // In exact arithmetic no pivot is below α; one below half of it is rounding.
            let single = correlations::<f32, _>(gram, &reversed, &scales, alpha);
            if let Some(ldl) = Ldl::of(single, reversed.len(), (alpha / 2.0).max(1e-5)) {
                return Some(Self { ldl: ldl.rescaled(&back), damped: damped(Precision::Single) });
            }
            let double = correlations::<f64, _>(gram, &reversed, &scales, alpha);
            if let Some(ldl) = Ldl::of(double, reversed.len(), (alpha / 2.0).max(1e-10)) {
                return Some(Self { ldl: ldl.rescaled(&back), damped: damped(Precision::Double) });
            }
            if alpha >= 1.0 {
                return None;
            }
            let ratio = if alpha == 0.0 { FIRST_STEP } else { STEP * alpha / (1.0 - alpha) };
            alpha = if ratio > 1e6 { 1.0 } else { ratio / (1.0 + ratio) };
            tries += 1;
        }
    }
}

/// The factor that was made last, for layers that read one input: q, k and v, gate and up.
///
/// Nobody waits for another's factor: who asks for one in the making makes it too, with the same bits.
#[derive(Debug, Default)]
pub struct Factors(Mutex<Option<Made>>);

#[derive(Debug)]
struct Made {
    /// Held, so that nothing else comes to stand where it stood.
    seen: Arc<InputStats>,
    order: Vec<usize>,
    shrinkage: Shrinkage,
    factor: Arc<Factor>,
}

impl Factors {
    /// [`Factor::new`], or what it gave the last time where nothing differs. `None` without a Gram matrix as well.
    #[must_use]
    pub fn get(&self, seen: &Arc<InputStats>, order: &[usize], shrinkage: Shrinkage) -> Option<Arc<Factor>> {
        let gram = seen.gram.as_ref()?;
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken out: two factors at once would be one more than memory has to hold.
        let last = lock().take().filter(|made| {
            Arc::ptr_eq(&made.seen, seen) && made.order == order && made.shrinkage == shrinkage
        });
        let made = match last {
            Some(made) => made,
            None => {
                let factor = Arc::new(Factor::new(gram, order, shrinkage)?);
                Made { seen: Arc::clone(seen), order: order.to_vec(), shrinkage, factor }
            }
        };
        let factor = Arc::clone(&made.factor);
        *lock() = Some(made);
        Some(factor)
    }
}

/// Sums over tokens, of both halves or of one.
pub(super) trait Sums: Sync {
    /// Σ x_i x_j.
    fn sum(&self, i: usize, j: usize) -> f64;
}

impl Sums for Gram {
    fn sum(&self, i: usize, j: usize) -> f64 {
        self.get(i, j)
    }
}

impl Sums for Symmetric {
    fn sum(&self, i: usize, j: usize) -> f64 {
        self.get(i, j)
    }
}

/// √G_ii in this order; 0 for dead inputs.
pub(super) fn scales(gram: &impl Sums, order: &[usize]) -> Vec<f64> {
    order.iter().map(|&i| gram.sum(i, i).max(0.0).sqrt()).collect()
}

/// Rows of a task, and columns that these rows read together: a stretch of a group's rows and columns stays in the cache.
const SQUARE: usize = 64;

/// The upper triangle of R_α in this order, `[d, d]` row-major, zeros below. Rows of dead inputs are those of the identity.
pub(super) fn correlations<T: Real, S: Sums>(
    gram: &S,
    order: &[usize],
    scales: &[f64],
    alpha: f64,
) -> Vec<T> {
    let d = order.len();
    let mut out = fresh::repeated(T::ZERO, d * d);
    let inverse: Vec<f64> = scales.iter().map(|&s| if s > 0.0 { 1.0 / s } else { 0.0 }).collect();
    out.par_chunks_mut((SQUARE * d).max(1)).enumerate().for_each(|(square, rows)| {
        let first = square * SQUARE;
        for from in (first..d).step_by(SQUARE) {
            let columns = from..(from + SQUARE).min(d);
            for (row, i) in rows.chunks_exact_mut(d).zip(first..) {
                let left = (1.0 - alpha) * inverse[i];
                for j in columns.start.max(i + 1)..columns.end {
                    row[j] = T::of(left * inverse[j] * gram.sum(order[i], order[j]));
                }
            }
        }
        for (row, i) in rows.chunks_exact_mut(d).zip(first..) {
            let own = gram.sum(order[i], order[i]) * inverse[i] * inverse[i];
            row[i] = T::of(if inverse[i] > 0.0 { (1.0 - alpha) * own + alpha } else { 1.0 });
        }
    });
    out
}
