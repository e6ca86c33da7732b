//! Integers of 2 to 8 bits: values to packed codes, and rows of codes back to values.
//!
//! ```text
//! q = clamp(round_half_even(x / scale + zero))      code = q + 2^(b−1), packed low bits first
//! x̂ = (code − (2^(b−1) + zero)) · scale
//! ```
//!
//! Zero is exactly representable under every fit, so pruned weights stay zero. Rows are encoded in parallel; each depends
//! on nothing but itself, so the bytes do not depend on threads.
//!
//! Neighbours: [`crate::fit`] finds the grids, [`crate::pack`] owns the bit layout.

use rayon::prelude::*;

use super::{check_finite, normalized};
use crate::{
    Error, Result,
    fit::{Fit, Grid, Sample},
    pack::{self, RowAlign},
    scheme::{Bits, Granularity, Scheme},
};

/// 1.5 · 2²³: after adding it to |v| < 2²², the low byte of the bits is v rounded half to even, modulo 256.
const ROUND: f32 = crate::fit::ROUND;

/// A matrix of packed integer codes with its scales.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedInt {
    /// Packed codes, `rows · row_bytes`.
    pub codes: Vec<u8>,
    /// Bytes per packed row.
    pub row_bytes: usize,
    /// Scales in the order of [`Granularity::scale_shape`], each exactly representable in the scheme's scale type.
    pub scales: Vec<f32>,
    /// Zero points beside the scales, where the scheme is asymmetric.
    pub zeros: Option<Vec<i8>>,
}

/// Encodes a row-major matrix of `cols` columns.
///
/// `importance` (one weight per column, E\[x²\] of the inputs) weighs the squared errors of a [`crate::fit::Search`].
///
/// # Errors
/// Contradictory options, slices that do not fit together, values that are not finite, and scales that their type cannot
/// hold; of several rows the first is named.
pub fn encode(
    values: &[f32],
    cols: usize,
    scheme: &Scheme,
    fit: &Fit,
    importance: Option<&[f32]>,
    align: RowAlign,
) -> Result<EncodedInt> {
    fit.check(scheme.symmetry)?;
    let rows = row_count(values, cols)?;
    check_finite(values)?;
    let importance = normalized(importance, cols)?;
    let overflow = Error::Length { what: "values", found: values.len(), expected: 0 };
    let row_bytes = align.row_bytes(cols, scheme.bits).ok_or(overflow)?;
    let mut job = Job { cols, scheme, fit, importance: importance.as_deref(), whole: None };
    if scheme.granularity == Granularity::Tensor {
        let sample = Sample::weighted(values, job.importance);
        job.whole = Some(fit.grid(sample, scheme).map_err(|scale| job.overflow(0, scale))?);
    }
    let mut encoded = EncodedInt {
        codes: vec![0; rows * row_bytes],
        row_bytes,
        scales: vec![1.0; scheme.granularity.scale_shape(rows, cols).iter().product()],
        zeros: None,
    };
    let mut zeros = vec![0i8; encoded.scales.len()];
    job.run(values, &mut encoded, &mut zeros)?;
    encoded.zeros = (!scheme.is_symmetric()).then_some(zeros);
    Ok(encoded)
}

/// Rows of a slice of whole rows.
pub(crate) fn row_count(values: &[f32], cols: usize) -> Result<usize> {
    if cols == 0 || values.len().is_multiple_of(cols) {
        Ok(values.len().checked_div(cols).unwrap_or(0))
    } else {
        let expected = values.len() / cols * cols;
        Err(Error::Length { what: "values", found: values.len(), expected })
    }
}

/// What all rows have in common.
struct Job<'a> {
    cols: usize,
    scheme: &'a Scheme,
    fit: &'a Fit,
    importance: Option<&'a [f32]>,
    /// The one grid of a whole tensor.
    whole: Option<Grid>,
}

impl Job<'_> {
    fn overflow(&self, row: usize, scale: f32) -> Error {
        Error::ScaleOverflow { row, scale, scales: self.scheme.scales }
    }

    fn run(&self, values: &[f32], encoded: &mut EncodedInt, zeros: &mut [i8]) -> Result<()> {
        if values.is_empty() {
            return Ok(());
        }
        let rows = encoded.codes.par_chunks_mut(encoded.row_bytes).zip(values.par_chunks(self.cols));
        // Small rows travel together: a task has at least some ten thousand values.
        let together = (1 << 14) / self.cols + 1;
        let buffer = || vec![0u8; self.cols];
        if let Some(grid) = self.whole {
            (encoded.scales[0], zeros[0]) = (grid.scale, grid.zero as i8);
            rows.with_min_len(together).for_each_init(buffer, |codes, (packed, x)| {
                quantize(x, grid, self.fit.codes(self.scheme.bits), self.scheme.bits, codes);
                pack::pack(codes, self.scheme.bits, packed);
            });
            return Ok(());
        }
        let groups = self.cols.div_ceil(self.scheme.granularity.span(self.cols));
        let failed = rows
            .zip(encoded.scales.par_chunks_mut(groups).zip(zeros.par_chunks_mut(groups)))
            .enumerate()
            .with_min_len(together)
            .map_init(buffer, |codes, (row, ((packed, x), (scales, zeros)))| {
                let done = self.row(x, scales, zeros, codes);
                pack::pack(codes, self.scheme.bits, packed);
                done.err().map(|scale| (row, scale))
            })
            .flatten()
            .min_by_key(|(row, _)| *row);
        failed.map_or(Ok(()), |(row, scale)| Err(self.overflow(row, scale)))
    }

    /// One row; the error is a scale that does not fit.
    fn row(&self, x: &[f32], scales: &mut [f32], zeros: &mut [i8], codes: &mut [u8]) -> Result<(), f32> {
        let span = self.scheme.granularity.span(self.cols);
        let (range, bits) = (self.fit.codes(self.scheme.bits), self.scheme.bits);
        let groups = x.chunks(span).zip(codes.chunks_mut(span)).enumerate();
        for (g, (x, codes)) in groups {
            let weights = self.importance.map(|w| &w[g * span..g * span + x.len()]);
            let grid = self.fit.grid(Sample::weighted(x, weights), self.scheme)?;
            (scales[g], zeros[g]) = (grid.scale, grid.zero as i8);
            quantize(x, grid, range, bits, codes);
        }
        Ok(())
    }
}

/// The codes (plus 2^(b−1)) of values on a grid, within `range`; `codes` is as long as `x`.
///
/// The zero point is added before rounding, as compressed-tensors does, so that ties fall alike.
pub fn quantize(x: &[f32], grid: Grid, range: (i32, i32), bits: Bits, codes: &mut [u8]) {
    let (low, high) = (range.0 as f32, range.1 as f32);
    let (zero, offset) = (grid.zero as f32, (-bits.lowest()) as u8);
    for (code, x) in codes.iter_mut().zip(x) {
        let v = x / grid.scale + zero;
        let v = if v > low { v } else { low };
        let v = if v < high { v } else { high };
        *code = ((v + ROUND).to_bits() as u8).wrapping_add(offset);
    }
}

/// How the bytes of a row say codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Packed densely, offset by 2^(b−1).
    Packed(Bits),
    /// One signed byte each.
    Signed,
}

/// Decodes one row of codes without their scales: `out[i] = q_i`, exactly.
///
/// `row` holds the codes of `out.len()` columns.
pub fn decode_codes(row: &[u8], form: Form, out: &mut [f32]) {
    match form {
        Form::Signed => {
            for (out, &code) in out.iter_mut().zip(row) {
                *out = f32::from(code.cast_signed());
            }
        }
        Form::Packed(bits) => {
            let offset = (-bits.lowest()) as f32;
            pack::unpack(row, bits, out, |code| f32::from(code) - offset);
        }
    }
}

/// Turns codes into values, in place: groups of `span` columns, with the grid that `grid` gives for each.
pub fn scale_codes(out: &mut [f32], span: usize, grid: impl Fn(usize) -> Grid) {
    for (g, group) in out.chunks_mut(span).enumerate() {
        let Grid { scale, zero } = grid(g);
        let zero = zero as f32;
        for value in group {
            *value = (*value - zero) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::ScaleType;

    #[test]
    fn rounding_is_half_to_even_and_clamped() {
        let grid = Grid { scale: 1.0, zero: 0 };
        let x = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 100.0, -100.0, f32::MAX, f32::MIN, -0.0];
        let mut codes = [0u8; 11];
        quantize(&x, grid, (-8, 7), Bits::FOUR, &mut codes);
        let signed: Vec<i32> = codes.iter().map(|&c| i32::from(c) - 8).collect();
        assert_eq!(signed, [0, 2, 2, 0, -2, -2, 7, -8, 7, -8, 0]);
        quantize(&x, grid, (-127, 127), Bits::EIGHT, &mut codes);
        let signed: Vec<i32> = codes.iter().map(|&c| i32::from(c) - 128).collect();
        assert_eq!(signed, [0, 2, 2, 0, -2, -2, 100, -100, 127, -127, 0]);
    }

    #[test]
    fn an_overflowing_scale_names_the_first_row() {
        let mut values = vec![1.0f32; 64 * 4];
        values[64] = 1e9;
        values[128] = 2e9;
        for fit in [Fit::AbsMax, Fit::MinMax, Fit::default()] {
            let error =
                encode(&values, 64, &Scheme::int4(32).unwrap(), &fit, None, RowAlign::Word).unwrap_err();
            assert!(matches!(error, Error::ScaleOverflow { row: 1, scales: ScaleType::F16, .. }), "{error}");
        }
        let wide = Scheme::int4(32).unwrap().with_scales(ScaleType::BF16);
        assert!(encode(&values, 64, &wide, &Fit::default(), None, RowAlign::Word).is_ok());
    }
}
