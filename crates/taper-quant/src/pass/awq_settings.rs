//! How recipes spell [`Awq`](super::Awq).
//!
//! ```toml
//! format = "int"              # the quantizer that comes next, as round-nearest spells it
//! bits = 4
//! group = 128
//! symmetry = "asymmetric"
//! fit = "search"
//! points = 20                 # candidates, no scaling among them
//! exponents = "either"        # or "activations", "both"
//! clip = "keep"               # or "search"
//! score = "gram"              # or "input-norms"
//! ```

use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

use super::{
    round_nearest::{RoundNearest, Weighting},
    settings::{FitName, NumberFormat, RoundNearestSettings, Sharing},
};
use crate::{Result, ScaleType, Symmetry, equivalence::scale::Exponents};

/// Whether groups are clipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clip {
    /// Values stay; a search of scales clips where that is better anyway.
    #[default]
    Keep,
    /// Each group to the limit that costs least at the outputs.
    Search,
}

/// By what candidates are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Score {
    /// The Gram matrix of the inputs: exact for the layer's output.
    #[default]
    Gram,
    /// Its diagonal: as if inputs were uncorrelated.
    InputNorms,
}

/// The options of [`Awq`](super::Awq) as a recipe has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct AwqSettings {
    /// Integers or NF4.
    pub format: NumberFormat,
    /// Bits of an integer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<u64>,
    /// Weights per group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<usize>,
    /// How many weights share a scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granularity: Option<Sharing>,
    /// Elements per NF4 block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<usize>,
    /// Where zero lies among the codes of integers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symmetry: Option<Symmetry>,
    /// The stored type of the scales of integers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scales: Option<ScaleType>,
    /// How scales are found.
    pub fit: FitName,
    /// Candidates, no scaling among them; 20 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub points: Option<NonZeroUsize>,
    /// Whether the grid has the weights' magnitude in it.
    pub exponents: Exponents,
    /// Whether groups are clipped.
    pub clip: Clip,
    /// By what candidates are judged.
    pub score: Score,
}

impl AwqSettings {
    /// The settings whose quantizer is this one.
    pub(super) fn of(rounding: &RoundNearest) -> Self {
        let spelled = RoundNearestSettings::from(*rounding);
        Self {
            format: spelled.format,
            bits: spelled.bits,
            group: spelled.group,
            granularity: spelled.granularity,
            block: spelled.block,
            symmetry: spelled.symmetry,
            scales: spelled.scales,
            fit: spelled.fit,
            ..Self::default()
        }
    }

    /// The quantizer that comes next.
    ///
    /// # Errors
    /// Options that contradict each other.
    pub fn rounding(&self) -> Result<RoundNearest> {
        RoundNearest::try_from(RoundNearestSettings {
            format: self.format,
            bits: self.bits,
            group: self.group,
            granularity: self.granularity,
            block: self.block,
            symmetry: self.symmetry,
            scales: self.scales,
            fit: self.fit,
            weighting: Weighting::Equal,
            ..RoundNearestSettings::default()
        })
    }
}
