//! Two bits that work: trellis codes of turned weights, with feedback through the Gram matrix.
//!
//! ```text
//! W ─ Q per block of inputs ─▶ streams down the rows, column after column, errors fed forward ─▶ PackedTrellis
//! ```
//!
//! The code is [`crate::code::trellis`], the feedback [`crate::code::trellis_feedback`], the weight [`PackedTrellis`]. After
//! QTIP (arXiv:2406.11235), but with few states, so that it encodes and decodes quickly without a GPU, and with streams down
//! the rows, so that every column can have a rate of its own.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use taper_core::{
    Context, Error as CoreError, Needs, Result, Rewrite, SharedWeight, Stage, WeightPass, weight::to_f32_vec,
};

use crate::{
    code::trellis::StateBits,
    equivalence::{hadamard::named_seed, proxy::gram_of},
    packed_trellis::{PackedTrellis, TrellisScheme},
};

/// Whether errors are fed forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FeedbackFrom {
    /// Through the Gram matrix of the inputs. Weights that calibration did not reach (embeddings, say) go without.
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
    /// Bits per weight of the codes on average, 1 to 4.
    bits: f64,
    /// Bits of the state: 8, 10 or 12.
    state_bits: StateBits,
    /// Inputs that are mixed with each other; 1 for none.
    block: usize,
    /// What is added to the diagonal of the Gram matrix, as a share of its mean.
    damping: f64,
    /// Whether errors are fed forward.
    feedback: FeedbackFrom,
}

impl Default for Trellis {
    /// [`TrellisScheme::default`], fed forward through the Gram matrix.
    fn default() -> Self {
        let TrellisScheme { state, bits, block, damping } = TrellisScheme::default();
        Self { bits, state_bits: state, block, damping, feedback: FeedbackFrom::default() }
    }
}

impl Trellis {
    /// The recipe key.
    pub const KEY: &'static str = "trellis";

    /// So many bits per weight on average; the rest as in [`TrellisScheme::default`].
    ///
    /// # Errors
    /// Bits outside 1 to 4.
    pub fn new(bits: f64) -> crate::Result<Self> {
        Self { bits, ..Self::default() }.checked()
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

    /// The numbers of the encoding.
    #[must_use]
    pub fn scheme(&self) -> TrellisScheme {
        TrellisScheme { state: self.state_bits, bits: self.bits, block: self.block, damping: self.damping }
    }

    fn checked(self) -> crate::Result<Self> {
        self.scheme().check().map(|()| self)
    }
}

impl std::fmt::Display for Trellis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} bits", Self::KEY, self.bits)
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
            FeedbackFrom::Gram => Needs::Gram,
            FeedbackFrom::Nothing => Needs::Nothing,
        }
    }

    fn settings(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn rewrite(&self, name: &str, weight: &SharedWeight, context: &Context<'_>) -> Result<Rewrite> {
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
        let gram = match self.feedback {
            FeedbackFrom::Gram => context.stats(name).and_then(gram_of),
            FeedbackFrom::Nothing => None,
        };
        let values = to_f32_vec(weight.as_ref())?;
        let seed = named_seed(context.seed(), name);
        let packed = PackedTrellis::encode(&values, [rows, cols], &self.scheme(), gram.as_deref(), seed);
        packed.map(Rewrite::done).map_err(CoreError::from)
    }
}
