//! e^x as plain arithmetic, which compilers turn into vector instructions.
//!
//! ```text
//! e^x = 2^k e^r      k = round(x log₂ e),  r = x − k ln 2,  |r| ≤ ln 2 / 2
//! ```
//!
//! e^r by Taylor to degree 7 (remainder below 6·10⁻⁹); the relative error is a few units of f32's last place.

/// 1.5 · 2²³: adding it rounds to an integer, which the low bits then are.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts, so that k ln 2 is exact to the last place.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// e^x for x ≤ 88; 0 below −87, NaN for NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let bounded = if x > 88.0 { 88.0 } else { x };
    let shifted = bounded * std::f32::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = (bounded - k * LN2_HIGH) - k * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.0 { 0.0 } else { p * power }
}

/// σ(x) = 1 / (1 + e^−x).
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_exponential_to_a_few_last_places() {
        for i in -86_999..88_000 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) - exact).abs() <= 4e-7 * exact, "{x}: {} {exact}", exp(x));
        }
        assert_eq!((exp(f32::NEG_INFINITY), exp(0.0)), (0.0, 1.0));
        assert!(exp(f32::NAN).is_nan());
        assert_eq!((sigmoid(200.0), sigmoid(0.0)), (1.0, 0.5));
    }
}
