//! Normalisations.
//!
//! ```text
//! RMS    y = γ x / sqrt(mean(x²) + ε)
//! layer  y = γ (x − mean) / sqrt(var + ε) + β
//! batch  y = γ (x − μ) / sqrt(σ² + ε) + β      running statistics, per channel
//! ```
//!
//! Where no gradient is tracked and values are f32 in memory, a row is normalised in one go, summed in fixed lanes. candle's
//! fused RMS and layer norms end gradients without a word; they too are used only where none is tracked.

use candle_core::{CpuStorage, D, DType, Storage, Tensor};
use rayon::prelude::*;

use crate::{
    Result, WeightBuilder,
    weight::{last_dim_is, rows::dot},
};

/// Root-mean-square normalisation over the last dimension.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// A norm from γ `[size]`.
    #[must_use]
    pub fn new(weight: Tensor, eps: f64) -> Self {
        Self { weight, eps }
    }

    /// γ.
    #[must_use]
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// ε.
    #[must_use]
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// Normalises the last dimension.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let tracked = x.track_op() || self.weight.track_op();
        if !tracked && x.is_contiguous() && x.dtype() != DType::F64 {
            let eps = self.eps as f32;
            return match by_rows(x, &self.weight, None, eps, rms) {
                Some(y) => y,
                None => Ok(candle_nn::ops::rms_norm(x, &self.weight, eps)?),
            };
        }
        if super::tracked::serves(x) && super::tracked::serves(&self.weight) {
            return Ok(super::tracked::rms_norm(x, &self.weight, self.eps as f32)?);
        }
        let wide = widened(x)?;
        let mean = wide.sqr()?.mean_keepdim(D::Minus1)?;
        let y = wide.broadcast_div(&(mean + self.eps)?.sqrt()?)?;
        Ok(y.to_dtype(x.dtype())?.broadcast_mul(&self.weight)?)
    }
}

/// γ of `size` values, named `weight`.
pub fn rms_norm(size: usize, eps: f64, weights: &WeightBuilder) -> Result<RmsNorm> {
    Ok(RmsNorm::new(weights.tensor(&[size], "weight")?, eps))
}

/// Layer normalisation over the last dimension.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Option<Tensor>,
    eps: f64,
}

impl LayerNorm {
    /// A norm from γ `[size]` and β `[size]`.
    #[must_use]
    pub fn new(weight: Tensor, bias: Option<Tensor>, eps: f64) -> Self {
        Self { weight, bias, eps }
    }

    /// Normalises the last dimension.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if let Some(bias) = &self.bias {
            let tracked = x.track_op() || self.weight.track_op() || bias.track_op();
            if !tracked && x.is_contiguous() && x.dtype() != DType::F64 {
                let eps = self.eps as f32;
                return match by_rows(x, &self.weight, Some(bias), eps, layer) {
                    Some(y) => y,
                    None => Ok(candle_nn::ops::layer_norm(x, &self.weight, bias, eps)?),
                };
            }
        }
        let wide = widened(x)?;
        let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let y = centred.broadcast_div(&(variance + self.eps)?.sqrt()?)?;
        let y = y.to_dtype(x.dtype())?.broadcast_mul(&self.weight)?;
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }
}

/// γ and β of `size` values, named `weight` and `bias` (or `gamma` and `beta` in older files).
pub fn layer_norm(size: usize, eps: f64, weights: &WeightBuilder) -> Result<LayerNorm> {
    let named = |new: &str, old: &str| {
        let name = if !weights.contains(new) && weights.contains(old) { old } else { new };
        weights.tensor(&[size], name)
    };
    let bias = if weights.contains("bias") || weights.contains("beta") {
        Some(named("bias", "beta")?)
    } else {
        None
    };
    Ok(LayerNorm::new(named("weight", "gamma")?, bias, eps))
}

/// Batch normalisation with running statistics, over channels (dimension 1).
#[derive(Debug, Clone)]
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: f64,
}

impl BatchNorm {
    /// Normalises `[batch, channels, ..]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut shape = vec![1; x.rank()];
        shape[1] = self.weight.elem_count();
        let scale = self.weight.div(&(&self.variance + self.eps)?.sqrt()?)?;
        let shift = (&self.bias - (&self.mean * &scale)?)?;
        Ok(x.broadcast_mul(&scale.reshape(shape.as_slice())?)?.broadcast_add(&shift.reshape(shape)?)?)
    }
}

/// γ, β and running statistics of `channels` values, named as in PyTorch.
pub fn batch_norm(channels: usize, eps: f64, weights: &WeightBuilder) -> Result<BatchNorm> {
    let get = |name| weights.tensor(&[channels], name);
    Ok(BatchNorm {
        weight: get("weight")?,
        bias: get("bias")?,
        mean: get("running_mean")?,
        variance: get("running_var")?,
        eps,
    })
}

/// Values per task.
const STRETCH: usize = 1 << 14;

/// One row: its values, γ, β (empty where there is none) and ε to the result.
type Row = fn(&[f32], &[f32], &[f32], f32, &mut [f32]);

/// Normalises row by row; `None` where something is not f32 in memory, in order, or sizes differ.
fn by_rows(x: &Tensor, gamma: &Tensor, beta: Option<&Tensor>, eps: f32, row: Row) -> Option<Result<Tensor>> {
    let size = gamma.elem_count();
    if size == 0 || !last_dim_is(x, size) || beta.is_some_and(|beta| beta.elem_count() != size) {
        return None;
    }
    let work = |x: &[f32], gamma: &[f32], beta: &[f32]| {
        let mut y = vec![0f32; x.len()];
        let together = (STRETCH / size + 1) * size;
        let some = |(y, x): (&mut [f32], &[f32])| {
            for (y, x) in y.chunks_exact_mut(size).zip(x.chunks_exact(size)) {
                row(x, gamma, beta, eps, y);
            }
        };
        if x.len() <= together {
            some((&mut y, x));
        } else {
            y.par_chunks_mut(together).zip(x.par_chunks(together)).for_each(some);
        }
        y
    };
    let y = values(x, |x| {
        values(gamma, |gamma| match beta {
            Some(beta) => values(beta, |beta| work(x, gamma, beta)),
            None => Some(work(x, gamma, &[])),
        })
    });
    let y = y.flatten().flatten()?;
    Some(Tensor::from_vec(y, x.shape(), x.device()).map_err(Into::into))
}

/// Hands out the values of a tensor; `None` where they are not f32 in memory, in order.
fn values<T>(x: &Tensor, work: impl FnOnce(&[f32]) -> T) -> Option<T> {
    let (storage, layout) = x.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => values.get(start..end).map(work),
        _ => None,
    }
}

fn rms(x: &[f32], gamma: &[f32], _: &[f32], eps: f32, y: &mut [f32]) {
    let scale = (dot(x, x) / x.len() as f32 + eps).sqrt().recip();
    for ((y, x), gamma) in y.iter_mut().zip(x).zip(gamma) {
        *y = x * scale * gamma;
    }
}

fn layer(x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, y: &mut [f32]) {
    let mean = sum(x) / x.len() as f32;
    for (y, x) in y.iter_mut().zip(x) {
        *y = x - mean;
    }
    let scale = (dot(y, y) / x.len() as f32 + eps).sqrt().recip();
    for ((y, gamma), beta) in y.iter_mut().zip(gamma).zip(beta) {
        *y = *y * scale * gamma + beta;
    }
}

/// Σ x in sixteen fixed lanes.
fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x;
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// Half types are normalised in f32.
fn widened(x: &Tensor) -> Result<Tensor> {
    Ok(match x.dtype() {
        DType::F16 | DType::BF16 => x.to_dtype(DType::F32)?,
        _ => x.clone(),
    })
}
