//! Product, row lookup and dense form of any weight that can decode one row.
//!
//! ```text
//! y[m, o] = Σ_i x[m, i] · row_o[i]          one decoded row lives per thread, never the matrix
//! ```
//!
//! Every output is summed by one thread in one order, so results do not depend on the number of threads.
//! The product carries a gradient to `x` (∂x = ∂y · W); an encoded weight itself is not trainable.

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Shape, Tensor, backend::BackendStorage};
use rayon::prelude::*;

use super::{Weight, last_dim_is};
use crate::{Error, Result, kernel::fresh};

/// A matrix (or anything flattened to one) that decodes row by row.
pub trait Rows: Clone + Send + Sync + 'static {
    /// Rows: the first dimension.
    fn rows(&self) -> usize;

    /// Columns: everything after the first dimension.
    fn cols(&self) -> usize;

    /// Writes row `row` (`cols` values) to `out`.
    fn decode_row(&self, row: usize, out: &mut [f32]);

    /// Writes rows from `first` on to `out`, as many as it holds.
    ///
    /// Override it where several rows share work.
    fn decode_rows(&self, first: usize, out: &mut [f32]) {
        for (i, out) in out.chunks_exact_mut(self.cols().max(1)).enumerate() {
            self.decode_row(first + i, out);
        }
    }

    /// `Σ_i row[i] · x[i]`; `scratch` has `cols` values and may be used freely.
    ///
    /// Override it where the encoding can multiply without decoding (skipping zeros, say).
    fn dot_row(&self, row: usize, x: &[f32], scratch: &mut [f32]) -> f32 {
        self.decode_row(row, scratch);
        dot(scratch, x)
    }

    /// x · Wᵀ: `x` is `[batch, cols]`, the result `[batch, rows]`; the same bits for any number of threads.
    ///
    /// Override it where the encoding has a kernel of its own.
    fn product(&self, x: &[f32], batch: usize) -> Vec<f32> {
        matmul_slice(self, x, batch)
    }
}

/// Dot product in sixteen fixed lanes: one summation order for every machine and thread count, and a shape that
/// compilers vectorise.
#[must_use]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (a16, a_rest) = a.as_chunks::<16>();
    let (b16, b_rest) = b.as_chunks::<16>();
    for (x, y) in a16.iter().zip(b16) {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += x * y;
        }
    }
    for ((lane, x), y) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += x * y;
    }
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0]
}

/// Rows decoded at once when several vectors are multiplied: each vector is then read once for as many rows.
const PANEL: usize = 32;

/// x · Wᵀ by decoding a few rows at a time: `x` is `[batch, cols]`, the result `[batch, rows]`.
#[must_use]
pub fn matmul_slice<R: Rows>(weight: &R, x: &[f32], batch: usize) -> Vec<f32> {
    let (rows, cols) = (weight.rows(), weight.cols());
    if batch == 1 {
        let mut y = vec![0f32; rows];
        let dot = |scratch: &mut Vec<f32>, (row, y): (usize, &mut f32)| *y = weight.dot_row(row, x, scratch);
        y.par_iter_mut().enumerate().for_each_init(|| vec![0f32; cols], dot);
        return y;
    }
    // Computed as [rows, batch] so that each thread writes its own stretch, transposed at the end.
    let mut by_row = vec![0f32; rows * batch];
    let panel = |scratch: &mut Vec<f32>, (index, out): (usize, &mut [f32])| {
        let decoded = scratch.chunks_exact_mut(cols.max(1));
        for (row, decoded) in (index * PANEL..rows).zip(decoded) {
            weight.decode_row(row, decoded);
        }
        for (m, x) in x.chunks_exact(cols.max(1)).enumerate() {
            for (row, decoded) in out.chunks_exact_mut(batch).zip(scratch.chunks_exact(cols.max(1))) {
                row[m] = dot(decoded, x);
            }
        }
    };
    by_row
        .par_chunks_mut((PANEL * batch).max(1))
        .enumerate()
        .for_each_init(|| vec![0f32; PANEL * cols], panel);
    let mut y = vec![0f32; rows * batch];
    for (row, stretch) in by_row.chunks_exact(batch.max(1)).enumerate() {
        for (m, value) in stretch.iter().enumerate() {
            y[m * rows + row] = *value;
        }
    }
    y
}

/// Values that one task decodes at least.
const STRETCH: usize = 1 << 14;

/// The dense values, row-major.
#[must_use]
pub fn dense_slice<R: Rows>(weight: &R) -> Vec<f32> {
    let cols = weight.cols().max(1);
    let together = STRETCH.div_ceil(cols);
    fresh::filled(weight.rows() * weight.cols(), together * cols, |i, out| {
        weight.decode_rows(i * together, out)
    })
}

/// Writes the dense values, row-major, to memory of the caller's: `rows · cols` values.
///
/// New memory takes the system longer to provide than decoding takes: a caller that decodes again and again keeps the
/// vector of a first [`dense_slice`].
pub fn dense_into<R: Rows>(weight: &R, out: &mut [f32]) {
    let cols = weight.cols().max(1);
    let together = STRETCH.div_ceil(cols);
    out.par_chunks_mut(together * cols)
        .enumerate()
        .for_each(|(i, out)| weight.decode_rows(i * together, out));
}

/// [`Weight::matmul`] of a weight that decodes by rows.
pub fn matmul<R: Rows + Weight>(weight: &R, x: &Tensor) -> Result<Tensor> {
    let (out, inner) = matrix_shape(weight, "the product")?;
    let (lead, batch) = split_lead(x, inner, weight)?;
    let dtype = x.dtype();
    let flat = x.reshape((batch, inner))?.to_dtype(DType::F32)?.contiguous()?;
    let y = if x.device().is_cpu() {
        flat.apply_op1(RowProduct { weight: weight.clone(), batch })?
    } else {
        let w = weight.dense()?.to_device(x.device())?.reshape((out, inner))?;
        flat.matmul(&w.t()?)? // (batch, out)
    };
    Ok(y.to_dtype(dtype)?.reshape([lead, vec![out]].concat())?)
}

/// [`Weight::gather`] of a weight that decodes by rows: only the rows asked for are ever decoded.
pub fn gather<R: Rows + Weight>(weight: &R, ids: &Tensor) -> Result<Tensor> {
    let (out, inner) = matrix_shape(weight, "row lookup")?;
    let list = ids.flatten_all()?.to_dtype(DType::I64)?.to_vec1::<i64>()?;
    let indices: Vec<usize> = list
        .iter()
        .map(|id| {
            usize::try_from(*id).ok().filter(|&i| i < out).ok_or_else(|| {
                Error::bad_option("row id", id, format!("the weight has {out} rows, 0 to {}", out.max(1) - 1))
            })
        })
        .collect::<Result<_>>()?;
    let mut rows = vec![0f32; list.len() * inner];
    let together = STRETCH.div_ceil(inner.max(1));
    rows.par_chunks_exact_mut(inner.max(1))
        .zip(&indices)
        .with_min_len(together)
        .for_each(|(row, &index)| weight.decode_row(index, row));
    Ok(Tensor::from_vec(rows, [ids.dims(), &[inner]].concat(), ids.device())?)
}

/// [`Weight::dense`] of a weight that decodes by rows: f32, of the logical shape.
pub fn dense<R: Rows + Weight>(weight: &R) -> Result<Tensor> {
    Ok(Tensor::from_vec(dense_slice(weight), weight.shape(), &Device::Cpu)?)
}

/// `(out, in)` of a weight that must be a matrix, or a convolution whose dimensions but the first count as one.
pub(crate) fn matrix_shape(weight: &dyn Weight, operation: &'static str) -> Result<(usize, usize)> {
    match weight.shape() {
        &[out, inner] => Ok((out, inner)),
        &[out, inner, height, width] => Ok((out, inner * height * width)),
        shape => Err(Error::Unsupported {
            operation,
            shape: shape.to_vec(),
            format: weight.encoding().format,
            message: "needs a matrix, [out, in], or a convolution, [out, in / groups, kh, kw]".into(),
        }),
    }
}

/// Leading dimensions and their product of an activation `[.., inner]`.
pub(crate) fn split_lead(x: &Tensor, inner: usize, weight: &dyn Weight) -> Result<(Vec<usize>, usize)> {
    if !last_dim_is(x, inner) {
        return Err(Error::Unsupported {
            operation: "the product",
            shape: weight.shape().to_vec(),
            format: weight.encoding().format,
            message: format!("the activations have shape {:?}, expected [.., {inner}]", x.dims()),
        });
    }
    let lead = x.dims()[..x.rank() - 1].to_vec();
    let batch = lead.iter().product();
    Ok((lead, batch))
}

/// The product as a candle op, so that gradients reach the activations.
struct RowProduct<R> {
    weight: R,
    batch: usize,
}

impl<R: Rows + Weight> CustomOp1 for RowProduct<R> {
    fn name(&self) -> &'static str {
        "taper-row-product"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("taper-row-product needs contiguous activations")
        };
        let CpuStorage::F32(values) = storage else {
            candle_core::bail!("taper-row-product needs f32 activations, not {:?}", storage.dtype())
        };
        let y = self.weight.product(&values[start..end], self.batch);
        Ok((CpuStorage::F32(y), Shape::from((self.batch, self.weight.rows()))))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let dense = self.weight.dense().map_err(candle_core::Error::from)?;
        let dense = dense.reshape((self.weight.rows(), self.weight.cols()))?;
        Ok(Some(grad.matmul(&dense)?)) // (batch, out) · (out, in)
    }
}
