//! A stock `config.json` of the BERT family.

use serde_json::{Map, Value};
use taper_core::{Checkpoint, Result};

use crate::{
    activation::Activation,
    config::{Keys, bad},
};

/// More layers than any encoder has; a config that claims more is refused before anything is allocated.
const MOST_LAYERS: usize = 1 << 14;

/// The sizes of a BERT.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct BertConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Neurons of a feed-forward block.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads; they divide the hidden size evenly.
    pub num_attention_heads: usize,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Rows of the position table.
    pub max_position_embeddings: usize,
    /// Rows of the token type table.
    pub type_vocab_size: usize,
    /// ε of the norms.
    pub layer_norm_eps: f64,
    /// The feed-forward activation.
    pub hidden_act: Activation,
    /// The token that fills short texts of a batch.
    pub pad_token_id: u32,
}

impl BertConfig {
    /// Reads a checkpoint's config.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        Self::from_json(checkpoint.config())
    }

    /// Reads the contents of a `config.json`.
    pub fn from_json(json: &Map<String, Value>) -> Result<Self> {
        let keys = Keys(json);
        match keys.text("model_type")? {
            Some("bert") => {}
            Some(other) => return Err(bad("model_type", format!("`{other}` is not built; expected bert"))),
            None => return Err(bad("model_type", "is missing; expected bert")),
        }
        if let Some(other) = keys.text("position_embedding_type")?.filter(|t| *t != "absolute") {
            return Err(bad("position_embedding_type", format!("`{other}` is not built; expected absolute")));
        }
        let config = Self {
            hidden_size: keys.count("hidden_size")?,
            intermediate_size: keys.count("intermediate_size")?,
            num_hidden_layers: keys.count("num_hidden_layers")?,
            num_attention_heads: keys.count("num_attention_heads")?,
            vocab_size: keys.count("vocab_size")?,
            max_position_embeddings: keys.count("max_position_embeddings")?,
            type_vocab_size: keys.optional_count("type_vocab_size")?.unwrap_or(2),
            layer_norm_eps: keys.number_or("layer_norm_eps", 1e-12)?,
            hidden_act: Activation::parse("hidden_act", keys.text("hidden_act")?.unwrap_or("gelu"))?,
            pad_token_id: keys.tokens("pad_token_id")?.first().copied().unwrap_or(0),
        };
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            let message = format!("is {}; expected a divisor of `hidden_size`", config.num_attention_heads);
            return Err(bad("num_attention_heads", message));
        }
        if config.num_hidden_layers > MOST_LAYERS {
            let message = format!("is {}; at most {MOST_LAYERS} are sensible", config.num_hidden_layers);
            return Err(bad("num_hidden_layers", message));
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_not_built_is_refused() {
        let base = json!({"model_type": "bert", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 10, "max_position_embeddings": 4});
        let with = |key: &str, value: Value| {
            let mut map = base.as_object().unwrap().clone();
            map.insert(key.into(), value);
            BertConfig::from_json(&map)
        };
        assert!(with("vocab_size", json!(11)).is_ok());
        for (key, value, part) in [
            ("model_type", json!("roberta"), "expected bert"),
            ("position_embedding_type", json!("relative_key"), "expected absolute"),
            ("hidden_act", json!("mish"), "`mish` is not built"),
            ("num_attention_heads", json!(3), "divisor"),
            ("num_hidden_layers", json!(1 << 20), "sensible"),
        ] {
            assert!(with(key, value).unwrap_err().to_string().contains(part), "{key}");
        }
    }
}
