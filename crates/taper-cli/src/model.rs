//! Opening a model directory and building what it holds.

use std::path::Path;
use taper::{
    Checkpoint,
    models::{Llama, eval::LanguageModel},
};

use crate::failure::Failure;

/// A language model that judges can run, stopping between layers' worth of work when Ctrl-C asks for it.
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
    fn logits(&self, ids: &taper::candle::Tensor) -> taper::Result<taper::candle::Tensor> {
        self.model.logits(ids)
    }
}
