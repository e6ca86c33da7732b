//! Block influence: how much a layer changes the residual stream that passes it.
//!
//! ```text
//! BI = 1 − E[ cos(x before, x after) ]      over all tokens
//! ```
//!
//! Men et al., "ShortGPT" (2024): layers of low influence can be dropped first.

use candle_core::{DType, Tensor};
use taper_core::Progress;

use super::{Windows, step};
use crate::{Error, Result, llama::Llama};

/// The influence of each layer.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct BlockInfluence {
    /// 1 − mean cosine, by layer.
    pub layers: Vec<f64>,
    /// How many tokens were looked at.
    pub tokens: usize,
}

impl BlockInfluence {
    /// The `count` layers of least influence, in their order in the model.
    #[must_use]
    pub fn least(&self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.layers.len()).collect();
        order.sort_by(|&a, &b| self.layers[a].total_cmp(&self.layers[b]).then(a.cmp(&b)));
        order.truncate(count);
        order.sort_unstable();
        order
    }
}

/// The influence of each layer of `model` over `windows`.
pub fn block_influence(model: &Llama, windows: &Windows, progress: &dyn Progress) -> Result<BlockInfluence> {
    let mut sums = vec![0f64; model.num_layers()];
    for (i, ids) in windows.batches().enumerate() {
        let states = model.hidden_states(&ids?)?;
        for (sum, pair) in sums.iter_mut().zip(states.windows(2)) {
            *sum += sum_of_cosines(&pair[0], &pair[1])?;
        }
        if sums.iter().any(|s| !s.is_finite()) {
            return Err(Error::NotFinite { what: "hidden states", place: format!("window {i}") });
        }
        step(progress, "windows", i + 1, windows.len())?;
    }
    let tokens = windows.len() * windows.size();
    let layers = sums.iter().map(|s| 1.0 - s / tokens as f64).collect();
    Ok(BlockInfluence { layers, tokens })
}

/// Σ over tokens of the cosine of two residual streams `[1, len, hidden]`.
fn sum_of_cosines(before: &Tensor, after: &Tensor) -> Result<f64> {
    let rows =
        |x: &Tensor| -> Result<Vec<Vec<f32>>> { Ok(x.squeeze(0)?.to_dtype(DType::F32)?.to_vec2::<f32>()?) };
    let cosines = rows(before)?.iter().zip(&rows(after)?).map(|(a, b)| cosine(a, b)).sum();
    Ok(cosines)
}

/// The cosine of two vectors, 0 where one has no length.
pub(super) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum() };
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths == 0.0 { 0.0 } else { dot(a, b) / lengths }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_influential_layers_come_in_model_order() {
        let influence = BlockInfluence { layers: vec![0.5, 0.1, 0.3, 0.1], tokens: 1 };
        assert_eq!(influence.least(3), [1, 2, 3]);
        assert_eq!(influence.least(1), [1]);
    }

    #[test]
    fn cosines_are_those_of_plane_geometry() {
        assert!((cosine(&[1.0, 0.0], &[1.0, 1.0]) - 0.5f64.sqrt()).abs() < 1e-12);
        assert_eq!(cosine(&[1.0, 0.0], &[-2.0, 0.0]), -1.0);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 0.0]), 0.0);
    }
}
