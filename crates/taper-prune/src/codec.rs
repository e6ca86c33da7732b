//! The stored form of sparse weights.

pub mod bitmask;

pub use bitmask::BitmaskCodec;

use taper_core::Codecs;

/// The codecs of this crate: open a checkpoint with them to read its sparse weights.
#[must_use]
pub fn codecs() -> Codecs {
    Codecs::new().with(BitmaskCodec)
}
