//! Scales that map max |x| to the highest code.
//!
//! ```text
//! scale = max |x| / (2^(b−1) − 1)      q in −(2^(b−1) − 1) ..= 2^(b−1) − 1
//! ```
//!
//! Neighbours: [`super::minmax`] uses one code more and half a step of clipping instead.

use super::{Grid, stored};
use crate::scheme::{Bits, ScaleType};

/// The grid of values between `low` ≤ 0 and `high` ≥ 0, not both 0.
///
/// # Errors
/// The scale, where `scales` cannot hold it.
pub fn grid(low: f32, high: f32, bits: Bits, scales: ScaleType) -> Result<Grid, f32> {
    let scale = high.max(-low) / bits.highest() as f32;
    Ok(Grid { scale: stored(scale, scales)?, zero: 0 })
}
