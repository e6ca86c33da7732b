//! Opening a model directory and building what it holds.

use std::path::Path;
use taper::{
    Checkpoint,
    candle::Tensor,
    models::{
        Llama,
        eval::LanguageModel,
        llama::{Cache, CacheFormat},
    },
};

use crate::failure::Failure;

/// A language model and the checkpoint that it runs on.
pub(crate) struct Language {
    /// Its weights.
    pub(crate) checkpoint: Checkpoint,
    /// The runnable model.
    pub(crate) model: Llama,
    /// The cache through which it is judged, if it is.
    cache: Option<CacheFormat>,
}

impl Language {
    /// The language model of a directory. Errors where the directory holds another kind of model.
    pub(crate) fn open(dir: &Path) -> Result<Self, Failure> {
        Self::of(taper::open(dir)?)
    }

    /// The language model of a checkpoint.
    pub(crate) fn of(checkpoint: Checkpoint) -> Result<Self, Failure> {
        let model = taper::build(&checkpoint)?.language()?;
        Ok(Self { checkpoint, model, cache: None })
    }

    /// The same, judged through a cache of this format.
    pub(crate) fn through(mut self, cache: Option<CacheFormat>) -> Self {
        self.cache = cache;
        self
    }
}

impl LanguageModel for Language {
    fn logits(&self, ids: &Tensor) -> taper::Result<Tensor> {
        match self.cache {
            Some(format) => {
                self.model.forward_cached(ids, &mut Cache::with_format(self.model.config(), format))
            }
            None => self.model.forward(ids),
        }
    }
}
