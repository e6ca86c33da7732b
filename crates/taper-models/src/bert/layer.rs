//! The embeddings and one layer, norms after each residual sum.
//!
//! ```text
//! x = n(word[id] + position[0..] + type[0])
//! x ← n(x + O · attend(Q x, K x, V x))
//! x ← n(x + B · act(A x))
//! ```

use candle_core::Tensor;
use taper_core::{
    Result, WeightBuilder,
    nn::{Embedding, LayerNorm, Linear, embedding, layer_norm, linear},
};

use super::BertConfig;
use crate::{
    activation::Activation,
    attention,
    kernel::{
        self,
        attention::{Seen, Sight},
        sum::sum,
    },
};

/// Word, position and token type tables; rows are looked up, no table is ever decoded whole.
#[derive(Debug, Clone)]
pub(super) struct Embeddings {
    word: Embedding,
    position: Embedding,
    token_type: Embedding,
    norm: LayerNorm,
}

impl Embeddings {
    pub(super) fn new(config: &BertConfig, weights: &WeightBuilder) -> Result<Self> {
        let hidden = config.hidden_size;
        let table = |rows: usize, name: &str| embedding(rows, hidden, &weights.pp(name));
        Ok(Self {
            word: table(config.vocab_size, "word_embeddings")?,
            position: table(config.max_position_embeddings, "position_embeddings")?,
            token_type: table(config.type_vocab_size, "token_type_embeddings")?,
            norm: layer_norm(hidden, config.layer_norm_eps, &weights.pp("LayerNorm"))?,
        })
    }

    /// `[batch, len]` to `[batch, len, hidden]`; all tokens are of type 0.
    pub(super) fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let len = u32::try_from(ids.dim(1)?).unwrap_or(u32::MAX);
        let words = self.word.forward(ids)?;
        let positions = self.position.forward(&Tensor::arange(0, len, ids.device())?)?; // (len, hidden)
        let kind = self.token_type.forward(&Tensor::new(&[0u32], ids.device())?)?; // (1, hidden)
        let rest = positions.broadcast_add(&kind)?;
        self.norm.forward(&words.broadcast_add(&rest.to_dtype(words.dtype())?)?)
    }
}

/// One layer.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    output_norm: LayerNorm,
    heads: usize,
    activation: Activation,
}

impl Layer {
    pub(super) fn new(config: &BertConfig, weights: &WeightBuilder) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let attention = weights.pp("attention");
        let norm = |at: &WeightBuilder| layer_norm(hidden, config.layer_norm_eps, &at.pp("LayerNorm"));
        let projection = |name: &str| linear(hidden, hidden, &attention.pp("self").pp(name));
        Ok(Self {
            q: projection("query")?,
            k: projection("key")?,
            v: projection("value")?,
            o: linear(hidden, hidden, &attention.pp("output").pp("dense"))?,
            attention_norm: norm(&attention.pp("output"))?,
            up: linear(hidden, inner, &weights.pp("intermediate").pp("dense"))?,
            down: linear(inner, hidden, &weights.pp("output").pp("dense"))?,
            output_norm: norm(&weights.pp("output"))?,
            heads: config.num_attention_heads,
            activation: config.hidden_act,
        })
    }

    /// `[batch, len, hidden]` to the same; `mask` is added to the scores, `[batch, 1, 1, 1, len]`.
    pub(super) fn run(&self, x: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let x = self.after_attention(x, &self.attend(x, mask)?)?;
        self.after_mlp(&x, &self.activate(&x)?)
    }

    /// n(x + O · `attended`).
    pub(super) fn after_attention(&self, x: &Tensor, attended: &Tensor) -> Result<Tensor> {
        self.attention_norm.forward(&sum(x, &self.o.forward(attended)?)?)
    }

    /// act(A x): what the feed-forward block's output projection reads.
    pub(super) fn activate(&self, x: &Tensor) -> Result<Tensor> {
        self.activation.forward(&self.up.forward(x)?)
    }

    /// n(x + B · `activated`).
    pub(super) fn after_mlp(&self, x: &Tensor, activated: &Tensor) -> Result<Tensor> {
        self.output_norm.forward(&sum(x, &self.down.forward(activated)?)?)
    }

    /// attend(Q x, K x, V x): what the attention's output projection reads.
    pub(super) fn attend(&self, x: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (self.q.forward(x)?, self.k.forward(x)?, self.v.forward(x)?);
        if attention::is_plain(&[&q, &k, &v]) {
            let heads = attention::sizes(&q, self.heads, self.heads)?;
            let fused = |mask: &[f32]| {
                attention::fused([&q, &k, &v], heads, None, Sight::All(mask), &mut Seen::default(), 0)
            };
            if let Some(y) = kernel::values(mask, fused) {
                return y;
            }
        }
        let split = |x: &Tensor| attention::split_heads(x, self.heads);
        attention::join_heads(&attention::attend(&split(&q)?, &split(&k)?, &split(&v)?, Some(mask))?)
    }
}
