//! A stock `config.json` of the Llama family, family by family.
//!
//! | `model_type` | q, k, v bias | o bias | q/k norm | window | rotation |
//! |---|---|---|---|---|---|
//! | `llama` | `attention_bias` | `attention_bias` | no | no | all layers |
//! | `mistral` | no | no | no | `sliding_window`, all layers | all layers |
//! | `qwen2` | yes | no | no | `use_sliding_window`, upper layers | all layers |
//! | `qwen3` | `attention_bias` | `attention_bias` | yes | as above | all layers |
//! | `smollm3` | `attention_bias` | `attention_bias` | no | as above | `no_rope_layers` |
//!
//! Llama 2 and 3, SmolLM and SmolLM2 are `llama`. Defaults of absent keys are those of the families' reference code.

use serde_json::{Map, Value};
use taper_core::{Checkpoint, Result};

use super::rope::RopeConfig;
use crate::{
    activation::Activation,
    config::{Keys, bad},
};

/// More layers than any model has; a config that claims more is refused before anything is allocated.
const MOST_LAYERS: usize = 1 << 14;

/// A branch of the family, by `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LlamaFamily {
    /// Llama 1 to 3, SmolLM, SmolLM2 and everything that calls itself `llama`.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen3, dense.
    Qwen3,
    /// SmolLM3.
    SmolLm3,
}

impl LlamaFamily {
    /// Every `model_type` of the family.
    pub const KNOWN: [&'static str; 5] = ["llama", "mistral", "qwen2", "qwen3", "smollm3"];

    /// The branch of a `model_type`.
    #[must_use]
    pub fn of(model_type: &str) -> Option<Self> {
        Some(match model_type {
            "llama" => Self::Llama,
            "mistral" => Self::Mistral,
            "qwen2" => Self::Qwen2,
            "qwen3" => Self::Qwen3,
            "smollm3" => Self::SmolLm3,
            _ => return None,
        })
    }
}

/// How far back a layer's attention sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// To the first token.
    Full,
    /// The last so many tokens, the current one among them.
    Window(usize),
}

/// One layer's attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct LayerKind {
    /// How far back it sees.
    pub reach: Reach,
    /// Whether queries and keys are rotated by position.
    pub rotated: bool,
}

/// The sizes and kinds of a model of the Llama family.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct LlamaConfig {
    /// The branch.
    pub family: LlamaFamily,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Neurons of a feed-forward block.
    pub intermediate_size: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key-value heads; each serves `num_attention_heads / num_key_value_heads` query heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Positions that the model was made for; longer inputs are refused.
    pub max_position_embeddings: usize,
    /// ε of the norms.
    pub rms_norm_eps: f64,
    /// The gate's activation.
    pub hidden_act: Activation,
    /// How positions turn queries and keys.
    pub rope: RopeConfig,
    /// Whether the head is the embedding: `None` where the config does not say and the weights decide.
    pub tie_word_embeddings: Option<bool>,
    /// Biases of the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias of the output projection.
    pub output_bias: bool,
    /// Biases of the feed-forward block.
    pub mlp_bias: bool,
    /// Norms over each head's query and key.
    pub qk_norm: bool,
    /// One entry per layer.
    pub layers: Vec<LayerKind>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

impl LlamaConfig {
    /// Reads a checkpoint's config.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        Self::from_json(checkpoint.config())
    }

    /// Reads the contents of a `config.json`.
    ///
    /// Errors name the key and what would be right; nothing that would change the numbers is ignored.
    pub fn from_json(json: &Map<String, Value>) -> Result<Self> {
        let keys = Keys(json);
        let family = family_of(keys)?;
        let hidden_size = keys.count("hidden_size")?;
        let heads = keys.count("num_attention_heads")?;
        let groups = keys.optional_count("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(groups) {
            let message = format!("is {groups}; expected a divisor of `num_attention_heads`, {heads}");
            return Err(bad("num_key_value_heads", message));
        }
        let attention_bias = keys.flag_or("attention_bias", false)?;
        let (qkv_bias, output_bias) = match family {
            LlamaFamily::Qwen2 => (true, false),
            LlamaFamily::Mistral => (false, false),
            _ => (attention_bias, attention_bias),
        };
        Ok(Self {
            family,
            hidden_size,
            intermediate_size: keys.count("intermediate_size")?,
            num_attention_heads: heads,
            num_key_value_heads: groups,
            head_dim: head_dim(keys, hidden_size, heads)?,
            vocab_size: keys.count("vocab_size")?,
            max_position_embeddings: keys.count("max_position_embeddings")?,
            rms_norm_eps: keys.number_or("rms_norm_eps", 1e-6)?,
            hidden_act: Activation::parse("hidden_act", keys.text("hidden_act")?.unwrap_or("silu"))?,
            rope: RopeConfig::from_keys(keys, if family == LlamaFamily::SmolLm3 { 2e6 } else { 1e4 })?,
            tie_word_embeddings: keys.optional_flag("tie_word_embeddings")?,
            qkv_bias,
            output_bias,
            mlp_bias: keys.flag_or("mlp_bias", false)?,
            qk_norm: family == LlamaFamily::Qwen3,
            layers: layer_kinds(keys, family)?,
            eos_token_ids: keys.tokens("eos_token_id")?,
        })
    }

    /// Query heads per key-value head.
    #[must_use]
    pub fn queries_per_group(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }

    /// Whether the head shares the embedding, given whether the checkpoint has an `lm_head.weight`.
    #[must_use]
    pub fn is_tied(&self, has_head: bool) -> bool {
        let by_family = self.family == LlamaFamily::SmolLm3;
        self.tie_word_embeddings.unwrap_or(by_family || !has_head)
    }
}

fn family_of(keys: Keys<'_>) -> Result<LlamaFamily> {
    let known = LlamaFamily::KNOWN.join(", ");
    let name = keys
        .text("model_type")?
        .ok_or_else(|| bad("model_type", format!("is missing; expected one of {known}")))?;
    LlamaFamily::of(name)
        .ok_or_else(|| bad("model_type", format!("`{name}` is not built; expected one of {known}")))
}

fn head_dim(keys: Keys<'_>, hidden_size: usize, heads: usize) -> Result<usize> {
    let dim = match keys.optional_count("head_dim")? {
        Some(dim) => dim,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let message =
                format!("is missing, and {hidden_size} values do not divide among {heads} heads; state it");
            return Err(bad("head_dim", message));
        }
    };
    if !dim.is_multiple_of(2) {
        return Err(bad("head_dim", format!("is {dim}; rotation needs an even number")));
    }
    if keys.number_or("partial_rotary_factor", 1.0)? != 1.0 {
        return Err(bad("partial_rotary_factor", "is not built; expected 1, whole heads rotated"));
    }
    Ok(dim)
}

/// What each layer sees and whether it rotates.
fn layer_kinds(keys: Keys<'_>, family: LlamaFamily) -> Result<Vec<LayerKind>> {
    let count = keys.count("num_hidden_layers")?;
    if count > MOST_LAYERS {
        return Err(bad("num_hidden_layers", format!("is {count}; at most {MOST_LAYERS} are sensible")));
    }
    let reaches = reaches(keys, family, count)?;
    let rotated = rotations(keys, family, count)?;
    Ok(reaches.into_iter().zip(rotated).map(|(reach, rotated)| LayerKind { reach, rotated }).collect())
}

fn reaches(keys: Keys<'_>, family: LlamaFamily, count: usize) -> Result<Vec<Reach>> {
    let window = keys.optional_count("sliding_window")?.map(Reach::Window);
    let first_windowed = match family {
        LlamaFamily::Llama => return Ok(vec![Reach::Full; count]),
        LlamaFamily::Mistral => 0,
        _ if !keys.flag_or("use_sliding_window", false)? => return Ok(vec![Reach::Full; count]),
        LlamaFamily::SmolLm3 => 0,
        // The reference code's default; every published config states it.
        _ => keys.0.get("max_window_layers").and_then(Value::as_u64).map_or(28, |n| n as usize),
    };
    let Some(window) = window else {
        return Ok(vec![Reach::Full; count]);
    };
    let Some(types) = keys.list("layer_types")? else {
        return Ok((0..count).map(|i| if i >= first_windowed { window } else { Reach::Full }).collect());
    };
    per_layer("layer_types", types, count, |kind| match kind.as_str() {
        Some("full_attention") => Some(Reach::Full),
        Some("sliding_attention") => Some(window),
        _ => None,
    })
}

fn rotations(keys: Keys<'_>, family: LlamaFamily, count: usize) -> Result<Vec<bool>> {
    if family != LlamaFamily::SmolLm3 {
        return Ok(vec![true; count]);
    }
    // Despite its name the list holds 1 for layers that do rotate.
    if let Some(list) = keys.list("no_rope_layers")? {
        return per_layer("no_rope_layers", list, count, |v| match v.as_u64() {
            Some(0) => Some(false),
            Some(1) => Some(true),
            _ => None,
        });
    }
    let interval = keys.optional_count("no_rope_layer_interval")?.unwrap_or(4);
    Ok((1..=count).map(|i| !i.is_multiple_of(interval)).collect())
}

/// A list with one entry per layer.
fn per_layer<T>(
    key: &str,
    list: &[Value],
    count: usize,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<T>> {
    if list.len() != count {
        let message =
            format!("has {} entries; expected {count}, one for each of `num_hidden_layers`", list.len());
        return Err(bad(key, message));
    }
    list.iter()
        .map(|v| read(v).ok_or_else(|| bad(key, format!("has the entry {v}, which is not built"))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn stock(changes: Value) -> Result<LlamaConfig> {
        let mut config = json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 4,
            "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 512, "max_position_embeddings": 512
        });
        let map = config.as_object_mut().unwrap();
        map.extend(changes.as_object().unwrap().clone());
        LlamaConfig::from_json(map)
    }

    fn refusal(changes: Value) -> String {
        stock(changes).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_model_type_lists_what_is_known() {
        assert!(refusal(json!({"model_type": "mamba"})).contains("llama, mistral, qwen2, qwen3, smollm3"));
        assert!(refusal(json!({"model_type": null})).contains("is missing"));
    }

    #[test]
    fn contradictory_sizes_are_refused() {
        assert!(refusal(json!({"num_key_value_heads": 3})).contains("divisor"));
        assert!(refusal(json!({"hidden_size": 63})).contains("state it"));
        assert!(refusal(json!({"head_dim": 7})).contains("even"));
        assert!(refusal(json!({"num_hidden_layers": 1_000_000_000})).contains("sensible"));
    }

    #[test]
    fn head_width_is_stated_or_derived() {
        assert_eq!(stock(json!({})).unwrap().head_dim, 8);
        assert_eq!(stock(json!({"head_dim": 32})).unwrap().head_dim, 32);
    }

    #[test]
    fn families_differ_in_their_biases() {
        let bias = |kind: &str| {
            let c = stock(json!({"model_type": kind, "attention_bias": true})).unwrap();
            (c.qkv_bias, c.output_bias)
        };
        assert_eq!(bias("llama"), (true, true));
        assert_eq!(bias("mistral"), (false, false));
        assert_eq!(bias("qwen2"), (true, false));
        assert_eq!(bias("qwen3"), (true, true));
    }

    #[test]
    fn windows_follow_the_family() {
        let reaches = |changes| stock(changes).unwrap().layers.iter().map(|l| l.reach).collect::<Vec<_>>();
        let (full, window) = (Reach::Full, Reach::Window(9));
        assert_eq!(reaches(json!({"sliding_window": 9})), [full; 4]);
        assert_eq!(reaches(json!({"model_type": "mistral", "sliding_window": 9})), [window; 4]);
        assert_eq!(
            reaches(json!({"model_type": "qwen2", "sliding_window": 9, "use_sliding_window": false})),
            [full; 4]
        );
        let upper = json!({"model_type": "qwen2", "sliding_window": 9, "use_sliding_window": true, "max_window_layers": 3});
        assert_eq!(reaches(upper), [full, full, full, window]);
        let listed = json!({"model_type": "qwen3", "sliding_window": 9, "use_sliding_window": true,
            "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]});
        assert_eq!(reaches(listed), [window, full, full, window]);
    }

    #[test]
    fn every_fourth_layer_of_smollm3_is_not_rotated() {
        let rotated = |changes| stock(changes).unwrap().layers.iter().map(|l| l.rotated).collect::<Vec<_>>();
        assert_eq!(rotated(json!({"model_type": "smollm3"})), [true, true, true, false]);
        let listed = json!({"model_type": "smollm3", "no_rope_layers": [0, 1, 0, 1]});
        assert_eq!(rotated(listed), [false, true, false, true]);
        assert!(refusal(json!({"model_type": "smollm3", "no_rope_layers": [1]})).contains("expected 4"));
    }

    #[test]
    fn tying_is_stated_or_seen_in_the_weights() {
        let tied = |changes, has_head| stock(changes).unwrap().is_tied(has_head);
        assert!(tied(json!({}), false));
        assert!(!tied(json!({}), true));
        assert!(tied(json!({"tie_word_embeddings": true}), true));
        assert!(!tied(json!({"tie_word_embeddings": false}), false));
    }
}
