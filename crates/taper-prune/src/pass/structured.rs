//! Cuts whole units (neurons, attention groups, channels) out of every weight that they touch.
//!
//! ```text
//! couplings ──▶ score each unit ──▶ keep the best, equally many per config key ──▶ Plan::cut ──▶ smaller stock model
//! ```
//!
//! Scores, choice and cutting are [`crate::structured`]; checking and lazy replacement are [`crate::resolve`].
//! Couplings come from the architecture (or a closure); they are asked for when the pass runs.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use taper_core::{
    Checkpoint, Context, Couplings, Error as CoreError, Event, Pass, Result, Stage,
    coupling::{Coupling, Family, Member, Role},
};

use crate::{
    dense,
    error::Error,
    resolve::{Cut, Plan, check_member},
    structured::{MemberSquares, UnitScore, highest_units, kept_units, unit_scores, unit_squares},
};

/// What a recipe step says: `family = "feed-forward"`, `ratio = 0.25`, `multiple-of = 8`, `score = "consumers"`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct StructuredSettings {
    /// Which couplings are cut.
    pub family: Family,
    /// The fraction of each coupling's units that goes: at least 0, less than 1.
    pub ratio: f64,
    /// What stays is rounded up to a multiple of this; 1 by default.
    #[serde(default = "one")]
    pub multiple_of: NonZeroUsize,
    /// How units are scored; [`UnitScore::of`] the family by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<UnitScore>,
}

fn one() -> NonZeroUsize {
    NonZeroUsize::MIN
}

/// How many units stay, or which.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Amount {
    /// A fraction goes; the rest is rounded up to a multiple.
    Ratio {
        /// The fraction that goes, in `[0, 1)`.
        ratio: f64,
        /// The multiple.
        multiple_of: NonZeroUsize,
    },
    /// These units stay, by coupling name; couplings that are not named keep all.
    Units(BTreeMap<String, Vec<usize>>),
}

/// Cuts units out of the couplings of one family. Recipe key `structured`.
///
/// Every coupling that shares a key of `config.json` keeps equally many units, so the result loads in any program
/// that reads the original.
#[derive(Clone)]
pub struct Structured {
    couplings: Arc<dyn Couplings>,
    family: Family,
    amount: Amount,
    score: UnitScore,
}

impl fmt::Debug for Structured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Structured")
            .field("family", &self.family)
            .field("amount", &self.amount)
            .field("score", &self.score)
            .finish_non_exhaustive()
    }
}

impl Structured {
    /// The recipe key.
    pub const KEY: &'static str = "structured";

    /// Cuts this fraction of each coupling of a family; an error outside `[0, 1)`.
    pub fn new(couplings: Arc<dyn Couplings>, family: Family, ratio: f64) -> Result<Self> {
        let settings = StructuredSettings { family, ratio, multiple_of: one(), score: None };
        Self::from_settings(couplings, settings)
    }

    /// The pass that a recipe step describes.
    pub fn from_settings(couplings: Arc<dyn Couplings>, settings: StructuredSettings) -> Result<Self> {
        let StructuredSettings { family, ratio, multiple_of, score } = settings;
        if !(0.0..1.0).contains(&ratio) {
            let expected = "the fraction of units to cut, at least 0 and less than 1, such as 0.25";
            return Err(CoreError::bad_option("ratio", ratio, expected));
        }
        let score = score.unwrap_or(UnitScore::of(family));
        Ok(Self { couplings, family, amount: Amount::Ratio { ratio, multiple_of }, score })
    }

    /// Keeps exactly these units (ascending) of the couplings named; the others keep all.
    pub fn keeping(
        couplings: Arc<dyn Couplings>,
        family: Family,
        units: BTreeMap<String, Vec<usize>>,
    ) -> Self {
        Self { couplings, family, amount: Amount::Units(units), score: UnitScore::of(family) }
    }

    /// Rounds what stays up to a multiple, such as 8 or 64; explicit units are taken as they are.
    #[must_use]
    pub fn with_multiple_of(mut self, multiple: NonZeroUsize) -> Self {
        if let Amount::Ratio { multiple_of, .. } = &mut self.amount {
            *multiple_of = multiple;
        }
        self
    }

    /// Scores units in another way.
    #[must_use]
    pub fn with_score(mut self, score: UnitScore) -> Self {
        self.score = score;
        self
    }

    /// What the pass would do to a checkpoint, with the couplings that it would not touch. [`Plan::masked`] of it gives
    /// the same function in the original shapes.
    pub fn plan(&self, checkpoint: &Checkpoint, context: &Context<'_>) -> Result<(Plan, Vec<Coupling>)> {
        let declared = self.couplings.couplings(checkpoint)?;
        let mine: Vec<Coupling> = declared.iter().filter(|c| c.family == self.family).cloned().collect();
        if mine.is_empty() {
            return Err(no_couplings(self.family, &declared).into());
        }
        let cuts = match &self.amount {
            Amount::Units(units) => explicit(&mine, units)?,
            Amount::Ratio { ratio, multiple_of } => {
                self.chosen(checkpoint, &mine, *ratio, *multiple_of, context)?
            }
        };
        let (cuts, whole): (Vec<_>, Vec<_>) =
            cuts.into_iter().partition(|c| c.kept.len() != c.coupling.units);
        let plan = Plan::new(checkpoint, &declared, &cuts)?;
        Ok((plan, whole.into_iter().map(|c| c.coupling).collect()))
    }

    /// Scores every coupling and keeps the best units of each.
    fn chosen(
        &self,
        checkpoint: &Checkpoint,
        mine: &[Coupling],
        ratio: f64,
        multiple_of: NonZeroUsize,
        context: &Context<'_>,
    ) -> Result<Vec<Cut>> {
        let done = AtomicUsize::new(0);
        mine.par_iter()
            .map(|coupling| {
                let keep = kept_units(coupling.units, ratio, multiple_of.get());
                let kept = if keep == coupling.units {
                    (0..keep).collect()
                } else {
                    highest_units(
                        &unit_scores(&squares(checkpoint, coupling)?, coupling.units, self.score),
                        keep,
                    )
                };
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                context.progress(&Event::Step { what: "couplings scored", done, total: mine.len() })?;
                Ok(Cut { coupling: coupling.clone(), kept })
            })
            .collect()
    }
}

fn no_couplings(family: Family, declared: &[Coupling]) -> Error {
    let mut families: Vec<String> = declared.iter().map(|c| format!("`{}`", c.family)).collect();
    families.sort();
    families.dedup();
    let declared = if families.is_empty() { "none".to_owned() } else { families.join(", ") };
    Error::NoCouplings { family, declared }
}

/// The cuts that explicit units ask for; a name that no coupling has is an error.
fn explicit(mine: &[Coupling], units: &BTreeMap<String, Vec<usize>>) -> Result<Vec<Cut>> {
    if let Some(name) = units.keys().find(|name| !mine.iter().any(|c| c.name == **name)) {
        let known: Vec<String> = mine.iter().take(3).map(|c| format!("`{}`", c.name)).collect();
        let message =
            format!("no such coupling in this family; there are {} such as {}", mine.len(), known.join(", "));
        return Err(Error::BadUnits { coupling: name.clone(), message }.into());
    }
    let cut = |c: &Coupling| Cut {
        coupling: c.clone(),
        kept: units.get(&c.name).cloned().unwrap_or_else(|| (0..c.units).collect()),
    };
    Ok(mine.iter().map(cut).collect())
}

/// Sums of squares per unit of every member that scores; one member's values are held at a time.
pub(super) fn squares(checkpoint: &Checkpoint, coupling: &Coupling) -> Result<Vec<MemberSquares>> {
    let members = coupling.members.iter();
    members.map(|member| member_squares(checkpoint, coupling, member)).filter_map(Result::transpose).collect()
}

/// A member's part in the score; `None` for vectors other than a batch norm's gain and variance, which are offsets.
fn member_squares(
    checkpoint: &Checkpoint,
    coupling: &Coupling,
    member: &Member,
) -> Result<Option<MemberSquares>> {
    let axis = check_member(checkpoint, coupling, member)?;
    let vector = checkpoint.info(&member.weight)?.shape.len() < 2;
    let variance = member.role == Role::Accompanies && vector && member.weight.ends_with(".running_var");
    let gain = member.role == Role::Accompanies && vector && member.weight.ends_with(".weight");
    if vector && !variance && !gain {
        return Ok(None);
    }
    let values = dense::finite_values(&member.weight, checkpoint.get(&member.weight)?.as_ref())?;
    let squares = if variance {
        // Batch norm divides by √(σ² + ε); 1e-5 is the usual ε and keeps a dead channel from dividing by zero.
        values.iter().map(|&v| f64::from(v).max(0.0) + 1e-5).collect()
    } else {
        unit_squares(&values, axis)
    };
    Ok(Some(MemberSquares { role: member.role, divides: variance, squares }))
}

impl Pass for Structured {
    fn name(&self) -> &str {
        Self::KEY
    }

    fn stage(&self) -> Stage {
        Stage::Shape
    }

    fn settings(&self) -> Value {
        serde_json::json!({ "family": self.family, "amount": self.amount, "score": self.score })
    }

    fn run(&self, checkpoint: Checkpoint, context: &Context<'_>) -> Result<Checkpoint> {
        let (plan, whole) = self.plan(&checkpoint, context)?;
        for coupling in &whole {
            let why = format!("coupling `{}` keeps all of its {} units", coupling.name, coupling.units);
            for member in &coupling.members {
                context.left(&member.weight, why.clone());
            }
        }
        let cut = plan.cut(&checkpoint)?;
        plan.weights().for_each(|name| context.done(name));
        Ok(cut)
    }
}
