//! Passes that encode weights.
//!
//! [`RoundNearest`] is the one that needs no data (and can use some); its recipe form is [`RoundNearestSettings`].
//! [`Gptq`] rounds to the same numbers with feedback from the Gram matrix of calibration.
//! [`Tuned`] learns rounding and ranges block by block.

pub mod gptq;
pub mod gptq_settings;
pub mod round_nearest;
pub mod settings;
pub mod tuned;

pub use gptq::{Fed, Gptq};
pub use gptq_settings::GptqSettings;
pub use round_nearest::{FileFormat, Number, RoundNearest, Weighting};
pub use settings::RoundNearestSettings;
pub use tuned::{Schedule, Tuned};
