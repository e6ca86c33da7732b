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
//! Neighbours: `rows.rs` drives the encoder over rows, [`crate::fit`] finds the grids, [`crate::pack`] owns the bit
//! layout.

use std::mem::MaybeUninit;

pub use super::rows::Form;
use super::rows::{Filled, Job, Keep};
use crate::{
    Result,
    fit::{Fit, Grid, ROUND},
    kernel::encode::Encoders,
    pack::{self, RowAlign},
    scheme::{Bits, Scheme},
    values::Values,
};

/// A matrix of packed integer codes with its scales.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedInt {
    /// Packed codes, `rows · row_bytes`.
    pub codes: Vec<u8>,
    /// Bytes per packed row.
    pub row_bytes: usize,
    /// Scales in the order of [`crate::Granularity::scale_shape`], each exactly representable in the scheme's scale type.
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
    encode_values(Values::F32(values), cols, scheme, fit, importance, align)
}

/// As [`encode`], from values of any type.
///
/// # Errors
/// As [`encode`].
pub fn encode_values(
    values: Values<'_>,
    cols: usize,
    scheme: &Scheme,
    fit: &Fit,
    importance: Option<&[f32]>,
    align: RowAlign,
) -> Result<EncodedInt> {
    let encoders = Encoders::active();
    let job = Job { encoders, cols, scheme, fit, form: Form::Packed(scheme.bits), align, keep: Keep::Scale };
    let Filled { codes, row_bytes, scales, zeros } =
        job.run::<Box<[MaybeUninit<u8>]>, f32>(values, importance)?;
    Ok(EncodedInt { codes, row_bytes, scales, zeros })
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
    use crate::{Error, scheme::ScaleType};

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
        for fit in [Fit::AbsMax, Fit::MinMax, Fit::default(), Fit::Hqq(crate::Hqq::default())] {
            let error =
                encode(&values, 64, &Scheme::int4(32).unwrap(), &fit, None, RowAlign::Word).unwrap_err();
            assert!(matches!(error, Error::ScaleOverflow { row: 1, scales: ScaleType::F16, .. }), "{error}");
        }
        let wide = Scheme::int4(32).unwrap().with_scales(ScaleType::BF16);
        assert!(encode(&values, 64, &wide, &Fit::default(), None, RowAlign::Word).is_ok());
    }
}
