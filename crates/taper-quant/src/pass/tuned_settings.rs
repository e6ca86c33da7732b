//! How recipes spell [`Tuned`]: the numbers as `round-nearest` has them, and how long and how fast rounding is learned.
//!
//! ```toml
//! name = "tuned"
//! bits = 3
//! group = 128
//! steps = 50
//! sequences = 4
//! ```

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use taper_core::kernel::Arithmetic;

use super::{
    RoundNearest, RoundNearestSettings,
    round_nearest::Number,
    settings::Sharing,
    tuned::{Schedule, Tuned},
};
use crate::{
    Error, Result,
    scheme::{Granularity, ScaleType, Scheme, Symmetry},
};

/// The options of [`Tuned`] as a recipe has them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct TunedSettings {
    /// Bits of an integer, 2 to 8; 4 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<u64>,
    /// Weights per group; 128 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<usize>,
    /// How many weights share a scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granularity: Option<Sharing>,
    /// Where zero lies among the codes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symmetry: Option<Symmetry>,
    /// The stored type of the scales.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scales: Option<ScaleType>,
    /// [`Schedule::steps`].
    pub steps: usize,
    /// [`Schedule::sequences`].
    pub sequences: usize,
    /// [`Schedule::travel`].
    pub travel: f32,
    /// [`Schedule::stretch`].
    pub stretch: f32,
    /// [`Schedule::momentum`].
    pub momentum: f32,
    /// [`Schedule::judge`].
    pub judge: usize,
    /// [`Schedule::fisher`].
    pub fisher: f32,
    /// [`Schedule::arithmetic`].
    pub arithmetic: Arithmetic,
}

impl Default for TunedSettings {
    fn default() -> Self {
        let Schedule { steps, sequences, travel, stretch, momentum, judge, fisher, arithmetic } =
            Schedule::default();
        let (bits, group, granularity, symmetry, scales) = (None, None, None, None, None);
        Self {
            bits,
            group,
            granularity,
            symmetry,
            scales,
            steps,
            sequences,
            travel,
            stretch,
            momentum,
            judge,
            fisher,
            arithmetic,
        }
    }
}

impl TunedSettings {
    /// The integers.
    ///
    /// # Errors
    /// Options that contradict each other.
    pub fn scheme(&self) -> Result<Scheme> {
        let Self { bits, group, granularity, symmetry, scales, .. } = *self;
        let spelled = RoundNearestSettings {
            bits,
            group,
            granularity,
            symmetry,
            scales,
            ..RoundNearestSettings::default()
        };
        match RoundNearest::try_from(spelled)?.number() {
            Number::Int(scheme) => Ok(scheme),
            Number::Nf4(scheme) => Err(Error::Conflict {
                option: "format",
                conflict: format!("is {scheme}, which has no ranges to learn"),
                expected: "choose integers".into(),
            }),
        }
    }

    /// How long and how fast.
    #[must_use]
    pub fn schedule(&self) -> Schedule {
        let Self { steps, sequences, travel, stretch, momentum, judge, fisher, arithmetic, .. } = *self;
        Schedule { steps, sequences, travel, stretch, momentum, judge, fisher, arithmetic }
    }
}

impl TryFrom<TunedSettings> for Tuned {
    type Error = Error;

    fn try_from(settings: TunedSettings) -> Result<Self> {
        Self::new(settings.scheme()?)?.with_schedule(settings.schedule())
    }
}

impl From<&Tuned> for TunedSettings {
    fn from(pass: &Tuned) -> Self {
        let (scheme, schedule) = (pass.scheme(), pass.schedule());
        let (group, granularity) = match scheme.granularity {
            Granularity::Group(size) => (Some(size.get()), None),
            Granularity::Channel => (None, Some(Sharing::Channel)),
            Granularity::Tensor => (None, Some(Sharing::Tensor)),
        };
        let Schedule { steps, sequences, travel, stretch, momentum, judge, fisher, arithmetic } = schedule;
        Self {
            bits: Some(scheme.bits.into()),
            group,
            granularity,
            symmetry: Some(scheme.symmetry),
            scales: Some(scheme.scales),
            steps,
            sequences,
            travel,
            stretch,
            momentum,
            judge,
            fisher,
            arithmetic,
        }
    }
}

impl<'de> Deserialize<'de> for Tuned {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        TunedSettings::deserialize(deserializer)?.try_into().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(value: Value) -> std::result::Result<Tuned, String> {
        serde_json::from_value(value).map_err(|e| e.to_string())
    }

    #[test]
    fn settings_and_passes_convert_both_ways() {
        for value in [
            json!({}),
            json!({ "bits": 2, "group": 64, "symmetry": "asymmetric", "steps": 7, "travel": 0.25 }),
            json!({ "bits": 8, "granularity": "channel", "scales": "f32", "sequences": 1, "judge": 2, "fisher": 0.5, "arithmetic": "f32" }),
        ] {
            let settings = TunedSettings::from(&parse(value).unwrap());
            let again = TunedSettings::from(&parse(serde_json::to_value(settings).unwrap()).unwrap());
            assert_eq!(settings, again);
        }
    }

    #[test]
    fn wrong_settings_say_what_would_be_right() {
        for (value, expected) in [
            (json!({ "gruop": 32 }), "unknown field `gruop`"),
            (json!({ "granularity": "tensor" }), "one scale per channel"),
            (json!({ "steps": 0 }), "at least one of each"),
            (json!({ "travel": -1.0 }), "a travel above 0"),
            (json!({ "judge": 1 }), "at least 2"),
            (json!({ "momentum": 1.0 }), "below 1"),
            (json!({ "fisher": 1.5 }), "from 0 to 1"),
            (json!({ "bits": 9 }), "bits"),
        ] {
            let message = parse(value.clone()).unwrap_err();
            assert!(message.contains(expected), "{value}: {message}");
        }
    }
}
