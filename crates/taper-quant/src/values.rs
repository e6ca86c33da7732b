//! Values to encode, in the type that a checkpoint has them in.
//!
//! ```text
//! f32 | f16 | bf16  ──▶  f32, a few rows at a time          a weight is never widened as a whole
//! ```
//!
//! Neighbours: [`crate::code`] encodes them; [`with_tensor`] looks into a candle tensor without copying it.

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use std::{borrow::Cow, ops::Range};

use crate::{Error, Result, code::STRETCH, kernel::encode::Encoders};

/// Values to encode, in the type that a checkpoint has them in.
///
/// Halves are widened a few rows at a time, never as a whole.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half precision.
    F16(&'a [f16]),
    /// bfloat16.
    BF16(&'a [bf16]),
}

impl<'a> Values<'a> {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::F16(x) => x.len(),
            Self::BF16(x) => x.len(),
        }
    }

    /// True where there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of them, cut to what there is.
    pub(crate) fn part(&self, range: Range<usize>) -> Self {
        let range = range.start.min(self.len())..range.end.min(self.len());
        match self {
            Self::F32(x) => Self::F32(&x[range]),
            Self::F16(x) => Self::F16(&x[range]),
            Self::BF16(x) => Self::BF16(&x[range]),
        }
    }

    /// As f32; halves go through `wide`.
    pub(crate) fn widened<'b>(&self, encoders: &Encoders, wide: &'b mut Vec<f32>) -> &'b [f32]
    where
        'a: 'b,
    {
        if let Self::F32(x) = *self {
            return x;
        }
        wide.resize(self.len(), 0.0);
        match self {
            Self::F32(_) => {}
            Self::F16(x) => (encoders.widen_f16)(x, wide),
            Self::BF16(x) => (encoders.widen_bf16)(x, wide),
        }
        wide
    }

    /// All of them as f32: for what has to see a whole weight at once.
    pub(crate) fn all(&self, encoders: &Encoders) -> Cow<'a, [f32]> {
        if let Self::F32(x) = *self {
            return Cow::Borrowed(x);
        }
        let mut wide = Vec::new();
        self.widened(encoders, &mut wide);
        Cow::Owned(wide)
    }

    /// Refuses values that are NaN or infinite, saying how many and where the first is.
    pub(crate) fn check_finite(&self) -> Result<()> {
        let bad: Vec<(usize, usize)> = (0..self.len().div_ceil(STRETCH))
            .into_par_iter()
            .filter_map(|i| {
                let part = self.part(i * STRETCH..(i + 1) * STRETCH).all(Encoders::active());
                let first = part.iter().position(|x| !x.is_finite())?;
                Some((i * STRETCH + first, part.iter().filter(|x| !x.is_finite()).count()))
            })
            .collect();
        match bad.first() {
            None => Ok(()),
            Some(&(first, _)) => {
                Err(Error::NotFinite { count: bad.iter().map(|(_, count)| count).sum(), first })
            }
        }
    }
}

/// Works on the values of a tensor, row-major, where they are.
///
/// Only a tensor that is no plain run of numbers in memory (transposed, or on another device) is copied first, in its own
/// type.
///
/// # Errors
/// What candle reports, and [`taper_core::Error::Unsupported`] where the numbers are not f32, f16 or bf16.
pub fn with_tensor<T>(tensor: &Tensor, work: impl FnOnce(Values<'_>) -> T) -> taper_core::Result<T> {
    let tensor = match tensor.device() {
        Device::Cpu => tensor.contiguous()?,
        _ => tensor.to_device(&Device::Cpu)?.contiguous()?,
    };
    let (storage, layout) = tensor.storage_and_layout();
    let (start, end) = layout.contiguous_offsets().unwrap_or((0, 0));
    match &*storage {
        Storage::Cpu(CpuStorage::F32(x)) => Ok(work(Values::F32(&x[start..end]))),
        Storage::Cpu(CpuStorage::F16(x)) => Ok(work(Values::F16(&x[start..end]))),
        Storage::Cpu(CpuStorage::BF16(x)) => Ok(work(Values::BF16(&x[start..end]))),
        _ => Err(taper_core::Error::Unsupported {
            operation: "reading the values",
            shape: tensor.dims().to_vec(),
            format: DType::as_str(&tensor.dtype()).to_owned(),
            message: "passes work on f32, f16 and bf16 weights".into(),
        }),
    }
}
