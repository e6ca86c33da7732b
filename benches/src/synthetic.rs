//! A synthetic Llama checkpoint of any size, written in shards without ever holding a tensor.
//!
//! ```text
//! pool of N(0, 0.02²) in bf16 ──blocks at places drawn per tensor──▶ model-00001-of-0000N.safetensors, …, index, config
//! ```
//!
//! Values are drawn once, so writing costs little more than copying; memory is the pool's 8 MB whatever the size. The
//! same seed gives the same bytes. Names, shapes and `config.json` are those of a stock Llama, so everything that reads
//! such a model reads this one; what it says is noise.

use half::bf16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde_json::{Map, Value, json};
use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

/// The standard deviation that Llama's matrices are initialised with.
const DEVIATION: f32 = 0.02;
/// Values in the pool; 8 MB are drawn in a fraction of a second and fit a large cache.
const POOL: usize = 1 << 22;
/// Values copied at a time: 128 kB, so that drawing places costs nothing.
const BLOCK: usize = 1 << 16;
/// Bytes of a bf16.
const WIDTH: u64 = 2;

/// What to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec {
    /// At least this many bytes of weights (and at most one layer more).
    pub bytes: u64,
    /// At most this many bytes of weights per file, unless one weight alone is larger.
    pub shard_bytes: u64,
    /// Seed of all values.
    pub seed: u64,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Written {
    /// Weights.
    pub weights: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of the largest.
    pub largest: u64,
    /// Files that hold them.
    pub shards: usize,
}

/// A Llama's sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Llama {
    hidden: usize,
    intermediate: usize,
    heads: usize,
    key_value_heads: usize,
    vocabulary: usize,
    layers: usize,
}

/// Sizes in use, from a toy (whose rows of 176 leave a short last group) over TinyLlama's to those of Llama 2 7B.
const SIZES: [Llama; 5] = [
    Llama { hidden: 64, intermediate: 176, heads: 4, key_value_heads: 2, vocabulary: 512, layers: 1 },
    Llama { hidden: 256, intermediate: 704, heads: 4, key_value_heads: 2, vocabulary: 2048, layers: 1 },
    Llama { hidden: 1024, intermediate: 2816, heads: 16, key_value_heads: 4, vocabulary: 16000, layers: 1 },
    Llama { hidden: 2048, intermediate: 5632, heads: 32, key_value_heads: 4, vocabulary: 32000, layers: 1 },
    Llama { hidden: 4096, intermediate: 11008, heads: 32, key_value_heads: 32, vocabulary: 32000, layers: 1 },
];

/// A weight's name and shape.
type Named = (String, Vec<usize>);

impl Llama {
    /// The widest model that has at least four layers within `bytes`, with as many layers as reach them.
    fn of_bytes(bytes: u64) -> Self {
        let wide = SIZES.iter().rev().find(|s| s.outside() + 4 * s.layer() <= bytes).unwrap_or(&SIZES[0]);
        let layers = bytes.saturating_sub(wide.outside()).div_ceil(wide.layer()).max(1);
        Self { layers: layers as usize, ..*wide }
    }

    /// Bytes of one layer.
    fn layer(&self) -> u64 {
        self.layer_weights(0).iter().map(nbytes).sum()
    }

    /// Bytes outside the layers.
    fn outside(&self) -> u64 {
        self.outer_weights().iter().map(nbytes).sum()
    }

    fn layer_weights(&self, layer: usize) -> Vec<Named> {
        let head = self.hidden / self.heads;
        let named =
            |name: &str, shape: &[usize]| (format!("model.layers.{layer}.{name}.weight"), shape.to_vec());
        vec![
            named("input_layernorm", &[self.hidden]),
            named("self_attn.q_proj", &[self.hidden, self.hidden]),
            named("self_attn.k_proj", &[self.key_value_heads * head, self.hidden]),
            named("self_attn.v_proj", &[self.key_value_heads * head, self.hidden]),
            named("self_attn.o_proj", &[self.hidden, self.hidden]),
            named("post_attention_layernorm", &[self.hidden]),
            named("mlp.gate_proj", &[self.intermediate, self.hidden]),
            named("mlp.up_proj", &[self.intermediate, self.hidden]),
            named("mlp.down_proj", &[self.hidden, self.intermediate]),
        ]
    }

    fn outer_weights(&self) -> [Named; 3] {
        [
            ("model.embed_tokens.weight".to_owned(), vec![self.vocabulary, self.hidden]),
            ("model.norm.weight".to_owned(), vec![self.hidden]),
            ("lm_head.weight".to_owned(), vec![self.vocabulary, self.hidden]),
        ]
    }

    fn weights(&self) -> Vec<Named> {
        let [embedding, norm, head] = self.outer_weights();
        let layers = (0..self.layers).flat_map(|layer| self.layer_weights(layer));
        std::iter::once(embedding).chain(layers).chain([norm, head]).collect()
    }

    fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "num_hidden_layers": self.layers,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": false,
            "torch_dtype": "bfloat16",
        })
    }
}

fn elements((_, shape): &Named) -> usize {
    shape.iter().product()
}

fn nbytes(weight: &Named) -> u64 {
    elements(weight) as u64 * WIDTH
}

/// Writes the model directory `out`, which must not exist.
///
/// # Errors
/// A directory that exists, a full disk.
pub fn write(out: &Path, spec: &Spec) -> io::Result<Written> {
    let model = Llama::of_bytes(spec.bytes);
    let weights = model.weights();
    let shards = shards(&weights, spec.shard_bytes);
    std::fs::create_dir(out)?;
    let pool = Pool::new(spec.seed);
    let mut places = Map::new();
    let mut number = 0;
    for (i, shard) in shards.iter().enumerate() {
        let file = shard_name(i, shards.len());
        places.extend(shard.iter().map(|(name, _)| (name.clone(), file.clone().into())));
        pool.write_shard(&out.join(&file), shard, number)?;
        number += shard.len() as u64;
    }
    let bytes = weights.iter().map(nbytes).sum();
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": bytes }, "weight_map": places });
        std::fs::write(out.join("model.safetensors.index.json"), format!("{index:#}\n"))?;
    }
    std::fs::write(out.join("config.json"), format!("{:#}\n", model.config()))?;
    let largest = weights.iter().map(nbytes).max().unwrap_or(0);
    Ok(Written { weights: weights.len(), bytes, largest, shards: shards.len() })
}

/// The weights of each file: a weight opens a new one where it would push the open one past the limit.
fn shards(weights: &[Named], limit: u64) -> Vec<&[Named]> {
    let mut bytes = 0;
    weights
        .chunk_by(|before, next| {
            bytes += nbytes(before);
            let fits = bytes + nbytes(next) <= limit;
            if !fits {
                bytes = 0;
            }
            fits
        })
        .collect()
}

fn shard_name(index: usize, count: usize) -> String {
    if count == 1 {
        return "model.safetensors".to_owned();
    }
    format!("model-{:05}-of-{count:05}.safetensors", index + 1)
}

/// Values drawn once, as the bytes of a file.
struct Pool {
    bytes: Vec<u8>,
    seed: u64,
}

impl Pool {
    fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut value = || {
            let normal: f32 = StandardNormal.sample(&mut rng);
            bf16::from_f32(DEVIATION * normal).to_le_bytes()
        };
        Self { bytes: (0..POOL).flat_map(|_| value()).collect(), seed }
    }

    /// Header, then the values of each weight; `first` is the number of the first weight in the checkpoint.
    fn write_shard(&self, path: &Path, weights: &[Named], first: u64) -> io::Result<()> {
        let mut file = BufWriter::new(File::create_new(path)?);
        file.write_all(&header(weights))?;
        for (number, weight) in (first..).zip(weights) {
            if weight.1.len() == 1 {
                let ones = vec![bf16::ONE; elements(weight)]; // norms begin as the identity
                file.write_all(bytemuck::cast_slice(&ones))?;
            } else {
                self.write_matrix(&mut file, elements(weight), number)?;
            }
        }
        file.flush()
    }

    fn write_matrix(&self, file: &mut impl Write, elements: usize, number: u64) -> io::Result<()> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(number + 1); // stream 0 drew the pool
        let width = WIDTH as usize;
        let mut left = elements;
        while left > 0 {
            let count = left.min(BLOCK);
            let start = rng.random_range(0..=POOL - count);
            file.write_all(&self.bytes[start * width..(start + count) * width])?;
            left -= count;
        }
        Ok(())
    }
}

/// A safetensors header: its length, the JSON, and spaces up to a multiple of eight bytes.
fn header(weights: &[Named]) -> Vec<u8> {
    let mut object = Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))]);
    let mut start = 0;
    for weight in weights {
        let end = start + nbytes(weight);
        let entry = json!({ "dtype": "BF16", "shape": weight.1, "data_offsets": [start, end] });
        object.insert(weight.0.clone(), entry);
        start = end;
    }
    let mut text = Value::Object(object).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [(text.len() as u64).to_le_bytes().to_vec(), text].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory;
    use taper::weight::to_f32_vec;

    const SPEC: Spec = Spec { bytes: 600_000, shard_bytes: 200_000, seed: 7 };

    #[test]
    fn the_checkpoint_opens_runs_and_has_the_size_asked_for() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let out = dir.path().join("model");
        let written = write(&out, &SPEC)?;
        assert!(written.shards > 2 && written.bytes >= SPEC.bytes);
        assert!(written.bytes < SPEC.bytes + SIZES[0].layer(), "at most one layer more");
        let checkpoint = taper::open(&out)?;
        let totals = checkpoint.totals()?;
        assert_eq!((totals.weights, totals.bytes), (written.weights, written.bytes));
        taper::build(&checkpoint)?.language()?;
        Ok(())
    }

    #[test]
    fn matrices_are_gaussian_and_no_two_alike() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let out = dir.path().join("model");
        write(&out, &SPEC)?;
        let checkpoint = taper::open(&out)?;
        let values = |name: &str| to_f32_vec(checkpoint.get(name)?.as_ref());
        let up = values("model.layers.0.mlp.up_proj.weight")?;
        let square = up.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / up.len() as f64;
        assert!((square.sqrt() / f64::from(DEVIATION) - 1.0).abs() < 0.03, "deviation {}", square.sqrt());
        assert_ne!(up, values("model.layers.1.mlp.up_proj.weight")?);
        assert!(values("model.norm.weight")?.iter().all(|&v| v == 1.0));
        Ok(())
    }

    #[test]
    fn the_seed_decides_every_byte() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
        write(&a, &SPEC)?;
        write(&b, &SPEC)?;
        write(&c, &Spec { seed: 8, ..SPEC })?;
        assert_eq!(directory::first_difference(&a, &b)?, None);
        assert!(directory::first_difference(&a, &c)?.is_some());
        assert_eq!(write(&a, &SPEC).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        Ok(())
    }

    #[test]
    fn eight_gigabytes_are_a_llama_of_width_4096() {
        let model = Llama::of_bytes(8_000_000_000);
        let bytes: u64 = model.weights().iter().map(nbytes).sum();
        assert_eq!((model.hidden, model.layers), (4096, 19));
        assert!((8_000_000_000..8_410_000_000).contains(&bytes), "{bytes}");
    }

    #[test]
    fn files_keep_below_the_limit_unless_one_weight_is_larger() {
        let weights = Llama::of_bytes(600_000).weights();
        for limit in [1, 30_000, 70_000, 200_000, 10_000_000] {
            let shards = shards(&weights, limit);
            assert_eq!(shards.concat(), weights);
            for shard in shards {
                let bytes: u64 = shard.iter().map(nbytes).sum();
                assert!(bytes <= limit || shard.len() == 1, "{bytes} of {limit}");
            }
        }
    }
}
