//! Rotary positions.
//!
//! ```text
//! y_i = x_i c − x_{i+h} s      y_{i+h} = x_{i+h} c + x_i s      h = d/2; c, s of the position and i
//! ```
//!
//! The gradient is the rotation back: the same with −s.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{rows_per_task, slice};

/// Turns `x` `[.., positions, d]` by angles whose cosines and sines are `[positions, d / 2]`.
///
/// # Errors
/// Tables of another shape, and tensors that are not [`super::serves`]d.
pub fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    x.apply_op3(cos, sin, Rotate { back: false })
}

struct Rotate {
    back: bool,
}

impl CustomOp3 for Rotate {
    fn name(&self) -> &'static str {
        "taper-rotate"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        cos: &CpuStorage,
        cos_layout: &Layout,
        sin: &CpuStorage,
        sin_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = slice(self.name(), x, layout)?;
        let (cos, sin) = (slice(self.name(), cos, cos_layout)?, slice(self.name(), sin, sin_layout)?);
        let (positions, half) = cos_layout.shape().dims2()?;
        let d = 2 * half;
        if half == 0 || !layout.dims().ends_with(&[positions, d]) || sin.len() != cos.len() {
            candle_core::bail!("angles of {:?} for heads of {:?}", cos_layout.shape(), layout.shape())
        }
        let mut y = vec![0f32; x.len()];
        let rows = y.par_chunks_mut(d).zip(x.par_chunks(d)).enumerate().with_min_len(rows_per_task(d));
        rows.for_each(|(row, (y, x))| {
            let at = row % positions * half;
            let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
            let ((y0, y1), (x0, x1)) = (y.split_at_mut(half), x.split_at(half));
            for i in 0..half {
                let s = if self.back { -sin[i] } else { sin[i] };
                y0[i] = x0[i] * cos[i] - x1[i] * s;
                y1[i] = x1[i] * cos[i] + x0[i] * s;
            }
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let back = Rotate { back: !self.back };
        let dx = grad.contiguous()?.apply_op3_no_bwd(&cos.detach(), &sin.detach(), &back)?;
        Ok((Some(dx), None, None))
    }
}
