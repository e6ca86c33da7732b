//! A Llama-like model for the tests: its couplings, random weights in any type, and its forward pass in plain f64.
//!
//! Everything that the forward pass needs to know of sizes comes from `config.json`, so a pass that cuts weights and
//! edits the config wrongly gives wrong numbers here.

use candle_core::{DType, Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use taper_core::{
    Checkpoint, Couplings, Result,
    coupling::{Coupling, Family, Member, Stack},
};

/// Declares the couplings of a stock Llama checkpoint.
pub(crate) struct Llama;

fn size(config: &Map<String, Value>, key: &str) -> usize {
    config[key].as_u64().unwrap() as usize
}

impl Couplings for Llama {
    fn couplings(&self, checkpoint: &Checkpoint) -> Result<Vec<Coupling>> {
        let config = checkpoint.config();
        let (q, kv) = (size(config, "num_attention_heads"), size(config, "num_key_value_heads"));
        let dim = config
            .get("head_dim")
            .and_then(Value::as_u64)
            .map_or(size(config, "hidden_size") / q, |d| d as usize);
        let (r, ffn) = (q / kv, size(config, "intermediate_size"));
        let mut couplings = Vec::new();
        for layer in 0..size(config, "num_hidden_layers") {
            let name = |rest: &str| format!("model.layers.{layer}.{rest}");
            couplings.push(Coupling {
                name: name("mlp"),
                family: Family::FeedForward,
                units: ffn,
                members: vec![
                    Member::produces(name("mlp.gate_proj.weight"), 0, 1),
                    Member::produces(name("mlp.up_proj.weight"), 0, 1),
                    Member::consumes(name("mlp.down_proj.weight"), 1, 1),
                ],
                config: vec![("intermediate_size".into(), 1)],
            });
            couplings.push(Coupling {
                name: name("self_attn"),
                family: Family::AttentionGroups,
                units: kv,
                members: vec![
                    Member::produces(name("self_attn.q_proj.weight"), 0, r * dim),
                    Member::produces(name("self_attn.k_proj.weight"), 0, dim),
                    Member::produces(name("self_attn.v_proj.weight"), 0, dim),
                    Member::consumes(name("self_attn.o_proj.weight"), 1, r * dim),
                ],
                config: vec![("num_attention_heads".into(), r), ("num_key_value_heads".into(), 1)],
            });
        }
        Ok(couplings)
    }

    fn stack(&self, checkpoint: &Checkpoint) -> Result<Option<Stack>> {
        Ok(Some(Stack {
            prefix: "model.layers".into(),
            layers: size(checkpoint.config(), "num_hidden_layers"),
            config: "num_hidden_layers".into(),
        }))
    }
}

/// A random model: hidden 12, two KV groups of three heads of two (no `head_dim` in the config), 10 neurons.
pub(crate) fn model(layers: usize, dtype: DType) -> Checkpoint {
    let config = json!({
        "hidden_size": 12, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 10,
        "num_hidden_layers": layers, "layer_types": (0..layers).map(|l| format!("kind-{l}")).collect::<Vec<_>>(),
    });
    let Value::Object(config) = config else { unreachable!() };
    let mut checkpoint = Checkpoint::new(config);
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let shapes = [
        ("self_attn.q_proj", [12, 12]),
        ("self_attn.k_proj", [4, 12]),
        ("self_attn.v_proj", [4, 12]),
        ("self_attn.o_proj", [12, 12]),
        ("mlp.gate_proj", [10, 12]),
        ("mlp.up_proj", [10, 12]),
        ("mlp.down_proj", [12, 10]),
    ];
    for layer in 0..layers {
        for (name, [out, inner]) in shapes {
            let values: Vec<f64> = (0..out * inner).map(|_| rng.random_range(-0.6..0.6)).collect();
            let tensor =
                Tensor::from_vec(values, (out, inner), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            checkpoint.insert(format!("model.layers.{layer}.{name}.weight"), Arc::new(tensor));
        }
    }
    checkpoint
}

/// y = W x for a weight of the checkpoint.
fn apply(checkpoint: &Checkpoint, name: &str, x: &[f64]) -> Vec<f64> {
    let dense = checkpoint.get(name).unwrap().dense().unwrap().to_dtype(DType::F64).unwrap();
    let (out, inner) = dense.dims2().unwrap();
    assert_eq!(inner, x.len(), "{name}");
    let w = dense.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    (0..out).map(|o| w[o * inner..(o + 1) * inner].iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

fn normed(x: &[f64]) -> Vec<f64> {
    let scale = (x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64 + 1e-6).sqrt();
    x.iter().map(|v| v / scale).collect()
}

/// Causal grouped-query attention of one layer over a sequence (positions left out: they do not touch the couplings).
fn attention(checkpoint: &Checkpoint, layer: usize, xs: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let config = checkpoint.config();
    let (heads, kv) = (size(config, "num_attention_heads"), size(config, "num_key_value_heads"));
    let dim = config.get("head_dim").and_then(Value::as_u64).map_or(12 / heads, |d| d as usize);
    let project = |which: &str| -> Vec<Vec<f64>> {
        let name = format!("model.layers.{layer}.self_attn.{which}_proj.weight");
        xs.iter().map(|x| apply(checkpoint, &name, x)).collect()
    };
    let (q, k, v) = (project("q"), project("k"), project("v"));
    assert_eq!((q[0].len(), k[0].len()), (heads * dim, kv * dim));
    let mixed = (0..xs.len()).map(|t| {
        let mut out = vec![0f64; heads * dim];
        for head in 0..heads {
            let group = head / (heads / kv);
            let dot = |s: usize| -> f64 {
                (0..dim).map(|d| q[t][head * dim + d] * k[s][group * dim + d]).sum::<f64>()
                    / (dim as f64).sqrt()
            };
            let weights: Vec<f64> = (0..=t).map(|s| dot(s).exp()).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..dim {
                out[head * dim + d] = (0..=t).map(|s| weights[s] / total * v[s][group * dim + d]).sum();
            }
        }
        out
    });
    let name = format!("model.layers.{layer}.self_attn.o_proj.weight");
    mixed.map(|x| apply(checkpoint, &name, &x)).collect()
}

fn feed_forward(checkpoint: &Checkpoint, layer: usize, x: &[f64]) -> Vec<f64> {
    let project = |which: &str, x: &[f64]| {
        apply(checkpoint, &format!("model.layers.{layer}.mlp.{which}_proj.weight"), x)
    };
    let (gate, up) = (project("gate", x), project("up", x));
    let hidden: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
    project("down", &hidden)
}

/// The model's last hidden states for a fixed sequence of five inputs.
pub(crate) fn forward(checkpoint: &Checkpoint) -> Vec<f64> {
    let mut xs: Vec<Vec<f64>> =
        (0..5).map(|t| (0..12).map(|i| f64::from(t * 12 + i).sin()).collect()).collect();
    let add = |x: &mut Vec<f64>, y: &[f64]| x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    for layer in 0..size(checkpoint.config(), "num_hidden_layers") {
        let inputs: Vec<Vec<f64>> = xs.iter().map(|x| normed(x)).collect();
        for (x, y) in xs.iter_mut().zip(attention(checkpoint, layer, &inputs)) {
            add(x, &y);
        }
        for x in &mut xs {
            let y = feed_forward(checkpoint, layer, &normed(x));
            add(x, &y);
        }
    }
    xs.concat()
}

/// The largest difference of two results.
pub(crate) fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}
