//! The number type that losses are computed in: f64 stays f64, everything narrower becomes f32.
//!
//! A softmax over 150 000 classes in bf16 has no correct digit left; the cast is differentiable, so the
//! student's gradient comes back in the student's own type.

use crate::{Error, Result};
use candle_core::{DType, Tensor};

/// The type a loss over `tensor` is computed in: F64 for F64, F32 for F32, F16 and BF16.
pub(crate) fn working_dtype(what: &'static str, tensor: &Tensor) -> Result<DType> {
    match tensor.dtype() {
        DType::F64 => Ok(DType::F64),
        DType::F32 | DType::F16 | DType::BF16 => Ok(DType::F32),
        dtype => Err(Error::DType { what, dtype, expected: "f64, f32, f16 or bf16" }),
    }
}

/// `tensor` in the type that losses over it are computed in, with its gradient connected.
pub(crate) fn widen(what: &'static str, tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.to_dtype(working_dtype(what, tensor)?)?)
}
