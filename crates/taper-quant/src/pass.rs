//! Passes that encode weights.
//!
//! [`RoundNearest`] is the one that needs no data (and can use some); its recipe form is [`RoundNearestSettings`].

pub mod round_nearest;
pub mod settings;

pub use round_nearest::{FileFormat, Number, RoundNearest, Weighting};
pub use settings::RoundNearestSettings;
