//! Against candle-transformers: independent implementations reading the same checkpoints through the bridge.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models as theirs;
use serde_json::{Value, json};
use taper_core::{Checkpoint, build::var_builder};
use taper_models::{
    bert::Bert,
    eval::{Windows, perplexity},
    llama::Llama,
    tokenizer::Tokenizer,
};

use crate::{shelf, tiny};

/// Two f32 implementations of a few layers differ by rounding only.
const ROUNDING: f32 = 2e-5;

fn bridge(checkpoint: &Checkpoint) -> VarBuilder<'static> {
    var_builder(checkpoint, DType::F32, &Device::Cpu)
}

fn config<T: serde::de::DeserializeOwned>(json: &Value) -> T {
    serde_json::from_value(json.clone()).unwrap()
}

/// Compares our logits at every position with theirs after each prefix.
fn agrees(checkpoint: &Checkpoint, len: usize, mut last: impl FnMut(&Tensor) -> Tensor) {
    let model = Llama::open(checkpoint).unwrap();
    let ids = tiny::ids(2, len, model.config().vocab_size);
    let ours = model.forward(&ids).unwrap();
    for n in 1..=len {
        let theirs = last(&ids.narrow(1, 0, n).unwrap().contiguous().unwrap());
        let found = tiny::distance(&ours.narrow(1, n - 1, 1).unwrap(), &theirs.reshape((2, 1, ())).unwrap());
        assert!(found < ROUNDING, "{found} after {n} tokens");
    }
}

fn llama_agrees(changes: Value, len: usize) {
    let json = tiny::llama_config(changes);
    let checkpoint = tiny::llama(&json);
    let config = config::<theirs::llama::LlamaConfig>(&json).into_config(false);
    let model = theirs::llama::Llama::load(bridge(&checkpoint), &config).unwrap();
    agrees(&checkpoint, len, |ids| {
        let mut cache = theirs::llama::Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
        model.forward(ids, 0, &mut cache).unwrap()
    });
}

#[test]
fn llama_agrees_with_and_without_tied_embeddings() {
    llama_agrees(json!({}), 9);
    llama_agrees(json!({"tie_word_embeddings": true}), 9);
    llama_agrees(json!({"num_key_value_heads": 4}), 5);
    llama_agrees(json!({"num_key_value_heads": 1}), 5);
}

#[test]
fn llama_agrees_under_llama3_rope_scaling() {
    // So small a context that every pair of a head of 8 falls into another range.
    llama_agrees(
        json!({"rope_theta": 500.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 48}}),
        24,
    );
}

#[test]
fn mistral_agrees_inside_and_beyond_its_window() {
    for (ours, theirs_window) in [(Value::Null, Value::Null), (json!(5), json!(4))] {
        // They count the window without the current token, the reference code counts it.
        let json =
            tiny::llama_config(json!({"model_type": "mistral", "sliding_window": ours, "head_dim": 16}));
        let checkpoint = tiny::llama(&json);
        let mut json = json;
        json["sliding_window"] = theirs_window;
        json["use_flash_attn"] = false.into();
        let mut model = theirs::mistral::Model::new(&config(&json), bridge(&checkpoint)).unwrap();
        agrees(&checkpoint, 12, |ids| {
            model.clear_kv_cache();
            model.forward(ids, 0).unwrap()
        });
    }
}

#[test]
fn qwen2_agrees() {
    let json =
        tiny::llama_config(json!({"model_type": "qwen2", "sliding_window": 64, "max_window_layers": 3,
        "use_sliding_window": false, "rope_theta": 1e6}));
    let checkpoint = tiny::llama(&json);
    let mut model = theirs::qwen2::ModelForCausalLM::new(&config(&json), bridge(&checkpoint)).unwrap();
    agrees(&checkpoint, 9, |ids| {
        model.clear_kv_cache();
        model.forward(ids, 0).unwrap()
    });
}

#[test]
fn qwen3_agrees_with_and_without_biases() {
    for bias in [false, true] {
        let json = tiny::llama_config(
            json!({"model_type": "qwen3", "sliding_window": null, "max_window_layers": 3,
            "use_sliding_window": false, "head_dim": 16, "attention_bias": bias, "tie_word_embeddings": true}),
        );
        let checkpoint = tiny::llama(&json);
        let mut model = theirs::qwen3::ModelForCausalLM::new(&config(&json), bridge(&checkpoint)).unwrap();
        agrees(&checkpoint, 9, |ids| {
            model.clear_kv_cache();
            model.forward(ids, 0).unwrap()
        });
    }
}

#[test]
fn bert_agrees_under_padding_with_either_prefix() {
    for prefix in ["", "bert."] {
        let checkpoint = tiny::bert(prefix);
        let config: theirs::bert::Config = config(&Value::Object(checkpoint.config().clone()));
        let model = theirs::bert::BertModel::load(bridge(&checkpoint), &config).unwrap();
        let ours = Bert::open(&checkpoint).unwrap();
        let (ids, mask) = ours.pad(&[&[3, 7, 9, 4, 5], &[8, 2]]).unwrap();
        assert_eq!(mask.to_vec2::<u32>().unwrap(), [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]);
        let expected = model.forward(&ids, &ids.zeros_like().unwrap(), Some(&mask)).unwrap();
        let found = tiny::distance(&ours.forward(&ids, &mask).unwrap(), &expected);
        assert!(found < ROUNDING, "{found}");
    }
}

#[test]
fn perplexity_of_a_real_window_agrees_token_by_token() {
    let (Some(dir), Some(text)) = (shelf::shared("models/novels-7m"), shelf::shared("data/novels-eval.txt"))
    else {
        return;
    };
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let text = std::fs::read_to_string(text).unwrap();
    let start: String = text.chars().take(4000).collect();
    let windows = Windows::of_text(&Tokenizer::open(&dir).unwrap(), &start, 256).unwrap().first(1);

    let json = Value::Object(checkpoint.config().clone());
    let config = config::<theirs::llama::LlamaConfig>(&json).into_config(false);
    let model = theirs::llama::Llama::load(bridge(&checkpoint), &config).unwrap();
    let mut cache = theirs::llama::Cache::new(true, DType::F32, &config, &Device::Cpu).unwrap();
    let window = windows.iter().next().unwrap();
    let mut nll = 0.0;
    for (position, pair) in window.windows(2).enumerate() {
        let logits = model.forward(
            &Tensor::new(&pair[..1], &Device::Cpu).unwrap().unsqueeze(0).unwrap(),
            position,
            &mut cache,
        );
        let log_p = candle_nn::ops::log_softmax(&logits.unwrap(), 1).unwrap().to_vec2::<f32>().unwrap();
        nll -= f64::from(log_p[0][pair[1] as usize]);
    }
    let ours = perplexity(&Llama::open(&checkpoint).unwrap(), &windows, &taper_core::Silent).unwrap();
    assert!((ours.mean_nll - nll / 255.0).abs() < 1e-5, "{} {}", ours.mean_nll, nll / 255.0);
}
