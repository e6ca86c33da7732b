//! Each weight to the nearest code of a grid fitted to it: no data needed, streams, the baseline of all quantization.
//!
//! ```text
//! codes = argmin over the grid of |w − ŵ|       the grid by `Fit`: absmax, minmax, or the search that is the default
//! ```
//!
//! With [`Weighting::InputNorms`] the search minimises Σ E\[x_j²\] (w_j − ŵ_j)², the expected error of the layer's output
//! if its inputs are uncorrelated; the statistics come from calibration.
//!
//! Where compressed-tensors (or bitsandbytes, if asked for) can hold the result it is stored so, and otherwise as
//! Taper's own `taper-int`. Neighbours: [`super::settings`] is the recipe form; [`crate::layout`] decides what fits where.

use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use taper_core::{
    Context, InputStats, Needs, Outline, Result, Rewrite, SharedWeight, Stage, WeightPass,
    weight::checked_elements,
};

use super::settings::RoundNearestSettings;
use crate::{
    code::nf4::{self, Nf4Scheme},
    codec::{
        bitsandbytes_nf4::{self, ValueType},
        integer,
    },
    fit::Fit,
    kernel::ActivationScale,
    layout::IntLayout,
    packed_int::{self, PackedInt, columns},
    packed_nf4::PackedNf4,
    scheme::{Activations, Bits, Granularity, ScaleType, Scheme},
    values,
};

/// What numbers weights become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// Integers.
    Int(Scheme),
    /// NF4.
    Nf4(Nf4Scheme),
}

/// In whose words integer weights are stored; NF4 is always bitsandbytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileFormat {
    /// compressed-tensors' `pack-quantized`, which vLLM and transformers read as weight-only quantization.
    #[default]
    CompressedTensors,
    /// compressed-tensors' `int-quantized`: 8 bits, one byte each.
    IntQuantized,
    /// bitsandbytes' LLM.int8: 8 bits, symmetric, f32 scale per row.
    #[serde(rename = "bitsandbytes")]
    BitsAndBytes,
}

/// How squared errors are weighted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weighting {
    /// All weights alike; no data needed.
    #[default]
    Equal,
    /// Each column by E\[x²\] of its input. Weights that calibration did not reach (embeddings, say) are weighted alike.
    InputNorms,
}

/// Rounds each weight to the nearest code.
///
/// ```
/// # use taper_quant::pass::RoundNearest;
/// # use taper_quant::scheme::ScaleType;
/// let pass = RoundNearest::int4(32)?.asymmetric().with_scales(ScaleType::BF16);
/// assert_eq!(pass.to_string(), "round-nearest int4 g32 asym");
/// # Ok::<(), taper_quant::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(into = "RoundNearestSettings")]
pub struct RoundNearest {
    number: Number,
    fit: Fit,
    file: FileFormat,
    weighting: Weighting,
    /// An option that was set and means nothing for these numbers; [`RoundNearest::check`] refuses it.
    misplaced: Option<&'static str>,
}

impl RoundNearest {
    /// These numbers, by [`Fit::default`].
    #[must_use]
    pub fn new(number: Number) -> Self {
        let (file, weighting) = (FileFormat::default(), Weighting::default());
        Self { number, fit: Fit::default(), file, weighting, misplaced: None }
    }

    /// Eight bits, one scale per output channel.
    #[must_use]
    pub fn int8() -> Self {
        Self::new(Number::Int(Scheme::int8()))
    }

    /// Four bits in groups.
    ///
    /// # Errors
    /// [`crate::Error::EmptyGroup`] where `group` is 0.
    pub fn int4(group: usize) -> crate::Result<Self> {
        Ok(Self::new(Number::Int(Scheme::int4(group)?)))
    }

    /// Integers of 2 to 8 bits.
    ///
    /// # Errors
    /// [`crate::Error::Bits`] for any other number of bits.
    pub fn int(bits: u64, granularity: Granularity) -> crate::Result<Self> {
        Ok(Self::new(Number::Int(Scheme::new(Bits::new(bits)?, granularity))))
    }

    /// NF4 in blocks.
    ///
    /// # Errors
    /// [`crate::Error::EmptyBlock`] where `block` is 0.
    pub fn nf4(block: usize) -> crate::Result<Self> {
        Ok(Self::new(Number::Nf4(Nf4Scheme::new(block)?)))
    }

    /// With scales found this way.
    #[must_use]
    pub fn with_fit(mut self, fit: Fit) -> Self {
        self.fit = fit;
        self
    }

    /// With scales stored in this type; for integers.
    #[must_use]
    pub fn with_scales(mut self, scales: ScaleType) -> Self {
        match &mut self.number {
            Number::Int(scheme) => scheme.scales = scales,
            Number::Nf4(_) => self.misplaced = Some("scales"),
        }
        self
    }

    /// With a zero point beside every scale; for integers.
    #[must_use]
    pub fn asymmetric(mut self) -> Self {
        match &mut self.number {
            Number::Int(scheme) => *scheme = scheme.asymmetric(),
            Number::Nf4(_) => self.misplaced = Some("symmetry"),
        }
        self
    }

    /// With the scales of blocks quantized to bytes; for NF4.
    #[must_use]
    pub fn double_quant(mut self) -> Self {
        match &mut self.number {
            Number::Int(_) => self.misplaced = Some("double-quant"),
            Number::Nf4(scheme) => *scheme = scheme.double_quant(),
        }
        self
    }

    /// Stored in these words; for integers, because NF4 is always bitsandbytes. bitsandbytes' integers have f32 scales.
    ///
    /// Single weights that the words cannot say (short last groups, convolutions) become `taper-int`.
    #[must_use]
    pub fn stored_as(mut self, file: FileFormat) -> Self {
        match &mut self.number {
            Number::Int(scheme) if file == FileFormat::BitsAndBytes => scheme.scales = ScaleType::F32,
            Number::Nf4(_) if file != FileFormat::BitsAndBytes => self.misplaced = Some("stored-as"),
            Number::Int(_) | Number::Nf4(_) => {}
        }
        self.file = file;
        self
    }

    /// With products of inputs that are rounded like this; for integers. Static scales come from calibration.
    #[must_use]
    pub fn with_activations(mut self, activations: Activations) -> Self {
        match &mut self.number {
            Number::Int(scheme) => scheme.activations = activations,
            Number::Nf4(_) => self.misplaced = Some("activations"),
        }
        self
    }

    /// With what inputs products are computed.
    #[must_use]
    pub fn activations(&self) -> Activations {
        match self.number {
            Number::Int(scheme) => scheme.activations,
            Number::Nf4(_) => Activations::Float,
        }
    }

    /// With squared errors weighted this way.
    #[must_use]
    pub fn weighted_by(mut self, weighting: Weighting) -> Self {
        self.weighting = weighting;
        self
    }

    /// What numbers weights become.
    #[must_use]
    pub fn number(&self) -> Number {
        self.number
    }

    /// How scales are found.
    #[must_use]
    pub fn fit(&self) -> Fit {
        self.fit
    }

    /// In whose words weights are stored.
    #[must_use]
    pub fn file(&self) -> FileFormat {
        self.file
    }

    /// How squared errors are weighted.
    #[must_use]
    pub fn weighting(&self) -> Weighting {
        self.weighting
    }

    /// Checks that the options go together; every rewrite does so first.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`] where an option means nothing for these numbers, a fit cannot serve them, or no weight
    /// at all could be stored in the words asked for.
    pub fn check(&self) -> crate::Result<()> {
        let conflict = |option, conflict: String, expected: &str| {
            Err(crate::Error::Conflict { option, conflict, expected: expected.to_owned() })
        };
        if let Some(option) = self.misplaced {
            return match self.number {
                Number::Int(_) => conflict(option, "belongs to nf4".into(), "remove it, or encode to nf4"),
                Number::Nf4(_) => conflict(
                    option,
                    "belongs to integers".into(),
                    "remove it, or encode to integers; nf4 has `block` and is stored as bitsandbytes",
                ),
            };
        }
        let Number::Int(scheme) = self.number else { return nf4::check_fit(&self.fit) };
        match self.file {
            FileFormat::BitsAndBytes if scheme != Scheme::int8().with_scales(ScaleType::F32) => conflict(
                "stored-as",
                format!("is bitsandbytes, which cannot hold {}", packed_int::format(&scheme)),
                "use bits = 8, granularity = \"channel\", symmetric codes and f32 scales, or another format",
            ),
            FileFormat::IntQuantized if scheme.bits != Bits::EIGHT => {
                conflict("stored-as", "is int-quantized, one byte per code".into(), "use bits = 8")
            }
            _ => self.fit.check(scheme.symmetry),
        }
    }

    /// Where the weight goes: the words asked for, or else Taper's own.
    pub(crate) fn layout(&self, name: &str, shape: &[usize], scheme: &Scheme) -> IntLayout {
        let wanted = match self.file {
            FileFormat::CompressedTensors => IntLayout::PackQuantized,
            FileFormat::IntQuantized => IntLayout::IntQuantized,
            FileFormat::BitsAndBytes => IntLayout::BitsAndBytes,
        };
        if wanted.holds(name, shape, scheme) { wanted } else { IntLayout::Taper }
    }
}

impl<'de> Deserialize<'de> for RoundNearest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        RoundNearestSettings::deserialize(deserializer)?.try_into().map_err(serde::de::Error::custom)
    }
}

/// Why a weight of this encoding and shape stays, where it does.
pub(super) fn stays(encoding: &taper_core::Encoding, shape: &[usize]) -> Option<String> {
    if !encoding.is_dense() {
        Some(format!("is encoded already, as {encoding}"))
    } else if value_type(&encoding.format).is_none() {
        Some(format!("holds {encoding}, not f32, f16 or bf16"))
    } else if shape.len() < 2 {
        Some(format!("has shape {shape:?}; only matrices and convolutions are encoded"))
    } else if checked_elements(shape) == Some(0) {
        Some("has no elements".to_owned())
    } else {
        None
    }
}

/// The scale of inputs: where it is static, the largest input that calibration saw is the largest byte. Or why there is none.
pub(super) fn activation_scale(
    activations: Activations,
    stats: Option<&InputStats>,
) -> std::result::Result<ActivationScale, String> {
    if activations != Activations::Static {
        return Ok(ActivationScale::Dynamic);
    }
    let stats = stats.ok_or("calibration saw no input of it, and static activations need a range")?;
    let largest = stats.max_abs().into_iter().fold(0f32, f32::max);
    // Inputs that were always 0 may have any scale.
    Ok(ActivationScale::Static(if largest > 0.0 { largest / 127.0 } else { 1.0 }))
}

/// Core's own word for values that are not finite, which names the weight.
pub(super) fn named(weight: &str, error: crate::Error) -> taper_core::Error {
    match error {
        crate::Error::NotFinite { count, first } => {
            taper_core::Error::NotFinite { weight: weight.to_owned(), count, first }
        }
        other => other.into(),
    }
}

pub(super) fn value_type(format: &str) -> Option<ValueType> {
    match format {
        "f32" => Some(ValueType::F32),
        "f16" => Some(ValueType::F16),
        "bf16" => Some(ValueType::BF16),
        _ => None,
    }
}

impl WeightPass for RoundNearest {
    fn name(&self) -> &str {
        "round-nearest"
    }

    fn stage(&self) -> Stage {
        Stage::Encode
    }

    fn needs(&self) -> Needs {
        match (self.weighting, self.activations()) {
            (Weighting::Equal, Activations::Float | Activations::Dynamic) => Needs::Nothing,
            (Weighting::InputNorms, _) | (_, Activations::Static) => Needs::InputNorms,
        }
    }

    fn settings(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn rewrite(&self, name: &str, weight: &SharedWeight, context: &Context<'_>) -> Result<Rewrite> {
        self.check()?;
        let (encoding, shape) = (weight.encoding(), weight.shape());
        if let Some(why) = stays(&encoding, shape) {
            return Ok(Rewrite::left(why));
        }
        let inputs = match activation_scale(self.activations(), context.stats(name)) {
            Ok(inputs) => inputs,
            Err(why) => return Ok(Rewrite::left(why)),
        };
        let norms = match self.weighting {
            Weighting::InputNorms => context.stats(name).map(taper_core::stats::InputStats::mean_squares),
            Weighting::Equal => None,
        };
        // A convolution's columns are several per input; its statistics say nothing of single ones.
        let norms = norms.filter(|n| n.len() == columns(shape));
        let packed = values::with_tensor(&weight.dense()?, |values| match self.number {
            Number::Int(scheme) => {
                let layout = self.layout(name, shape, &scheme);
                PackedInt::encode_values(values, shape, &scheme, &self.fit, norms.as_deref(), layout)
                    .map(|weight| Rewrite::done(weight.with_activation_scale(inputs)))
            }
            Number::Nf4(scheme) => {
                let decoded = value_type(&encoding.format).unwrap_or_default();
                PackedNf4::encode_values(values, shape, scheme, &self.fit, norms.as_deref(), decoded)
                    .map(Rewrite::done)
            }
        })?;
        packed.map_err(|e| named(name, e))
    }

    fn outline(&self, name: &str, before: &Outline) -> Option<Outline> {
        if stays(&before.encoding, &before.shape).is_some() {
            return Some(before.clone());
        }
        let shape = before.shape.clone();
        let (encoding, attributes, arrays) = match self.number {
            Number::Int(scheme) => {
                let layout = self.layout(name, &shape, &scheme);
                let arrays = layout.arrays(shape[0], columns(&shape), &scheme, false)?;
                let encoding = taper_core::Encoding::new(layout.codec(), packed_int::format(&scheme));
                (encoding, integer::attributes(&scheme), arrays)
            }
            Number::Nf4(scheme) => {
                let decoded = value_type(&before.encoding.format).unwrap_or_default();
                let arrays: std::collections::BTreeMap<String, (Dtype, Vec<usize>)> =
                    bitsandbytes_nf4::arrays(&shape, scheme, nf4::NESTED_BLOCK, decoded);
                let encoding = taper_core::Encoding::new(bitsandbytes_nf4::ID, scheme.to_string());
                (encoding, bitsandbytes_nf4::attributes(scheme), arrays)
            }
        };
        Some(Outline { encoding, shape, attributes, arrays })
    }
}

impl std::fmt::Display for RoundNearest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.number {
            Number::Int(scheme) => write!(f, "round-nearest {scheme}"),
            Number::Nf4(scheme) => write!(f, "round-nearest {scheme}"),
        }
    }
}
