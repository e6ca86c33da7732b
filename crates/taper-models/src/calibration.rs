//! Texts and sentences as calibration: what [`taper_core::Calibration`] runs a model on.
//!
//! Language models read windows of a text, cut as for perplexity; sentence encoders read sentences. Sentences of one length
//! share a batch, so that nothing is padded.

use candle_core::{Device, Tensor};
use std::{collections::BTreeMap, sync::Arc};
use taper_core::{Batch, Calibration, Checkpoint};

use crate::{Error, Families, Family, Result, bert::BertConfig, eval::Windows, tokenizer::Tokenizer};

/// Tokens of a batch, of which two go through a block at once: enough to keep cores busy, few enough that their activations are
/// small beside a block's weights.
const BATCH_TOKENS: usize = 1024;

/// A language model on the first `count` windows of `window` tokens of a text; a sentence encoder on the text's first
/// `count` lines, one sentence a line.
///
/// The tokenizer is the one beside the checkpoint's weights. Errors where the text does not fill a window or has no
/// sentence, and for models that read no text.
pub fn on_text(checkpoint: &Checkpoint, text: &str, window: usize, count: usize) -> Result<Calibration> {
    match Family::of(checkpoint)? {
        Family::Llama => {
            let windows = Windows::of_text(&Tokenizer::of(checkpoint)?, text, window)?.first(count);
            on_windows(&windows)
        }
        Family::Bert => {
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            on_sentences(checkpoint, &lines.take(count).collect::<Vec<_>>())
        }
        Family::DsCnn => {
            Err(Error::WrongKind { found: Family::DsCnn.purpose(), needed: "model that reads text" })
        }
    }
}

/// A language model on windows of a text.
pub fn on_windows(windows: &Windows) -> Result<Calibration> {
    let together = (BATCH_TOKENS / windows.size()).max(1);
    let windows: Vec<&[u32]> = windows.iter().collect();
    let batches = windows.chunks(together).map(batch).collect::<Result<Vec<_>>>()?;
    Ok(Calibration::new(Arc::new(Families), batches)?)
}

/// A sentence encoder on sentences, cut to the length that the tokenizer states.
pub fn on_sentences(checkpoint: &Checkpoint, sentences: &[&str]) -> Result<Calibration> {
    let tokenizer = Tokenizer::of(checkpoint)?;
    let positions = BertConfig::of(checkpoint)?.max_position_embeddings;
    let limit = tokenizer.stated_limit().map_or(positions, |n| n.min(positions));
    let tokens = tokenizer.with_limit(limit)?.encode_all(sentences)?;
    let mut by_length: BTreeMap<usize, Vec<&[u32]>> = BTreeMap::new();
    for sentence in tokens.iter().filter(|t| !t.is_empty()) {
        by_length.entry(sentence.len()).or_default().push(sentence);
    }
    let mut batches = Vec::new();
    for (length, sentences) in by_length {
        for together in sentences.chunks((BATCH_TOKENS / length).max(1)) {
            batches.push(batch(together)?);
        }
    }
    if batches.is_empty() {
        return Err(Error::TooFew { figure: "calibration", what: "sentences", found: 0, least: 1 });
    }
    Ok(Calibration::new(Arc::new(Families), batches)?)
}

/// Texts of one length, u32 `[texts, length]`.
fn batch(texts: &[&[u32]]) -> Result<Batch> {
    let length = texts.first().map_or(0, |t| t.len());
    Ok(Batch::new(Tensor::from_vec(texts.concat(), (texts.len(), length), &Device::Cpu)?))
}
