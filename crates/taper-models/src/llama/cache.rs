//! Keys and values of the tokens seen so far, so that the next token costs one token's work.
//!
//! Sliding windows are applied by the mask; nothing is forgotten before [`Cache::clear`].

use candle_core::Tensor;
use candle_nn::kv_cache::KvCache;
use taper_core::{Error, Result};

use super::LlamaConfig;

/// Tokens by which a layer's storage grows: one allocation serves most prompts, and a short one wastes little.
const GROWTH: usize = 256;

/// The keys and values of one text (or one batch of texts of equal length).
#[derive(Debug)]
pub struct Cache {
    layers: Vec<KvCache>,
    len: usize,
}

impl Cache {
    /// An empty cache for a model of this config.
    #[must_use]
    pub fn new(config: &LlamaConfig) -> Self {
        let growth = GROWTH.min(config.max_position_embeddings);
        Self { layers: config.layers.iter().map(|_| KvCache::new(2, growth)).collect(), len: 0 }
    }

    /// How many tokens it holds: the position of the next one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True before the first token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.layers.iter_mut().for_each(KvCache::reset);
        self.len = 0;
    }

    /// Counts tokens whose keys and values every layer has appended.
    pub(super) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    /// The part of one layer.
    pub(super) fn layer(&mut self, index: usize) -> Result<LayerCache<'_>> {
        let layers = self.layers.len();
        let expected = || format!("the cache was made for {layers} layers; make it from this model's config");
        self.layers
            .get_mut(index)
            .map(LayerCache)
            .ok_or_else(|| Error::bad_option("layer", index, expected()))
    }
}

/// One layer's keys and values.
pub(super) struct LayerCache<'a>(&'a mut KvCache);

impl LayerCache<'_> {
    /// Appends keys and values `[batch, groups, new, d]`; gives all of them, `[batch, groups, all, d]`.
    pub(super) fn append(self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok(self.0.append(k, v)?)
    }
}
