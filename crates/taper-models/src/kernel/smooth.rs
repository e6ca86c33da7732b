//! e^x and Φ(x) without branches.
//!
//! ```text
//! e^x = 2ⁿ e^r,   n = round(x / ln 2), |r| ≤ ln 2 / 2, e^r ≈ 1 + r + r² P(r)           Cephes, expf
//! Φ(−x) ≈ ½ (a₁t + … + a₅t⁵) e^(−x²/2),   t = 1 / (1 + 0.3275911 x / √2), x ≥ 0     Abramowitz & Stegun 7.1.26
//! ```

/// Adding 1.5 · 2²³ rounds to the nearest integer and leaves it in the low bits.
const ROUND: f32 = 12_582_912.0;

/// e^x to two units in the last place; beyond e^±87 it stays there.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 87.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 0.166_666_65;
    let p = p * r + 0.5;
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    (p * r * r + r + 1.0) * power
}

/// Φ(x), the normal distribution, with an error of at most 3e-7.
#[inline(always)]
pub(super) fn normal(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let p = 1.061_405_4;
    let p = p * t - 1.453_152;
    let p = p * t + 1.421_413_7;
    let p = p * t - 0.284_496_74;
    let p = p * t + 0.254_829_6;
    let tail = 0.5 * p * t * exp(-z * z);
    if x < 0.0 { tail } else { 1.0 - tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_the_exponential() {
        for i in -87_000..=87_000 {
            let x = i as f32 / 1000.0;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 2.5e-7, "{x}: {error:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan() && exp(f32::NEG_INFINITY) < 1e-37 && exp(1e9) > 1e37);
    }

    /// ½ + φ(x) (x + x³/3 + x⁵/15 + …), a series that converges everywhere.
    fn series(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for k in 1..200 {
            term *= x * x / f64::from(2 * k + 1);
            sum += term;
        }
        0.5 + sum * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
    }

    #[test]
    fn the_normal_distribution_equals_its_series() {
        for i in -6000..=6000 {
            let x = i as f32 / 1000.0;
            let error = (f64::from(normal(x)) - series(f64::from(x))).abs();
            assert!(error < 3e-7, "{x}: {error:e}");
        }
    }
}
