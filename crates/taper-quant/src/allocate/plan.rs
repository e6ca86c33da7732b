//! The choice: a survey and a budget become a format per weight, with what that will cost.
//!
//! ```text
//! S = Σ damage over the chosen formats       divergence = whole(S)       whole: through the models with one format throughout
//! ```
//!
//! The curve rises, so the least S is the least predicted divergence, and a target divergence is a limit on S.
//!
//! Neighbours: [`super::survey`] measures, `solve.rs` searches.

use std::collections::{BTreeMap, BTreeSet};

use super::{Choice, Infeasible, Limit, solve, survey::Survey};
use crate::{Error, Result};

/// What a plan may cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// At most so many bits per weight on average over the selected weights; codes, scales and zero points counted.
    Bits(f64),
    /// At most so many bytes for all weights of the checkpoint, those that are not selected too.
    Bytes(u64),
    /// At most this predicted divergence, as small as possible.
    Divergence(f64),
}

/// Which weights must share a format.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Together {
    /// None.
    #[default]
    Nobody,
    /// Those of each set: layers that an inference engine fuses into one matrix. Names that are not planned are ignored.
    Sets(Vec<Vec<String>>),
}

/// A weight and its format.
#[derive(Debug, Clone, PartialEq)]
pub struct Allotted {
    /// The weight.
    pub weight: String,
    /// The format, an index into [`Survey::labels`].
    pub format: usize,
    /// Its elements.
    pub elements: u64,
    /// Its bytes.
    pub bytes: u64,
    /// The normalised error that the format had in the survey.
    pub error: f64,
    /// Its share of the predicted divergence.
    pub divergence: f64,
}

/// A format for every weight, and what is to be expected.
#[derive(Debug, Clone, PartialEq)]
pub struct Allotment {
    /// The weights, by name.
    pub weights: Vec<Allotted>,
    /// Bytes of these weights.
    pub bytes: u64,
    /// Elements of these weights.
    pub elements: u64,
    /// Bytes of all weights of the checkpoint.
    pub total_bytes: u64,
    /// The predicted divergence of the model.
    pub divergence: f64,
}

impl Allotment {
    /// Bits per weight over the planned weights.
    #[must_use]
    pub fn bits_per_weight(&self) -> f64 {
        bits(self.bytes, self.elements)
    }
}

fn bits(bytes: u64, elements: u64) -> f64 {
    8.0 * bytes as f64 / elements.max(1) as f64
}

/// Weights that are decided together, and their common formats.
struct Item {
    members: Vec<usize>,
    formats: Vec<usize>,
    choices: Vec<Choice>,
}

impl Survey {
    /// The formats that do the least damage within a budget (or the smallest ones within a divergence).
    ///
    /// # Errors
    /// [`Error::Budget`] with the least that is possible, [`Error::Menu`] where weights that belong together have no format
    /// in common.
    pub fn allot(&self, budget: Budget, together: &Together) -> Result<Allotment> {
        let items = self.items(together)?;
        let choices: Vec<Vec<Choice>> = items.iter().map(|i| i.choices.clone()).collect();
        let chosen = solve(&choices, self.limit(budget)?).map_err(|e| self.refused(budget, e))?;
        Ok(self.allotment(&items, &chosen))
    }

    fn elements(&self) -> u64 {
        self.weights.iter().map(|w| w.elements).sum()
    }

    fn limit(&self, budget: Budget) -> Result<Limit> {
        let wrong = |asked: f64| Error::Menu {
            message: format!("a budget of {asked} is none; ask for a number of at least 0"),
        };
        match budget {
            Budget::Bits(bits) if bits.is_finite() && bits >= 0.0 => {
                Ok(Limit::Bytes((bits * self.elements() as f64 / 8.0).floor() as u64))
            }
            Budget::Bytes(bytes) => Ok(Limit::Bytes(bytes.saturating_sub(self.other_bytes))),
            Budget::Divergence(target) if target.is_finite() && target >= 0.0 => {
                Ok(Limit::Damage(self.whole().map_or(0.0, |whole| whole.place_of(target))))
            }
            Budget::Bits(asked) | Budget::Divergence(asked) => Err(wrong(asked)),
        }
    }

    fn refused(&self, budget: Budget, found: Infeasible) -> Error {
        match budget {
            Budget::Bits(asked) => Error::Budget {
                asked,
                least: bits(found.least as u64, self.elements()),
                unit: "bits per weight",
            },
            Budget::Bytes(asked) => Error::Budget {
                asked: asked as f64,
                least: found.least + self.other_bytes as f64,
                unit: "bytes of weights",
            },
            Budget::Divergence(asked) => {
                let least = self.whole().map_or(0.0, |whole| whole.at(found.least));
                Error::Budget { asked, least, unit: "of divergence" }
            }
        }
    }

    fn items(&self, together: &Together) -> Result<Vec<Item>> {
        let place: BTreeMap<&str, usize> =
            self.weights.iter().enumerate().map(|(i, w)| (w.weight.as_str(), i)).collect();
        let mut alone: BTreeSet<usize> = (0..self.weights.len()).collect();
        let mut sets = Vec::new();
        if let Together::Sets(names) = together {
            for set in names {
                // A pinned weight has its format already.
                let members: Vec<usize> = set
                    .iter()
                    .filter_map(|name| place.get(name.as_str()).copied())
                    .filter(|&i| self.weights[i].costs.iter().flatten().count() > 1 && alone.remove(&i))
                    .collect();
                sets.push(members);
            }
        }
        sets.retain(|set| !set.is_empty());
        sets.extend(alone.into_iter().map(|i| vec![i]));
        sets.sort();
        sets.into_iter().map(|members| self.item(members)).collect()
    }

    fn item(&self, members: Vec<usize>) -> Result<Item> {
        let mut item = Item { members, formats: Vec::new(), choices: Vec::new() };
        for format in 0..self.labels.len() {
            let costs =
                item.members.iter().map(|&i| Some((&self.weights[i], self.weights[i].costs[format]?)));
            let Some(costs) = costs.collect::<Option<Vec<_>>>() else { continue };
            item.formats.push(format);
            item.choices.push(Choice {
                bytes: costs.iter().map(|(_, cost)| cost.bytes).sum(),
                damage: costs.iter().map(|(weight, cost)| weight.damage(*cost)).sum(),
            });
        }
        if item.choices.is_empty() {
            let names: Vec<String> =
                item.members.iter().map(|&i| format!("`{}`", self.weights[i].weight)).collect();
            let names = names.join(", ");
            return Err(Error::Menu { message: format!("{names} belong together and no format suits all") });
        }
        Ok(item)
    }

    fn allotment(&self, items: &[Item], chosen: &[usize]) -> Allotment {
        let mut weights = Vec::new();
        for (item, &choice) in items.iter().zip(chosen) {
            let format = item.formats[choice];
            for &member in &item.members {
                let surveyed = &self.weights[member];
                let Some(cost) = surveyed.costs[format] else { continue };
                weights.push(Allotted {
                    weight: surveyed.weight.clone(),
                    format,
                    elements: surveyed.elements,
                    bytes: cost.bytes,
                    error: cost.error,
                    divergence: surveyed.damage(cost),
                });
            }
        }
        weights.sort_by(|a, b| a.weight.cmp(&b.weight));
        let sum: f64 = weights.iter().map(|w| w.divergence).sum();
        let divergence = self.whole().map_or(0.0, |whole| whole.at(sum));
        // Shares of the whole, which is not quite the sum of its parts.
        let share = if sum > 0.0 { divergence / sum } else { 0.0 };
        weights.iter_mut().for_each(|w| w.divergence *= share);
        let bytes = weights.iter().map(|w| w.bytes).sum();
        Allotment {
            weights,
            bytes,
            elements: self.elements(),
            total_bytes: bytes + self.other_bytes,
            divergence,
        }
    }
}
