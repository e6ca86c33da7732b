//! Lengths, directions and correlations whose gradients stay finite where the plain formulas divide by zero.
//!
//! √ has an infinite derivative at 0, and candle multiplies it by zeros into NaN. So a squared length below
//! [`TINY`] counts as `TINY`, with no gradient.

use crate::Result;
use candle_core::{D, Tensor};

/// The smallest squared length: (1e-12)², the floor that normalisations in the literature use.
pub(crate) const TINY: f64 = 1e-24;

/// √max(x, least); no gradient where x < least.
pub(crate) fn sqrt_at_least(x: &Tensor, least: f64) -> Result<Tensor> {
    let least = Tensor::new(least, x.device())?.to_dtype(x.dtype())?.broadcast_as(x.shape())?;
    Ok(x.maximum(&least)?.sqrt()?)
}

/// x / ‖x‖ over the last dimension; a vector of no length has no direction: zeros, without gradient.
pub(crate) fn direction(x: &Tensor) -> Result<Tensor> {
    let squared = x.sqr()?.sum_keepdim(D::Minus1)?;
    let no_length = squared.le(TINY)?.broadcast_as(x.shape())?.contiguous()?;
    let unit = x.broadcast_div(&sqrt_at_least(&squared, TINY)?)?;
    Ok(no_length.where_cond(&unit.zeros_like()?, &unit)?)
}

/// Pearson correlation of `a` and `b` [m, n] over the last dimension: [m].
///
/// `weight` [m, n] of ones and zeros says which entries exist; `None` means all.
/// Each length is at least 1e-8, as cosine similarity is commonly computed, so a constant vector correlates with nothing (0).
pub(crate) fn pearson(a: &Tensor, b: &Tensor, weight: Option<&Tensor>) -> Result<Tensor> {
    let (a, b) = (centred(a, weight)?, centred(b, weight)?);
    let length_a = sqrt_at_least(&a.sqr()?.sum(D::Minus1)?, 1e-16)?;
    let length_b = sqrt_at_least(&b.sqr()?.sum(D::Minus1)?, 1e-16)?;
    Ok((a * b)?.sum(D::Minus1)?.div(&(length_a * length_b)?)?)
}

/// `x` [m, n] minus its mean over the last dimension, zero where `weight` is zero.
pub(crate) fn centred(x: &Tensor, weight: Option<&Tensor>) -> Result<Tensor> {
    let Some(weight) = weight else {
        return Ok(x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?);
    };
    let count = weight.sum_keepdim(D::Minus1)?.maximum(&weight.ones_like()?.narrow(1, 0, 1)?)?;
    let mean = (x * weight)?.sum_keepdim(D::Minus1)?.div(&count)?;
    Ok((x.broadcast_sub(&mean)? * weight)?)
}
