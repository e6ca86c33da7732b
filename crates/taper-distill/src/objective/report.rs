//! The values of an evaluation as numbers, for logs and files.

use crate::Unit;
use serde::Serialize;

/// Every term of one evaluation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ObjectiveReport {
    /// Σ weight · value.
    pub total: f64,
    /// The terms in the order they were added.
    pub terms: Vec<TermReport>,
}

/// One term of one evaluation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TermReport {
    /// Its name in the objective.
    pub name: String,
    /// Its weight.
    pub weight: f64,
    /// Its value before weighting, in nats where it is made of probabilities.
    pub value: f64,
    /// How many rows counted.
    pub rows: usize,
    /// What a row is.
    pub unit: Unit,
}

impl ObjectiveReport {
    /// The term of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&TermReport> {
        self.terms.iter().find(|term| term.name == name)
    }
}

impl std::fmt::Display for ObjectiveReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "total {:.6}", self.total)?;
        let width = self.terms.iter().map(|term| term.name.chars().count()).max().unwrap_or(0);
        for TermReport { name, weight, value, rows, unit } in &self.terms {
            let plural = if *rows == 1 { "" } else { "s" };
            let share = weight * value;
            write!(f, "\n  {name:width$}  {weight} × {value:.6} = {share:.6}  ({rows} {unit}{plural})")?;
        }
        Ok(())
    }
}
