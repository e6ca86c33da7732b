//! Passes that encode weights.
//!
//! [`RoundNearest`] is the one that needs no data (and can use some); its recipe form is [`RoundNearestSettings`].
//! [`Tuned`] learns rounding and ranges block by block.

pub mod round_nearest;
pub mod settings;
pub mod tuned;

pub use round_nearest::{FileFormat, Number, RoundNearest, Weighting};
pub use settings::RoundNearestSettings;
pub use tuned::{Schedule, Tuned};
