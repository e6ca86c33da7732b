//! How good a model is, and how near a compressed one is to its original.
//!
//! | file | figure | of |
//! |---|---|---|
//! | `perplexity` | exp of the mean negative log-likelihood | language models |
//! | `divergence` | mean KL and top-1 agreement against the original | language models |
//! | `influence` | how much each layer changes the residual stream | Llama, to choose layers to drop |
//! | `similarity` | Spearman and Pearson of cosines against gold scores | sentence encoders |
//! | `classify` | top-1 accuracy | classifiers |
//!
//! Models are judged through small traits, so a user's own model can be judged as well. Every judge reports steps to
//! a [`Progress`] observer, whose answer can cancel it.

mod classify;
mod divergence;
mod influence;
mod likelihood;
mod perplexity;
mod similarity;
mod windows;

pub use classify::{Accuracy, Classifier, Labelled, Quantized, accuracy};
pub use divergence::{Divergence, divergence};
pub use influence::{BlockInfluence, block_influence};
pub use perplexity::{Perplexity, perplexity};
pub use similarity::{Encoder, Pair, Similarity, pearson, read_pairs, similarity, spearman};
pub use windows::Windows;

use candle_core::Tensor;
use taper_core::{Event, Flow, Progress};

use crate::{Error, Result, llama::Llama};

/// A model that gives logits at every position.
///
/// Closures of that shape are language models too.
pub trait LanguageModel {
    /// u32 `[batch, len]` on the CPU to f32 `[batch, len, vocabulary]`.
    fn logits(&self, ids: &Tensor) -> taper_core::Result<Tensor>;
}

impl LanguageModel for Llama {
    fn logits(&self, ids: &Tensor) -> taper_core::Result<Tensor> {
        self.forward(ids)
    }
}

impl<F: Fn(&Tensor) -> taper_core::Result<Tensor>> LanguageModel for F {
    fn logits(&self, ids: &Tensor) -> taper_core::Result<Tensor> {
        self(ids)
    }
}

/// Reports one step done; an error where somebody asked to stop.
fn step(progress: &dyn Progress, what: &str, done: usize, total: usize) -> Result<()> {
    match progress.on(&Event::Step { what, done, total }) {
        Flow::Continue => Ok(()),
        Flow::Cancel => Err(Error::Core(taper_core::Error::Cancelled)),
    }
}
