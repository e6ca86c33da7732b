//! The second entrance: quantization of plain slices, for engines with a tensor type of their own.
//!
//! No candle type appears here. Encode with [`encode`] or [`encode_nf4`] (halves with
//! [`encode_values`]), decode rows with [`decode_row`] and
//! [`decode_nf4`], pack codes with [`pack`] and [`unpack`].
//!
//! ```
//! use taper_quant::slice::{self, Fit, RowAlign, Scheme};
//!
//! let weights: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
//! let scheme = Scheme::int4(16)?;
//! let encoded = slice::encode(&weights, 32, &scheme, &Fit::default(), None, RowAlign::Word)?;
//! let mut row = [0f32; 32];
//! slice::decode_row(&encoded, &scheme, 1, &mut row);
//! assert!(row.iter().zip(&weights[32..]).all(|(a, b)| (a - b).abs() < 0.1));
//! # Ok::<(), taper_quant::Error>(())
//! ```

pub use crate::{
    code::{
        int::{EncodedInt, encode, encode_values, quantize},
        nf4::{
            EncodedNf4, Nf4Scheme, TABLE as NF4_TABLE, decode as decode_nf4, encode as encode_nf4,
            encode_values as encode_nf4_values,
        },
    },
    fit::{Fit, Grid, Sample, ScaleSign, Search},
    pack::{RowAlign, pack, unpack, unpack_words_old},
    scheme::{Bits, Granularity, ScaleType, Scheme, Symmetry},
    values::Values,
};

use crate::code::int::{Form, decode_codes, scale_codes};

/// Decodes row `row` of an encoded matrix into `out`, which has as many values as the matrix has columns.
pub fn decode_row(encoded: &EncodedInt, scheme: &Scheme, row: usize, out: &mut [f32]) {
    let start = row * encoded.row_bytes;
    let codes = encoded.codes.get(start..start + encoded.row_bytes).unwrap_or_default();
    decode_codes(codes, Form::Packed(scheme.bits), out);
    let groups = out.len().div_ceil(scheme.granularity.span(out.len()));
    scale_codes(out, scheme.granularity.span(out.len()), |group| {
        let index = match scheme.granularity {
            Granularity::Tensor => 0,
            Granularity::Channel => row,
            Granularity::Group(_) => row * groups + group,
        };
        let zero = encoded.zeros.as_ref().and_then(|z| z.get(index)).map_or(0, |&z| i32::from(z));
        Grid { scale: encoded.scales.get(index).copied().unwrap_or(0.0), zero }
    });
}
