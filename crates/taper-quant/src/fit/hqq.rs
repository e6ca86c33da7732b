//! The grid of least Σ |error|^p, by half-quadratic splitting (Badri and Shaji, "Half-Quadratic Quantization", 2023).
//!
//! ```text
//! minimise  Σ_i w_i |x_i − s (q_i − z)|^p        p < 1: a few large errors are forgiven
//!
//! split     ε_i stands for the error:             ε ← shrink(x − x̂),   shrink(e) = sign(e) max(|e| − |e|^(p−1) / β, 0)
//! refit     what is left is a least-squares fit:  z ← mean(q) − mean(x − ε) / s, rounded      s ← its closed form at that z
//! repeat    β ← κ β, from min–max on, until Σ |error|^p falls by less than a ten-thousandth
//! ```
//!
//! The paper keeps s and moves a zero point that is a real number. Zero points here are codes, as in every file format
//! that we write, so a step of less than half a code would be lost: the scale takes part in the fit instead, which at
//! three and two bits is worth far more. Errors are measured in steps of the first grid, so that a fit does not depend on the unit
//! of the weights.
//!
//! Every candidate is judged as it will be stored and the best is kept, the first among them: never worse than
//! [`super::minmax`] in Σ |error|^p. No data is needed; importances, where given, are the w.
//!
//! Neighbours: `kernel/encode/hqq.rs` fits groups side by side, [`super::search`] is for least squares.

use rayon::prelude::*;

use super::{Grid, Sample, Tiles, minmax, search::LONGEST, stored};
use crate::{
    fit::ScaleSign,
    kernel::encode::{Encoders, Method, Number},
    scheme::Scheme,
};

/// The options of half-quadratic fits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hqq {
    /// p, above 0 and at most 1; 0.7 as in the paper.
    pub norm: f32,
    /// Refits at most; 20 as in the paper's program.
    pub steps: u16,
}

/// β at the start, for errors in steps, as in the paper's program.
pub(crate) const STRENGTH: f32 = 10.0;

/// κ, as in the paper's program.
pub(crate) const GROWTH: f32 = 1.01;

/// A fit ends where the sum is not below this share of what it was: what further steps would gain is not worth their time.
pub(crate) const CLOSE: f32 = 0.9999;

impl Default for Hqq {
    fn default() -> Self {
        Self { norm: 0.7, steps: 20 }
    }
}

impl Hqq {
    /// With at most this many refits.
    #[must_use]
    pub fn with_steps(mut self, steps: u16) -> Self {
        self.steps = steps;
        self
    }

    /// With this p, between 0 (not included) and 1.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`] outside.
    pub fn with_norm(mut self, norm: f32) -> crate::Result<Self> {
        self.norm = norm;
        self.check().map(|()| self)
    }

    /// Checks the range of the norm.
    pub(crate) fn check(&self) -> crate::Result<()> {
        if self.norm > 0.0 && self.norm <= 1.0 {
            return Ok(());
        }
        Err(crate::Error::Conflict {
            option: "norm",
            conflict: format!("is {}", self.norm),
            expected: "choose a power above 0 and at most 1, such as 0.7".to_owned(),
        })
    }

    /// What numbers the grids of a scheme make.
    pub(crate) fn number(scheme: &Scheme) -> Number {
        let (bits, stored) = (scheme.bits, scheme.scales);
        if scheme.is_symmetric() {
            Number::Symmetric { bits, sign: ScaleSign::Positive, stored }
        } else {
            Number::Asymmetric { bits, stored }
        }
    }

    /// The grid of a sample whose values lie between `low` ≤ 0 and `high` ≥ 0, not both 0.
    ///
    /// # Errors
    /// The scale, where the scheme's scale type cannot hold the one that spans all values.
    pub fn grid(&self, sample: Sample<'_>, low: f32, high: f32, scheme: &Scheme) -> Result<Grid, f32> {
        let spanning = minmax::grid(low, high, scheme)?;
        if !super::search::searchable(low, high) {
            return Ok(spanning);
        }
        let weights = sample.repeated();
        let length = sample.values.len();
        if length > LONGEST {
            return Ok(self.long_grid(sample.values, weights.as_deref(), spanning, scheme));
        }
        let (number, method) = (Self::number(scheme), Method::HalfQuadratic(*self));
        let mut tiles = Tiles::new(Encoders::active(), number, method, length, weights.is_some());
        tiles.put(0, sample.values, weights.as_deref(), low, high);
        Ok(tiles
            .finish()
            .next()
            .map_or(spanning, |found| Grid { scale: found.scale, zero: found.zero as i32 }))
    }

    /// The grid of a sample of any length, in f64.
    fn long_grid(&self, x: &[f32], w: Option<&[f32]>, spanning: Grid, scheme: &Scheme) -> Grid {
        let (lowest, steps) = (f64::from(scheme.bits.lowest()), f64::from(scheme.bits.steps()));
        let first = f64::from(spanning.scale);
        let (mut now, mut best, mut least) = (spanning, spanning, f64::INFINITY);
        let mut limit = 1.0 / f64::from(STRENGTH);
        for _ in 0..=self.steps {
            let ratio = f64::from(now.scale) / first;
            let low = lowest - f64::from(now.zero);
            let at = Place { unit: 1.0 / first, ratio, low, high: low + steps, limit };
            let [cost, d, dq, q, qq, total] = sums(x, w, &at, f64::from(self.norm) - 1.0);
            if cost.is_nan() || cost >= least {
                break;
            }
            let ends = cost >= least * f64::from(CLOSE);
            (best, least) = (now, cost);
            if ends {
                break;
            }
            let by = if scheme.is_symmetric() {
                0.0
            } else {
                (low + (d / (ratio * total)).round_ties_even()).clamp(-steps, 0.0) - low
            };
            let ideal = (ratio * (qq + by * q) + dq + by * d) / (qq + 2.0 * by * q + by * by * total);
            match stored((ideal * first) as f32, scheme.scales) {
                Ok(scale) if scale > 0.0 => now = Grid { scale, zero: (lowest - low - by) as i32 },
                _ => break,
            }
            limit /= f64::from(GROWTH);
        }
        best
    }
}

/// Where one iteration looks.
struct Place {
    unit: f64,
    ratio: f64,
    low: f64,
    high: f64,
    limit: f64,
}

/// Values that one task of a long sample sums up.
const RUN: usize = 1 << 14;

/// Σ w |e|^p, Σ w d, Σ w d q, Σ w q, Σ w q², Σ w; in runs of fixed size and in order.
fn sums(x: &[f32], w: Option<&[f32]>, at: &Place, power: f64) -> [f64; 6] {
    let runs: Vec<[f64; 6]> = x
        .par_chunks(RUN)
        .enumerate()
        .map(|(run, x)| {
            let mut sums = [0f64; 6];
            for (i, &x) in x.iter().enumerate() {
                let w = w.map_or(1.0, |w| f64::from(w[run * RUN + i]));
                let y = f64::from(x) * at.unit;
                let q = (y / at.ratio).clamp(at.low, at.high).round_ties_even();
                let e = y - at.ratio * q;
                let size = e.abs().max(1e-9);
                let t = size.powf(power);
                let d = e.clamp(-t * at.limit, t * at.limit);
                for (sum, term) in sums.iter_mut().zip([size * t, d, d * q, q, q * q, 1.0]) {
                    *sum += w * term;
                }
            }
            sums
        })
        .collect();
    runs.iter().fold([0.0; 6], |mut all, run| {
        all.iter_mut().zip(run).for_each(|(all, run)| *all += run);
        all
    })
}
