//! Root-mean-square normalisation.
//!
//! ```text
//! r = 1 / √(mean(x²) + ε)      y = γ x r
//! ∂x = r γ g − x r³ mean(γ g x)      ∂γ = Σ_rows g x r
//! ```

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{read, rows_per_task, slice};
use crate::weight::rows::dot;

/// γ x / √(mean(x²) + ε) over the last dimension; γ is `[size]`, both [`super::serves`].
///
/// # Errors
/// A γ of another size, and tensors that it does not serve.
pub fn rms_norm(x: &Tensor, gamma: &Tensor, eps: f32) -> Result<Tensor> {
    x.apply_op2(gamma, RmsNorm { eps })
}

struct RmsNorm {
    eps: f32,
}

impl RmsNorm {
    fn inverse_root(&self, x: &[f32]) -> f32 {
        1.0 / (dot(x, x) / x.len() as f32 + self.eps).sqrt()
    }

    fn input_gradient(&self, x: &[f32], gamma: &[f32], g: &[f32]) -> Vec<f32> {
        let n = gamma.len();
        let mut dx = vec![0f32; x.len()];
        let rows = dx.par_chunks_mut(n).zip(x.par_chunks(n).zip(g.par_chunks(n)));
        rows.with_min_len(rows_per_task(n)).for_each(|(dx, (x, g))| {
            let r = self.inverse_root(x);
            dx.iter_mut().zip(gamma.iter().zip(g)).for_each(|(dx, (gamma, g))| *dx = gamma * g);
            let c = r * r * r * dot(dx, x) / n as f32;
            dx.iter_mut().zip(x).for_each(|(dx, x)| *dx = r * *dx - c * x);
        });
        dx
    }

    fn weight_gradient(&self, x: &[f32], n: usize, g: &[f32]) -> Vec<f32> {
        let some = n * rows_per_task(n); // the same chunks for any number of threads
        let parts: Vec<Vec<f32>> = x
            .par_chunks(some)
            .zip(g.par_chunks(some))
            .map(|(x, g)| {
                let mut sum = vec![0f32; n];
                for (x, g) in x.chunks(n).zip(g.chunks(n)) {
                    let r = self.inverse_root(x);
                    sum.iter_mut().zip(x.iter().zip(g)).for_each(|(sum, (x, g))| *sum += g * x * r);
                }
                sum
            })
            .collect();
        let mut total = vec![0f32; n];
        for part in parts {
            total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
        }
        total
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "taper-rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        gamma: &CpuStorage,
        gamma_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, gamma) = (slice(self.name(), x, layout)?, slice(self.name(), gamma, gamma_layout)?);
        let n = gamma.len();
        if n == 0 || layout.dims().last() != Some(&n) {
            candle_core::bail!("a norm of {n} values for a tensor of {:?}", layout.shape())
        }
        let mut y = vec![0f32; x.len()];
        let rows = y.par_chunks_mut(n).zip(x.par_chunks(n)).with_min_len(rows_per_task(n));
        rows.for_each(|(y, x)| {
            let r = self.inverse_root(x);
            y.iter_mut().zip(x.iter().zip(gamma)).for_each(|(y, (x, gamma))| *y = x * r * gamma);
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let both = |x: &[f32], gamma_values: &[f32], g: &[f32]| {
            let dx = self.input_gradient(x, gamma_values, g);
            // The common case is a norm that stays as it is.
            let dgamma = gamma.track_op().then(|| self.weight_gradient(x, gamma_values.len(), g));
            (dx, dgamma)
        };
        let (dx, dgamma) = read(x, |x| read(gamma, |n| read(grad, |g| both(x, n, g))))???;
        let dgamma = dgamma.map(|d| Tensor::from_vec(d, gamma.shape(), x.device())).transpose()?;
        Ok((Some(Tensor::from_vec(dx, x.shape(), x.device())?), dgamma))
    }
}
