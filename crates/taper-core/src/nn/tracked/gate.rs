//! The gate of a feed-forward block.
//!
//! ```text
//! y = x σ(x) u      ∂y/∂x = u σ(x) (1 + x (1 − σ(x)))      ∂y/∂u = x σ(x)
//! ```

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{TASK, exp::sigmoid, read, slice};

/// x σ(x) ⊙ u, element by element; both of one shape, and [`super::serves`] both.
///
/// # Errors
/// Shapes that differ, and tensors that it does not serve.
pub fn silu_gate(x: &Tensor, u: &Tensor) -> Result<Tensor> {
    x.apply_op2(u, SiluGate)
}

struct SiluGate;

impl CustomOp2 for SiluGate {
    fn name(&self) -> &'static str {
        "taper-silu-gate"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        u: &CpuStorage,
        u_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        if x_layout.shape() != u_layout.shape() {
            candle_core::bail!("a gate of {:?} for values of {:?}", x_layout.shape(), u_layout.shape())
        }
        let (x, u) = (slice(self.name(), x, x_layout)?, slice(self.name(), u, u_layout)?);
        let mut y = vec![0f32; x.len()];
        let runs = y.par_chunks_mut(TASK).zip(x.par_chunks(TASK).zip(u.par_chunks(TASK)));
        runs.for_each(|(y, (x, u))| {
            y.iter_mut().zip(x.iter().zip(u)).for_each(|(y, (&x, &u))| *y = x * sigmoid(x) * u);
        });
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        u: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, du) = read(x, |x| read(u, |u| read(grad, |g| gradients(x, u, g))))???;
        let tensor = |values| Tensor::from_vec(values, x.shape(), x.device()).map(Some);
        Ok((tensor(dx)?, tensor(du)?))
    }
}

fn gradients(x: &[f32], u: &[f32], g: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut dx, mut du) = (vec![0f32; x.len()], vec![0f32; x.len()]);
    let outputs = dx.par_chunks_mut(TASK).zip(du.par_chunks_mut(TASK));
    let inputs = x.par_chunks(TASK).zip(u.par_chunks(TASK)).zip(g.par_chunks(TASK));
    outputs.zip(inputs).for_each(|((dx, du), ((x, u), g))| {
        for i in 0..dx.len() {
            let s = sigmoid(x[i]);
            dx[i] = g[i] * u[i] * s * (1.0 + x[i] * (1.0 - s));
            du[i] = g[i] * x[i] * s;
        }
    });
    (dx, du)
}
