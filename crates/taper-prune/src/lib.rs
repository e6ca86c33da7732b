//! Pruning for Taper: what to remove from a model, how to remove it, and how to store what is left.
//!
//! ```text
//! scores ──mask──▶ zeros where weights were     Magnitude, NOfM          Stage::Value
//! couplings ──resolve──▶ smaller matrices       Structured, DropLayers   Stage::Shape
//! zeros ──pack──▶ bitmask and values            SparseBitmask            Stage::Encode
//! ```
//!
//! | Pass | Recipe key | What it does |
//! |---|---|---|
//! | [`Magnitude`] | `magnitude` | zeroes the smallest weights of each row, each weight matrix, or the whole selection |
//! | [`NOfM`] | `n-of-m` | keeps the n largest of every m consecutive inputs |
//! | [`Structured`] | `structured` | cuts neurons, attention groups or channels out of every weight they touch |
//! | [`DropLayers`] | `drop-layers` | removes whole layers |
//! | [`SparseBitmask`] | `sparse-bitmask` | stores a weight with zeros as a [`Bitmask`] where that is smaller |
//!
//! The arithmetic beneath the passes is in [`mod@slice`]: pure functions of slices, for programs with another tensor type.

pub mod codec;
mod dense;
pub mod error;
pub mod mask;
pub mod pass;
pub mod resolve;
pub mod score;
pub mod slice;
pub mod sparse;
pub mod structured;
pub mod threshold;

pub use codec::codecs;
pub use error::Error;
pub use pass::{
    DropLayers, DropLayersSettings, Ends, Layers, Magnitude, NOfM, Scope, SparseBitmask, Structured,
    StructuredSettings,
};
pub use resolve::Plan;
pub use sparse::Bitmask;
pub use structured::UnitScore;
