//! The part of a recipe that leaves the format of each weight to a bit budget.
//!
//! ```toml
//! [budget]
//! select = ["*.layers.*"]       # the weights that the budget is for, as in a pass
//! exclude = "*.k_proj.*"
//! fused = "apart"               # or "together": layers that read one input share a format
//! probes = 2                    # formats at which it is measured what an error in a weight costs
//! bits = 3.0                    # optional: the budget where nothing else is asked for, bits per weight
//! judged = 8                    # optional: windows (or sentences) to judge on
//!
//! [[candidate]]                 # a format to choose from; from the coarsest to the finest
//! name = "gptq"
//! bits = 3
//! group = 128
//!
//! [[pin]]                       # weights whose format is settled
//! select = "*.layers.0.*"
//! name = "gptq"
//! bits = 8
//! ```
//!
//! Neighbours: [`crate::plan`] makes a plan of it; `taper_quant::allocate` measures and solves.

use serde::Deserialize;
use std::{num::NonZeroUsize, sync::Arc};
use taper_core::{Checkpoint, Couplings};
use taper_quant::allocate::{Budget, Menu, Together};
use toml::{
    Spanned,
    de::{DeTable, DeValue, ValueDeserializer},
};

use super::{Place, RecipeError, arms, step::Step};
use crate::plan::Expected;

/// Whether layers that read one input share a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fused {
    /// Each weight for itself: the best result.
    #[default]
    Apart,
    /// Layers that read one input (q, k and v; gate and up) alike, for engines that fuse them into one matrix.
    Together,
}

/// What to choose from, and how.
#[derive(Clone)]
pub struct Budgeted {
    /// Weights, formats, pins.
    pub menu: Menu,
    /// Whether layers that read one input share a format.
    pub fused: Fused,
    /// Who knows which layers read one input.
    pub couplings: Arc<dyn Couplings>,
    /// The budget where nothing else is asked for.
    pub budget: Option<Budget>,
    /// Windows or sentences to judge on; as many as the judge likes where absent.
    pub judged: Option<usize>,
}

impl std::fmt::Debug for Budgeted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Budgeted")
            .field("menu", &self.menu)
            .field("fused", &self.fused)
            .field("budget", &self.budget)
            .field("judged", &self.judged)
            .finish_non_exhaustive()
    }
}

impl Budgeted {
    /// The sets of weights that must share a format.
    ///
    /// # Errors
    /// Where the architecture cannot tell which layers read one input.
    pub fn together(&self, checkpoint: &Checkpoint) -> taper_core::Result<Together> {
        Ok(match self.fused {
            Fused::Apart => Together::Nobody,
            Fused::Together => {
                let readers = self.couplings.scalings(checkpoint)?.into_iter().map(|s| s.consumers);
                Together::Sets(readers.map(|r| r.into_iter().map(|c| c.weight).collect()).collect())
            }
        })
    }
}

/// The options of `[budget]`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Options {
    fused: Fused,
    probes: Option<usize>,
    bits: Option<f64>,
    judged: Option<NonZeroUsize>,
}

/// Formats at which it is measured what an error costs, where nothing is said: a coarse one and one from the middle, between
/// which the cost is seen not to be quite a proportion.
const PROBES: usize = 2;

/// What stands in a recipe of the choice.
#[derive(Default)]
pub(super) struct Tables<'a> {
    pub(super) budget: Option<(usize, DeTable<'a>)>,
    pub(super) candidates: Vec<(usize, DeTable<'a>)>,
    pub(super) pins: Vec<(usize, DeTable<'a>)>,
}

impl Tables<'_> {
    /// What to choose from; `None` where nothing is left to choose. `passes` is where the first pass stands.
    pub(super) fn read(
        self,
        text: &str,
        passes: Option<usize>,
        couplings: &Arc<dyn Couplings>,
    ) -> Result<Option<Budgeted>, RecipeError> {
        let parts = [
            ("budget", self.budget.as_ref().map(|(start, _)| *start)),
            ("candidate", self.candidates.first().map(|(start, _)| *start)),
            ("pin", self.pins.first().map(|(start, _)| *start)),
        ];
        let Some((key, start)) = parts.into_iter().find_map(|(key, start)| Some((key, start?))) else {
            return Ok(None);
        };
        if passes.is_some() {
            return Err(RecipeError::Both { place: Place::at(text, start), key });
        }
        if self.candidates.is_empty() {
            return Err(RecipeError::BadValue {
                place: Place::at(text, start),
                key: "candidate".into(),
                found: "missing".into(),
                expected: "at least one `[[candidate]]` with a `name`: a format to choose from".into(),
            });
        }
        let (start, table) = self.budget.unwrap_or((start, DeTable::new()));
        let (options, select) = Step::budget(text, start, table).selecting::<Options>()?;
        let mut candidates = Vec::new();
        for (index, (start, table)) in self.candidates.into_iter().enumerate() {
            candidates.push(arms::candidate(Step::read(text, index + 1, start, table)?)?);
        }
        let mut pins = Vec::new();
        for (index, (start, table)) in self.pins.into_iter().enumerate() {
            pins.push(arms::pin(Step::read(text, index + 1, start, table)?)?);
        }
        let probes = options.probes.unwrap_or(PROBES);
        let menu = Menu { select, candidates, pins, probes };
        Ok(Some(Budgeted {
            menu,
            fused: options.fused,
            couplings: Arc::clone(couplings),
            budget: options.bits.map(Budget::Bits),
            judged: options.judged.map(NonZeroUsize::get),
        }))
    }
}

/// A table and where it begins.
pub(super) fn table<'a>(
    text: &str,
    key: &str,
    value: Spanned<DeValue<'a>>,
) -> Result<(usize, DeTable<'a>), RecipeError> {
    let (start, found) = (value.span().start, value.get_ref().type_str());
    match value.into_inner() {
        DeValue::Table(table) => Ok((start, table)),
        _ => Err(RecipeError::BadValue {
            place: Place::at(text, start),
            key: key.to_owned(),
            found: format!("of type {found}"),
            expected: format!("a table: `[{key}]`"),
        }),
    }
}

/// What a plan says of itself.
pub(super) fn expected(text: &str, value: Spanned<DeValue<'_>>) -> Result<Expected, RecipeError> {
    let start = value.span().start;
    let (_, table) = table(text, "plan", value)?;
    let table = Spanned::new(start..start, DeValue::Table(table));
    Expected::deserialize(ValueDeserializer::from(table)).map_err(|e| RecipeError::BadValue {
        place: Place::at(text, e.span().map_or(start, |s| s.start)),
        key: "plan".into(),
        found: e.message().trim_end().to_owned(),
        expected: "`bits-per-weight`, `bytes`, `total-bytes` and `divergence`, as `taper plan` writes them"
            .into(),
    })
}
