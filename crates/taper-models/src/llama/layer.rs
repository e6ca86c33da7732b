//! One layer: attention and a gated feed-forward block, each behind a norm and around the residual stream.
//!
//! ```text
//! x ← x + O · attend(rope(Q n(x)), rope(K n(x)), V n(x))
//! x ← x + D · (act(G n(x)) ⊙ U n(x))
//! ```

use candle_core::{Device, Tensor};
use taper_core::{
    Result, WeightBuilder,
    nn::{Linear, RmsNorm, linear_b, rms_norm, tracked},
};

use super::{
    LlamaConfig,
    cache::LayerCache,
    config::{LayerKind, Reach},
    rope::Rotation,
};
use crate::{activation::Activation, attention};

/// What all layers share while one stretch of tokens passes: positions and masks.
#[derive(Debug)]
pub(super) struct Stretch {
    rotation: Rotation,
    full: Option<Tensor>,
    window: Option<(usize, Option<Tensor>)>,
}

impl Stretch {
    /// `len` tokens that begin at position `start`.
    pub(super) fn new(
        rotation: Rotation,
        start: usize,
        len: usize,
        layers: &[LayerKind],
        device: &Device,
    ) -> Result<Self> {
        let window = layers.iter().find_map(|l| match l.reach {
            Reach::Window(size) => Some(size),
            Reach::Full => None,
        });
        let window = match window {
            Some(size) => Some((size, causal_mask(start, len, size, device)?)),
            None => None,
        };
        Ok(Self { rotation, full: causal_mask(start, len, usize::MAX, device)?, window })
    }

    fn mask(&self, reach: Reach) -> Option<&Tensor> {
        match (reach, &self.window) {
            (Reach::Window(_), Some((_, mask))) => mask.as_ref(),
            _ => self.full.as_ref(),
        }
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
    attention_norm: RmsNorm,
    attention: Attention,
    mlp_norm: RmsNorm,
    mlp: Mlp,
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
        let x = (x + self.attention.forward(&self.attention_norm.forward(x)?, stretch, cache)?)?;
        let y = self.mlp.forward(&self.mlp_norm.forward(&x)?)?;
        Ok((x + y)?)
    }
}

#[derive(Debug, Clone)]
struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    qk_norm: Option<(RmsNorm, RmsNorm)>,
    heads: usize,
    groups: usize,
    kind: LayerKind,
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

    fn forward(&self, x: &Tensor, stretch: &Stretch, cache: Option<LayerCache<'_>>) -> Result<Tensor> {
        let mut q = attention::split_heads(&self.q.forward(x)?, self.heads)?;
        let mut k = attention::split_heads(&self.k.forward(x)?, self.groups)?;
        let v = attention::split_heads(&self.v.forward(x)?, self.groups)?;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        if self.kind.rotated {
            (q, k) = (stretch.rotation.apply(&q)?, stretch.rotation.apply(&k)?);
        }
        let (k, v) = match cache {
            Some(cache) => cache.append(&k, &v)?,
            None => (k, v),
        };
        let y = attention::attend(&q, &k, &v, stretch.mask(self.kind.reach))?;
        self.o.forward(&attention::join_heads(&y)?)
    }
}

#[derive(Debug, Clone)]
struct Mlp {
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
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

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (gate, up) = (self.gate.forward(x)?, self.up.forward(x)?);
        if self.activation == Activation::Silu && tracked::serves(&gate) && tracked::serves(&up) {
            return self.down.forward(&tracked::silu_gate(&gate, &up)?);
        }
        self.down.forward(&(self.activation.forward(&gate)? * up)?)
    }
}
