//! How far a model has moved, over the part of a text that calibration did not see.
//!
//! Language models read windows and are judged by mean KL; sentence encoders read lines ([`sentences`]). A survey judges one model per weight and format against the same original, so the original's logits are kept as long as they
//! are small. Neighbours: `taper_models::eval::divergence` is the figure.

pub mod sentences;

pub use sentences::OnSentences;

use std::collections::HashMap;
use taper_core::{Checkpoint, Silent};
use taper_models::{
    Family, Llama, Tokenizer,
    eval::{Divergence, LanguageModel, Windows, divergence},
};
use taper_quant::allocate::Judge;

use crate::candle::Tensor;

/// Logits that are kept at most, in bytes: 16 windows of 256 tokens of a vocabulary of 32,768.
const KEPT: usize = 512 << 20;

/// Windows that are judged on where nothing is said: 4,096 tokens of the usual 256 tell layers apart to a tenth or so.
pub const WINDOWS: usize = 16;

/// Sentences that are judged on where nothing is said; they are short.
pub const SENTENCES: usize = 128;

/// A judge for either kind of model that reads text.
#[derive(Debug)]
pub enum OnText {
    /// A language model.
    Windows(OnWindows),
    /// A sentence encoder.
    Sentences(OnSentences),
}

/// How far a model has moved.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Moved {
    /// Mean KL in nats per token, or mean 1 − cos of sentence vectors.
    pub divergence: f64,
    /// The share of predictions where both models find the same token likeliest; of language models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top1_agreement: Option<f64>,
    /// Windows or sentences that were read.
    pub judged: usize,
}

impl OnText {
    /// Over `count` windows (or lines) of `text` after the first `seen` of them, [`WINDOWS`] or [`SENTENCES`] where it is not
    /// said; `None` where there are no more.
    ///
    /// # Errors
    /// Where the checkpoint's model reads no text, or the text fills no window.
    pub fn after(
        original: &Checkpoint,
        text: &str,
        window: usize,
        seen: usize,
        count: Option<usize>,
    ) -> Result<Option<Self>, taper_models::Error> {
        if Family::of(original)? != Family::Bert {
            let windows = OnWindows::after(original, text, window, seen, count.unwrap_or(WINDOWS))?;
            return Ok(windows.map(Self::Windows));
        }
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let lines = lines.skip(seen).take(count.unwrap_or(SENTENCES)).map(ToOwned::to_owned);
        let lines: Vec<String> = lines.collect();
        if lines.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self::Sentences(OnSentences::new(original, lines)?)))
    }

    /// How many windows or sentences are read, and what they are.
    #[must_use]
    pub fn judged(&self) -> (usize, &'static str) {
        match self {
            Self::Windows(on) => (on.windows(), "windows"),
            Self::Sentences(on) => (on.sentences(), "sentences"),
        }
    }

    /// The whole figure for a compressed checkpoint.
    ///
    /// # Errors
    /// Where the checkpoint's model cannot be run.
    pub fn judge(&self, compressed: &Checkpoint) -> Result<Moved, taper_models::Error> {
        let (judged, _) = self.judged();
        Ok(match self {
            Self::Windows(on) => {
                let found = on.judge(compressed)?;
                let top1_agreement = Some(found.top1_agreement);
                Moved { divergence: found.mean_kl, top1_agreement, judged }
            }
            Self::Sentences(on) => {
                Moved { divergence: on.divergence(compressed)?, top1_agreement: None, judged }
            }
        })
    }
}

impl Judge for OnText {
    fn divergence(&self, checkpoint: &Checkpoint) -> taper_core::Result<f64> {
        match self {
            Self::Windows(on) => on.divergence(checkpoint),
            Self::Sentences(on) => on.divergence(checkpoint),
        }
    }
}

/// Mean KL of a language model's original to a compressed one, over windows of a text.
pub struct OnWindows {
    original: Box<Remembered>,
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
        Ok(Self { original: Box::new(Remembered { model, logits }), windows })
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
        divergence(self.original.as_ref(), &model, &self.windows, &Silent)
    }
}

impl Judge for OnWindows {
    fn divergence(&self, checkpoint: &Checkpoint) -> taper_core::Result<f64> {
        Ok(self.judge(checkpoint).map_err(taper_core::Error::other)?.mean_kl)
    }
}
