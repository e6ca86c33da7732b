//! Matrices to measure on, and the arithmetic that results are checked against.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// Independent values of N(0, 1); the same seed gives the same values.
#[must_use]
pub fn gaussian(elements: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..elements).map(|_| StandardNormal.sample(&mut rng)).collect()
}

/// Whether this run measures (`cargo bench`) or only checks (`cargo test`), where smaller matrices serve.
#[must_use]
pub fn measuring() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

/// Σ (a − b)² / Σ a², in f64.
///
/// # Panics
/// Slices of different lengths: the benchmark is wrong.
#[must_use]
pub fn normalised_mse(original: &[f32], other: &[f32]) -> f64 {
    assert_eq!(original.len(), other.len());
    let (mut error, mut energy) = (0f64, 0f64);
    for (&a, &b) in original.iter().zip(other) {
        error += (f64::from(a) - f64::from(b)).powi(2);
        energy += f64::from(a).powi(2);
    }
    error / energy
}

/// x · Wᵀ in f64, the plainest way there is: `x` is `[rows, inner]`, `w` is `[out, inner]`, the result `[rows, out]`.
#[must_use]
pub fn product(x: &[f32], w: &[f32], inner: usize) -> Vec<f32> {
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum() };
    x.chunks_exact(inner).flat_map(|x| w.chunks_exact(inner).map(move |w| dot(x, w) as f32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaussian_values_have_the_moments_of_a_gaussian() {
        let values = gaussian(100_000, 1);
        let moment = |k: i32| values.iter().map(|&v| f64::from(v).powi(k)).sum::<f64>() / 1e5;
        // Three standard errors of each mean.
        assert!(
            moment(1).abs() < 0.0095 && (moment(2) - 1.0).abs() < 0.0135 && (moment(4) - 3.0).abs() < 0.093
        );
        assert_eq!(values[..10], gaussian(10, 1));
        assert_ne!(values[..10], gaussian(10, 2));
    }

    #[test]
    fn the_plain_product_is_the_product() {
        let (x, w) = ([1.0, 2.0, -1.0, 0.5], [3.0, 4.0, 0.0, 1.0, 1.0, 1.0]);
        assert_eq!(product(&x, &w, 2), [11.0, 2.0, 3.0, -1.0, 0.5, -0.5]);
        assert_eq!(normalised_mse(&[3.0, 4.0], &[3.0, 3.0]), 0.04);
    }
}
