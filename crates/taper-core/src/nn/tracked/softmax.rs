//! Softmax over the last dimension, masked.
//!
//! ```text
//! y = softmax(x + mask)      ∂x = y (g − Σ y g)
//! ```

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{exp::exp, read, rows_per_task, slice};
use crate::weight::rows::dot;

/// softmax(x + mask) over the last dimension of `x` `[.., s, t]`; the mask is `[s, t]`, of numbers ≤ 0.
///
/// # Errors
/// A mask of another shape, and tensors that are not [`super::serves`]d.
pub fn softmax(x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let mask =
        mask.map(|m| Ok::<_, candle_core::Error>((m.dims2()?, m.flatten_all()?.to_vec1()?))).transpose()?;
    let dims = x.dims();
    match &mask {
        Some(((s, t), _)) if !dims.ends_with(&[*s, *t]) => {
            candle_core::bail!("a mask of {s} × {t} for scores of {dims:?}")
        }
        _ => x.apply_op1(Softmax { mask: mask.map(|(_, values)| values) }),
    }
}

struct Softmax {
    mask: Option<Vec<f32>>,
}

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "taper-softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = slice(self.name(), x, layout)?.to_vec();
        let t = layout.dims().last().copied().unwrap_or(1).max(1);
        y.par_chunks_mut(t).enumerate().with_min_len(rows_per_task(t)).for_each(|(row, y)| {
            if let Some(mask) = &self.mask {
                let at = row * t % mask.len();
                y.iter_mut().zip(&mask[at..at + t]).for_each(|(y, m)| *y += m);
            }
            normalise(y);
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let t = y.dims().last().copied().unwrap_or(1).max(1);
        let mut dx = read(grad, <[f32]>::to_vec)?;
        read(y, |y| {
            let rows = dx.par_chunks_mut(t).zip(y.par_chunks(t)).with_min_len(rows_per_task(t));
            rows.for_each(|(g, y)| {
                let mean = dot(g, y);
                g.iter_mut().zip(y).for_each(|(g, y)| *g = y * (*g - mean));
            });
        })?;
        Tensor::from_vec(dx, y.shape(), y.device()).map(Some)
    }
}

/// One row to probabilities, in place; sums in eight fixed lanes.
fn normalise(row: &mut [f32]) {
    let mut most = [f32::NEG_INFINITY; 8];
    let (runs, rest) = row.as_chunks::<8>();
    for run in runs {
        most.iter_mut().zip(run).for_each(|(m, &x)| *m = if x > *m { x } else { *m });
    }
    let most = most.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0f32; 8];
    let (runs, rest) = row.as_chunks_mut::<8>();
    for run in runs {
        for (x, sum) in run.iter_mut().zip(&mut sums) {
            *x = exp(*x - most);
            *sum += *x;
        }
    }
    for (x, sum) in rest.iter_mut().zip(&mut sums) {
        *x = exp(*x - most);
        *sum += *x;
    }
    let inverse = 1.0 / sums.iter().sum::<f32>();
    row.iter_mut().for_each(|x| *x *= inverse);
}
