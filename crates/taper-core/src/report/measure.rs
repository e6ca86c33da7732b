//! What a pass found out about a weight besides its size and its error: a name, a number, a unit.
//!
//! ```text
//! Context::measured(weight, Measure::new("shrinkage", 0.12, Unit::Share)) ─▶ Row::measures ─▶ table, JSON
//! ```
//!
//! The channel knows nothing of what passes measure. Neighbours: [`crate::Context`] takes measures, the driver puts them
//! into the weight's [`super::Row`].

use std::fmt;

/// What a measure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Unit {
    /// A number without a unit.
    Number,
    /// A share of a whole, 0 to 1.
    Share,
    /// How many.
    Count,
    /// The square of what a layer gives, per token.
    SquaredOutput,
}

/// One figure of a pass about one weight.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Measure {
    /// What it is, for people: `shrinkage`.
    pub name: String,
    /// The number; finite.
    pub value: f64,
    /// What it counts.
    pub unit: Unit,
}

impl Measure {
    /// A figure. The driver refuses values that are not finite: a report must be readable again.
    pub fn new(name: impl Into<String>, value: f64, unit: Unit) -> Self {
        Self { name: name.into(), value, unit }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.unit {
            Unit::Share => write!(f, "{} {:.1} %", self.name, 100.0 * self.value),
            Unit::Count => write!(f, "{} {:.0}", self.name, self.value),
            Unit::Number | Unit::SquaredOutput => write!(f, "{} {:.3e}", self.name, self.value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_read_as_their_unit_says() {
        let shown = |value, unit| Measure::new("x", value, unit).to_string();
        assert_eq!(shown(0.125, Unit::Share), "x 12.5 %");
        assert_eq!(shown(3.0, Unit::Count), "x 3");
        assert_eq!(shown(0.00125, Unit::SquaredOutput), "x 1.250e-3");
    }
}
