//! Opening a model directory and building what it holds.

use std::path::Path;
use taper::{
    Checkpoint,
    candle::Tensor,
    models::{Llama, eval::LanguageModel},
};

use crate::failure::Failure;

/// A language model and the checkpoint that it runs on.
pub(crate) struct Language {
    /// Its weights.
    pub(crate) checkpoint: Checkpoint,
    /// The runnable model.
    pub(crate) model: Llama,
}

impl Language {
    /// The language model of a directory. Errors where the directory holds another kind of model.
    pub(crate) fn open(dir: &Path) -> Result<Self, Failure> {
        Self::of(taper::open(dir)?)
    }

    /// The language model of a checkpoint.
    pub(crate) fn of(checkpoint: Checkpoint) -> Result<Self, Failure> {
        let model = taper::build(&checkpoint)?.language()?;
        Ok(Self { checkpoint, model })
    }
}

impl LanguageModel for Language {
    fn logits(&self, ids: &Tensor) -> taper::Result<Tensor> {
        self.model.forward(ids)
    }
}
