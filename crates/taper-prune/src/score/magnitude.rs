//! The absolute value as importance (Han et al. 2015, arXiv:1506.02626).
//!
//! ```text
//! s_i = |w_i|
//! ```
//!
//! Zeroing the weights of least |w| minimises ‖W − Ŵ‖², which is the output error where inputs are uncorrelated and
//! of equal size.

/// |w| of every weight, in place: `values` becomes the scores.
pub fn magnitudes(values: &mut [f32]) {
    for value in values {
        *value = value.abs();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_negative_zero_scores_as_zero_bit_for_bit() {
        let mut values = [-0.0f32, -2.0, 1.5];
        super::magnitudes(&mut values);
        assert_eq!(values.map(f32::to_bits), [0.0f32, 2.0, 1.5].map(f32::to_bits));
    }
}
