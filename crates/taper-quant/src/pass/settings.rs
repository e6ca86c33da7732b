//! How recipes spell [`RoundNearest`].
//!
//! ```toml
//! format = "int"            # or "nf4"
//! bits = 4                  # 2 to 8
//! group = 128               # or granularity = "channel" | "tensor"
//! symmetry = "symmetric"    # or "asymmetric"
//! scales = "f16"            # or "bf16", "f32"
//! fit = "search"            # or "minmax", "absmax", "hqq"
//! steps = 16                # candidates of the search, or refits of hqq
//! norm = 0.7                # of hqq
//! stored-as = "compressed-tensors"   # or "int-quantized", "bitsandbytes"
//! activations = "float"     # or inputs in eight bits: "dynamic", "static" (by calibration)
//! ```
//!
//! Every key is optional; a key that means nothing for the chosen format is an error, not ignored.

use serde::{Deserialize, Serialize};

use super::round_nearest::{FileFormat, Number, RoundNearest, Weighting};
use crate::{
    Error, Result,
    code::nf4::{BlockScales, Nf4Scheme},
    fit::{Fit, Hqq, ScaleSign, Search},
    scheme::{Activations, Bits, Granularity, ScaleType, Scheme, Symmetry},
};

/// Integers in groups of this many unless a recipe says otherwise: what most published 4-bit checkpoints use.
const GROUP: usize = 128;

/// NF4 blocks of this many unless a recipe says otherwise: bitsandbytes' own default.
const BLOCK: usize = 64;

/// The kind of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NumberFormat {
    /// Integers.
    #[default]
    Int,
    /// NF4.
    Nf4,
}

/// How many weights share a scale, without the size of groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sharing {
    /// The whole weight.
    Tensor,
    /// Each output channel.
    Channel,
    /// Groups.
    Group,
}

/// The names of fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FitName {
    /// [`Fit::AbsMax`].
    AbsMax,
    /// [`Fit::MinMax`].
    MinMax,
    /// [`Fit::Search`].
    #[default]
    Search,
    /// [`Fit::Hqq`].
    Hqq,
}

/// The options of [`RoundNearest`] as a recipe has them.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RoundNearestSettings {
    /// Integers or NF4.
    pub format: NumberFormat,
    /// Bits of an integer, 2 to 8; 4 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<u64>,
    /// Weights per group; without it and without `granularity`, channels at 8 bits and groups of 128 below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<usize>,
    /// How many weights share a scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granularity: Option<Sharing>,
    /// Elements per NF4 block; 64 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<usize>,
    /// Where zero lies among the codes of integers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symmetry: Option<Symmetry>,
    /// The stored type of the scales of integers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scales: Option<ScaleType>,
    /// Whether the scales of NF4 blocks are bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub double_quant: Option<bool>,
    /// How scales are found.
    pub fit: FitName,
    /// Candidates of the search, or refits of hqq.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u16>,
    /// The power of errors that hqq sums up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm: Option<f32>,
    /// Signs of a searched symmetric scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_sign: Option<ScaleSign>,
    /// How squared errors are weighted.
    pub weighting: Weighting,
    /// In whose words integers are stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored_as: Option<FileFormat>,
    /// With what inputs products of integers are computed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activations: Option<Activations>,
}

fn conflict(option: &'static str, conflict: &str, expected: &str) -> Error {
    Error::Conflict { option, conflict: conflict.to_owned(), expected: expected.to_owned() }
}

impl RoundNearestSettings {
    fn number(&self) -> Result<Number> {
        match self.format {
            NumberFormat::Int => self.int().map(Number::Int),
            NumberFormat::Nf4 => self.nf4().map(Number::Nf4),
        }
    }

    fn int(&self) -> Result<Scheme> {
        for (option, given) in
            [("block", self.block.is_some()), ("double-quant", self.double_quant.is_some())]
        {
            if given {
                return Err(conflict(option, "belongs to nf4", "set format = \"nf4\", or remove it"));
            }
        }
        let bits = Bits::new(self.bits.unwrap_or(4))?;
        let granularity = match (self.granularity, self.group) {
            (None | Some(Sharing::Group), Some(size)) => Granularity::group(size)?,
            (None, None) if bits == Bits::EIGHT => Granularity::Channel,
            (None | Some(Sharing::Group), None) => Granularity::group(GROUP)?,
            (Some(Sharing::Channel), None) => Granularity::Channel,
            (Some(Sharing::Tensor), None) => Granularity::Tensor,
            (Some(Sharing::Channel | Sharing::Tensor), Some(_)) => {
                return Err(conflict("group", "contradicts the granularity", "remove one of the two"));
            }
        };
        let bitsandbytes = self.stored_as == Some(FileFormat::BitsAndBytes);
        let usual = if bitsandbytes { ScaleType::F32 } else { ScaleType::F16 };
        Ok(Scheme {
            bits,
            symmetry: self.symmetry.unwrap_or_default(),
            granularity,
            scales: self.scales.unwrap_or(usual),
            activations: self.activations.unwrap_or_default(),
        })
    }

    fn nf4(&self) -> Result<Nf4Scheme> {
        let given = [
            ("bits", self.bits.is_some()),
            ("group", self.group.is_some()),
            ("granularity", self.granularity.is_some()),
            ("symmetry", self.symmetry.is_some()),
            ("scales", self.scales.is_some()),
            ("scale-sign", self.scale_sign.is_some()),
            ("activations", self.activations.is_some()),
        ];
        if let Some((option, _)) = given.into_iter().find(|(_, given)| *given) {
            return Err(conflict(
                option,
                "belongs to integers",
                "remove it, or set format = \"int\"; nf4 has `block`",
            ));
        }
        let scheme = Nf4Scheme::new(self.block.unwrap_or(BLOCK))?;
        Ok(if self.double_quant == Some(true) { scheme.double_quant() } else { scheme })
    }

    fn fit(&self) -> Result<Fit> {
        let (search, hqq) = (self.fit == FitName::Search, self.fit == FitName::Hqq);
        for (option, misplaced, whose, expected) in [
            ("steps", self.steps.is_some() && !search && !hqq, "belongs to the search and to hqq", "search"),
            ("scale-sign", self.scale_sign.is_some() && !search, "belongs to the search", "search"),
            ("norm", self.norm.is_some() && !hqq, "belongs to hqq", "hqq"),
        ] {
            if misplaced {
                return Err(conflict(option, whose, &format!("set fit = \"{expected}\", or remove it")));
            }
        }
        Ok(match self.fit {
            FitName::AbsMax => Fit::AbsMax,
            FitName::MinMax => Fit::MinMax,
            FitName::Search => Fit::Search(self.search()?),
            FitName::Hqq => Fit::Hqq(self.hqq()?),
        })
    }

    fn search(&self) -> Result<Search> {
        let mut search = Search { sign: self.scale_sign.unwrap_or_default(), ..Search::default() };
        if let Some(steps) = self.steps {
            if steps < 2 {
                return Err(conflict("steps", &format!("is {steps}"), "a search has at least 2 steps"));
            }
            search.steps = steps;
        }
        Ok(search)
    }

    fn hqq(&self) -> Result<Hqq> {
        let usual = Hqq::default();
        usual.with_steps(self.steps.unwrap_or(usual.steps)).with_norm(self.norm.unwrap_or(usual.norm))
    }
}

impl TryFrom<RoundNearestSettings> for RoundNearest {
    type Error = Error;

    fn try_from(settings: RoundNearestSettings) -> Result<Self> {
        let mut pass =
            Self::new(settings.number()?).with_fit(settings.fit()?).weighted_by(settings.weighting);
        if let Some(file) = settings.stored_as {
            pass = pass.stored_as(file);
        }
        // Scales that were asked for stay: the check then says why they do not fit.
        if let (Some(scales), Number::Int(_)) = (settings.scales, pass.number()) {
            pass = pass.with_scales(scales);
        }
        pass.check()?;
        Ok(pass)
    }
}

impl From<RoundNearest> for RoundNearestSettings {
    fn from(pass: RoundNearest) -> Self {
        let mut settings = Self { weighting: pass.weighting(), ..Self::default() };
        match pass.number() {
            Number::Int(scheme) => {
                settings.bits = Some(scheme.bits.into());
                (settings.granularity, settings.group) = match scheme.granularity {
                    Granularity::Tensor => (Some(Sharing::Tensor), None),
                    Granularity::Channel => (Some(Sharing::Channel), None),
                    Granularity::Group(size) => (Some(Sharing::Group), Some(size.get())),
                };
                settings.symmetry = Some(scheme.symmetry);
                settings.scales = Some(scheme.scales);
                settings.stored_as = Some(pass.file());
                settings.activations =
                    Some(scheme.activations).filter(|activations| *activations != Activations::Float);
            }
            Number::Nf4(scheme) => {
                settings.format = NumberFormat::Nf4;
                settings.block = Some(scheme.block.get());
                settings.double_quant = Some(scheme.scales == BlockScales::Double);
            }
        }
        match pass.fit() {
            Fit::AbsMax => settings.fit = FitName::AbsMax,
            Fit::MinMax => settings.fit = FitName::MinMax,
            Fit::Search(search) => {
                settings.steps = Some(search.steps);
                settings.scale_sign = matches!(pass.number(), Number::Int(_)).then_some(search.sign);
            }
            Fit::Hqq(hqq) => {
                settings.fit = FitName::Hqq;
                settings.steps = Some(hqq.steps);
                settings.norm = (hqq.norm != Hqq::default().norm).then_some(hqq.norm);
            }
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(value: Value) -> std::result::Result<RoundNearest, String> {
        serde_json::from_value(value).map_err(|e| e.to_string())
    }

    #[test]
    fn settings_and_passes_convert_both_ways() {
        for value in [
            json!({}),
            json!({ "bits": 8 }),
            json!({ "bits": 3, "group": 64, "symmetry": "asymmetric", "scales": "bf16", "fit": "minmax" }),
            json!({ "bits": 8, "granularity": "tensor", "stored-as": "int-quantized", "scale-sign": "positive" }),
            json!({ "bits": 8, "stored-as": "bitsandbytes", "fit": "absmax" }),
            json!({ "bits": 8, "stored-as": "int-quantized", "activations": "static" }),
            json!({ "bits": 2, "group": 64, "symmetry": "asymmetric", "fit": "hqq", "steps": 9, "norm": 0.5 }),
            json!({ "format": "nf4", "block": 32, "double-quant": true, "steps": 9, "weighting": "input-norms" }),
        ] {
            let pass = parse(value.clone()).unwrap();
            let again = parse(serde_json::to_value(pass).unwrap()).unwrap();
            assert_eq!(pass, again, "{value}");
        }
        assert_eq!(parse(json!({})).unwrap().to_string(), "round-nearest int4 g128");
        assert_eq!(parse(json!({ "bits": 8 })).unwrap().to_string(), "round-nearest int8 channel");
    }

    #[test]
    fn wrong_settings_say_what_would_be_right() {
        for (value, expected) in [
            (json!({ "group": 0 }), "`group` is 0"),
            (json!({ "bits": 9 }), "2 to 8 bits"),
            (json!({ "bits": 1 }), "2 to 8 bits"),
            (json!({ "format": "nf4", "block": 0 }), "`block` is 0"),
            (json!({ "format": "nf4", "bits": 4 }), "belongs to integers"),
            (json!({ "format": "nf4", "fit": "minmax" }), "no meaning for nf4"),
            (json!({ "format": "nf4", "fit": "hqq" }), "no meaning for nf4"),
            (json!({ "fit": "hqq", "norm": 1.5 }), "above 0 and at most 1"),
            (json!({ "fit": "hqq", "scale-sign": "either" }), "belongs to the search"),
            (json!({ "norm": 0.7 }), "belongs to hqq"),
            (json!({ "block": 64 }), "belongs to nf4"),
            (json!({ "fit": "absmax", "symmetry": "asymmetric" }), "symmetric by definition"),
            (json!({ "granularity": "channel", "group": 32 }), "contradicts the granularity"),
            (json!({ "stored-as": "bitsandbytes" }), "cannot hold int4 g128"),
            (json!({ "bits": 8, "stored-as": "bitsandbytes", "scales": "f16" }), "cannot hold int8 channel"),
            (
                json!({ "bits": 8, "stored-as": "bitsandbytes", "activations": "static" }),
                "cannot hold int8 channel",
            ),
            (json!({ "format": "nf4", "activations": "dynamic" }), "belongs to integers"),
            (json!({ "stored-as": "int-quantized" }), "one byte per code"),
            (json!({ "format": "nf4", "stored-as": "compressed-tensors" }), "stored as bitsandbytes"),
            (json!({ "fit": "minmax", "steps": 3 }), "belongs to the search"),
            (json!({ "steps": 1 }), "at least 2"),
            (json!({ "gruop": 32 }), "unknown field `gruop`"),
            (json!({ "fit": "best" }), "unknown variant `best`"),
        ] {
            let message = parse(value.clone()).unwrap_err();
            assert!(message.contains(expected), "{value}: {message}");
        }
    }
}
