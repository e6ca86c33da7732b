//! 2-D convolution over a weight `[out, in / groups, kh, kw]` of any encoding.
//!
//! ```text
//! CPU, f32, no gradient asked for
//!     depthwise           direct, on the decoded weight (a few values per channel)
//!     one group, dense    patches · Wᵀ, written channel by channel
//!     one group, encoded  the encoding's own product of patches
//!     other groups        group by group, dense
//! anything else           candle's convolution of the decoded weight, which has a gradient
//! ```
//!
//! Neighbours: [`crate::kernel::conv`] makes patches and multiplies depthwise.

use candle_core::{DType, Device, Tensor};
use std::sync::Arc;

use crate::{
    Error, Observer, Result, SharedWeight, WeightBuilder,
    kernel::{
        Values,
        conv::{Window, depthwise, patches, transpose},
        product,
    },
};

/// Geometry of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Step in rows and columns.
    pub stride: (usize, usize),
    /// Zeros added at the top, left, bottom and right.
    pub padding: (usize, usize, usize, usize),
    /// Groups of channels; `in` for a depthwise convolution.
    pub groups: usize,
    /// Distance of two taps in rows and columns; 1 for a kernel without gaps.
    pub dilation: (usize, usize),
}

impl Default for Conv2dConfig {
    fn default() -> Self {
        Self { stride: (1, 1), padding: (0, 0, 0, 0), groups: 1, dilation: (1, 1) }
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

    /// `[batch, in, h, w]` to `[batch, out, h', w']`. Errors where the kernel is larger than the padded input.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if let Some((observer, name)) = &self.observed {
            observer.observe(name, x)?;
        }
        self.check_size(x)?;
        let y = match self.by_kernels(x)? {
            Some(y) => y,
            None => self.by_candle(x)?,
        };
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(&bias.reshape((1, (), 1, 1))?)?,
            None => y,
        })
    }

    /// candle would subtract below zero.
    fn check_size(&self, x: &Tensor) -> Result<()> {
        let (&[_, _, kh, kw], &[.., h, w]) = (self.weight.shape(), x.dims()) else { return Ok(()) };
        let (top, left, bottom, right) = self.config.padding;
        let (tall, wide) = self.config.dilation;
        let needed = (kh.saturating_sub(1) * tall + 1, kw.saturating_sub(1) * wide + 1);
        let padded = (h + top + bottom, w + left + right);
        if padded.0 < needed.0 || padded.1 < needed.1 {
            let expected = format!("with its padding it must be at least {} × {}", needed.0, needed.1);
            return Err(Error::bad_option("input of a convolution", format!("{h} × {w}"), expected));
        }
        Ok(())
    }

    /// The differentiable way, for any device.
    fn by_candle(&self, x: &Tensor) -> Result<Tensor> {
        let (top, left, bottom, right) = self.config.padding;
        let x = x.pad_with_zeros(2, top, bottom)?.pad_with_zeros(3, left, right)?;
        let w = self.weight.dense()?.to_dtype(x.dtype())?.to_device(x.device())?;
        self.convolve(&x, &w)
    }

    /// candle's convolution has one stride and one dilation for both axes. Two different strides are one by their common
    /// divisor, followed by picking rows and columns; two different dilations one by theirs, with zeros in the kernel.
    fn convolve(&self, x: &Tensor, w: &Tensor) -> Result<Tensor> {
        let (down, across) = self.config.stride;
        let common = gcd(down, across);
        let (tall, wide) = self.config.dilation;
        let gap = gcd(tall, wide);
        let w = spread(&spread(w, 2, tall / gap)?, 3, wide / gap)?;
        let y = x.conv2d(&w, 0, common, gap, self.config.groups)?;
        every(&every(&y, 2, down / common)?, 3, across / common)
    }

    /// The fast way; `None` where a gradient is asked for, or the device or the type is another.
    fn by_kernels(&self, x: &Tensor) -> Result<Option<Tensor>> {
        let encoded = !self.weight.encoding().is_dense();
        if !x.device().is_cpu() || x.dtype() != DType::F32 || x.track_op() {
            return Ok(None);
        }
        let (&[outputs, inner, kh, kw], &[images, channels, h, w]) = (self.weight.shape(), x.dims()) else {
            return Ok(None);
        };
        let Conv2dConfig { stride, padding, groups, dilation } = self.config;
        let window = Window { input: (h, w), kernel: (kh, kw), stride, dilation, padding };
        if channels != inner * groups
            || !outputs.is_multiple_of(groups)
            || images * channels * h * w * outputs * kh * kw == 0
        {
            return Ok(None); // candle words the error
        }
        let Some((height, width)) = window.output() else { return Ok(None) };
        let x = x.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
        let y = if encoded && groups == 1 {
            let Some(y) = self.by_patches(&x, channels, &window)? else { return Ok(None) };
            y
        } else {
            let dense = self.weight.dense()?;
            if dense.track_op() || !dense.device().is_cpu() {
                return Ok(None);
            }
            let w = dense.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            if inner == 1 && groups > 1 {
                depthwise(&x, &w, channels, &window)
            } else {
                by_groups(&x, &w, (groups, inner), &window)
            }
        };
        Ok(Some(Tensor::from_vec(y, (images, outputs, height, width), &Device::Cpu)?))
    }

    /// Patches through the weight's own product; `None` where that has a gradient.
    fn by_patches(&self, x: &[f32], channels: usize, window: &Window) -> Result<Option<Vec<f32>>> {
        let columns = self.weight.shape()[1..].iter().product::<usize>();
        let mut y = Vec::new();
        for images in together(x, channels, columns, window) {
            let rows = patches(images, channels, 0..channels, window);
            let rows = Tensor::from_vec(rows, ((), columns), &Device::Cpu)?;
            let out = self.weight.matmul(&rows)?; // (images · pixels, out)
            if out.track_op() {
                return Ok(None);
            }
            let outputs = out.dim(1)?;
            let out = out.flatten_all()?.to_vec1::<f32>()?;
            let pixels = pixels(window);
            out.chunks_exact(pixels * outputs).for_each(|image| y.extend(transpose(image, pixels, outputs)));
        }
        Ok(Some(y))
    }
}

/// Values of patches that are held at a time: 16 MiB.
const PATCHES: usize = 1 << 22;

/// Images whose patches are made at once.
fn together<'a>(
    x: &'a [f32],
    channels: usize,
    columns: usize,
    window: &Window,
) -> impl Iterator<Item = &'a [f32]> {
    let images = (PATCHES / (pixels(window) * columns)).max(1);
    x.chunks(images * channels * window.input.0 * window.input.1)
}

fn pixels(window: &Window) -> usize {
    window.output().map_or(0, |(height, width)| height * width)
}

/// Patches of each group times the group's rows, the weight as activations: the result is channel by channel.
fn by_groups(x: &[f32], w: &[f32], (groups, inner): (usize, usize), window: &Window) -> Vec<f32> {
    let (channels, columns) = (groups * inner, inner * window.kernel.0 * window.kernel.1);
    let (outputs, pixels) = (w.len() / columns, pixels(window));
    let mut y = vec![0f32; x.len() / (channels * window.input.0 * window.input.1) * outputs * pixels];
    let mut rest = &mut y[..];
    for images in together(x, channels, columns, window) {
        let count = images.len() / (channels * window.input.0 * window.input.1);
        let (here, later) = rest.split_at_mut(count * outputs * pixels);
        for (group, w) in w.chunks_exact(w.len() / groups).enumerate() {
            let rows = patches(images, channels, group * inner..(group + 1) * inner, window);
            let shape = (outputs / groups, count * pixels, columns);
            let planes = product(Values::F32(&rows), Values::F32(w), shape);
            for (output, planes) in planes.chunks_exact(count * pixels).enumerate() {
                let at = (group * outputs / groups + output) * pixels;
                for (image, plane) in here.chunks_exact_mut(outputs * pixels).zip(planes.chunks_exact(pixels))
                {
                    image[at..at + pixels].copy_from_slice(plane);
                }
            }
        }
        rest = later;
    }
    y
}

/// A kernel with `step − 1` zeros between its taps along a dimension.
fn spread(w: &Tensor, dim: usize, step: usize) -> Result<Tensor> {
    if step == 1 {
        return Ok(w.clone());
    }
    let size = w.dim(dim)?;
    let gaps = w.unsqueeze(dim + 1)?.pad_with_zeros(dim + 1, 0, step - 1)?;
    Ok(gaps.flatten(dim, dim + 1)?.narrow(dim, 0, (size - 1) * step + 1)?)
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
        return Err(Error::bad_option("groups", config.groups, expected));
    }
    if config.stride.0 == 0 || config.stride.1 == 0 {
        let stride = format!("{:?}", config.stride);
        return Err(Error::bad_option("stride", stride, "at least 1 in both directions"));
    }
    if config.dilation.0 == 0 || config.dilation.1 == 0 {
        let dilation = format!("{:?}", config.dilation);
        return Err(Error::bad_option("dilation", dilation, "at least 1 in both directions"));
    }
    let shape = [out_channels, in_channels / config.groups, kernel.0, kernel.1];
    let mut layer = Conv2d::from_weight(weights.weight(&shape, "weight")?, None, config);
    if let Some(observer) = weights.observer() {
        layer.observed = Some((Arc::clone(observer), Arc::from(weights.full_name("weight"))));
    }
    Ok(layer)
}
