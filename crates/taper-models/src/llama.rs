//! The Llama family: Llama 1 to 3, Mistral, Qwen2, Qwen3, SmolLM, from a stock `config.json`.
//!
//! ```text
//! ids ─embed─▶ x ─layer 0─▶ x ─layer 1─▶ … ─norm─▶ ─head─▶ logits
//!                          hidden states
//! ```
//!
//! [`LlamaConfig`] reads the config and is the [`Architecture`]; `layer.rs` has a layer, `rope.rs` the positions,
//! `cache.rs` the keys and values seen, `couplings.rs` what may be cut, `blocks.rs` the model a layer at a time, `trace.rs` a layer's way back. The stages ([`Llama::embed`], [`Llama::layer`],
//! [`Llama::logits`]) are public, so that calibration and distillation can walk the model layer by layer.

mod blocks;
mod cache;
mod config;
mod couplings;
pub mod gguf;
mod layer;
mod rope;
mod trace;

pub use cache::{Cache, CacheFormat};
pub use config::{LayerKind, LlamaConfig, LlamaFamily, Reach};
pub use couplings::LlamaCouplings;
pub use rope::{Rope, RopeConfig, RopeScaling, Rotation};

use candle_core::{DType, Device, Tensor};
use std::sync::Arc;
use taper_core::{
    Architecture, Checkpoint, Error, Result, WeightBuilder,
    nn::{Embedding, Linear, RmsNorm, embedding, linear_no_bias, rms_norm},
};

use layer::{Layer, Stretch};

/// A runnable model of the Llama family.
#[derive(Debug, Clone)]
pub struct Llama {
    config: LlamaConfig,
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Linear,
    positions: Positions,
    device: Device,
}

impl Architecture for LlamaConfig {
    type Model = Llama;

    fn build(&self, weights: &WeightBuilder) -> Result<Llama> {
        let body = weights.pp("model");
        let embedding = embedding(self.vocab_size, self.hidden_size, &body.pp("embed_tokens"))?;
        let stack = body.pp("layers");
        let layers = self
            .layers
            .iter()
            .enumerate()
            .map(|(i, &kind)| Layer::new(self, kind, &stack.pp(i)))
            .collect::<Result<Vec<_>>>()?;
        Ok(Llama {
            config: self.clone(),
            head: head(self, Some(&embedding), weights)?,
            embedding,
            layers,
            norm: rms_norm(self.hidden_size, self.rms_norm_eps, &body.pp("norm"))?,
            positions: Positions::new(self, weights.device()),
            device: weights.device().clone(),
        })
    }
}

/// The head of its own, or the embedding's weight shared (read anew where `table` is not at hand).
fn head(config: &LlamaConfig, table: Option<&Embedding>, weights: &WeightBuilder) -> Result<Linear> {
    let (inner, out) = (config.hidden_size, config.vocab_size);
    if !config.is_tied(weights.contains("lm_head.weight")) {
        return linear_no_bias(inner, out, &weights.pp("lm_head"));
    }
    let rows = match table {
        Some(table) => Arc::clone(table.weight()),
        None => weights.pp("model").pp("embed_tokens").weight(&[out, inner], "weight")?,
    };
    let tied = Linear::from_weight(rows, None);
    Ok(match weights.observer() {
        Some(observer) => {
            let name = weights.full_name("model.embed_tokens.weight");
            tied.observed_by(Arc::clone(observer), &name)
        }
        None => tied,
    })
}

impl Llama {
    /// The model of a checkpoint, in f32 on the CPU.
    pub fn open(checkpoint: &Checkpoint) -> Result<Self> {
        LlamaConfig::of(checkpoint)?.build(&WeightBuilder::new(checkpoint, DType::F32, &Device::Cpu))
    }

    /// Its config.
    #[must_use]
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// How many layers it has.
    #[must_use]
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Where it is.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Logits at every position: `ids` `[batch, len]` to f32 `[batch, len, vocabulary]`.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let mut x = self.embed(ids)?;
        let stretch = self.positions.stretch(&x, 0)?;
        for layer in &self.layers {
            x = layer.forward(&x, &stretch, None)?;
        }
        self.logits(&x)
    }

    /// Logits at the last position, with the tokens in `cache` before `ids`: `[batch, len]` to f32 `[batch, vocabulary]`.
    ///
    /// The cache then holds `ids` as well.
    pub fn forward_last(&self, ids: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        // One errand to the pool instead of one for each of its many small products.
        rayon::scope(|_| self.continued(ids, cache))
    }

    /// Logits at every position of `ids` `[batch, len]`, with the tokens in `cache` before them: f32
    /// `[batch, len, vocabulary]`. The cache then holds `ids` as well.
    ///
    /// With a packed cache these are the logits that [`Llama::forward_last`] gives token by token.
    pub fn forward_cached(&self, ids: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        self.logits(&self.states_after(ids, cache)?)
    }

    fn continued(&self, ids: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        let x = self.states_after(ids, cache)?;
        Ok(self.logits(&x.narrow(1, x.dim(1)? - 1, 1)?.contiguous()?)?.squeeze(1)?)
    }

    /// The last residual stream of `ids`, which follow what the cache holds.
    fn states_after(&self, ids: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        let mut x = self.embed(ids)?;
        let len = x.dim(1)?;
        let stretch = self.positions.stretch(&x, cache.len())?;
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, &stretch, Some(cache.layer(i)?))?;
        }
        cache.advance(len);
        Ok(x)
    }

    /// The residual stream before each layer and after the last: `num_layers + 1` tensors `[batch, len, hidden]`.
    pub fn hidden_states(&self, ids: &Tensor) -> Result<Vec<Tensor>> {
        let mut states = vec![self.embed(ids)?];
        let stretch = self.positions.stretch(&states[0], 0)?;
        for layer in &self.layers {
            let next = layer.forward(&states[states.len() - 1], &stretch, None)?;
            states.push(next);
        }
        Ok(states)
    }

    /// The first residual stream: `ids` `[batch, len]` to `[batch, len, hidden]`.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        lookup(&self.embedding, ids, &self.device)
    }

    /// What layer `index` makes of the residual stream `[batch, len, hidden]` of a whole text.
    pub fn layer(&self, index: usize, x: &Tensor) -> Result<Tensor> {
        let layer = self.layers.get(index).ok_or_else(|| {
            Error::bad_option(
                "layer",
                index,
                format!("the model has {} layers, counted from 0", self.layers.len()),
            )
        })?;
        layer.forward(x, &self.positions.stretch(x, 0)?, None)
    }

    /// Norm and head: the last residual stream `[batch, len, hidden]` to f32 logits `[batch, len, vocabulary]`.
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.head.forward(&self.norm.forward(x)?)?.to_dtype(DType::F32)?)
    }
}

/// The rows of `ids` `[batch, len]`.
fn lookup(table: &Embedding, ids: &Tensor, device: &Device) -> Result<Tensor> {
    let (_, len) = ids.dims2()?;
    if len == 0 {
        return Err(Error::bad_option("tokens", len, "at least one token per text"));
    }
    table.forward(&ids.to_device(device)?)
}

/// Makes what all layers share while tokens pass.
#[derive(Debug, Clone)]
struct Positions {
    rope: Rope,
    most: usize,
    device: Device,
}

impl Positions {
    fn new(config: &LlamaConfig, device: &Device) -> Self {
        Self {
            rope: Rope::new(&config.rope, config.head_dim, device),
            most: config.max_position_embeddings,
            device: device.clone(),
        }
    }

    /// Positions and masks of a residual stream that begins at position `start`.
    fn stretch(&self, x: &Tensor, start: usize) -> Result<Stretch> {
        let (len, most) = (x.dim(1)?, self.most);
        if start + len > most {
            return Err(Error::bad_option(
                "tokens",
                start + len,
                format!("at most `max_position_embeddings`, {most}"),
            ));
        }
        let rotation = self.rope.at(start, len, x.dtype())?;
        Ok(Stretch::new(rotation, start, len, &self.device))
    }
}
