//! Zeroes the weights of least magnitude (Han et al. 2015, arXiv:1506.02626).
//!
//! ```text
//! scope tensor   n·s of each weight          one weight at a time, streams
//! scope row      in·s of each row            one weight at a time, streams
//! scope global   N·s of the whole selection  looks at everything first
//! ```
//!
//! The score is [`crate::score::magnitude`], the masks are [`crate::mask`], the count rule is
//! [`crate::mask::pruned_count`]; the global scope is in `magnitude_global.rs`.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use taper_core::{
    Checkpoint, Context, Error, Needs, Outline, Pass, Result, Rewrite, Select, Stage, Weight, WeightInfo,
    WeightPass,
    pass::{Each, Weightwise},
    weight::SharedWeight,
};

use super::magnitude_global::GlobalMagnitude;
use crate::{
    dense::{self, Zero},
    mask::{prune_lowest, prune_lowest_per_row, pruned_count},
    score::magnitude::magnitudes,
};

/// A fraction of weights to prune: at least 0, less than 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Sparsity(f64);

impl TryFrom<f64> for Sparsity {
    type Error = Error;

    fn try_from(value: f64) -> Result<Self> {
        if (0.0..1.0).contains(&value) {
            Ok(Self(value))
        } else {
            Err(Error::bad_option("sparsity", value, "a fraction of at least 0 and less than 1, such as 0.5"))
        }
    }
}

impl From<Sparsity> for f64 {
    fn from(sparsity: Sparsity) -> Self {
        sparsity.0
    }
}

/// Among which weights the smallest are sought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Within each weight: every weight ends equally sparse. The default, because it streams.
    #[default]
    Tensor,
    /// Within each row (each output): every row ends equally sparse.
    Row,
    /// Within the whole selection: weights of small values end sparser than others.
    Global,
}

/// Zeroes the weights of least magnitude. Recipe key `magnitude`; keys `sparsity` and `scope`.
///
/// ```
/// use taper_core::{Pass, Select};
/// use taper_prune::{Magnitude, Scope};
///
/// let pass = Magnitude::new(0.5)?.with_scope(Scope::Global).on(Select::matrices());
/// assert_eq!(pass.name(), "magnitude");
/// # Ok::<(), taper_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Magnitude {
    sparsity: Sparsity,
    #[serde(default)]
    scope: Scope,
}

impl Magnitude {
    /// The recipe key.
    pub const KEY: &'static str = "magnitude";

    /// Prunes this fraction of each weight; an error outside `[0, 1)`.
    pub fn new(sparsity: f64) -> Result<Self> {
        Ok(Self { sparsity: sparsity.try_into()?, scope: Scope::default() })
    }

    /// Seeks the smallest in another scope.
    #[must_use]
    pub fn with_scope(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }

    /// The fraction to prune.
    #[must_use]
    pub fn sparsity(&self) -> f64 {
        self.sparsity.0
    }

    /// The scope.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// The pass over a selection.
    #[must_use]
    pub fn on(self, select: Select) -> MagnitudeOver {
        MagnitudeOver(match self.scope {
            Scope::Tensor | Scope::Row => Kind::PerWeight(PerWeight(self).on(select)),
            Scope::Global => Kind::Global(GlobalMagnitude::new(self, select)),
        })
    }

    /// The pass over every matrix and convolution.
    #[must_use]
    pub fn on_matrices(self) -> MagnitudeOver {
        self.on(Select::matrices())
    }

    /// The settings as the report shows them.
    pub(super) fn settings(&self) -> Value {
        serde_json::json!({ "sparsity": self.sparsity, "scope": self.scope })
    }
}

/// [`Magnitude`] over a selection: a pass over single weights, except in the global scope.
#[derive(Debug, Clone)]
pub struct MagnitudeOver(Kind);

#[derive(Debug, Clone)]
enum Kind {
    PerWeight(Each<PerWeight>),
    Global(GlobalMagnitude),
}

impl MagnitudeOver {
    fn inner(&self) -> &dyn Pass {
        match &self.0 {
            Kind::PerWeight(pass) => pass,
            Kind::Global(pass) => pass,
        }
    }
}

impl Pass for MagnitudeOver {
    fn name(&self) -> &str {
        Magnitude::KEY
    }

    fn stage(&self) -> Stage {
        Stage::Value
    }

    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    fn settings(&self) -> Value {
        self.inner().settings()
    }

    fn run(&self, checkpoint: Checkpoint, context: &Context<'_>) -> Result<Checkpoint> {
        self.inner().run(checkpoint, context)
    }

    fn weightwise(&self) -> Option<Weightwise<'_>> {
        self.inner().weightwise()
    }
}

/// |w| of a weight, all finite.
pub(super) fn scores(name: &str, weight: &dyn Weight) -> Result<Vec<f32>> {
    let mut scores = dense::finite_values(name, weight)?;
    magnitudes(&mut scores);
    Ok(scores)
}

/// The tensor and row scopes.
#[derive(Debug, Clone, Copy)]
struct PerWeight(Magnitude);

impl WeightPass for PerWeight {
    fn name(&self) -> &str {
        Magnitude::KEY
    }

    fn stage(&self) -> Stage {
        Stage::Value
    }

    fn settings(&self) -> Value {
        self.0.settings()
    }

    fn rewrite(&self, name: &str, weight: &SharedWeight, _: &Context<'_>) -> Result<Rewrite> {
        let shape = weight.shape();
        if let Some(why) = dense::reason_to_leave(&WeightInfo::of(weight.as_ref())) {
            return Ok(Rewrite::left(why));
        }
        let scores = scores(name, weight.as_ref())?;
        let cols = scores.len() / shape[0];
        let among = if self.0.scope == Scope::Row { cols } else { scores.len() };
        let prune = pruned_count(among, self.0.sparsity());
        if prune == 0 {
            return Ok(Rewrite::left(format!(
                "sparsity {} of {among} weights rounds to none",
                self.0.sparsity()
            )));
        }
        let keep = match self.0.scope {
            Scope::Row => prune_lowest_per_row(&scores, cols, prune),
            _ => prune_lowest(&scores, prune),
        };
        drop(scores);
        Ok(Rewrite::done(dense::edit(&weight.dense()?, shape, &Zero(&keep))?))
    }

    fn outline(&self, _: &str, before: &Outline) -> Option<Outline> {
        Some(before.clone())
    }
}
