//! Scales that spread all codes over the whole range of values, as compressed-tensors does.
//!
//! ```text
//! symmetric    scale = max |x| / ((2^b − 1) / 2)         so int4 divides by 7.5
//! asymmetric   scale = (max − min) / (2^b − 1)           the range always contains 0
//!              zero  = clamp(round(−2^(b−1) − min / scale))
//! ```
//!
//! Every value is then within half a step of its code, up to the rounding of the stored scale and zero point.

use super::{Grid, stored};
use crate::scheme::Scheme;

/// The grid of values between `low` ≤ 0 and `high` ≥ 0, not both 0.
///
/// # Errors
/// The scale, where the scheme's scale type cannot hold it.
pub fn grid(low: f32, high: f32, scheme: &Scheme) -> Result<Grid, f32> {
    let (bits, steps) = (scheme.bits, scheme.bits.steps() as f32);
    if scheme.is_symmetric() {
        let scale = high.max(-low) / (steps / 2.0);
        return Ok(Grid { scale: stored(scale, scheme.scales)?, zero: 0 });
    }
    let range = high - low;
    // Two huge values of opposite sign overflow when subtracted, not when divided first.
    let scale = if range.is_finite() { range / steps } else { high / steps - low / steps };
    let scale = stored(scale, scheme.scales)?;
    let zero = (bits.lowest() as f32 - low / scale).round_ties_even();
    Ok(Grid { scale, zero: (zero as i32).clamp(bits.lowest(), bits.highest()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::ScaleType;

    #[test]
    fn int4_divides_by_seven_and_a_half() {
        let scheme = Scheme::int4(32).unwrap().with_scales(ScaleType::F32);
        assert_eq!(grid(-3.0, 1.5, &scheme), Ok(Grid { scale: 3.0 / 7.5, zero: 0 }));
        assert_eq!(grid(-3.0, 12.0, &scheme.asymmetric()), Ok(Grid { scale: 1.0, zero: -5 }));
        assert_eq!(grid(0.0, 15.0, &scheme.asymmetric()), Ok(Grid { scale: 1.0, zero: -8 }));
        assert_eq!(grid(-15.0, 0.0, &scheme.asymmetric()), Ok(Grid { scale: 1.0, zero: 7 }));
    }

    #[test]
    fn extremes_of_f32_stay_finite() {
        let scheme = Scheme::int4(32).unwrap().asymmetric().with_scales(ScaleType::F32);
        let grid = grid(f32::MIN, f32::MAX, &scheme).unwrap();
        assert!(grid.scale.is_finite() && grid.scale > 0.0);
    }
}
