//! The bit budget: a format for each weight, so that the whole does the least damage for its size.
//!
//! ```text
//! survey     every format on every weight ─▶ bytes, error of the output       one pipeline run per format
//!            one weight at a time ─▶ divergence of the model                  how much an error there matters
//! solve      min Σ damage   such that   Σ bytes ≤ limit                       exactly, or the other way round
//! predict    Σ damage ─▶ divergence                                           through the measured whole models
//! ```
//!
//! Damage is in units of the model's divergence (nats per token, for a language model): the error of a weight's output times
//! what such an error was measured to cost. Errors of many weights add up nearly (the linearity that HIGGS states,
//! arXiv:2411.17525); what is not linear, the survey sees in the models that have one format throughout.
//!
//! Nothing here knows formats or architectures: candidates are passes, and a [`Judge`] says how far a model has moved.
//!
//! The search alone serves any table of sizes and damages:
//!
//! ```
//! use taper_quant::allocate::{Choice, Limit, solve};
//!
//! let layer = |sensitivity: f64| -> Vec<Choice> {
//!     let formats = [(2, 0.12), (3, 0.035), (4, 0.01)];
//!     formats.iter().map(|&(bytes, error)| Choice { bytes, damage: sensitivity * error }).collect()
//! };
//! // Nine bytes for three layers, of which one matters more than the others.
//! let chosen = solve(&[layer(1.0), layer(9.0), layer(2.0)], Limit::Bytes(9))?;
//! assert_eq!(chosen, [0, 2, 1]);
//! assert!(solve(&[layer(1.0)], Limit::Bytes(1)).is_err());
//! # Ok::<(), taper_quant::allocate::Infeasible>(())
//! ```
//!
//! Neighbours: `solve.rs` is the search, [`survey`] measures, [`curve`] interpolates, [`plan`] chooses.

pub mod curve;
pub mod plan;
mod solve;
pub mod survey;

pub use plan::{Allotment, Allotted, Budget, Together};
pub use solve::solve;
pub use survey::{Candidate, Judge, Menu, Pin, Survey};

/// One way to store an item.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// What it takes.
    pub bytes: u64,
    /// What it costs in quality; finite and not negative.
    pub damage: f64,
}

/// What may not be exceeded; the other is made as small as possible.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// At most so many bytes.
    Bytes(u64),
    /// At most this damage.
    Damage(f64),
}

/// No choice keeps the limit.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("nothing keeps the limit of {limit}; the least possible is {least}")]
pub struct Infeasible {
    /// What was asked for: bytes or damage.
    pub limit: f64,
    /// The least possible.
    pub least: f64,
}
