//! Scales that spread all codes over the whole range of values, as compressed-tensors does.
//!
//! ```text
//! symmetric    scale = max |x| / ((2^b − 1) / 2)         so int4 divides by 7.5
//! asymmetric   scale = (max − min) / (2^b − 1)           the range always contains 0
//!              zero  = clamp(round(−2^(b−1) − min / scale))
//! ```
//!
//! Every value is then within half a step of its code, up to the rounding of the stored scale and zero point.
//!
//! With symmetric codes max |x| lies on a tie, halfway between the last code and one beyond. By an exact scale it goes outwards,
//! to −2^(b−1) where it is negative. Stored scales are rounded towards zero, so that it does so by them too: rounded to the
//! nearest, every second group would lose its lowest code, which at two bits costs 5 % in KL divergence.

use super::{Grid, stored, stored_below};
use crate::scheme::Scheme;

/// The grid of values between `low` ≤ 0 and `high` ≥ 0, not both 0.
///
/// # Errors
/// The scale, where the scheme's scale type cannot hold it.
pub fn grid(low: f32, high: f32, scheme: &Scheme) -> Result<Grid, f32> {
    let (bits, steps) = (scheme.bits, scheme.bits.steps() as f32);
    if scheme.is_symmetric() {
        let scale = high.max(-low) / (steps / 2.0);
        return Ok(Grid { scale: stored_below(scale, scheme.scales)?, zero: 0 });
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
    fn the_greatest_magnitude_goes_outwards_whatever_the_scale_is_stored_as() {
        for scales in [ScaleType::F16, ScaleType::BF16] {
            for bits in [2u64, 4] {
                let bits = crate::scheme::Bits::new(bits).unwrap();
                let scheme = Scheme { bits, ..Scheme::int4(32).unwrap() }.with_scales(scales);
                for i in 1..4000 {
                    let low = -(i as f32) * 1.37e-4;
                    let scale = grid(low, 0.0, &scheme).unwrap().scale;
                    let exact = -low / (bits.steps() as f32 / 2.0);
                    assert!((low / scale).round_ties_even() as i32 <= bits.lowest(), "{low}");
                    assert!(scale <= exact && scale > exact * (1.0 - 2f32.powi(-7)), "{scale} for {exact}");
                }
            }
        }
    }

    #[test]
    fn extremes_of_f32_stay_finite() {
        let scheme = Scheme::int4(32).unwrap().asymmetric().with_scales(ScaleType::F32);
        let grid = grid(f32::MIN, f32::MAX, &scheme).unwrap();
        assert!(grid.scale.is_finite() && grid.scale > 0.0);
    }
}
