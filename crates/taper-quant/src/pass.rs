//! Passes that encode weights, and passes that make weights easier to encode without changing the model.
//!
//! [`RoundNearest`] is the one that needs no data (and can use some); its recipe form is [`RoundNearestSettings`].
//! [`Gptq`] rounds to the same numbers with feedback from the Gram matrix of calibration, [`Tuned`] learns rounding and
//! ranges block by block, [`Trellis`] spends one to six bits on codes that depend on their neighbours. [`Awq`],
//! [`SmoothQuant`] and [`Rotate`] scale and turn along what architectures declare.

pub mod asymmetric;
pub mod awq;
mod awq_clip;
pub mod awq_settings;
pub mod gptq;
pub mod gptq_settings;
pub mod rotate;
pub mod round_nearest;
pub mod settings;
mod shrinkage;
pub mod smooth_quant;
pub mod trellis;
pub mod tuned;
pub mod tuned_settings;

pub use asymmetric::{Asymmetry, Inputs};
pub use awq::Awq;
pub use awq_settings::{AwqSettings, Clip, Score};
pub use gptq::{Fed, Gptq};
pub use gptq_settings::GptqSettings;
pub use rotate::{Rotate, RotateSettings, Spaces, TiedHead};
pub use round_nearest::{FileFormat, Number, RoundNearest, Weighting};
pub use settings::RoundNearestSettings;
pub use smooth_quant::{SmoothQuant, SmoothQuantSettings};
pub use trellis::Trellis;
pub use tuned::{Schedule, Tuned};
pub use tuned_settings::TunedSettings;
