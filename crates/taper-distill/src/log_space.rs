//! Softmax, sums and mixtures of probabilities without ever leaving the logarithm.
//!
//! ```text
//! log softmax(x)_j  = x_j − m − log Σ_k exp(x_k − m),        m = max_k x_k, held constant
//! log((1−w)eᵃ+w eᵇ) = m + log((1−w)e^(a−m) + w e^(b−m)),     m = max(a, b), held constant
//! ```
//!
//! Holding m constant is exact (the derivative by m is zero) and keeps gradient rows summing to zero up to
//! rounding. All of it is made of operations through which candle propagates gradients; its fused softmax is not.
//! Excluded classes carry [`FLOOR`] instead of −∞, because 0 · (−∞ − −∞) is NaN and 0 · (FLOOR − FLOOR) is 0.

use crate::Result;
use candle_core::{D, Tensor};

/// Stands for −∞ in log space: exp(FLOOR) is exactly 0, and differences, products with 0 and a division
/// by the smallest temperature (1e-6) stay finite in f32.
pub(crate) const FLOOR: f64 = -1e30;

/// `x` with [`FLOOR`] where `excluded` is not zero; the gradient there is exactly zero.
pub(crate) fn floor_where(excluded: &Tensor, x: &Tensor) -> Result<Tensor> {
    fill_where(excluded, x, FLOOR)
}

/// `x` with `value` where `mask` is not zero, even where `x` is NaN; the gradient there is exactly zero.
pub(crate) fn fill_where(mask: &Tensor, x: &Tensor, value: f64) -> Result<Tensor> {
    let value = Tensor::new(value, x.device())?.to_dtype(x.dtype())?.broadcast_as(x.shape())?;
    Ok(mask.where_cond(&value, x)?)
}

/// log Σ exp over the last dimension, which is kept with size 1.
pub(crate) fn log_sum_exp(x: &Tensor) -> Result<Tensor> {
    let max = x.max_keepdim(D::Minus1)?.detach();
    let sum = x.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?;
    Ok((sum.log()? + max)?)
}

/// log softmax over the last dimension.
pub(crate) fn log_softmax(x: &Tensor) -> Result<Tensor> {
    // Shifted before the logarithm is subtracted: x − lse would lose the digits that |max| takes up.
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    Ok(shifted.broadcast_sub(&log_sum)?)
}

/// log((1−w)·exp(a) + w·exp(b)) for 0 < w < 1.
pub(crate) fn log_mixture(a: &Tensor, b: &Tensor, w: f64) -> Result<Tensor> {
    let max = a.maximum(b)?.detach();
    let a = ((a - &max)?.exp()? * (1.0 - w))?;
    let b = ((b - &max)?.exp()? * w)?;
    Ok(((a + b)?.log()? + max)?)
}

/// KL(p‖q) = Σ p (log p − log q) over the last dimension, from the two logarithms.
pub(crate) fn kl(log_p: &Tensor, log_q: &Tensor) -> Result<Tensor> {
    Ok((log_p.exp()? * (log_p - log_q)?)?.sum(D::Minus1)?)
}
