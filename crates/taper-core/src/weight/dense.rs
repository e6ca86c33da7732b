//! The product of a plain tensor.
//!
//! ```text
//! CPU, contiguous, f32 | f16 | bf16 on both sides    kernel::dense, which reads the weight where it lies
//! a weight that is trained, other devices or types   candle's product, after converting the weight to the type of x
//! ```
//!
//! Neighbours: [`super::rows`] is the product of encoded weights, [`crate::kernel::dense`] the arithmetic and its precision.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Storage, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use super::rows::{matrix_shape, split_lead};
use crate::{
    Result,
    kernel::{Values, product},
};

/// [`super::Weight::matmul`] of a plain tensor.
pub(super) fn matmul(weight: &Tensor, x: &Tensor) -> Result<Tensor> {
    let (out, inner) = matrix_shape(weight, "the product")?;
    let (lead, tokens) = split_lead(x, inner, weight)?;
    let x = x.reshape((tokens, inner))?;
    let y = if fits(weight) && x.device().is_cpu() && is_multiplied(x.dtype()) {
        x.contiguous()?.apply_op1(DenseProduct { weight: weight.clone(), shape: (tokens, out, inner) })?
    } else {
        let w = weight.reshape((out, inner))?.to_dtype(x.dtype())?;
        x.matmul(&w.t()?)? // (tokens, out)
    };
    Ok(y.reshape([lead, vec![out]].concat())?)
}

/// True where the kernels can read a weight; one that is trained needs candle's gradient.
fn fits(weight: &Tensor) -> bool {
    weight.device().is_cpu() && weight.is_contiguous() && is_multiplied(weight.dtype()) && !weight.track_op()
}

fn is_multiplied(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// The product as a candle op, so that gradients reach the activations.
struct DenseProduct {
    weight: Tensor,
    /// Tokens, rows, columns.
    shape: (usize, usize, usize),
}

/// The contiguous values of a tensor on the CPU.
pub(crate) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<Values<'a>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("taper's kernels need contiguous values")
    };
    match storage {
        CpuStorage::F32(values) => Ok(Values::F32(&values[start..end])),
        CpuStorage::F16(values) => Ok(Values::F16(&values[start..end])),
        CpuStorage::BF16(values) => Ok(Values::BF16(&values[start..end])),
        other => candle_core::bail!("taper's kernels need f32, f16 or bf16, not {:?}", storage_type(other)),
    }
}

fn storage_type(storage: &CpuStorage) -> DType {
    candle_core::backend::BackendStorage::dtype(storage)
}

impl CustomOp1 for DenseProduct {
    fn name(&self) -> &'static str {
        "taper-dense-product"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (held, placed) = self.weight.storage_and_layout();
        let Storage::Cpu(held) = &*held else {
            candle_core::bail!("taper-dense-product needs a weight on the CPU")
        };
        let (w, x) = (values(held, placed)?, values(storage, layout)?);
        let y = product(w, x, self.shape);
        let y = match x {
            Values::F32(_) => CpuStorage::F32(y),
            Values::F16(_) => CpuStorage::F16(y.into_par_iter().map(f16::from_f32).collect()),
            Values::BF16(_) => CpuStorage::BF16(y.into_par_iter().map(bf16::from_f32).collect()),
        };
        let (tokens, out, _) = self.shape;
        Ok((y, Shape::from((tokens, out))))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (_, out, inner) = self.shape;
        let w = self.weight.reshape((out, inner))?.to_dtype(x.dtype())?;
        Ok(Some(grad.matmul(&w)?)) // (tokens, out) · (out, in)
    }
}
