//! Scales in the type that a file stores them in.
//!
//! Kept as they are stored, so that saving a weight that was read gives the same bytes, and so that memory counts
//! what the file counts.

use half::{bf16, f16};
use safetensors::Dtype;
use taper_core::Part;

use crate::scheme::ScaleType;

/// Scales of one type, row-major in their own shape.
#[derive(Debug, Clone, PartialEq)]
pub enum Scales {
    /// Half precision.
    F16(Vec<f16>),
    /// bfloat16.
    BF16(Vec<bf16>),
    /// Single precision.
    F32(Vec<f32>),
}

impl Scales {
    /// Rounds scales to their stored type.
    #[must_use]
    pub fn new(scales: &[f32], stored: ScaleType) -> Self {
        match stored {
            ScaleType::F16 => Self::F16(scales.iter().map(|&s| f16::from_f32(s)).collect()),
            ScaleType::BF16 => Self::BF16(scales.iter().map(|&s| bf16::from_f32(s)).collect()),
            ScaleType::F32 => Self::F32(scales.to_vec()),
        }
    }

    /// The scales of an array; `None` where its type is none of f16, bf16 and f32.
    #[must_use]
    pub fn from_part(part: &Part) -> Option<Self> {
        match part.dtype {
            Dtype::F16 => Some(Self::F16(part.values())),
            Dtype::BF16 => Some(Self::BF16(part.values())),
            Dtype::F32 => Some(Self::F32(part.values())),
            _ => None,
        }
    }

    /// The array of these scales.
    #[must_use]
    pub fn to_part(&self, shape: Vec<usize>) -> Part {
        let dtype = dtype(self.stored());
        match self {
            Self::F16(s) => Part::from_values(dtype, shape, s),
            Self::BF16(s) => Part::from_values(dtype, shape, s),
            Self::F32(s) => Part::from_values(dtype, shape, s),
        }
    }

    /// The scale at an index; 0 beyond the last.
    #[inline]
    #[must_use]
    pub fn get(&self, index: usize) -> f32 {
        match self {
            Self::F16(s) => s.get(index).map_or(0.0, |s| s.to_f32()),
            Self::BF16(s) => s.get(index).map_or(0.0, |s| s.to_f32()),
            Self::F32(s) => s.get(index).copied().unwrap_or(0.0),
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F16(s) => s.len(),
            Self::BF16(s) => s.len(),
            Self::F32(s) => s.len(),
        }
    }

    /// True where there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The type that they are stored in.
    #[must_use]
    pub fn stored(&self) -> ScaleType {
        match self {
            Self::F16(_) => ScaleType::F16,
            Self::BF16(_) => ScaleType::BF16,
            Self::F32(_) => ScaleType::F32,
        }
    }

    /// True where every scale is a finite number.
    #[must_use]
    pub fn all_finite(&self) -> bool {
        (0..self.len()).all(|i| self.get(i).is_finite())
    }
}

/// The file's name for a scale type.
#[must_use]
pub fn dtype(scales: ScaleType) -> Dtype {
    match scales {
        ScaleType::F16 => Dtype::F16,
        ScaleType::BF16 => Dtype::BF16,
        ScaleType::F32 => Dtype::F32,
    }
}
