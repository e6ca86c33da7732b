//! The stored forms of an integer weight: which arrays there are, of which types and shapes.
//!
//! | layout | codec | codes | scales | zero points |
//! |---|---|---|---|---|
//! | [`IntLayout::PackQuantized`] | `pack-quantized` | I32 \[out, ⌈in·b/32⌉\] | \[out, groups\] | I32, packed along out |
//! | [`IntLayout::IntQuantized`] | `int-quantized` | I8 \[out, in\] | \[out, groups\] | I8 \[out, groups\] |
//! | [`IntLayout::BitsAndBytes`] | `bitsandbytes-int8` | I8 \[out, in\] | F32 \[out\], times 127 | none |
//! | [`IntLayout::Taper`] | `taper-int` | U8 \[out, ⌈rest·b/8⌉\] | \[out, groups\] | I8 \[out, groups\] |
//!
//! One function, [`IntLayout::arrays`], serves sizes, predictions and files; that is why they agree.

use safetensors::Dtype;
use std::collections::BTreeMap;

use crate::{
    code::int::Form,
    pack::{self, RowAlign},
    scales::dtype,
    scheme::{Activations, Bits, Granularity, ScaleType, Scheme},
};

/// Role of the codes.
pub const CODES: &str = "codes";
/// Role of the scales.
pub const SCALE: &str = "scale";
/// Role of the zero points.
pub const ZERO: &str = "zero";
/// Role of the array that states the logical shape.
pub const SHAPE: &str = "shape";
/// Role of the group of each column, where columns were reordered.
pub const GROUP_INDEX: &str = "group-index";
/// Role of the scale by which inputs are rounded, where that is static.
pub const INPUT: &str = "input-scale";
/// Role of bitsandbytes' storage order, always 0: row-major.
pub const ORDER: &str = "order";

/// How a file stores an integer weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IntLayout {
    /// compressed-tensors, codes packed into 32-bit words.
    PackQuantized,
    /// compressed-tensors, one byte per code.
    IntQuantized,
    /// bitsandbytes: eight bits, one scale per row.
    BitsAndBytes,
    /// Taper's own, for what no standard holds: short last groups, convolutions.
    Taper,
}

/// Arrays by role: type and shape.
pub type Arrays = BTreeMap<String, (Dtype, Vec<usize>)>;

impl IntLayout {
    /// The id of the codec that reads and writes it.
    #[must_use]
    pub const fn codec(self) -> &'static str {
        match self {
            Self::PackQuantized => "pack-quantized",
            Self::IntQuantized => "int-quantized",
            Self::BitsAndBytes => "bitsandbytes-int8",
            Self::Taper => "taper-int",
        }
    }

    /// True where the standard can hold a weight of this shape, scheme and name.
    ///
    /// All standards want a matrix whose name ends in `.weight` and groups that divide its columns; one byte per code is
    /// for eight bits, and bitsandbytes knows symmetric rows only.
    #[must_use]
    pub fn holds(self, name: &str, shape: &[usize], scheme: &Scheme) -> bool {
        let matrix = matches!(shape, [_, cols] if scheme.granularity.divides(*cols));
        let standard = matrix && name.ends_with(".weight");
        match self {
            Self::Taper => true,
            Self::PackQuantized => standard,
            Self::IntQuantized => standard && scheme.bits == Bits::EIGHT,
            Self::BitsAndBytes => {
                let rows = scheme.granularity == Granularity::Channel && scheme.is_symmetric();
                let rows = rows && scheme.activations == Activations::Float;
                standard && rows && scheme.bits == Bits::EIGHT && scheme.scales == ScaleType::F32
            }
        }
    }

    /// How the bytes of a row say codes.
    #[must_use]
    pub fn form(self, bits: Bits) -> Form {
        match self {
            Self::PackQuantized | Self::Taper => Form::Packed(bits),
            Self::IntQuantized | Self::BitsAndBytes => Form::Signed,
        }
    }

    /// To what rows are padded.
    #[must_use]
    pub fn align(self) -> RowAlign {
        match self {
            Self::PackQuantized => RowAlign::Word,
            _ => RowAlign::Byte,
        }
    }

    /// Every array of a weight `[rows, cols]` (a convolution flattened); `None` where a size overflows.
    #[must_use]
    pub fn arrays(self, rows: usize, cols: usize, scheme: &Scheme, reordered: bool) -> Option<Arrays> {
        let scale_shape = scheme.granularity.scale_shape(rows, cols);
        let codes = match self {
            Self::PackQuantized => (Dtype::I32, vec![rows, pack::dense_words(cols, scheme.bits)?]),
            Self::Taper => (Dtype::U8, vec![rows, self.align().row_bytes(cols, scheme.bits)?]),
            Self::IntQuantized | Self::BitsAndBytes => (Dtype::I8, vec![rows, cols]),
        };
        let scale_type = dtype(scheme.scales);
        let mut arrays = Arrays::from([(CODES.to_owned(), codes)]);
        if self == Self::BitsAndBytes {
            arrays.insert(SCALE.to_owned(), (scale_type, vec![rows]));
            arrays.insert(ORDER.to_owned(), (Dtype::U8, vec![]));
            return Some(arrays);
        }
        if !scheme.is_symmetric() {
            let zero = match (self, scheme.granularity) {
                (Self::PackQuantized, Granularity::Channel | Granularity::Group(_)) => {
                    (Dtype::I32, vec![pack::dense_words(rows, scheme.bits)?, scale_shape[1]])
                }
                _ => (Dtype::I8, scale_shape.clone()),
            };
            arrays.insert(ZERO.to_owned(), zero);
        }
        if scheme.activations == Activations::Static {
            arrays.insert(INPUT.to_owned(), (Dtype::F32, vec![1]));
        }
        arrays.insert(SCALE.to_owned(), (scale_type, scale_shape));
        if self == Self::PackQuantized {
            arrays.insert(SHAPE.to_owned(), (Dtype::I64, vec![2]));
            if reordered {
                arrays.insert(GROUP_INDEX.to_owned(), (Dtype::I32, vec![cols]));
            }
        }
        Some(arrays)
    }
}

/// Bytes of all arrays.
#[must_use]
pub fn nbytes(arrays: &Arrays) -> usize {
    arrays.values().map(|(dtype, shape)| shape.iter().product::<usize>() * dtype.bitsize() / 8).sum()
}
