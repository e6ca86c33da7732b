//! Formats in which a value is rounded by itself, once its group has a grid: what rounding with feedback needs to know.
//!
//! [`IntCodes`] and [`Nf4Codes`] say it of the formats here; a format of your own joins by implementing [`NearestCode`].
//!
//! Neighbours: [`crate::settle`] rounds by it.

use super::nf4::{self, Nf4Scheme};
use crate::{
    fit::{Fit, Grid, ROUND, Sample},
    scheme::Scheme,
};

/// A format with a nearest code for each value.
pub trait NearestCode: Sync + std::fmt::Debug {
    /// What the values of one group share.
    type Grid: Copy + Send + Sync + Default + std::fmt::Debug;

    /// The grid of a group.
    ///
    /// # Errors
    /// A scale that cannot be stored.
    fn grid(&self, sample: Sample<'_>) -> Result<Self::Grid, f32>;

    /// The grids of groups of `span` values each, whose weights they share: what [`NearestCode::grid`] gives for each, which is
    /// also what the default does; formats that search many groups side by side do better.
    ///
    /// # Errors
    /// The number of the first group whose scale cannot be stored, and that scale.
    fn grids(
        &self,
        values: &[f32],
        span: usize,
        importance: Option<&[f32]>,
        out: &mut [Self::Grid],
    ) -> Result<(), (usize, f32)> {
        for (at, (group, out)) in values.chunks(span.max(1)).zip(out).enumerate() {
            *out = self.grid(Sample::weighted(group, importance)).map_err(|scale| (at, scale))?;
        }
        Ok(())
    }

    /// The nearest code of a value, and the value that it decodes to.
    fn nearest(&self, grid: Self::Grid, value: f32) -> (u8, f32);
}

/// Integers; codes are offset by 2^(b−1).
#[derive(Debug, Clone, Copy)]
pub struct IntCodes {
    scheme: Scheme,
    fit: Fit,
    low: f32,
    high: f32,
    offset: i32,
}

impl IntCodes {
    /// The codes of a scheme, with grids found by `fit`.
    #[must_use]
    pub fn new(scheme: Scheme, fit: Fit) -> Self {
        let (low, high) = fit.codes(scheme.bits);
        Self { scheme, fit, low: low as f32, high: high as f32, offset: -scheme.bits.lowest() }
    }
}

impl Default for Grid {
    fn default() -> Self {
        Self::OF_ZEROS
    }
}

impl NearestCode for IntCodes {
    type Grid = Grid;

    fn grid(&self, sample: Sample<'_>) -> Result<Grid, f32> {
        self.fit.grid(sample, &self.scheme)
    }

    fn grids(
        &self,
        values: &[f32],
        span: usize,
        importance: Option<&[f32]>,
        out: &mut [Grid],
    ) -> Result<(), (usize, f32)> {
        self.fit.grids(values, span, importance, &self.scheme, out)
    }

    #[inline(always)]
    fn nearest(&self, grid: Grid, value: f32) -> (u8, f32) {
        // As `int::quantize` does: the zero point before rounding, ties to even.
        let zero = grid.zero as f32;
        let v = value / grid.scale + zero;
        let v = if v > self.low { v } else { self.low };
        let v = if v < self.high { v } else { self.high };
        let rounded = v + ROUND;
        let code = (rounded.to_bits() as u8).wrapping_add(self.offset as u8);
        (code, (rounded - ROUND - zero) * grid.scale)
    }
}

/// NF4, with f32 scales.
#[derive(Debug, Clone, Copy)]
pub struct Nf4Codes {
    fit: Fit,
}

impl Nf4Codes {
    /// NF4 codes, with scales found by `fit`.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`] for [`Fit::MinMax`].
    pub fn new(_scheme: Nf4Scheme, fit: Fit) -> crate::Result<Self> {
        nf4::check_fit(&fit)?;
        Ok(Self { fit })
    }
}

impl NearestCode for Nf4Codes {
    type Grid = f32;

    fn grid(&self, sample: Sample<'_>) -> Result<f32, f32> {
        Ok(nf4::fit_sample(sample, &self.fit))
    }

    #[inline(always)]
    fn nearest(&self, scale: f32, value: f32) -> (u8, f32) {
        let code = if scale == 0.0 { nf4::ZERO_CODE } else { nf4::nearest_scaled(value, scale) };
        (code, nf4::TABLE[usize::from(code & 15)] * scale)
    }
}
