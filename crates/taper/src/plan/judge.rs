//! How far a language model has moved, over windows of a text that calibration did not see.
//!
//! A survey judges one model per weight and format against the same original, so the original's logits are kept as long as they
//! are small. Neighbours: `taper_models::eval::divergence` is the figure.

use std::collections::HashMap;
use taper_core::{Checkpoint, Silent};
use taper_models::{
    Llama, Tokenizer,
    eval::{Divergence, LanguageModel, Windows, divergence},
};
use taper_quant::allocate::Judge;

use crate::candle::Tensor;

/// Logits that are kept at most, in bytes: 16 windows of 256 tokens of a vocabulary of 32,768.
const KEPT: usize = 512 << 20;

/// Mean KL of a language model's original to a compressed one, over windows of a text.
pub struct OnWindows {
    original: Remembered,
    windows: Windows,
}

impl std::fmt::Debug for OnWindows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnWindows").field("windows", &self.windows.len()).finish_non_exhaustive()
    }
}

/// A model and what it said of windows that it has seen.
struct Remembered {
    model: Llama,
    logits: HashMap<Vec<u32>, Tensor>,
}

impl LanguageModel for Remembered {
    fn logits(&self, ids: &Tensor) -> taper_core::Result<Tensor> {
        match self.logits.get(&ids.flatten_all()?.to_vec1::<u32>()?) {
            Some(logits) => Ok(logits.clone()),
            None => self.model.forward(ids),
        }
    }
}

impl OnWindows {
    /// Against the language model of `original`, over these windows.
    ///
    /// # Errors
    /// Where the checkpoint holds no language model.
    pub fn new(original: &Checkpoint, windows: Windows) -> taper_core::Result<Self> {
        let model = crate::build(original)?.language()?;
        let mut logits = HashMap::new();
        let mut bytes = 0;
        for window in windows.iter() {
            let ids = Tensor::from_slice(window, (1, window.len()), &crate::candle::Device::Cpu)?;
            let said = model.forward(&ids)?;
            bytes += said.elem_count() * 4;
            if bytes > KEPT {
                break;
            }
            logits.insert(window.to_vec(), said);
        }
        Ok(Self { original: Remembered { model, logits }, windows })
    }

    /// Over the `count` windows of `text` that come after the first `seen` of them; `None` where there are no more.
    ///
    /// # Errors
    /// Where the checkpoint holds no language model or the text fills no window.
    pub fn after(
        original: &Checkpoint,
        text: &str,
        window: usize,
        seen: usize,
        count: usize,
    ) -> Result<Option<Self>, taper_models::Error> {
        let windows = Windows::of_text(&Tokenizer::of(original)?, text, window)?.after(seen).first(count);
        if windows.is_empty() { Ok(None) } else { Ok(Some(Self::new(original, windows)?)) }
    }

    /// How many windows are read.
    #[must_use]
    pub fn windows(&self) -> usize {
        self.windows.len()
    }

    /// The whole figure for a compressed checkpoint.
    ///
    /// # Errors
    /// As [`divergence`].
    pub fn judge(&self, compressed: &Checkpoint) -> Result<Divergence, taper_models::Error> {
        let model = crate::build(compressed)?.language()?;
        divergence(&self.original, &model, &self.windows, &Silent)
    }
}

impl Judge for OnWindows {
    fn divergence(&self, checkpoint: &Checkpoint) -> taper_core::Result<f64> {
        Ok(self.judge(checkpoint).map_err(taper_core::Error::other)?.mean_kl)
    }
}
