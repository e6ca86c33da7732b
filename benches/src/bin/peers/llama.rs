//! A whole language model: a prompt at once, and then token after token with a cache.
//!
//! All matrices are packed, the head too. The peers are candle-transformers' own models: `quantized_llama` over a GGUF
//! file made of the same weights as Q4_K and as Q8_0, and `llama` in f32. Whoever of the three is fastest counts.

use candle_transformers::models as theirs;
use serde_json::Value as Json;
use std::{io::Cursor, path::Path, time::Instant};
use taper::{
    Architecture, Checkpoint, WeightBuilder,
    candle::{
        DType, Device, Tensor,
        quantized::{
            GgmlDType, QTensor,
            gguf_file::{self, Value},
        },
    },
    core::build::var_builder,
    models::{LlamaConfig, Tokenizer, llama::Cache, tokenizer::SpecialTokens},
};

use crate::{
    Failed, check,
    clock::Work,
    job::{Contender, Cost, Race, Spec, Target},
    model::{self, Stored},
    products::{Format, INT8, MODES},
};

/// Tokens of the prompt.
const PROMPT: usize = 256;
/// Tokens before the first one that is timed, and those that are.
const CONTEXT: usize = 128;
const STEPS: usize = 32;
/// Rows and columns of the head.
const SHAPE: [usize; 2] = [4096, 256];

/// Logits after some more tokens `[1, len]`, the first of which is at a position; at 0 a new text begins.
type Feed = Box<dyn FnMut(&Tensor, usize) -> Result<Tensor, Failed>>;

pub(crate) fn specs() -> Vec<Spec> {
    let packed = |bits, group, mode| Stored::Packed(Format::Int(bits, group), mode);
    let stored = [
        packed(4, 128, INT8),
        packed(4, 32, INT8),
        packed(4, 128, MODES[0]),
        packed(8, 0, INT8),
        Stored::F32,
    ];
    let both = |stored: Stored| {
        let prompt = format!("llama-{}-prompt", stored.name());
        let decode = format!("llama-{}-decode", stored.name());
        [
            Spec::new(prompt, SHAPE, PROMPT, move |_| race(stored, PROMPT, prompt_work)),
            Spec::new(decode, SHAPE, 1, move |_| race(stored, 1, decode_work)),
        ]
    };
    stored.into_iter().flat_map(both).collect()
}

/// One way to use a model: the text, and the model.
type Use = fn(Tensor, Feed) -> Work;

fn prompt_work(text: Tensor, mut feed: Feed) -> Work {
    Box::new(move || {
        let prompt = text.narrow(1, 0, PROMPT)?.contiguous()?;
        let clock = Instant::now();
        feed(&prompt, 0)?;
        Ok(clock.elapsed())
    })
}

/// States the time of one token.
fn decode_work(text: Tensor, mut feed: Feed) -> Work {
    Box::new(move || {
        feed(&text.narrow(1, 0, CONTEXT)?.contiguous()?, 0)?;
        let tokens = (CONTEXT..CONTEXT + STEPS)
            .map(|at| text.narrow(1, at, 1)?.contiguous())
            .collect::<taper::candle::Result<Vec<_>>>()?;
        let clock = Instant::now();
        for (token, at) in tokens.iter().zip(CONTEXT..) {
            feed(token, at)?;
        }
        Ok(clock.elapsed())
    })
}

fn race(stored: Stored, tokens: usize, work: Use) -> Result<Race, Failed> {
    let dir = model::shared("models/novels-7m")?;
    let checkpoint = taper::open(&dir)?;
    let text = text(&dir)?;
    let mut reference = dense(&checkpoint)?;
    let expected = reference(&text.narrow(1, 0, PROMPT)?.contiguous()?, 0)?;
    let contender = |name: String, mut feed: Feed, bound: f64| -> Result<Contender, Failed> {
        let found = feed(&text.narrow(1, 0, PROMPT)?.contiguous()?, 0)?;
        let error = check::within(&name, model::distance(&expected, &found)?, bound)?;
        Ok(Contender { name, work: work(text.clone(), feed), error })
    };
    let bound = |bits| if bits == 4 { 0.05 } else { 1e-3 };
    let allowed = match stored {
        Stored::F32 => 1e-8,
        Stored::Packed(Format::Int(bits, _), _) => bound(bits),
        Stored::Packed(Format::Nf4(_), _) => bound(4),
    };
    Ok(Race {
        ours: contender("taper".into(), ours(&stored.of(&checkpoint, |_| true)?)?, allowed)?,
        peers: vec![
            contender("candle Q4_K".into(), quantized(&checkpoint, GgmlDType::Q4K)?, bound(4))?,
            contender("candle Q8_0".into(), quantized(&checkpoint, GgmlDType::Q8_0)?, bound(8))?,
            contender("candle f32".into(), dense(&checkpoint)?, 1e-8)?,
        ],
        cost: Cost::NONE,
        reading: None,
        target: Target::Candle(1.0),
        extra: vec![("tokens", tokens as f64)],
        steps: if tokens == 1 { STEPS } else { 1 },
    })
}

/// The first tokens of the evaluation text, `[1, PROMPT]`.
fn text(dir: &Path) -> Result<Tensor, Failed> {
    let text = std::fs::read_to_string(model::shared("data/novels-eval.txt")?)?;
    let start = text.char_indices().nth(8 * PROMPT).map_or(text.len(), |(at, _)| at);
    let ids = Tokenizer::open(dir)?.encode(&text[..start], SpecialTokens::LeaveOut)?;
    let ids = ids.get(..PROMPT).ok_or("the text is too short")?;
    model::tensor(ids, 1)
}

fn ours(checkpoint: &Checkpoint) -> Result<Feed, Failed> {
    let config = LlamaConfig::of(checkpoint)?;
    let model = config.build(&WeightBuilder::new(checkpoint, DType::F32, &Device::Cpu))?;
    let mut cache = Cache::new(&config);
    Ok(Box::new(move |ids, at| {
        if at == 0 {
            cache.clear();
        }
        Ok(model.forward_last(ids, &mut cache)?)
    }))
}

fn dense(checkpoint: &Checkpoint) -> Result<Feed, Failed> {
    let json = Json::Object(checkpoint.config().clone());
    let config = serde_json::from_value::<theirs::llama::LlamaConfig>(json)?.into_config(false);
    let model = theirs::llama::Llama::load(var_builder(checkpoint, DType::F32, &Device::Cpu), &config)?;
    let new = move || theirs::llama::Cache::new(true, DType::F32, &config, &Device::Cpu);
    let mut cache = new()?;
    Ok(Box::new(move |ids, at| {
        if at == 0 {
            cache = new()?;
        }
        Ok(model.forward(ids, at, &mut cache)?)
    }))
}

/// candle's model over a GGUF file in memory.
fn quantized(checkpoint: &Checkpoint, dtype: GgmlDType) -> Result<Feed, Failed> {
    let config = LlamaConfig::of(checkpoint)?;
    let number = |n: usize| Value::U32(n as u32);
    let metadata = [
        // An architecture whose heads turn in halves, as Hugging Face's layout has them; the keys stay llama's.
        ("general.architecture", Value::String("qwen2".into())),
        ("llama.attention.head_count", number(config.num_attention_heads)),
        ("llama.attention.head_count_kv", number(config.num_key_value_heads)),
        ("llama.block_count", number(config.layers.len())),
        ("llama.embedding_length", number(config.hidden_size)),
        ("llama.rope.dimension_count", number(config.head_dim)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(config.rms_norm_eps as f32)),
        ("llama.rope.freq_base", Value::F32(config.rope.theta as f32)),
    ];
    let mut tensors = Vec::new();
    for name in checkpoint.names() {
        let dense = checkpoint.get(&name)?.dense()?.to_dtype(DType::F32)?;
        let dtype = if dense.rank() == 2 { dtype } else { GgmlDType::F32 };
        tensors.push((gguf_name(&name), QTensor::quantize(&dense, dtype)?));
    }
    let mut file = Cursor::new(Vec::new());
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, t)| (name.as_str(), t)).collect();
    gguf_file::write(&mut file, &metadata, &tensors)?;
    file.set_position(0);
    let content = gguf_file::Content::read(&mut file)?;
    let mut model = theirs::quantized_llama::ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
    Ok(Box::new(move |ids, at| Ok(model.forward(ids, at)?)))
}

fn gguf_name(name: &str) -> String {
    let pairs = [
        ("model.layers.", "blk."),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
    ];
    pairs.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}
