//! The BERT family, as sentence encoders use it (all-MiniLM-L6-v2 and its like).
//!
//! [`BertConfig`] reads the config and is the [`Architecture`]; `layer.rs` has the embeddings and a layer, `pooling.rs`
//! and `sentences.rs` make sentence vectors, `couplings.rs` says what may be cut, `blocks.rs` runs it a layer at a time.
//! Weight names may begin with `bert.`.

mod blocks;
mod config;
mod couplings;
mod layer;
mod pooling;
mod sentences;

pub use config::BertConfig;
pub use couplings::BertCouplings;
pub use pooling::Pooling;
pub use sentences::SentenceEncoder;

use candle_core::{DType, Device, Tensor};
use taper_core::{Architecture, Checkpoint, Error, Result, WeightBuilder};

use layer::{Embeddings, Layer};

/// A runnable BERT without a head.
#[derive(Debug, Clone)]
pub struct Bert {
    config: BertConfig,
    embeddings: Embeddings,
    layers: Vec<Layer>,
    device: Device,
}

/// What weight names begin with: nothing or `bert.`.
fn prefix_of(contains: impl Fn(&str) -> bool) -> &'static str {
    if contains("bert.embeddings.word_embeddings.weight") { "bert." } else { "" }
}

/// Where the model's weights begin.
fn body(weights: &WeightBuilder) -> WeightBuilder {
    if prefix_of(|name| weights.contains(name)) == "bert." { weights.pp("bert") } else { weights.clone() }
}

/// 0 for tokens and the lowest number for padding, `[batch, 1, 1, 1, len]`: finite, so that a text of padding alone is no
/// NaN.
fn added_mask(mask: &Tensor) -> Result<Tensor> {
    let (batch, len) = mask.dims2()?;
    let hidden = ((mask.to_dtype(DType::F32)? - 1.0)? * f64::from(f32::MAX))?;
    Ok(hidden.reshape((batch, 1, 1, 1, len))?)
}

fn check_length(len: usize, most: usize) -> Result<()> {
    if len == 0 || len > most {
        return Err(Error::bad_option("tokens", len, format!("1 to `max_position_embeddings`, {most}")));
    }
    Ok(())
}

impl Architecture for BertConfig {
    type Model = Bert;

    fn build(&self, weights: &WeightBuilder) -> Result<Bert> {
        let body = body(weights);
        let stack = body.pp("encoder").pp("layer");
        Ok(Bert {
            config: self.clone(),
            embeddings: Embeddings::new(self, &body.pp("embeddings"))?,
            layers: (0..self.num_hidden_layers)
                .map(|i| Layer::new(self, &stack.pp(i)))
                .collect::<Result<Vec<_>>>()?,
            device: weights.device().clone(),
        })
    }
}

impl Bert {
    /// The model of a checkpoint, in f32 on the CPU.
    pub fn open(checkpoint: &Checkpoint) -> Result<Self> {
        BertConfig::of(checkpoint)?.build(&WeightBuilder::new(checkpoint, DType::F32, &Device::Cpu))
    }

    /// Its config.
    #[must_use]
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// Where it is.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Token vectors: `ids` and `mask` (1 for tokens, 0 for padding), u32 `[batch, len]`, to `[batch, len, hidden]`.
    pub fn forward(&self, ids: &Tensor, mask: &Tensor) -> Result<Tensor> {
        self.walk(ids, mask, |_| {})
    }

    /// The residual stream after the embeddings and after each layer: `layers + 1` tensors `[batch, len, hidden]`.
    pub fn hidden_states(&self, ids: &Tensor, mask: &Tensor) -> Result<Vec<Tensor>> {
        let mut states = Vec::with_capacity(self.layers.len() + 1);
        self.walk(ids, mask, |x| states.push(x.clone()))?;
        Ok(states)
    }

    fn walk(&self, ids: &Tensor, mask: &Tensor, mut visit: impl FnMut(&Tensor)) -> Result<Tensor> {
        check_length(ids.dims2()?.1, self.config.max_position_embeddings)?;
        let hidden = added_mask(&mask.to_device(&self.device)?)?;
        let mut x = self.embeddings.forward(&ids.to_device(&self.device)?)?;
        visit(&x);
        for layer in &self.layers {
            x = layer.run(&x, &hidden)?;
            visit(&x);
        }
        Ok(x)
    }

    /// A batch of texts filled up to the longest: ids and mask, u32 `[texts, longest]`.
    pub fn pad(&self, texts: &[&[u32]]) -> Result<(Tensor, Tensor)> {
        let longest = texts.iter().map(|t| t.len()).max().unwrap_or(0);
        let filled = |fill: u32, token: fn(u32) -> u32| {
            let padded = texts.iter().flat_map(|text| {
                text.iter().map(move |&id| token(id)).chain(std::iter::repeat_n(fill, longest - text.len()))
            });
            Tensor::from_vec(padded.collect::<Vec<u32>>(), (texts.len(), longest), &self.device)
        };
        Ok((filled(self.config.pad_token_id, |id| id)?, filled(0, |_| 1)?))
    }
}
