//! One layer: attention and a gated feed-forward block, each behind a norm and around the residual stream.
//!
//! ```text
//! x ← x + O · attend(rope(Q n(x)), rope(K n(x)), V n(x))
//! x ← x + D · (act(G n(x)) ⊙ U n(x))
//! ```

use candle_core::{Device, Tensor};
use std::sync::OnceLock;
use taper_core::{
    Error, Result, WeightBuilder,
    nn::{Linear, RmsNorm, linear_b, rms_norm, tracked},
};

use super::{
    LlamaConfig,
    cache::{LayerCache, Store},
    config::{LayerKind, Reach},
    rope::Rotation,
};
use crate::{
    activation::Activation,
    attention,
    kernel::{
        attention::{Seen, Sight, Turn},
        sum::sum,
    },
};

/// What all layers share while one stretch of tokens passes: positions, and masks where somebody asks for them.
#[derive(Debug)]
pub(super) struct Stretch {
    pub(super) rotation: Rotation,
    start: usize,
    len: usize,
    device: Device,
    full: OnceLock<Option<Tensor>>,
    window: OnceLock<Option<Tensor>>,
}

impl Stretch {
    /// `len` tokens that begin at position `start`.
    pub(super) fn new(rotation: Rotation, start: usize, len: usize, device: &Device) -> Self {
        let (full, window) = (OnceLock::new(), OnceLock::new());
        Self { rotation, start, len, device: device.clone(), full, window }
    }

    /// All layers with a window have the same.
    fn mask(&self, reach: Reach) -> Result<Option<&Tensor>> {
        let (mask, window) = match reach {
            Reach::Full => (&self.full, usize::MAX),
            Reach::Window(size) => (&self.window, size),
        };
        if let Some(mask) = mask.get() {
            return Ok(mask.as_ref());
        }
        let made = causal_mask(self.start, self.len, window, &self.device)?;
        Ok(mask.get_or_init(|| made).as_ref())
    }
}

/// −∞ where query `start + i` must not see key `j`: later ones, and those `window` or more before; none if all is seen.
fn causal_mask(start: usize, len: usize, window: usize, device: &Device) -> Result<Option<Tensor>> {
    let all = start + len;
    if len == 1 && all <= window {
        return Ok(None);
    }
    let values: Vec<f32> = (start..all)
        .flat_map(|i| (0..all).map(move |j| if j > i || i - j >= window { f32::NEG_INFINITY } else { 0.0 }))
        .collect();
    Ok(Some(Tensor::from_vec(values, (len, all), device)?))
}

/// One layer of the Llama family.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) attention_norm: RmsNorm,
    pub(super) attention: Attention,
    pub(super) mlp_norm: RmsNorm,
    pub(super) mlp: Mlp,
}

impl Layer {
    pub(super) fn new(config: &LlamaConfig, kind: LayerKind, weights: &WeightBuilder) -> Result<Self> {
        let norm = |name: &str| rms_norm(config.hidden_size, config.rms_norm_eps, &weights.pp(name));
        Ok(Self {
            attention_norm: norm("input_layernorm")?,
            attention: Attention::new(config, kind, &weights.pp("self_attn"))?,
            mlp_norm: norm("post_attention_layernorm")?,
            mlp: Mlp::new(config, &weights.pp("mlp"))?,
        })
    }

    /// `[batch, len, hidden]` to the same.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        stretch: &Stretch,
        cache: Option<LayerCache<'_>>,
    ) -> Result<Tensor> {
        let x = self.after_attention(x, &self.attend(x, stretch, cache)?)?;
        self.after_mlp(&x, &self.gate(&x)?)
    }

    /// attend(rope(Q n(x)), rope(K n(x)), V n(x)): what the attention's output projection reads.
    pub(super) fn attend(
        &self,
        x: &Tensor,
        stretch: &Stretch,
        cache: Option<LayerCache<'_>>,
    ) -> Result<Tensor> {
        self.attention.attend(&self.attention_norm.forward(x)?, stretch, cache)
    }

    /// x + O · `attended`.
    pub(super) fn after_attention(&self, x: &Tensor, attended: &Tensor) -> Result<Tensor> {
        Ok(sum(x, &self.attention.o.forward(attended)?)?)
    }

    /// act(G n(x)) ⊙ U n(x): what the feed-forward block's output projection reads.
    pub(super) fn gate(&self, x: &Tensor) -> Result<Tensor> {
        self.mlp.gate(&self.mlp_norm.forward(x)?)
    }

    /// x + D · `gated`.
    pub(super) fn after_mlp(&self, x: &Tensor, gated: &Tensor) -> Result<Tensor> {
        Ok(sum(x, &self.mlp.down.forward(gated)?)?)
    }
}

#[derive(Debug, Clone)]
pub(super) struct Attention {
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) o: Linear,
    pub(super) qk_norm: Option<(RmsNorm, RmsNorm)>,
    pub(super) heads: usize,
    pub(super) groups: usize,
    pub(super) kind: LayerKind,
}

impl Attention {
    fn new(config: &LlamaConfig, kind: LayerKind, weights: &WeightBuilder) -> Result<Self> {
        let (hidden, dim) = (config.hidden_size, config.head_dim);
        let (heads, groups) = (config.num_attention_heads, config.num_key_value_heads);
        let input =
            |name: &str, heads: usize| linear_b(hidden, heads * dim, config.qkv_bias, &weights.pp(name));
        let norm = |name: &str| rms_norm(dim, config.rms_norm_eps, &weights.pp(name));
        Ok(Self {
            q: input("q_proj", heads)?,
            k: input("k_proj", groups)?,
            v: input("v_proj", groups)?,
            o: linear_b(heads * dim, hidden, config.output_bias, &weights.pp("o_proj"))?,
            qk_norm: if config.qk_norm { Some((norm("q_norm")?, norm("k_norm")?)) } else { None },
            heads,
            groups,
            kind,
        })
    }

    /// Everything up to the output projection.
    fn attend(&self, x: &Tensor, stretch: &Stretch, cache: Option<LayerCache<'_>>) -> Result<Tensor> {
        let (mut q, mut k, v) = (self.q.forward(x)?, self.k.forward(x)?, self.v.forward(x)?);
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            (q, k) = (each_head(q_norm, &q, self.heads)?, each_head(k_norm, &k, self.groups)?);
        }
        if attention::is_plain(&[&q, &k, &v]) {
            return self.fused([&q, &k, &v], stretch, cache);
        }
        let mut q = attention::split_heads(&q, self.heads)?;
        let mut k = attention::split_heads(&k, self.groups)?;
        let v = attention::split_heads(&v, self.groups)?;
        if self.kind.rotated {
            (q, k) = (stretch.rotation.apply(&q)?, stretch.rotation.apply(&k)?);
        }
        let (k, v) = match cache {
            Some(cache) => cache.append(&k, &v)?,
            None => (k, v),
        };
        attention::join_heads(&attention::attend(&q, &k, &v, stretch.mask(self.kind.reach)?)?)
    }

    /// Rotation, cache and attention in one loop.
    fn fused(&self, qkv: [&Tensor; 3], stretch: &Stretch, cache: Option<LayerCache<'_>>) -> Result<Tensor> {
        let heads = attention::sizes(qkv[0], self.heads, self.groups)?;
        let window = match self.kind.reach {
            Reach::Full => usize::MAX,
            Reach::Window(size) => size,
        };
        let mut fresh = Seen::default();
        let mut store = match cache {
            Some(cache) => cache.seen(heads)?,
            None => Store::Full(&mut fresh, 0),
        };
        let mut attend = |turn: Option<Turn<'_>>| match &mut store {
            Store::Full(seen, growth) => {
                attention::fused(qkv, heads, turn, Sight::Before { window }, seen, *growth)
            }
            Store::Packed(seen) => attention::fused_packed(qkv, heads, turn, window, seen),
        };
        if !self.kind.rotated {
            return attend(None);
        }
        match stretch.rotation.with_turn(|turn| attend(Some(turn))) {
            Some(y) => y,
            None => Err(Error::bad_option("rotation", "other than f32", "angles of the activations' type")),
        }
    }
}

/// A norm over each head of `[batch, s, heads · d]`.
fn each_head(norm: &RmsNorm, x: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, s, width) = x.dims3()?;
    let split = x.reshape((batch, s, heads, width / heads))?;
    Ok(norm.forward(&split)?.reshape((batch, s, width))?)
}

#[derive(Debug, Clone)]
pub(super) struct Mlp {
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
    pub(super) activation: Activation,
}

impl Mlp {
    fn new(config: &LlamaConfig, weights: &WeightBuilder) -> Result<Self> {
        let (hidden, inner, bias) = (config.hidden_size, config.intermediate_size, config.mlp_bias);
        Ok(Self {
            gate: linear_b(hidden, inner, bias, &weights.pp("gate_proj"))?,
            up: linear_b(hidden, inner, bias, &weights.pp("up_proj"))?,
            down: linear_b(inner, hidden, bias, &weights.pp("down_proj"))?,
            activation: config.hidden_act,
        })
    }

    /// Everything up to the output projection.
    fn gate(&self, x: &Tensor) -> Result<Tensor> {
        let (gate, up) = (self.gate.forward(x)?, self.up.forward(x)?);
        let learns = gate.track_op() || up.track_op();
        if learns && self.activation == Activation::Silu && tracked::serves(&gate) && tracked::serves(&up) {
            return Ok(tracked::silu_gate(&gate, &up)?);
        }
        self.activation.gate(&gate, &up)
    }
}
