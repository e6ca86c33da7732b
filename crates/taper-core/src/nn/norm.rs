//! Normalisations.
//!
//! ```text
//! RMS    y = γ x / sqrt(mean(x²) + ε)
//! layer  y = γ (x − mean) / sqrt(var + ε) + β
//! batch  y = γ (x − μ) / sqrt(σ² + ε) + β      running statistics, per channel
//! ```
//!
//! candle's fused RMS and layer norms end gradients without a word; they are used only where none is tracked.

use candle_core::{D, DType, Tensor};

use crate::{Result, WeightBuilder};

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

    /// Normalises the last dimension.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let tracked = x.track_op() || self.weight.track_op();
        if !tracked && x.is_contiguous() && x.dtype() != DType::F64 {
            return Ok(candle_nn::ops::rms_norm(x, &self.weight, self.eps as f32)?);
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
                return Ok(candle_nn::ops::layer_norm(x, &self.weight, bias, self.eps as f32)?);
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

/// Half types are normalised in f32.
fn widened(x: &Tensor) -> Result<Tensor> {
    Ok(match x.dtype() {
        DType::F16 | DType::BF16 => x.to_dtype(DType::F32)?,
        _ => x.clone(),
    })
}
