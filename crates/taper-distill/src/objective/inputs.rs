//! What an objective is evaluated on: logits, features by name, and how rows add up.

use crate::{Error, Features, Logits, Reduction, Result, Unit};
use std::collections::BTreeMap;

/// The inputs of one evaluation; terms take from it what they need.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    logits: Option<Logits>,
    features: BTreeMap<String, Features>,
    tokens: Reduction,
    samples: Option<Reduction>,
}

impl Inputs {
    /// Nothing yet; rows are reduced by their mean.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The logits that all logit losses share.
    #[must_use]
    pub fn logits(mut self, logits: Logits) -> Self {
        self.logits = Some(logits);
        self
    }

    /// Features under a name; a second pair under the same name replaces the first.
    #[must_use]
    pub fn features(mut self, name: impl Into<String>, features: Features) -> Self {
        self.features.insert(name.into(), features);
        self
    }

    /// How token rows add up (rows of logits, positions of hidden states). When gradients of several micro-batches are
    /// accumulated, `SumOver(rows that count in all of them)` gives exactly the gradient of the whole batch.
    #[must_use]
    pub fn token_reduction(mut self, reduction: Reduction) -> Self {
        self.tokens = reduction;
        self
    }

    /// How sample rows add up (feature maps, relations). Must be stated where [`token_reduction`](Self::token_reduction)
    /// is a `SumOver`, since the number of samples is another than that of tokens; otherwise it is the same.
    #[must_use]
    pub fn sample_reduction(mut self, reduction: Reduction) -> Self {
        self.samples = Some(reduction);
        self
    }

    /// The logits, for terms.
    ///
    /// # Errors
    /// They must have been given.
    pub fn given_logits(&self) -> Result<&Logits> {
        self.logits.as_ref().ok_or_else(|| Error::missing("logits", "give them with `Inputs::logits(..)`"))
    }

    /// The features of a name, for terms.
    ///
    /// # Errors
    /// They must have been given; the message lists the names that were.
    pub fn given_features(&self, name: &str) -> Result<&Features> {
        self.features.get(name).ok_or_else(|| {
            let names: Vec<String> = self.features.keys().map(|key| format!("`{key}`")).collect();
            let given = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            Error::missing(
                format!("features `{name}`"),
                format!("give them with `Inputs::features(..)` (given: {given})"),
            )
        })
    }

    /// How rows of a unit add up.
    pub(super) fn reduction_of(&self, unit: Unit) -> Result<Reduction> {
        match (unit, self.samples, self.tokens) {
            (Unit::Token, _, tokens) => Ok(tokens),
            (Unit::Sample, Some(samples), _) => Ok(samples),
            (Unit::Sample, None, Reduction::SumOver(_)) => Err(Error::missing(
                "sample reduction",
                "this term adds up samples, and `SumOver` was stated for tokens only; state it with `Inputs::sample_reduction(..)`",
            )),
            (Unit::Sample, None, tokens) => Ok(tokens),
        }
    }
}
