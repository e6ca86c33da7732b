//! Keys and values of the tokens seen so far, so that the next token costs one token's work.
//!
//! Sliding windows are applied by the mask; nothing is forgotten before [`Cache::clear`].

use candle_core::Tensor;
use candle_nn::kv_cache::KvCache;
use taper_core::{Error, Result};

use super::LlamaConfig;
use crate::kernel::attention::{Heads, Seen};

/// Tokens by which a layer's storage grows: one allocation serves most prompts, and a short one wastes little.
const GROWTH: usize = 256;

/// The keys and values of one text (or one batch of texts of equal length).
#[derive(Debug)]
pub struct Cache {
    layers: Vec<Stores>,
    growth: usize,
    len: usize,
}

/// One layer's keys and values, in the one store or in the other.
#[derive(Debug)]
struct Stores {
    /// For every device and type.
    tensors: KvCache,
    /// For inference in f32 on the CPU.
    seen: Seen,
}

impl Cache {
    /// An empty cache for a model of this config.
    #[must_use]
    pub fn new(config: &LlamaConfig) -> Self {
        let growth = GROWTH.min(config.max_position_embeddings);
        let stores = |_| Stores { tensors: KvCache::new(2, growth), seen: Seen::default() };
        Self { layers: config.layers.iter().map(stores).collect(), growth, len: 0 }
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
        for stores in &mut self.layers {
            stores.tensors.reset();
            stores.seen.clear();
        }
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
        let (growth, len) = (self.growth, self.len);
        self.layers
            .get_mut(index)
            .map(|stores| LayerCache { stores, growth, len })
            .ok_or_else(|| Error::bad_option("layer", index, expected()))
    }
}

/// One layer's keys and values.
pub(super) struct LayerCache<'a> {
    stores: &'a mut Stores,
    growth: usize,
    len: usize,
}

impl<'a> LayerCache<'a> {
    /// Appends keys and values `[batch, groups, new, d]`; gives all of them, `[batch, groups, all, d]`.
    pub(super) fn append(self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        self.check(self.stores.tensors.current_seq_len())?;
        Ok(self.stores.tensors.append(k, v)?)
    }

    /// What the fused attention has seen, and by how much it grows.
    pub(super) fn seen(self, heads: Heads) -> Result<(&'a mut Seen, usize)> {
        self.check(self.stores.seen.len())?;
        if !self.stores.seen.fits(heads) {
            let expected = "as many texts as the cache holds; clear it, or make another";
            return Err(Error::bad_option("texts", heads.batch, expected));
        }
        Ok((&mut self.stores.seen, self.growth))
    }

    /// A cache holds all tokens of a text in one store: those before were computed in the same way.
    fn check(&self, held: usize) -> Result<()> {
        if held == self.len {
            return Ok(());
        }
        let expected =
            format!("{} tokens, of the type that the cache was filled with; clear it first", self.len);
        Err(Error::bad_option("cached tokens", held, expected))
    }
}
