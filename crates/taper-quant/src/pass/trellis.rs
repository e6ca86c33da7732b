//! Two bits that work: trellis codes of turned weights, with feedback through the Gram matrix.
//!
//! ```text
//! W ─ Q per block of inputs ─▶ streams down the rows, column after column, errors fed forward ─▶ PackedTrellis
//! ```
//!
//! The code is [`crate::code::trellis`], the feedback [`crate::code::trellis_feedback`], the weight [`PackedTrellis`]. After
//! QTIP (arXiv:2406.11235), but with few states, so that it encodes and decodes quickly without a GPU, and with streams down
//! the rows, so that every column can have a rate of its own.
//!
//! As in [`super::gptq`], correlations are shrunk as far as the two halves of the calibration contradict each other, and with
//! [`Trellis::asymmetric_calibration`] a layer makes up for what the layers before it became ([`super::asymmetric`]).

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::borrow::Cow;
use taper_core::{
    Context, Error as CoreError, Gram, InputStats, Needs, Result, Rewrite, SharedWeight, Stage, WeightPass,
    linalg::{Factor, Shrinkage},
    report::{Measure, Unit},
    weight::to_f32_vec,
};

use super::{Asymmetry, asymmetric, shrinkage};
use crate::{
    Error,
    code::trellis::StateBits,
    equivalence::{hadamard::named_seed, proxy::gram_of},
    packed_trellis::{Counted, PackedTrellis, TrellisScheme},
};

/// Whether errors are fed forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FeedbackFrom {
    /// Through the Gram matrix of the inputs. Weights that calibration did not reach (embeddings, say) are left as they are.
    #[default]
    Gram,
    /// Not at all; no data needed.
    Nothing,
}

/// Stores matrices as trellis codes. Recipe key `trellis`.
///
/// ```
/// # use taper_quant::Trellis;
/// let pass = Trellis::new(2.0)?.with_block(128)?;
/// assert_eq!(pass.scheme().bits, 2.0);
/// # Ok::<(), taper_quant::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Trellis {
    /// Bits per weight on average.
    bits: f64,
    /// What these bits are about: the codes, or everything that is stored.
    counted: Counted,
    /// Bits of the state: 8, 10 or 12.
    state_bits: StateBits,
    /// Inputs that are mixed with each other; 1 for none.
    block: usize,
    /// What is added to the diagonal of the Gram matrix, as a share of its mean.
    damping: f64,
    /// Whether errors are fed forward.
    feedback: FeedbackFrom,
    /// How far correlations are shrunk.
    #[serde(with = "shrinkage")]
    shrinkage: Shrinkage,
    /// How much of what the layers before changed is made up for.
    #[serde(skip_serializing_if = "Asymmetry::is_off")]
    asymmetric_calibration: Asymmetry,
}

impl Default for Trellis {
    /// [`TrellisScheme::default`], fed forward through the Gram matrix.
    fn default() -> Self {
        let TrellisScheme { state, bits, counted, block, damping } = TrellisScheme::default();
        let (feedback, shrinkage) = (FeedbackFrom::default(), Shrinkage::default());
        Self {
            bits,
            counted,
            state_bits: state,
            block,
            damping,
            feedback,
            shrinkage,
            asymmetric_calibration: Asymmetry::Off,
        }
    }
}

impl Trellis {
    /// The recipe key.
    pub const KEY: &'static str = "trellis";

    /// So many bits per weight on average; the rest as in [`TrellisScheme::default`], with 4,096 states where its 1,024 have fewer
    /// bits.
    ///
    /// # Errors
    /// Bits outside 1 to 6.
    pub fn new(bits: f64) -> crate::Result<Self> {
        let few = bits <= f64::from(StateBits::default().most_rate());
        let state_bits = if few { StateBits::default() } else { StateBits::Twelve };
        Self { bits, state_bits, ..Self::default() }.checked()
    }

    /// With states of so many bits.
    #[must_use]
    pub fn with_state_bits(mut self, state_bits: StateBits) -> Self {
        self.state_bits = state_bits;
        self
    }

    /// With blocks of so many inputs mixed; 1 for none.
    ///
    /// # Errors
    /// A block that is no power of two.
    pub fn with_block(self, block: usize) -> crate::Result<Self> {
        Self { block, ..self }.checked()
    }

    /// With the Gram matrix damped by this share of its mean diagonal.
    ///
    /// # Errors
    /// A damping that is not positive.
    pub fn with_damping(self, damping: f64) -> crate::Result<Self> {
        Self { damping, ..self }.checked()
    }

    /// With errors fed forward or not.
    #[must_use]
    pub fn fed_from(mut self, feedback: FeedbackFrom) -> Self {
        self.feedback = feedback;
        self
    }

    /// With bits that are about the codes or about everything that is stored.
    #[must_use]
    pub fn counting(mut self, counted: Counted) -> Self {
        self.counted = counted;
        self
    }

    /// With correlations shrunk this far.
    #[must_use]
    pub fn shrunk(mut self, shrinkage: Shrinkage) -> Self {
        self.shrinkage = shrinkage;
        self
    }

    /// With what the layers before changed made up for, or not ([`super::asymmetric`]). It needs sequential calibration.
    #[must_use]
    pub fn asymmetric_calibration(mut self, asymmetry: Asymmetry) -> Self {
        self.asymmetric_calibration = asymmetry;
        self
    }

    /// The numbers of the encoding.
    #[must_use]
    pub fn scheme(&self) -> TrellisScheme {
        let Self { state_bits: state, bits, counted, block, damping, .. } = *self;
        TrellisScheme { state, bits, counted, block, damping }
    }

    fn checked(self) -> crate::Result<Self> {
        self.scheme().check()?;
        self.asymmetric_calibration.check()?;
        Ok(self)
    }

    /// What calibration makes of a weight: correlations shrunk, and the weight moved to where it makes up for the layers before,
    /// where that is asked for.
    fn fed<'v>(
        &self,
        name: &str,
        values: &'v [f32],
        seen: &InputStats,
        gram: &Gram,
        context: &Context<'_>,
    ) -> crate::Result<(Cow<'v, [f32]>, Vec<f64>)> {
        let d = gram.inputs();
        let loudness: Vec<f64> = (0..d).map(|i| gram.get(i, i)).collect();
        let mut order: Vec<usize> = (0..d).collect();
        order.sort_by(|&a, &b| loudness[b].total_cmp(&loudness[a]));
        let factor = Factor::new(gram, &order, self.shrinkage).ok_or_else(|| Error::Conflict {
            option: "gram",
            conflict: "holds numbers that are not finite, or none that are positive".into(),
            expected: "calibrate again; no shrinkage can make up for that".into(),
        })?;
        context.measured(name, Measure::new("damping", factor.damped.factor, Unit::Share));
        let values = match self.asymmetric_calibration {
            Asymmetry::Off => Cow::Borrowed(values),
            Asymmetry::Share(share) => {
                let sums = (gram, asymmetric::cross(seen.cross.as_deref(), d)?);
                Cow::Owned(asymmetric::target(values, sums, share, &order, &factor.ldl))
            }
        };
        Ok((values, shrunk(gram_of(seen).unwrap_or_default(), d, factor.damped.factor)))
    }
}

/// (1 − α) G + α diag G of a full matrix `[d, d]`.
fn shrunk(mut gram: Vec<f64>, d: usize, alpha: f64) -> Vec<f64> {
    for (i, row) in gram.chunks_exact_mut(d.max(1)).enumerate() {
        let loudness = row[i];
        row.iter_mut().for_each(|value| *value *= 1.0 - alpha);
        row[i] = loudness;
    }
    gram
}

impl std::fmt::Display for Trellis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = if self.counted == Counted::Everything { " in all" } else { "" };
        write!(f, "{} {} bits{all}", Self::KEY, self.bits)
    }
}

impl WeightPass for Trellis {
    fn name(&self) -> &str {
        Self::KEY
    }

    fn stage(&self) -> Stage {
        Stage::Encode
    }

    fn needs(&self) -> Needs {
        match self.feedback {
            FeedbackFrom::Gram if self.asymmetric_calibration.is_off() => Needs::Gram,
            FeedbackFrom::Gram => Needs::CrossGram,
            FeedbackFrom::Nothing => Needs::Nothing,
        }
    }

    fn settings(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn rewrite(&self, name: &str, weight: &SharedWeight, context: &Context<'_>) -> Result<Rewrite> {
        self.checked()?;
        let encoding = weight.encoding();
        if !encoding.is_dense() {
            return Ok(Rewrite::left(format!("is encoded already, as {encoding}")));
        }
        let &[rows, cols] = weight.shape() else {
            return Ok(Rewrite::left(format!(
                "has shape {:?}; only matrices become trellis codes",
                weight.shape()
            )));
        };
        if rows * cols == 0 {
            return Ok(Rewrite::left("has no elements"));
        }
        let values = to_f32_vec(weight.as_ref())?;
        let (values, gram) = match self.feedback {
            FeedbackFrom::Nothing => (Cow::Borrowed(&values[..]), None),
            FeedbackFrom::Gram => {
                let Some((seen, gram)) =
                    context.stats(name).and_then(|seen| Some((seen, seen.gram.as_ref()?)))
                else {
                    return Ok(Rewrite::left(
                        "calibration saw no input of it; `feedback = \"nothing\"` goes without",
                    ));
                };
                let (values, gram) = self.fed(name, &values, seen, gram, context)?;
                (values, Some(gram))
            }
        };
        let seed = named_seed(context.seed(), name);
        let packed = PackedTrellis::encode(&values, [rows, cols], &self.scheme(), gram, seed);
        packed.map(Rewrite::done).map_err(CoreError::from)
    }
}
