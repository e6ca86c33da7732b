//! Keys and values of the tokens seen so far, so that the next token costs one token's work.
//!
//! ```text
//! format   keys per channel of 32 tokens, values per 32 channels     bytes per number
//! full     as they are                                               4 (f32)
//! int8     code, and for each 32 of them two f16                     1.125
//! int4                                                               0.625
//! ```
//!
//! A packed cache keeps the newest tokens in f32 until there are 32 of them, and attention reads the codes. What a token
//! sees depends on its position alone, not on how the tokens before it arrived.
//!
//! Sliding windows are applied by the mask; nothing is forgotten before [`Cache::clear`].

use candle_core::Tensor;
use candle_nn::kv_cache::KvCache;
use taper_core::{Error, Result};

use super::LlamaConfig;
use crate::kernel::attention::{Heads, Seen, block::CodeBits, packed::PackedSeen};

/// Tokens by which a layer's storage grows: one allocation serves most prompts, and a short one wastes little.
const GROWTH: usize = 256;

/// How a cache holds keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheFormat {
    /// As they are computed.
    #[default]
    Full,
    /// Eight bits, and a bit for grids; for inference in f32 on the CPU.
    Int8,
    /// Four bits, and a bit for grids; for inference in f32 on the CPU.
    Int4,
}

impl CacheFormat {
    /// Its name, as the command spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}

/// The keys and values of one text (or one batch of texts of equal length).
#[derive(Debug)]
pub struct Cache {
    layers: Vec<Stores>,
    format: CacheFormat,
    growth: usize,
    len: usize,
}

/// One layer's keys and values, in one of the stores.
#[derive(Debug)]
struct Stores {
    /// For every device and type.
    tensors: KvCache,
    /// For inference in f32 on the CPU.
    seen: Held,
}

/// What the fused attention has seen.
#[derive(Debug)]
enum Held {
    Full(Seen),
    Packed(PackedSeen),
}

impl Held {
    fn new(format: CacheFormat) -> Self {
        match format {
            CacheFormat::Full => Self::Full(Seen::default()),
            CacheFormat::Int8 => Self::Packed(PackedSeen::new(CodeBits::Eight)),
            CacheFormat::Int4 => Self::Packed(PackedSeen::new(CodeBits::Four)),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Full(seen) => seen.len(),
            Self::Packed(seen) => seen.len(),
        }
    }

    fn fits(&self, heads: Heads) -> bool {
        match self {
            Self::Full(seen) => seen.fits(heads),
            Self::Packed(seen) => seen.fits(heads),
        }
    }

    fn clear(&mut self) {
        match self {
            Self::Full(seen) => seen.clear(),
            Self::Packed(seen) => seen.clear(),
        }
    }

    fn nbytes(&self) -> usize {
        match self {
            Self::Full(seen) => seen.nbytes(),
            Self::Packed(seen) => seen.nbytes(),
        }
    }
}

/// What one layer's fused attention appends to.
pub(super) enum Store<'a> {
    /// With the number of positions by which it grows.
    Full(&'a mut Seen, usize),
    Packed(&'a mut PackedSeen),
}

impl Cache {
    /// An empty cache for a model of this config, of full precision.
    #[must_use]
    pub fn new(config: &LlamaConfig) -> Self {
        Self::with_format(config, CacheFormat::Full)
    }

    /// An empty cache for a model of this config that holds keys and values in this format.
    #[must_use]
    pub fn with_format(config: &LlamaConfig, format: CacheFormat) -> Self {
        let growth = GROWTH.min(config.max_position_embeddings);
        let stores = |_| Stores { tensors: KvCache::new(2, growth), seen: Held::new(format) };
        Self { layers: config.layers.iter().map(stores).collect(), format, growth, len: 0 }
    }

    /// How it holds keys and values.
    #[must_use]
    pub fn format(&self) -> CacheFormat {
        self.format
    }

    /// Bytes of memory that keys and values take now, with the room made for tokens to come.
    #[must_use]
    pub fn nbytes(&self) -> usize {
        let tensors = |stores: &Stores| -> usize {
            let caches = [stores.tensors.k_cache(), stores.tensors.v_cache()];
            let data = caches.into_iter().filter_map(|cache| cache.all_data().as_ref());
            data.map(|data| data.elem_count() * data.dtype().size_in_bytes()).sum()
        };
        self.layers.iter().map(|stores| tensors(stores) + stores.seen.nbytes()).sum()
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
        let (format, growth, len) = (self.format, self.growth, self.len);
        self.layers
            .get_mut(index)
            .map(|stores| LayerCache { stores, format, growth, len })
            .ok_or_else(|| Error::bad_option("layer", index, expected()))
    }
}

/// One layer's keys and values.
pub(super) struct LayerCache<'a> {
    stores: &'a mut Stores,
    format: CacheFormat,
    growth: usize,
    len: usize,
}

impl<'a> LayerCache<'a> {
    /// Appends keys and values `[batch, groups, new, d]`; gives all of them, `[batch, groups, all, d]`.
    pub(super) fn append(self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        if self.format != CacheFormat::Full {
            let expected = "full, where activations are not f32 on the CPU or gradients are tracked";
            return Err(Error::bad_option("cache format", self.format.name(), expected));
        }
        self.check(self.stores.tensors.current_seq_len())?;
        Ok(self.stores.tensors.append(k, v)?)
    }

    /// What the fused attention has seen.
    pub(super) fn seen(self, heads: Heads) -> Result<Store<'a>> {
        self.check(self.stores.seen.len())?;
        if !self.stores.seen.fits(heads) {
            let expected = "as many texts as the cache holds; clear it, or make another";
            return Err(Error::bad_option("texts", heads.batch, expected));
        }
        Ok(match &mut self.stores.seen {
            Held::Full(seen) => Store::Full(seen, self.growth),
            Held::Packed(seen) => Store::Packed(seen),
        })
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
