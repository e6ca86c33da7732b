//! What each pass did to each weight: a table on `Display`, JSON through serde, a picture as SVG.
//!
//! Neighbours: [`measure`] is the channel for figures that only the pass knows, `chart.rs` draws.

mod chart;
pub mod measure;

pub use measure::{Measure, Unit};

use std::{collections::BTreeMap, fmt};

use crate::{Stage, Stats, WeightInfo, weight::bits_per_weight};

/// How a selected weight ended.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum Outcome {
    /// The pass changed it.
    Done,
    /// The pass removed it (only passes of stage `shape` may).
    Removed,
    /// The pass added it and said so, with [`crate::Context::added`]: a head parted from its embedding, say.
    Added,
    /// It stayed as it was.
    Left {
        /// The reason, for people.
        why: String,
    },
}

/// The stored form of a weight before or after a pass.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Stored {
    /// Logical shape.
    pub shape: Vec<usize>,
    /// The encoding, for people.
    pub format: String,
    /// Bytes in a file.
    pub bytes: u64,
    /// Bits per weight: codes, scales, zero points and metadata counted.
    pub bits_per_weight: f64,
}

impl From<&WeightInfo> for Stored {
    fn from(info: &WeightInfo) -> Self {
        Self {
            shape: info.shape.clone(),
            format: info.encoding.format.clone(),
            bytes: info.nbytes as u64,
            bits_per_weight: info.bits_per_weight(),
        }
    }
}

/// How far a weight's values moved, measured on decoded values.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Damage {
    /// Σ (w − ŵ)² / Σ w².
    pub normalised_mse: f64,
    /// max |w − ŵ|.
    pub max_error: f64,
    /// How far the layer's output moves under the inputs of calibration, tr(E G Eᵀ) / tr(W G Wᵀ) with E = W − Ŵ; where the
    /// Gram matrix G of its inputs was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_error: Option<f64>,
}

impl Damage {
    /// Signal to noise in dB: −10 log₁₀ of the normalised mean squared error; infinite where nothing moved.
    #[must_use]
    pub fn signal_to_noise_db(&self) -> f64 {
        -10.0 * self.normalised_mse.log10()
    }

    /// What weights are sorted by: the error of the output where it was measured, that of the weight where not.
    #[must_use]
    pub fn severity(&self) -> f64 {
        self.output_error.unwrap_or(self.normalised_mse)
    }
}

/// What a pass did to one weight.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Row {
    /// The weight.
    pub weight: String,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Its stored form before.
    pub before: Stored,
    /// Its stored form after; absent where it was removed.
    pub after: Option<Stored>,
    /// How far its values moved; absent where it was left, removed or cut to another shape.
    pub damage: Option<Damage>,
    /// What the pass itself had to say of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measures: Vec<Measure>,
    /// Seconds spent on it.
    pub seconds: f64,
}

impl Row {
    /// By what rows are sorted; below every damage where none was measured.
    fn severity(&self) -> f64 {
        self.damage.map_or(f64::NEG_INFINITY, |d| d.severity())
    }
}

/// What one pass did.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct PassReport {
    /// The pass.
    pub name: String,
    /// What it changes.
    pub stage: Stage,
    /// Its options.
    pub settings: serde_json::Value,
    /// Its selected weights, by name.
    pub rows: Vec<Row>,
    /// Seconds in all.
    pub seconds: f64,
}

impl PassReport {
    /// The weights that the pass changed, the most damaged first.
    #[must_use]
    pub fn by_damage(&self) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.rows.iter().filter(|r| r.outcome == Outcome::Done).collect();
        rows.sort_by(|a, b| b.severity().total_cmp(&a.severity()));
        rows
    }
}

/// Sizes of a whole checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize, serde::Deserialize)]
pub struct Totals {
    /// Weights.
    pub weights: usize,
    /// Elements of all weights.
    pub elements: u64,
    /// Bytes of all weights.
    pub bytes: u64,
}

impl Totals {
    /// Bits per weight over the whole checkpoint.
    #[must_use]
    pub fn bits_per_weight(&self) -> f64 {
        bits_per_weight(self.bytes as usize, self.elements as usize)
    }

    /// Counts one more weight.
    pub fn add(&mut self, info: &WeightInfo) {
        self.weights += 1;
        self.elements += info.elements() as u64;
        self.bytes += info.nbytes as u64;
    }
}

/// Where the statistics of a run came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// They were given.
    Given,
    /// Gathered from the model as it was.
    Once,
    /// Gathered while the model changed, each layer seeing what the layers before it became.
    Sequential,
}

/// What calibration saw.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Calibrated {
    /// Where the statistics came from.
    pub origin: Origin,
    /// Tokens (input vectors) that each layer saw, by the name of its weight.
    pub layers: BTreeMap<String, u64>,
}

impl Calibrated {
    /// What is in statistics.
    pub(crate) fn of(origin: Origin, stats: &Stats) -> Self {
        let layers = stats.iter().map(|(name, seen)| (name.to_owned(), seen.count)).collect();
        Self { origin, layers }
    }

    /// Takes over what another leg of the run saw.
    pub(crate) fn join(seen: &mut Option<Self>, other: Option<Self>) {
        match (seen.as_mut(), other) {
            (Some(seen), Some(other)) => {
                seen.origin = other.origin;
                seen.layers.extend(other.layers);
            }
            (None, other) => *seen = other,
            (Some(_), None) => {}
        }
    }
}

impl fmt::Display for Calibrated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.origin {
            Origin::Given => "statistics given",
            Origin::Once => "calibrated once",
            Origin::Sequential => "calibrated layer after layer",
        };
        let (least, most) = (self.layers.values().min(), self.layers.values().max());
        let (least, most) = (least.copied().unwrap_or(0), most.copied().unwrap_or(0));
        write!(f, "{how}: {} layers saw {least}", self.layers.len())?;
        if least != most {
            let poorest = self.layers.iter().min_by_key(|(_, tokens)| **tokens).map_or("", |(name, _)| name);
            write!(f, " (`{poorest}`) to {most}")?;
        }
        write!(f, " tokens each")
    }
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// Version of Taper.
    pub version: String,
    /// The passes, in order.
    pub passes: Vec<PassReport>,
    /// The checkpoint that went in.
    pub input: Totals,
    /// The checkpoint that came out.
    pub output: Totals,
    /// What calibration saw; absent where nothing was calibrated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibrated>,
    /// Bytes of input matrices (float, two or more dimensions) that some pass changed or removed.
    pub covered_bytes: u64,
    /// Bytes of all input matrices.
    pub eligible_bytes: u64,
    /// Seconds in all.
    pub seconds: f64,
}

impl Report {
    /// Bytes compressed over bytes eligible, 0 to 1; 1 where nothing is eligible.
    #[must_use]
    pub fn coverage(&self) -> f64 {
        share(self.covered_bytes, self.eligible_bytes)
    }

    /// The weights that some pass left as they were, with the reason.
    pub fn left(&self) -> impl Iterator<Item = (&str, &str)> {
        self.passes.iter().flat_map(|p| &p.rows).filter_map(|row| match &row.outcome {
            Outcome::Left { why } => Some((row.weight.as_str(), why.as_str())),
            _ => None,
        })
    }

    /// A picture of bits and damage of each changed weight, in the order of the model: an SVG file.
    #[must_use]
    pub fn chart(&self) -> String {
        chart::svg(self)
    }
}

impl fmt::Display for PassReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ({}), {:.2} s", self.name, self.stage, self.seconds)?;
        let width = self.rows.iter().map(|r| r.weight.len()).max().unwrap_or(0).max(6);
        writeln!(
            f,
            "  {:width$}  {:>14}  {:>12} {:>16}  {:>11} {:>6}  {:>10} {:>9} {:>10}",
            "weight", "shape", "from", "to", "bytes", "bits", "nMSE", "max err", "output err"
        )?;
        for row in self.by_damage() {
            let Some(after) = row.after.as_ref() else {
                continue;
            };
            let shape = after.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join("×");
            write!(
                f,
                "  {:width$}  {shape:>14}  {:>12} {:>16}  {:>11} {:>6.3}",
                row.weight, row.before.format, after.format, after.bytes, after.bits_per_weight
            )?;
            match &row.damage {
                Some(d) => write!(f, "  {:>10.3e} {:>9.2e}", d.normalised_mse, d.max_error)?,
                None => write!(f, "  {:>10} {:>9}", "-", "-")?,
            }
            match row.damage.and_then(|d| d.output_error) {
                Some(error) => write!(f, " {error:>10.3e}")?,
                None => write!(f, " {:>10}", "-")?,
            }
            for measure in &row.measures {
                write!(f, "  {measure}")?;
            }
            writeln!(f)?;
        }
        let removed = self.rows.iter().filter(|r| r.outcome == Outcome::Removed).count();
        if removed > 0 {
            writeln!(f, "  removed {removed} weights")?;
        }
        for (why, names) in by_reason(&self.rows) {
            let examples = names.iter().take(3).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
            let more = if names.len() > 3 { ", …" } else { "" };
            writeln!(f, "  left {}: {why} ({examples}{more})", names.len())?;
        }
        Ok(())
    }
}

/// Left weights grouped by reason, in order of first appearance.
fn by_reason(rows: &[Row]) -> Vec<(&str, Vec<&str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for row in rows {
        if let Outcome::Left { why } = &row.outcome {
            match groups.iter_mut().find(|(reason, _)| reason == why) {
                Some((_, names)) => names.push(&row.weight),
                None => groups.push((why, vec![&row.weight])),
            }
        }
    }
    groups
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for pass in &self.passes {
            pass.fmt(f)?;
        }
        if let Some(seen) = &self.calibration {
            writeln!(f, "{seen}")?;
        }
        writeln!(
            f,
            "{} weights, {} bytes ({:.3} bits per weight) -> {} weights, {} bytes ({:.3} bits per weight), {:.2}×",
            self.input.weights,
            self.input.bytes,
            self.input.bits_per_weight(),
            self.output.weights,
            self.output.bytes,
            self.output.bits_per_weight(),
            self.input.bytes as f64 / self.output.bytes.max(1) as f64,
        )?;
        write!(f, "coverage {:.1} % of the matrices' bytes, {:.2} s", 100.0 * self.coverage(), self.seconds)
    }
}

/// Bytes covered over bytes eligible; 1 where nothing is eligible.
pub(crate) fn share(covered: u64, eligible: u64) -> f64 {
    if eligible == 0 { 1.0 } else { covered as f64 / eligible as f64 }
}
