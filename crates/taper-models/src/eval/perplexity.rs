//! Perplexity over windows.
//!
//! ```text
//! exp( − 1/N Σ log p(token | the tokens before it in its window) )
//! ```
//!
//! In each window every token but the first is predicted.

use rayon::prelude::*;
use taper_core::Progress;

use super::{LanguageModel, Windows, likelihood::log_sum_exp, step, windows::window_logits};
use crate::{Error, Result};

/// How surprised a model is by a text.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Perplexity {
    /// exp of the mean negative log-likelihood.
    pub perplexity: f64,
    /// The mean negative log-likelihood in nats.
    pub mean_nll: f64,
    /// How many tokens were predicted.
    pub predictions: usize,
    /// How many windows were read.
    pub windows: usize,
    /// Tokens per window.
    pub window: usize,
}

/// Perplexity of a model over all `windows`.
///
/// Errors where the model gives values that are not finite, and where `progress` cancels.
pub fn perplexity(
    model: &impl LanguageModel,
    windows: &Windows,
    progress: &dyn Progress,
) -> Result<Perplexity> {
    let mut total = 0.0;
    for (i, window) in windows.iter().enumerate() {
        let nll = window_nll(model, window)?;
        if !nll.is_finite() {
            return Err(Error::NotFinite { what: "logits", place: format!("window {i}") });
        }
        total += nll;
        step(progress, "windows", i + 1, windows.len())?;
    }
    let predictions = windows.len() * (windows.size() - 1);
    let mean_nll = total / predictions as f64;
    Ok(Perplexity {
        perplexity: mean_nll.exp(),
        mean_nll,
        predictions,
        windows: windows.len(),
        window: windows.size(),
    })
}

/// Σ −log p of the tokens of one window but the first.
fn window_nll(model: &impl LanguageModel, window: &[u32]) -> Result<f64> {
    let (logits, vocabulary) = window_logits(model, window)?;
    let targets = &window[1..];
    if let Some(id) = targets.iter().find(|&&id| id as usize >= vocabulary) {
        let expected =
            format!("the model's vocabulary has {vocabulary} tokens; use the tokenizer it was made for");
        return Err(taper_core::Error::bad_option("token", id, expected).into());
    }
    let nll: Vec<f64> = logits
        .par_chunks_exact(vocabulary)
        .zip(targets)
        .map(|(row, &target)| log_sum_exp(row) - f64::from(row[target as usize]))
        .collect();
    Ok(nll.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};
    use taper_core::{Event, Flow, Silent};

    fn uniform(ids: &Tensor) -> taper_core::Result<Tensor> {
        Ok(Tensor::ones((1, ids.dim(1)?, 50), candle_core::DType::F32, &Device::Cpu)?)
    }

    #[test]
    fn a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary() {
        let windows = Windows::new((0..40).collect(), 8).unwrap();
        let found = perplexity(&uniform, &windows, &Silent).unwrap();
        assert!((found.perplexity - 50.0).abs() < 1e-9);
        assert_eq!((found.predictions, found.windows), (35, 5));
    }

    #[test]
    fn each_token_is_judged_by_the_position_before_it() {
        // Says with e³ : 1 : 1 : 1 that the next token is this one plus one.
        let successor = |ids: &Tensor| -> taper_core::Result<Tensor> {
            let ids = ids.flatten_all()?.to_vec1::<u32>()?;
            let row =
                |id: &u32| (0..4).map(|v| if v == (id + 1) % 4 { 3f32 } else { 0.0 }).collect::<Vec<_>>();
            let rows: Vec<f32> = ids.iter().flat_map(row).collect();
            Ok(Tensor::from_vec(rows, (1, ids.len(), 4), &Device::Cpu)?)
        };
        let windows = Windows::new(vec![0, 1, 2, 3], 4).unwrap();
        let found = perplexity(&successor, &windows, &Silent).unwrap();
        let expected = (3f64.exp() + 3.0).ln() - 3.0;
        assert!((found.mean_nll - expected).abs() < 1e-12);
    }

    #[test]
    fn foreign_tokens_and_damaged_models_are_refused() {
        let windows = Windows::new(vec![1, 99, 2, 3], 4).unwrap();
        assert!(perplexity(&uniform, &windows, &Silent).unwrap_err().to_string().contains("50 tokens"));
        let broken = |ids: &Tensor| -> taper_core::Result<Tensor> { Ok((uniform(ids)? * f64::NAN)?) };
        let windows = Windows::new((0..8).collect(), 4).unwrap();
        assert!(perplexity(&broken, &windows, &Silent).unwrap_err().to_string().contains("window 0"));
    }

    #[test]
    fn progress_counts_and_cancels() {
        let windows = Windows::new((0..40).collect(), 8).unwrap();
        let third = |event: &Event<'_>| match event {
            Event::Step { what: "windows", done: 3, total: 5 } => Flow::Cancel,
            _ => Flow::Continue,
        };
        let error = perplexity(&uniform, &windows, &third).unwrap_err();
        assert!(matches!(error, Error::Core(taper_core::Error::Cancelled)));
    }
}
