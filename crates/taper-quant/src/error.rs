//! Everything that can go wrong in quantizing, as one enum with fields.
//!
//! Wording: lower case, names in backticks, what failed, then what would be right. Core carries these as
//! [`taper_core::Error::Other`]; parts that contradict their encoding are core's own `BadParts`.

use crate::scheme::ScaleType;

/// The result of the slice-level functions of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What failed, and what would be right.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Bits outside 2..=8.
    #[error("`bits` is {bits}; integers of 2 to 8 bits are supported")]
    Bits {
        /// What was asked for.
        bits: u64,
    },

    /// A group of no elements.
    #[error("`group` is 0; a group has at least one element (32, 64 and 128 are usual)")]
    EmptyGroup,

    /// An NF4 block of no elements.
    #[error("`block` is 0; a block has at least one element (64 is usual)")]
    EmptyBlock,

    /// Options that contradict each other.
    #[error("`{option}` {conflict}; {expected}")]
    Conflict {
        /// The option.
        option: &'static str,
        /// What it contradicts.
        conflict: String,
        /// What would be right.
        expected: String,
    },

    /// A scale that its stored type cannot hold, or whose codes would decode beyond f32.
    #[error(
        "the scale {scale:e} of row {row} is too large for {scales} scales; store them as f32 (or bf16), or rescale the weight"
    )]
    ScaleOverflow {
        /// The row whose scale it is; 0 where one scale serves the whole matrix.
        row: usize,
        /// The scale that the values ask for.
        scale: f32,
        /// The type chosen for scales.
        scales: ScaleType,
    },

    /// A value that is NaN or infinite.
    #[error("{count} values are not finite, the first at index {first}; only finite values can be quantized")]
    NotFinite {
        /// How many.
        count: usize,
        /// The flat index of the first.
        first: usize,
    },

    /// A weight without elements.
    #[error("a weight of shape {shape:?} has no elements to encode")]
    Empty {
        /// Its shape.
        shape: Vec<usize>,
    },

    /// Static activations without the scale that they are rounded by.
    #[error(
        "a weight for static activations has no activation scale to store; set one with `with_activation_scale`, or use dynamic activations"
    )]
    ActivationScale,

    /// A slice of another length than the shape asks for.
    #[error("`{what}` has {found} elements, expected {expected}")]
    Length {
        /// The slice.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length that fits.
        expected: usize,
    },

    /// A matrix that the loss does not depend on, as far as gradients tell.
    #[error(
        "no gradient reached `{weight}`; its block must use differentiable operations, and read the weight as a matrix"
    )]
    NoGradient {
        /// The weight.
        weight: String,
    },

    /// A gradient with NaN or infinite values.
    #[error(
        "the gradient of `{weight}` is not finite at step {step}; look for extreme values in the calibration text or the weights"
    )]
    GradientNotFinite {
        /// The weight.
        weight: String,
        /// The step, counted from 0.
        step: usize,
    },

    /// An architecture that declares nothing a pass could work along.
    #[error(
        "the architecture declares no {what}; implement `Couplings::scalings` and `Couplings::rotations` for it"
    )]
    NothingDeclared {
        /// What was looked for.
        what: &'static str,
    },

    /// A coupling that does not fit the weights it names.
    #[error("coupling `{coupling}`, weight `{weight}`: {message}")]
    Declaration {
        /// The coupling.
        coupling: String,
        /// The weight.
        weight: String,
        /// What does not fit.
        message: String,
    },

    /// A Gram matrix that is not positive definite.
    #[error(
        "the gram matrix is not positive definite in spite of a damping of {damping}; calibrate on more tokens, or raise `damping`"
    )]
    NotPositive {
        /// The damping, as a share of the mean diagonal.
        damping: f64,
    },

    /// Formats, weights or a budget that a plan cannot be made of.
    #[error("{message}")]
    Menu {
        /// What is wrong, and what would be right.
        message: String,
    },

    /// A budget that no choice of formats keeps.
    #[error("a budget of {asked} {unit} cannot be kept; the least possible is {least} {unit}")]
    Budget {
        /// What was asked for.
        asked: f64,
        /// The least possible.
        least: f64,
        /// Of what.
        unit: &'static str,
    },

    /// Importance weights that are no weights.
    #[error("importance {value} of column {column}; importances are finite and not negative")]
    Importance {
        /// The column.
        column: usize,
        /// Its value.
        value: f32,
    },
}

impl From<Error> for taper_core::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}
