//! Which family a checkpoint belongs to: for programs that take any of them, such as a command line.
//!
//! Told by `model_type`, else by `architectures`, else (for networks without a stock config) by `model`.

use serde_json::{Map, Value};
use std::sync::Arc;
use taper_core::{
    Architecture, Batch, Block, Blocks, Checkpoint, Coupling, Couplings, Entrance, Exit, Result,
    WeightBuilder,
    blocks::AsOne,
    coupling::{Rotation, Scaling, Stack},
};

use crate::{
    Error,
    bert::{Bert, BertConfig, BertCouplings},
    config::{Keys, bad},
    ds_cnn::{DsCnn, DsCnnConfig, DsCnnCouplings},
    llama::{Llama, LlamaConfig, LlamaCouplings, LlamaFamily},
};

/// A family of architectures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Language models: [`crate::llama`].
    Llama,
    /// Sentence encoders: [`crate::bert`].
    Bert,
    /// Keyword spotting: [`crate::ds_cnn`].
    DsCnn,
}

impl Family {
    /// The family of a checkpoint. Errors list what is known.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        Self::of_config(checkpoint.config())
    }

    fn of_config(json: &Map<String, Value>) -> Result<Self> {
        if DsCnnConfig::recognises(json) {
            return Ok(Self::DsCnn);
        }
        let keys = Keys(json);
        if let Some(name) = keys.text("model_type")? {
            return Self::by_model_type(name).ok_or_else(|| unknown("model_type", name));
        }
        let architectures = keys.list("architectures")?.unwrap_or_default();
        match architectures.first().and_then(Value::as_str) {
            Some(name) => Self::by_architecture(name).ok_or_else(|| unknown("architectures", name)),
            None => Err(bad("model_type", format!("is missing; expected one of {}", known()))),
        }
    }

    fn by_model_type(name: &str) -> Option<Self> {
        match name {
            "bert" => Some(Self::Bert),
            other => LlamaFamily::of(other).map(|_| Self::Llama),
        }
    }

    /// `Qwen2ForCausalLM` is `qwen2`, `BertModel` is `bert`.
    fn by_architecture(name: &str) -> Option<Self> {
        let stem = name.split("For").next().unwrap_or(name);
        let stem = stem.strip_suffix("Model").unwrap_or(stem);
        Self::by_model_type(&stem.to_ascii_lowercase())
    }

    /// What its models are for, in words.
    #[must_use]
    pub fn purpose(self) -> &'static str {
        match self {
            Self::Llama => "language model",
            Self::Bert => "sentence encoder",
            Self::DsCnn => "classifier",
        }
    }
}

fn known() -> String {
    let types: Vec<&str> = LlamaFamily::KNOWN.into_iter().chain(["bert"]).collect();
    format!("{}, or a `model` that begins with DS-CNN", types.join(", "))
}

fn unknown(key: &str, name: &str) -> taper_core::Error {
    bad(key, format!("`{name}` is not built; expected one of {}", known()))
}

/// A runnable model of any family.
#[derive(Debug, Clone)]
pub enum AnyModel {
    /// A language model.
    Language(Box<Llama>),
    /// A sentence encoder.
    Encoder(Box<Bert>),
    /// A classifier.
    Classifier(Box<DsCnn>),
}

impl AnyModel {
    /// What it is for, in words.
    #[must_use]
    pub fn purpose(&self) -> &'static str {
        match self {
            Self::Language(_) => Family::Llama.purpose(),
            Self::Encoder(_) => Family::Bert.purpose(),
            Self::Classifier(_) => Family::DsCnn.purpose(),
        }
    }

    /// The language model, or an error that says what it is instead.
    pub fn language(self) -> crate::Result<Llama> {
        match self {
            Self::Language(model) => Ok(*model),
            other => Err(other.wrong_kind(Family::Llama)),
        }
    }

    /// The sentence encoder, or an error that says what it is instead.
    pub fn encoder(self) -> crate::Result<Bert> {
        match self {
            Self::Encoder(model) => Ok(*model),
            other => Err(other.wrong_kind(Family::Bert)),
        }
    }

    /// The classifier, or an error that says what it is instead.
    pub fn classifier(self) -> crate::Result<DsCnn> {
        match self {
            Self::Classifier(model) => Ok(*model),
            other => Err(other.wrong_kind(Family::DsCnn)),
        }
    }

    fn wrong_kind(&self, needed: Family) -> Error {
        Error::WrongKind { found: self.purpose(), needed: needed.purpose() }
    }
}

/// All families: builds whatever a checkpoint holds, and declares its couplings.
#[derive(Debug, Clone, Copy, Default)]
pub struct Families;

impl Architecture for Families {
    type Model = AnyModel;

    fn build(&self, weights: &WeightBuilder) -> Result<AnyModel> {
        let checkpoint = weights.checkpoint();
        Ok(match Family::of(checkpoint)? {
            Family::Llama => AnyModel::Language(Box::new(LlamaConfig::of(checkpoint)?.build(weights)?)),
            Family::Bert => AnyModel::Encoder(Box::new(BertConfig::of(checkpoint)?.build(weights)?)),
            Family::DsCnn => AnyModel::Classifier(Box::new(DsCnnConfig::of(checkpoint)?.build(weights)?)),
        })
    }
}

impl Couplings for Families {
    fn couplings(&self, checkpoint: &Checkpoint) -> Result<Vec<Coupling>> {
        match Family::of(checkpoint)? {
            Family::Llama => LlamaCouplings.couplings(checkpoint),
            Family::Bert => BertCouplings.couplings(checkpoint),
            Family::DsCnn => DsCnnCouplings.couplings(checkpoint),
        }
    }

    fn stack(&self, checkpoint: &Checkpoint) -> Result<Option<Stack>> {
        match Family::of(checkpoint)? {
            Family::Llama => LlamaCouplings.stack(checkpoint),
            Family::Bert => BertCouplings.stack(checkpoint),
            Family::DsCnn => DsCnnCouplings.stack(checkpoint),
        }
    }

    fn scalings(&self, checkpoint: &Checkpoint) -> Result<Vec<Scaling>> {
        match Family::of(checkpoint)? {
            Family::Llama => LlamaCouplings.scalings(checkpoint),
            Family::Bert => BertCouplings.scalings(checkpoint),
            Family::DsCnn => DsCnnCouplings.scalings(checkpoint),
        }
    }

    fn rotations(&self, checkpoint: &Checkpoint) -> Result<Vec<Rotation>> {
        match Family::of(checkpoint)? {
            Family::Llama => LlamaCouplings.rotations(checkpoint),
            Family::Bert => BertCouplings.rotations(checkpoint),
            Family::DsCnn => DsCnnCouplings.rotations(checkpoint),
        }
    }
}

impl Families {
    /// The chain of blocks that a checkpoint's model is; a network without blocks is one.
    fn chain(checkpoint: &Checkpoint) -> Result<Arc<dyn Blocks>> {
        Ok(match Family::of(checkpoint)? {
            Family::Llama => Arc::new(LlamaConfig::of(checkpoint)?),
            Family::Bert => Arc::new(BertConfig::of(checkpoint)?),
            Family::DsCnn => {
                let config = DsCnnConfig::of(checkpoint)?;
                Arc::new(AsOne::new(config, |model: &DsCnn, batch: &Batch| model.forward(&batch.input)))
            }
        })
    }
}

impl Blocks for Families {
    fn prefixes(&self, checkpoint: &Checkpoint) -> Result<Vec<String>> {
        Self::chain(checkpoint)?.prefixes(checkpoint)
    }

    fn entrance(&self, weights: &WeightBuilder) -> Result<Box<dyn Entrance>> {
        Self::chain(weights.checkpoint())?.entrance(weights)
    }

    fn block(&self, weights: &WeightBuilder, index: usize) -> Result<Box<dyn Block>> {
        Self::chain(weights.checkpoint())?.block(weights, index)
    }

    fn exit(&self, weights: &WeightBuilder) -> Result<Box<dyn Exit>> {
        Self::chain(weights.checkpoint())?.exit(weights)
    }

    fn weights(&self, checkpoint: &Checkpoint, index: usize) -> Result<Vec<String>> {
        Self::chain(checkpoint)?.weights(checkpoint, index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn family(config: Value) -> Result<Family> {
        Family::of_config(config.as_object().unwrap())
    }

    #[test]
    fn families_are_told_by_whatever_the_config_says() {
        assert_eq!(family(json!({"model_type": "qwen3"})).unwrap(), Family::Llama);
        assert_eq!(family(json!({"architectures": ["Qwen2ForCausalLM"]})).unwrap(), Family::Llama);
        assert_eq!(family(json!({"architectures": ["BertModel"]})).unwrap(), Family::Bert);
        assert_eq!(family(json!({"model": "DS-CNN keyword spotting"})).unwrap(), Family::DsCnn);
    }

    #[test]
    fn what_is_unknown_is_answered_with_what_is_known() {
        for config in
            [json!({"model_type": "t5"}), json!({"architectures": ["T5ForConditionalGeneration"]}), json!({})]
        {
            let message = family(config).unwrap_err().to_string();
            assert!(message.contains("llama, mistral, qwen2, qwen3, smollm3, bert"), "{message}");
        }
    }
}
