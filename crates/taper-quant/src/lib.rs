//! Quantization for Taper.

pub mod code;
pub mod error;
pub mod fit;
pub mod pack;
pub mod scheme;

pub use error::{Error, Result};
