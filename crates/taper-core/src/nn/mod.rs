//! Layers over weights of any encoding, with candle_nn's constructors.
//!
//! Porting a candle model is a change of imports: `candle_nn::{linear, Linear}` becomes `taper::nn::{linear, Linear}`,
//! and `VarBuilder` becomes [`crate::WeightBuilder`]. Layers show their inputs to an observer where one is attached, and
//! use the differentiable forms of candle's fused operations as soon as a gradient is tracked (the fused ones end
//! gradients silently).

mod conv;
mod embedding;
mod linear;
mod norm;
pub mod tracked;

pub use conv::{Conv2d, Conv2dConfig, conv2d, conv2d_no_bias};
pub use embedding::{Embedding, embedding};
pub use linear::{Linear, linear, linear_b, linear_no_bias};
pub use norm::{BatchNorm, LayerNorm, RmsNorm, batch_norm, layer_norm, rms_norm};

/// Lets a layer stand where candle wants a `Module`.
macro_rules! candle_module {
    ($($layer:ty),*) => {$(
        impl candle_core::Module for $layer {
            fn forward(&self, x: &candle_core::Tensor) -> candle_core::Result<candle_core::Tensor> {
                Ok(<$layer>::forward(self, x)?)
            }
        }
    )*};
}
candle_module!(Linear, Embedding, Conv2d, RmsNorm, LayerNorm, BatchNorm);
