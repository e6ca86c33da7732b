//! Log-probabilities from logits, in f64.
//!
//! ```text
//! log p_i = z_i − log Σ exp z_j
//! ```
//!
//! Rows are spread over threads and each is summed in order, so results do not depend on the number of threads.

/// log Σ exp of a row; not finite where the row has NaN or +∞.
pub(super) fn log_sum_exp(row: &[f32]) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&z| (f64::from(z) - f64::from(max)).exp()).sum();
    f64::from(max) + sum.ln()
}

/// The index of the largest value, the first among equals.
pub(super) fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = i;
        }
    }
    best
}

/// Σ p (log p − log q) of two rows of logits, in nats.
pub(super) fn kl(p: &[f32], q: &[f32]) -> f64 {
    let (log_zp, log_zq) = (log_sum_exp(p), log_sum_exp(q));
    p.iter()
        .zip(q)
        .map(|(&zp, &zq)| {
            let log_p = f64::from(zp) - log_zp;
            let weight = log_p.exp();
            // A token that p rules out adds nothing, whatever q says.
            if weight == 0.0 { 0.0 } else { weight * (log_p - (f64::from(zq) - log_zq)) }
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_sum_exp_survives_large_logits() {
        assert!((log_sum_exp(&[0.0, 0.0]) - 2f64.ln()).abs() < 1e-15);
        assert!((log_sum_exp(&[1e4, 1e4]) - (1e4 + 2f64.ln())).abs() < 1e-9);
        assert!(log_sum_exp(&[f32::NAN, 0.0]).is_nan());
        assert!(!log_sum_exp(&[f32::INFINITY, 0.0]).is_finite());
    }

    #[test]
    fn kl_of_two_coins_is_the_closed_form() {
        let logit = |p: f64| (p / (1.0 - p)).ln() as f32;
        let (p, q) = (0.8f64, 0.3f64);
        let expected = p * (p / q).ln() + (1.0 - p) * ((1.0 - p) / (1.0 - q)).ln();
        assert!((kl(&[logit(p), 0.0], &[logit(q), 0.0]) - expected).abs() < 1e-7);
        assert!(kl(&[0.3, -2.0, 5.0], &[1.3, -1.0, 6.0]).abs() < 1e-7); // a shift changes nothing
        assert_eq!(kl(&[0.0, f32::NEG_INFINITY], &[0.0, f32::NEG_INFINITY]), 0.0);
    }
}
