//! Recipes: passes written down in TOML.
//!
//! ```toml
//! coverage-floor = 0.9          # optional: less is an error
//!
//! [[pass]]
//! name = "n-of-m"
//! n = 2
//! m = 4
//! select = ["model.layers.*"]   # a pattern or a list of them; every matrix where absent
//! exclude = "*.k_proj.*"        # the same
//!
//! [[pass]]
//! name = "round-nearest"
//! bits = 4
//! group = 32
//! ```
//!
//! A recipe may leave the format of each weight to a [`budget`]: it has `[[candidate]]`s in place of passes. What comes of
//! that, a [`crate::Plan`], is a recipe again, with a `[plan]` that says what to expect.
//!
//! Every other key of a `[[pass]]` is an option of that pass. A wrong key, value or order is an error that names its line
//! and what would be right. `arms.rs` knows the passes, `step.rs` reads one of them, `keys.rs` asks a settings type for
//! its keys, `shortcut.rs` has the recipes that need no file, [`shipped`] those that come with Taper.

mod arms;
pub mod budget;
mod error;
mod keys;
pub mod shipped;
mod shortcut;
mod spelling;
mod step;

pub use arms::PASSES;
pub use budget::Budgeted;
pub use error::{Place, PlacedPass, RecipeError};
pub use shortcut::{int4, int8, nf4};

use std::{path::Path, sync::Arc};
use taper_core::{Couplings, Pass, Pipeline};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::plan::Expected;
use spelling::nearest;
use step::Step;

/// The keys of a recipe, outside its passes.
const KEYS: [&str; 6] = ["coverage-floor", "pass", "budget", "candidate", "pin", "plan"];

/// Passes written down, read and checked.
///
/// ```
/// let recipe = taper::Recipe::parse(
///     r#"
///     [[pass]]
///     name = "round-nearest"
///     bits = 4
///     group = 32
///     "#,
/// )?;
/// assert_eq!(recipe.pipeline().passes().len(), 1);
/// # Ok::<(), taper::RecipeError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Recipe {
    passes: Vec<Arc<dyn Pass>>,
    coverage_floor: f64,
    budgeted: Option<Budgeted>,
    expected: Option<Expected>,
}

impl Recipe {
    /// Reads a recipe file, for models of the architectures that Taper knows.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, RecipeError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|source| RecipeError::Io { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|e| RecipeError::InFile { path: path.to_owned(), source: Box::new(e) })
    }

    /// Reads a recipe, for models of the architectures that Taper knows.
    pub fn parse(text: &str) -> Result<Self, RecipeError> {
        Self::parse_with(text, arms::known_couplings())
    }

    /// Reads a recipe for an architecture of your own: passes that cut do so along `couplings`.
    pub fn parse_with(text: &str, couplings: Arc<dyn Couplings>) -> Result<Self, RecipeError> {
        let document = DeTable::parse(text).map_err(|e| RecipeError::Syntax {
            place: Place::at(text, e.span().map_or(0, |s| s.start)),
            message: e.message().to_owned(),
        })?;
        let mut coverage_floor = 0.0;
        let (mut tables, mut choice) = (Vec::new(), budget::Tables::default());
        let mut expected = None;
        for (key, value) in document.into_inner() {
            match key.get_ref().as_ref() {
                "coverage-floor" => coverage_floor = fraction(text, &value)?,
                "pass" => tables = pass_tables(text, "pass", value)?,
                "candidate" => choice.candidates = pass_tables(text, "candidate", value)?,
                "pin" => choice.pins = pass_tables(text, "pin", value)?,
                "budget" => choice.budget = Some(budget::table(text, "budget", value)?),
                "plan" => expected = Some(budget::expected(text, value)?),
                other => {
                    return Err(RecipeError::UnknownKey {
                        place: Place::at(text, key.span().start),
                        key: other.to_owned(),
                        owner: "a recipe".to_owned(),
                        nearest: nearest(other, &KEYS),
                        known: keys::list(&KEYS),
                    });
                }
            }
        }
        let budgeted = choice.read(text, tables.first().map(|(start, _)| *start), &couplings)?;
        if tables.is_empty() && budgeted.is_none() {
            return Err(RecipeError::Empty);
        }
        let mut passes: Vec<(Place, Arc<dyn Pass>)> = Vec::new();
        for (index, (offset, table)) in tables.into_iter().enumerate() {
            let step = Step::read(text, index + 1, offset, table)?;
            let place = step.place().clone();
            passes.push((place, arms::pass(step, &couplings)?));
        }
        check_order(&passes)?;
        let passes = passes.into_iter().map(|(_, pass)| pass).collect();
        Ok(Self { passes, coverage_floor, budgeted, expected })
    }

    /// What to choose from, where the recipe leaves formats to a budget; it has no passes then.
    #[must_use]
    pub fn budgeted(&self) -> Option<&Budgeted> {
        self.budgeted.as_ref()
    }

    /// What is to be expected of it, where it is a plan.
    #[must_use]
    pub fn expected(&self) -> Option<&Expected> {
        self.expected.as_ref()
    }

    /// The passes as a pipeline; none where formats are left to a budget.
    #[must_use]
    pub fn pipeline(&self) -> Pipeline {
        let pipeline = Pipeline::new().with_coverage_floor(self.coverage_floor);
        self.passes.iter().fold(pipeline, |pipeline, pass| pipeline.then_shared(Arc::clone(pass)))
    }

    /// The share of the matrices' bytes that must be compressed, 0 to 1; 0 where the recipe says nothing.
    #[must_use]
    pub fn coverage_floor(&self) -> f64 {
        self.coverage_floor
    }
}

/// The value of `coverage-floor`.
fn fraction(text: &str, value: &Spanned<DeValue<'_>>) -> Result<f64, RecipeError> {
    let number = match value.get_ref() {
        DeValue::Float(v) => v.as_str().replace('_', "").parse().ok(),
        DeValue::Integer(v) => v.as_str().parse().ok(),
        _ => None,
    };
    number.filter(|n| (0.0..=1.0).contains(n)).ok_or_else(|| RecipeError::BadValue {
        place: Place::at(text, value.span().start),
        key: "coverage-floor".to_owned(),
        found: step::shown(text, value),
        expected: "a number from 0 to 1, such as 0.9".to_owned(),
    })
}

/// The tables under `[[pass]]`, `[[candidate]]` or `[[pin]]` and where each begins.
fn pass_tables<'a>(
    text: &str,
    key: &str,
    value: Spanned<DeValue<'a>>,
) -> Result<Vec<(usize, DeTable<'a>)>, RecipeError> {
    let wrong = |value: &Spanned<DeValue<'_>>| RecipeError::BadValue {
        place: Place::at(text, value.span().start),
        key: key.to_owned(),
        found: value.get_ref().type_str().to_owned(),
        expected: format!("one `[[{key}]]` (with double brackets) per {key}"),
    };
    if !value.get_ref().is_array() {
        return Err(wrong(&value));
    }
    let DeValue::Array(items) = value.into_inner() else { return Ok(Vec::new()) };
    items
        .into_iter()
        .map(|item| {
            if !item.get_ref().is_table() {
                return Err(wrong(&item));
            }
            let start = item.span().start;
            match item.into_inner() {
                DeValue::Table(table) => Ok((start, table)),
                _ => Ok((start, DeTable::new())),
            }
        })
        .collect()
}

/// The pipeline checks order too; here the lines are known.
fn check_order(passes: &[(Place, Arc<dyn Pass>)]) -> Result<(), RecipeError> {
    for pair in passes.windows(2) {
        let [(first, before), (second, after)] = pair else { continue };
        if after.stage() < before.stage() {
            return Err(RecipeError::OutOfOrder {
                place: second.clone(),
                stage: after.stage(),
                earlier: first.clone(),
                earlier_stage: before.stage(),
            });
        }
    }
    Ok(())
}
