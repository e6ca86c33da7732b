//! BERT on candle's quantized matrices, as candle-transformers writes its dense one: it has no quantized BERT of its own.
//!
//! Where a matrix is not a multiple of 256 wide, Q4_K cannot hold it, and Q8_0, candle's next fastest, takes its place.

use candle_nn::{LayerNorm, VarBuilder, embedding, layer_norm, ops::softmax_last_dim};
use taper::{
    Checkpoint,
    candle::{
        D, DType, Device, Module, Tensor,
        quantized::{GgmlDType, QMatMul, QTensor},
    },
    core::build::var_builder,
    models::BertConfig,
};

use crate::Failed;

type Fallible = taper::candle::Result<Tensor>;

/// A quantized matrix and its bias.
struct Linear(QMatMul, Tensor);

impl Linear {
    fn new(dims: (usize, usize), vb: &VarBuilder, dtype: GgmlDType) -> taper::candle::Result<Self> {
        let dtype = if dims.1.is_multiple_of(dtype.block_size()) { dtype } else { GgmlDType::Q8_0 };
        let weight = QTensor::quantize(&vb.get((dims.0, dims.1), "weight")?, dtype)?;
        Ok(Self(QMatMul::from_qtensor(weight)?, vb.get(dims.0, "bias")?))
    }

    fn forward(&self, x: &Tensor) -> Fallible {
        self.0.forward(x)?.broadcast_add(&self.1)
    }
}

struct Layer {
    qkv: [Linear; 3],
    output: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    output_norm: LayerNorm,
    heads: usize,
}

impl Layer {
    fn new(config: &BertConfig, vb: &VarBuilder, dtype: GgmlDType) -> taper::candle::Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let square = |name: &str| Linear::new((hidden, hidden), &vb.pp(name), dtype);
        let norm = |name: &str| layer_norm(hidden, config.layer_norm_eps, vb.pp(name));
        Ok(Self {
            qkv: [
                square("attention.self.query")?,
                square("attention.self.key")?,
                square("attention.self.value")?,
            ],
            output: square("attention.output.dense")?,
            attention_norm: norm("attention.output.LayerNorm")?,
            up: Linear::new((inner, hidden), &vb.pp("intermediate.dense"), dtype)?,
            down: Linear::new((hidden, inner), &vb.pp("output.dense"), dtype)?,
            output_norm: norm("output.LayerNorm")?,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, x: &Tensor, mask: &Tensor) -> Fallible {
        let (batch, len, hidden) = x.dims3()?;
        let dim = hidden / self.heads;
        let split = |linear: &Linear| -> Fallible {
            linear.forward(x)?.reshape((batch, len, self.heads, dim))?.transpose(1, 2)?.contiguous()
        };
        let (q, k, v) = (split(&self.qkv[0])?, split(&self.qkv[1])?, split(&self.qkv[2])?);
        let scores = (q.matmul(&k.t()?)? / (dim as f64).sqrt())?.broadcast_add(mask)?;
        let y = softmax_last_dim(&scores)?.matmul(&v)?;
        let y = y.transpose(1, 2)?.contiguous()?.flatten_from(D::Minus2)?;
        let x = self.attention_norm.forward(&(self.output.forward(&y)? + x)?)?;
        let y = self.down.forward(&self.up.forward(&x)?.gelu_erf()?)?;
        self.output_norm.forward(&(y + x)?)
    }
}

/// Token vectors of `ids` and `mask` `[batch, len]`.
pub(crate) fn quantized(
    checkpoint: &Checkpoint,
    dtype: GgmlDType,
) -> Result<impl Fn(&Tensor, &Tensor) -> Result<Tensor, Failed> + 'static, Failed> {
    let config = BertConfig::of(checkpoint)?;
    let vb = var_builder(checkpoint, DType::F32, &Device::Cpu);
    let at = vb.pp("embeddings");
    let hidden = config.hidden_size;
    let word = embedding(config.vocab_size, hidden, at.pp("word_embeddings"))?;
    let position = at.get((config.max_position_embeddings, hidden), "position_embeddings.weight")?;
    let kind = at.get((config.type_vocab_size, hidden), "token_type_embeddings.weight")?.narrow(0, 0, 1)?;
    let norm = layer_norm(hidden, config.layer_norm_eps, at.pp("LayerNorm"))?;
    let layers = (0..config.num_hidden_layers)
        .map(|i| Layer::new(&config, &vb.pp(format!("encoder.layer.{i}")), dtype))
        .collect::<taper::candle::Result<Vec<_>>>()?;
    Ok(move |ids: &Tensor, mask: &Tensor| {
        let (batch, len) = ids.dims2()?;
        let places = position.narrow(0, 0, len)?.broadcast_add(&kind)?;
        let mut x = norm.forward(&word.forward(ids)?.broadcast_add(&places)?)?;
        let hidden =
            ((mask.to_dtype(DType::F32)? - 1.0)? * f64::from(f32::MAX))?.reshape((batch, 1, 1, len))?;
        for layer in &layers {
            x = layer.forward(&x, &hidden)?;
        }
        Ok(x)
    })
}
