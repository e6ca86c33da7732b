//! Passes that encode weights.
//!
//! [`RoundNearest`] is the one that needs no data (and can use some); its recipe form is [`RoundNearestSettings`].
//! [`Gptq`] rounds to the same numbers with feedback from the Gram matrix of calibration.

pub mod gptq;
pub mod gptq_settings;
pub mod round_nearest;
pub mod settings;

pub use gptq::{Fed, Gptq};
pub use gptq_settings::GptqSettings;
pub use round_nearest::{FileFormat, Number, RoundNearest, Weighting};
pub use settings::RoundNearestSettings;
