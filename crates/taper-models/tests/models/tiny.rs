//! Small random checkpoints of every family, made in memory, the same on every run.

use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::sync::Arc;
use taper_core::Checkpoint;
use taper_models::{bert::BertConfig, ds_cnn::DsCnnConfig, llama::LlamaConfig};

/// Fills a checkpoint name by name.
struct Filler {
    checkpoint: Checkpoint,
    rng: ChaCha8Rng,
}

impl Filler {
    fn new(config: &Value) -> Self {
        let config = config.as_object().unwrap().clone();
        Self { checkpoint: Checkpoint::new(config), rng: ChaCha8Rng::seed_from_u64(11) }
    }

    /// Values around `centre`, wide enough that every weight matters.
    fn put(&mut self, name: String, shape: &[usize], centre: f32, spread: f32) {
        let n = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|_| centre + spread * self.rng.random_range(-1f32..1.0)).collect();
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        self.checkpoint.insert(name, Arc::new(tensor));
    }

    fn matrix(&mut self, name: String, out: usize, inner: usize, bias: bool) {
        self.put(format!("{name}.weight"), &[out, inner], 0.0, 1.7 / (inner as f32).sqrt());
        if bias {
            self.put(format!("{name}.bias"), &[out], 0.0, 0.3);
        }
    }

    fn norm(&mut self, name: String, size: usize, bias: bool) {
        self.put(format!("{name}.weight"), &[size], 1.0, 0.3);
        if bias {
            self.put(format!("{name}.bias"), &[size], 0.0, 0.3);
        }
    }
}

/// A stock config of the Llama family with `changes`.
pub(crate) fn llama_config(changes: Value) -> Value {
    let mut config = json!({
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 61, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false
    });
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

/// A random checkpoint of the Llama family.
pub(crate) fn llama(config: &Value) -> Checkpoint {
    let mut fill = Filler::new(config);
    let c = LlamaConfig::from_json(config.as_object().unwrap()).unwrap();
    let (d, dim) = (c.hidden_size, c.head_dim);
    fill.put("model.embed_tokens.weight".into(), &[c.vocab_size, d], 0.0, 1.0);
    for i in 0..c.layers.len() {
        let at = |name: &str| format!("model.layers.{i}.{name}");
        let (q, kv) = (c.num_attention_heads * dim, c.num_key_value_heads * dim);
        fill.matrix(at("self_attn.q_proj"), q, d, c.qkv_bias);
        fill.matrix(at("self_attn.k_proj"), kv, d, c.qkv_bias);
        fill.matrix(at("self_attn.v_proj"), kv, d, c.qkv_bias);
        fill.matrix(at("self_attn.o_proj"), d, q, c.output_bias);
        if c.qk_norm {
            fill.norm(at("self_attn.q_norm"), dim, false);
            fill.norm(at("self_attn.k_norm"), dim, false);
        }
        fill.matrix(at("mlp.gate_proj"), c.intermediate_size, d, c.mlp_bias);
        fill.matrix(at("mlp.up_proj"), c.intermediate_size, d, c.mlp_bias);
        fill.matrix(at("mlp.down_proj"), d, c.intermediate_size, c.mlp_bias);
        fill.norm(at("input_layernorm"), d, false);
        fill.norm(at("post_attention_layernorm"), d, false);
    }
    fill.norm("model.norm".into(), d, false);
    if c.tie_word_embeddings != Some(true) {
        fill.matrix("lm_head".into(), c.vocab_size, d, false);
    }
    fill.checkpoint
}

/// A random BERT; weight names begin with `prefix`.
pub(crate) fn bert(prefix: &str) -> Checkpoint {
    let config = json!({
        "model_type": "bert", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 50, "max_position_embeddings": 16, "type_vocab_size": 2,
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0,
        "hidden_dropout_prob": 0.0, "initializer_range": 0.02, "position_embedding_type": "absolute"
    });
    let mut fill = Filler::new(&config);
    let c = BertConfig::from_json(config.as_object().unwrap()).unwrap();
    let d = c.hidden_size;
    for (table, rows) in
        [("word", c.vocab_size), ("position", c.max_position_embeddings), ("token_type", c.type_vocab_size)]
    {
        fill.put(format!("{prefix}embeddings.{table}_embeddings.weight"), &[rows, d], 0.0, 1.0);
    }
    fill.norm(format!("{prefix}embeddings.LayerNorm"), d, true);
    for i in 0..c.num_hidden_layers {
        let at = |name: &str| format!("{prefix}encoder.layer.{i}.{name}");
        for name in
            ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
        {
            fill.matrix(at(name), d, d, true);
        }
        fill.matrix(at("intermediate.dense"), c.intermediate_size, d, true);
        fill.matrix(at("output.dense"), d, c.intermediate_size, true);
        fill.norm(at("attention.output.LayerNorm"), d, true);
        fill.norm(at("output.LayerNorm"), d, true);
    }
    fill.checkpoint
}

/// A random DS-CNN.
pub(crate) fn ds_cnn() -> Checkpoint {
    let config = json!({
        "model": "DS-CNN keyword spotting", "input": {"shape": [1, 13, 6], "scale": 0.5, "zero_point": 3},
        "stem": {"kernel": [4, 3], "stride": [2, 2], "padding_tlbr": [1, 1, 2, 1]}, "blocks": 2, "channels": 8,
        "depthwise_kernel": [3, 3], "padding": "same", "batch_norm_eps": 0.001,
        "pool": {"kind": "avg", "kernel": [6, 3]}, "classes": ["Yes", "No", "Unknown"]
    });
    let mut fill = Filler::new(&config);
    let c = DsCnnConfig::from_json(config.as_object().unwrap()).unwrap();
    let n = c.channels;
    let layer = |fill: &mut Filler, name: String, inputs: usize, (height, width): (usize, usize)| {
        fill.put(format!("{name}.conv.weight"), &[n, inputs, height, width], 0.0, 0.8);
        fill.put(format!("{name}.conv.bias"), &[n], 0.0, 0.3);
        fill.norm(format!("{name}.bn"), n, true);
        fill.put(format!("{name}.bn.running_mean"), &[n], 0.0, 0.5);
        fill.put(format!("{name}.bn.running_var"), &[n], 1.0, 0.5);
    };
    layer(&mut fill, "stem".into(), 1, c.stem_kernel);
    for i in 0..c.blocks {
        layer(&mut fill, format!("blocks.{i}.depthwise"), 1, c.depthwise_kernel);
        layer(&mut fill, format!("blocks.{i}.pointwise"), n, (1, 1));
    }
    fill.matrix("classifier".into(), c.classes.len(), n, true);
    fill.checkpoint
}

/// Token ids `[batch, len]` that touch much of a vocabulary.
pub(crate) fn ids(batch: usize, len: usize, vocabulary: usize) -> Tensor {
    let values: Vec<u32> = (0..batch * len).map(|i| ((i * 37 + 11) % vocabulary) as u32).collect();
    Tensor::from_vec(values, (batch, len), &Device::Cpu).unwrap()
}

/// The largest difference of two tensors, over the largest value of the second.
pub(crate) fn distance(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let max = |t: Tensor| t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    max((a - b).unwrap()) / max(b.clone())
}
