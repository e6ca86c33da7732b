//! How far a compressed model is from its original, token by token.
//!
//! ```text
//! KL(p ‖ q) = Σ p log(p / q)      p the original, q the compressed, in nats
//! ```
//!
//! Mean over the same predictions as perplexity: every token of a window but the first.
//!
//! Both models run over one window at a time, so memory stays at two windows' logits.

use rayon::prelude::*;
use taper_core::Progress;

use super::{
    LanguageModel, Windows,
    likelihood::{argmax, kl},
    step,
    windows::window_logits,
};
use crate::{Error, Result};

/// The distance of two models over a text.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Divergence {
    /// Mean KL of the original to the compressed model, nats per token.
    pub mean_kl: f64,
    /// The largest KL of any prediction.
    pub max_kl: f64,
    /// The share of predictions where both find the same token likeliest, 0 to 1.
    pub top1_agreement: f64,
    /// How many positions were compared: those that predict a token of their window.
    pub positions: usize,
    /// How many windows were read.
    pub windows: usize,
}

/// The distance of `compressed` from `original` over `windows`; 64 windows of 256 tokens are usual.
///
/// Errors where the vocabularies differ, where a model gives values that are not finite, and where `progress` cancels.
pub fn divergence(
    original: &impl LanguageModel,
    compressed: &impl LanguageModel,
    windows: &Windows,
    progress: &dyn Progress,
) -> Result<Divergence> {
    let (mut sum, mut max, mut agreed) = (0.0, 0f64, 0);
    for (i, window) in windows.iter().enumerate() {
        for (kl, agree) in window_divergence(original, compressed, window)? {
            if !kl.is_finite() {
                return Err(Error::NotFinite { what: "logits", place: format!("window {i}") });
            }
            sum += kl;
            max = max.max(kl);
            agreed += usize::from(agree);
        }
        step(progress, "windows", i + 1, windows.len())?;
    }
    let positions = windows.len() * (windows.size() - 1);
    Ok(Divergence {
        mean_kl: sum / positions as f64,
        max_kl: max,
        top1_agreement: agreed as f64 / positions as f64,
        positions,
        windows: windows.len(),
    })
}

/// KL and agreement of each prediction of one window.
fn window_divergence(
    original: &impl LanguageModel,
    compressed: &impl LanguageModel,
    window: &[u32],
) -> Result<Vec<(f64, bool)>> {
    let (p, vocabulary) = window_logits(original, window)?;
    let (q, other) = window_logits(compressed, window)?;
    if vocabulary != other {
        return Err(Error::BadOutput {
            what: "logits",
            expected: format!("[1, {}, {vocabulary}], as the original", window.len()),
            found: vec![1, window.len(), other],
        });
    }
    let rows = p.par_chunks_exact(vocabulary).zip(q.par_chunks_exact(vocabulary)).take(window.len() - 1);
    Ok(rows.map(|(p, q)| (kl(p, q), argmax(p) == argmax(q))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};
    use taper_core::Silent;

    /// Logits that depend on the token: the coin of `heads[token]`.
    fn coins(heads: [f64; 2]) -> impl Fn(&Tensor) -> taper_core::Result<Tensor> {
        move |ids| {
            let ids = ids.flatten_all()?.to_vec1::<u32>()?;
            let rows: Vec<f32> = ids
                .iter()
                .flat_map(|&id| [(heads[id as usize] / (1.0 - heads[id as usize])).ln() as f32, 0.0])
                .collect();
            Ok(Tensor::from_vec(rows, (1, ids.len(), 2), &Device::Cpu)?)
        }
    }

    #[test]
    fn mean_maximum_and_agreement_are_those_of_two_coins() {
        // The last token's position predicts nothing.
        let windows = Windows::new(vec![0, 1, 0, 0, 1], 5).unwrap();
        let found = divergence(&coins([0.8, 0.6]), &coins([0.7, 0.4]), &windows, &Silent).unwrap();
        let kl = |p: f64, q: f64| p * (p / q).ln() + (1.0 - p) * ((1.0 - p) / (1.0 - q)).ln();
        assert!((found.mean_kl - (3.0 * kl(0.8, 0.7) + kl(0.6, 0.4)) / 4.0).abs() < 1e-7);
        assert!((found.max_kl - kl(0.6, 0.4)).abs() < 1e-7);
        assert_eq!((found.top1_agreement, found.positions), (0.75, 4));
    }

    #[test]
    fn a_model_is_at_no_distance_from_itself() {
        let windows = Windows::new(vec![0, 1, 1, 0], 2).unwrap();
        let found = divergence(&coins([0.9, 0.2]), &coins([0.9, 0.2]), &windows, &Silent).unwrap();
        assert_eq!((found.mean_kl, found.top1_agreement), (0.0, 1.0));
    }

    #[test]
    fn different_vocabularies_are_refused() {
        let wide = |ids: &Tensor| -> taper_core::Result<Tensor> {
            Ok(Tensor::ones((1, ids.dim(1)?, 3), candle_core::DType::F32, &Device::Cpu)?)
        };
        let windows = Windows::new(vec![0, 1], 2).unwrap();
        assert!(divergence(&coins([0.5, 0.5]), &wide, &windows, &Silent).is_err());
    }
}
