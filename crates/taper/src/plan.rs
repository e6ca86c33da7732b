//! A plan: a format for each weight, chosen within a budget and written as a recipe.
//!
//! ```text
//! recipe with [[candidate]]s ─┐
//! calibration text            ├─▶ Surveyed::new ─▶ .plan(budget) ─▶ Plan ─▶ to_toml: [plan] and a [[pass]] per format
//! model                       ─┘      measured once, planned for as many budgets as you like
//! ```
//!
//! A plan is an ordinary recipe, whose passes name their weights one by one: moving a line from one pass to another changes a
//! choice, and `taper compress --recipe plan.toml` runs it.
//!
//! Neighbours: `taper_quant::allocate` measures and solves, [`judge`] says how far a model has moved, [`crate::recipe::budget`]
//! is the recipe's part.

pub mod judge;

pub use judge::{Moved, OnSentences, OnText, OnWindows};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeSet, fmt::Write};
use taper_core::{Checkpoint, Pipeline, Progress, Result, Run, Select, WeightPass};
use taper_quant::allocate::{Allotment, Budget, Candidate, Judge, Survey, Together};

use crate::recipe::Budgeted;

/// What is to be expected of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Expected {
    /// Bits per weight of the planned weights.
    pub bits_per_weight: f64,
    /// Bytes of the planned weights.
    pub bytes: u64,
    /// Bytes of all weights of the checkpoint.
    pub total_bytes: u64,
    /// The predicted divergence of the model: mean KL in nats per token for a language model, mean 1 − cos for a
    /// sentence encoder.
    pub divergence: f64,
}

/// A model measured in every format of a recipe.
#[derive(Debug)]
pub struct Surveyed {
    survey: Survey,
    /// Candidates and pins, in the order of the survey's labels.
    formats: Vec<Candidate>,
    together: Together,
}

impl Surveyed {
    /// Measures every format on every weight; `run` has the calibration.
    ///
    /// # Errors
    /// What running the passes or the judge may end with, and recipes that select nothing.
    pub fn new(
        budgeted: &Budgeted,
        checkpoint: &Checkpoint,
        run: &Run<'_>,
        judge: &dyn Judge,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let menu = &budgeted.menu;
        let together = budgeted.together(checkpoint)?;
        let survey = menu.survey(checkpoint, run, judge, progress)?;
        let formats = menu.candidates.iter().chain(menu.pins.iter().map(|p| &p.candidate)).cloned().collect();
        Ok(Self { survey, formats, together })
    }

    /// What was measured.
    #[must_use]
    pub fn survey(&self) -> &Survey {
        &self.survey
    }

    /// Candidates and pins, in the order of [`Survey::labels`].
    #[must_use]
    pub fn formats(&self) -> &[Candidate] {
        &self.formats
    }

    /// The best plan within a budget.
    ///
    /// # Errors
    /// [`taper_quant::Error::Budget`] with the least that is possible.
    pub fn plan(&self, budget: Budget) -> Result<Plan> {
        let allotment = self.survey.allot(budget, &self.together)?;
        Ok(Plan { allotment, formats: self.formats.clone() })
    }
}

/// A format for each weight.
#[derive(Debug, Clone)]
pub struct Plan {
    allotment: Allotment,
    formats: Vec<Candidate>,
}

impl Plan {
    /// Weights, sizes, shares of the predicted divergence.
    #[must_use]
    pub fn allotment(&self) -> &Allotment {
        &self.allotment
    }

    /// What a format is called.
    #[must_use]
    pub fn label(&self, format: usize) -> &str {
        self.formats.get(format).map_or("", |f| f.label.as_str())
    }

    /// What is to be expected.
    #[must_use]
    pub fn expected(&self) -> Expected {
        let Allotment { bytes, total_bytes, divergence, .. } = self.allotment;
        Expected { bits_per_weight: self.allotment.bits_per_weight(), bytes, total_bytes, divergence }
    }

    /// The formats that are used and the weights of each.
    fn parts(&self) -> impl Iterator<Item = (&Candidate, Vec<&taper_quant::allocate::Allotted>)> {
        let used: BTreeSet<usize> = self.allotment.weights.iter().map(|w| w.format).collect();
        used.into_iter().filter_map(|format| {
            let weights = self.allotment.weights.iter().filter(|w| w.format == format).collect();
            Some((self.formats.get(format)?, weights))
        })
    }

    /// The plan as passes.
    ///
    /// # Errors
    /// Where a weight's name cannot be a pattern.
    pub fn pipeline(&self) -> Result<Pipeline> {
        let mut pipeline = Pipeline::new();
        for (format, weights) in self.parts() {
            let select = Select::any(weights.iter().map(|w| w.weight.as_str()))?;
            pipeline = pipeline.then(std::sync::Arc::clone(&format.pass).on(select));
        }
        Ok(pipeline)
    }

    /// The plan as a recipe, to be read, changed and run.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let Expected { bits_per_weight, bytes, total_bytes, divergence } = self.expected();
        let mut text = format!(
            "# A format for each weight: {bits_per_weight:.3} bits per weight over {} weights.\n\
             # Moving a line to another pass changes a choice; [plan] then no longer says what to expect.\n\n\
             [plan]\nbits-per-weight = {bits_per_weight:?}\nbytes = {bytes}\ntotal-bytes = {total_bytes}\n\
             divergence = {divergence:?}\n",
            self.allotment.weights.len()
        );
        for (format, weights) in self.parts() {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n# {}\n[[pass]]\nname = {}\n", format.label, quoted(format.pass.name()));
            if let Value::Object(settings) = format.pass.settings() {
                for (key, value) in settings.iter().filter(|(_, value)| !value.is_null()) {
                    let _ = writeln!(text, "{key} = {value}");
                }
            }
            text += "select = [\n";
            for weight in weights {
                let name = quoted(&weight.weight);
                let _ = writeln!(
                    text,
                    "    {name}, # {} bytes, divergence {:.2e}",
                    weight.bytes, weight.divergence
                );
            }
            text += "]\n";
        }
        text
    }
}

/// A string as TOML has it: what JSON escapes, TOML escapes alike.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
