//! 2-D convolution over a weight `[out, in / groups, kh, kw]` of any encoding.
//!
//! A packed convolution weight is decoded for each call: such weights are small next to their activations.

use candle_core::Tensor;
use std::sync::Arc;

use crate::{Observer, Result, SharedWeight, WeightBuilder};

/// Geometry of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Step in rows and columns.
    pub stride: (usize, usize),
    /// Zeros added at the top, left, bottom and right.
    pub padding: (usize, usize, usize, usize),
    /// Groups of channels; `in` for a depthwise convolution.
    pub groups: usize,
}

impl Default for Conv2dConfig {
    fn default() -> Self {
        Self { stride: (1, 1), padding: (0, 0, 0, 0), groups: 1 }
    }
}

/// A 2-D convolution.
#[derive(Debug, Clone)]
pub struct Conv2d {
    weight: SharedWeight,
    bias: Option<Tensor>,
    config: Conv2dConfig,
    observed: Option<(Arc<dyn Observer>, Arc<str>)>,
}

impl Conv2d {
    /// A convolution from a weight `[out, in / groups, kh, kw]` and a bias `[out]`.
    #[must_use]
    pub fn from_weight(weight: SharedWeight, bias: Option<Tensor>, config: Conv2dConfig) -> Self {
        Self { weight, bias, config, observed: None }
    }

    /// The weight.
    #[must_use]
    pub fn weight(&self) -> &SharedWeight {
        &self.weight
    }

    /// `[batch, in, h, w]` to `[batch, out, h', w']`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if let Some((observer, name)) = &self.observed {
            observer.observe(name, x)?;
        }
        let (top, left, bottom, right) = self.config.padding;
        let x = x.pad_with_zeros(2, top, bottom)?.pad_with_zeros(3, left, right)?;
        let w = self.weight.dense()?.to_dtype(x.dtype())?.to_device(x.device())?;
        let y = self.convolve(&x, &w)?;
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(&bias.reshape((1, (), 1, 1))?)?,
            None => y,
        })
    }

    /// candle's convolution has one stride for both axes: two different strides are one by their common divisor,
    /// followed by picking rows and columns.
    fn convolve(&self, x: &Tensor, w: &Tensor) -> Result<Tensor> {
        let (down, across) = self.config.stride;
        let common = gcd(down, across);
        let y = x.conv2d(w, 0, common, 1, self.config.groups)?;
        every(&every(&y, 2, down / common)?, 3, across / common)
    }
}

/// Every `step`-th index of a dimension.
fn every(x: &Tensor, dim: usize, step: usize) -> Result<Tensor> {
    if step == 1 {
        return Ok(x.clone());
    }
    let picked: Vec<u32> = (0..x.dim(dim)? as u32).step_by(step).collect();
    let picked = Tensor::new(picked, x.device())?;
    Ok(x.index_select(&picked, dim)?)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// A convolution with a bias.
pub fn conv2d(
    in_channels: usize,
    out_channels: usize,
    kernel: (usize, usize),
    config: Conv2dConfig,
    weights: &WeightBuilder,
) -> Result<Conv2d> {
    let mut layer = conv2d_no_bias(in_channels, out_channels, kernel, config, weights)?;
    layer.bias = Some(weights.tensor(&[out_channels], "bias")?);
    Ok(layer)
}

/// A convolution without a bias.
pub fn conv2d_no_bias(
    in_channels: usize,
    out_channels: usize,
    kernel: (usize, usize),
    config: Conv2dConfig,
    weights: &WeightBuilder,
) -> Result<Conv2d> {
    if config.groups == 0 || !in_channels.is_multiple_of(config.groups) {
        let expected = format!("a divisor of the {in_channels} input channels");
        return Err(crate::Error::bad_option("groups", config.groups, expected));
    }
    if config.stride.0 == 0 || config.stride.1 == 0 {
        let stride = format!("{:?}", config.stride);
        return Err(crate::Error::bad_option("stride", stride, "at least 1 in both directions"));
    }
    let shape = [out_channels, in_channels / config.groups, kernel.0, kernel.1];
    let mut layer = Conv2d::from_weight(weights.weight(&shape, "weight")?, None, config);
    if let Some(observer) = weights.observer() {
        layer.observed = Some((Arc::clone(observer), Arc::from(weights.full_name("weight"))));
    }
    Ok(layer)
}
