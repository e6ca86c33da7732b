//! DS-CNN: keyword spotting by depthwise-separable convolutions, with its batch norms unfolded.
//!
//! ```text
//! [n, 1, t, f] ─stem conv─bn─relu─▶ { depthwise conv─bn─relu ─ pointwise conv─bn─relu } × blocks ─pool─▶ linear ─▶ classes
//! ```
//!
//! Zhang et al., "Hello Edge" (2017); the reference network of MLPerf Tiny. [`DsCnnConfig`] reads the config and is the
//! [`Architecture`]; `couplings.rs` says which channels may be cut together.

mod config;
mod couplings;

pub use config::DsCnnConfig;
pub use couplings::DsCnnCouplings;

use candle_core::{DType, Device, Tensor};
use taper_core::{
    Architecture, Checkpoint, Error, Result, WeightBuilder,
    nn::{BatchNorm, Conv2d, Conv2dConfig, Linear, batch_norm, conv2d, linear},
};

/// A runnable DS-CNN.
#[derive(Debug, Clone)]
pub struct DsCnn {
    config: DsCnnConfig,
    convolutions: Vec<NormedConv>,
    classifier: Linear,
    device: Device,
}

/// Convolution, batch norm, rectifier.
#[derive(Debug, Clone)]
struct NormedConv {
    conv: Conv2d,
    norm: BatchNorm,
}

impl NormedConv {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.norm.forward(&self.conv.forward(x)?)?.relu()?)
    }
}

impl Architecture for DsCnnConfig {
    type Model = DsCnn;

    fn build(&self, weights: &WeightBuilder) -> Result<DsCnn> {
        let channels = self.channels;
        let normed = |inputs: usize, kernel, geometry, at: &WeightBuilder| -> Result<NormedConv> {
            Ok(NormedConv {
                conv: conv2d(inputs, channels, kernel, geometry, &at.pp("conv"))?,
                norm: batch_norm(channels, self.batch_norm_eps, &at.pp("bn"))?,
            })
        };
        let stem =
            Conv2dConfig { stride: self.stem_stride, padding: self.stem_padding, ..Conv2dConfig::default() };
        let (height, width) = (self.depthwise_kernel.0 / 2, self.depthwise_kernel.1 / 2);
        let depthwise = Conv2dConfig {
            padding: (height, width, height, width),
            groups: channels,
            ..Conv2dConfig::default()
        };
        let mut convolutions = vec![normed(1, self.stem_kernel, stem, &weights.pp("stem"))?];
        for i in 0..self.blocks {
            let block = weights.pp("blocks").pp(i);
            convolutions.push(normed(channels, self.depthwise_kernel, depthwise, &block.pp("depthwise"))?);
            convolutions.push(normed(channels, (1, 1), Conv2dConfig::default(), &block.pp("pointwise"))?);
        }
        Ok(DsCnn {
            config: self.clone(),
            convolutions,
            classifier: linear(channels, self.classes.len(), &weights.pp("classifier"))?,
            device: weights.device().clone(),
        })
    }
}

impl DsCnn {
    /// The model of a checkpoint, in f32 on the CPU.
    pub fn open(checkpoint: &Checkpoint) -> Result<Self> {
        DsCnnConfig::of(checkpoint)?.build(&WeightBuilder::new(checkpoint, DType::F32, &Device::Cpu))
    }

    /// Its config.
    #[must_use]
    pub fn config(&self) -> &DsCnnConfig {
        &self.config
    }

    /// Scores of each class: f32 features `[n, rows, columns]` to `[n, classes]`.
    pub fn forward(&self, features: &Tensor) -> Result<Tensor> {
        let (rows, columns) = self.config.input;
        let &[_, r, c] = features.dims() else { return Err(self.bad_shape(features)) };
        if (r, c) != (rows, columns) {
            return Err(self.bad_shape(features));
        }
        let mut x = features.to_device(&self.device)?.unsqueeze(1)?; // (n, 1, rows, columns)
        for convolution in &self.convolutions {
            x = convolution.forward(&x)?;
        }
        let pooled = x.avg_pool2d(self.config.pool)?.flatten_from(1)?; // (n, channels)
        self.classifier.forward(&pooled)
    }

    fn bad_shape(&self, features: &Tensor) -> Error {
        let (rows, columns) = self.config.input;
        Error::bad_option(
            "features' shape",
            format!("{:?}", features.dims()),
            format!("[n, {rows}, {columns}]"),
        )
    }
}
