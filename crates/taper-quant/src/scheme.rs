//! What an integer encoding is: how many bits, around which zero, how many scales, stored how.
//!
//! ```text
//! x̂ = scale · (q − zero)      q in −2^(b−1) ..= 2^(b−1) − 1
//! ```
//!
//! A [`Scheme`] says nothing about how scales are found; that is [`crate::fit`]. W is `[out, in]` row-major and groups run
//! along `in`; a convolution weight is flattened to `[out, rest]`. The last group of a row may be short.

use serde::{Deserialize, Serialize};
use std::{fmt, num::NonZeroUsize};

use crate::{Error, Result};

/// Bits per code, 2 to 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Bits(u8);

impl Bits {
    /// Two bits.
    pub const TWO: Self = Self(2);
    /// Three bits.
    pub const THREE: Self = Self(3);
    /// Four bits.
    pub const FOUR: Self = Self(4);
    /// Eight bits.
    pub const EIGHT: Self = Self(8);

    /// Checks that the number of bits is 2 to 8.
    ///
    /// # Errors
    /// [`Error::Bits`] otherwise.
    pub fn new(bits: u64) -> Result<Self> {
        match u8::try_from(bits) {
            Ok(b @ 2..=8) => Ok(Self(b)),
            _ => Err(Error::Bits { bits }),
        }
    }

    /// The number of bits.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0 as usize
    }

    /// The lowest code, −2^(b−1).
    #[must_use]
    pub const fn lowest(self) -> i32 {
        -(1 << (self.0 - 1))
    }

    /// The highest code, 2^(b−1) − 1.
    #[must_use]
    pub const fn highest(self) -> i32 {
        (1 << (self.0 - 1)) - 1
    }

    /// Steps from the lowest code to the highest, 2^b − 1.
    #[must_use]
    pub const fn steps(self) -> i32 {
        (1 << self.0) - 1
    }
}

impl TryFrom<u64> for Bits {
    type Error = Error;

    fn try_from(bits: u64) -> Result<Self> {
        Self::new(bits)
    }
}

impl From<Bits> for u64 {
    fn from(bits: Bits) -> Self {
        u64::from(bits.0)
    }
}

/// Where zero lies among the codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Symmetry {
    /// Code 0 is zero.
    #[default]
    Symmetric,
    /// Every scale has an integer zero point beside it.
    Asymmetric,
}

/// How many weights share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Granularity {
    /// All of the matrix.
    Tensor,
    /// Each row: one scale per output channel.
    Channel,
    /// Runs of this many along a row; the last of a row may be short.
    Group(NonZeroUsize),
}

impl Granularity {
    /// Groups of `size`.
    ///
    /// # Errors
    /// [`Error::EmptyGroup`] where `size` is 0.
    pub fn group(size: usize) -> Result<Self> {
        NonZeroUsize::new(size).map(Self::Group).ok_or(Error::EmptyGroup)
    }

    /// Columns that share a scale within one row of `cols`; at least 1.
    #[must_use]
    pub fn span(self, cols: usize) -> usize {
        match self {
            Self::Group(size) => size.get(),
            Self::Tensor | Self::Channel => cols.max(1),
        }
    }

    /// The shape of the scales of a `[rows, cols]` matrix: `[1]`, `[rows, 1]` or `[rows, groups]`.
    #[must_use]
    pub fn scale_shape(self, rows: usize, cols: usize) -> Vec<usize> {
        match self {
            Self::Tensor => vec![1],
            Self::Channel => vec![rows, 1],
            Self::Group(size) => vec![rows, cols.div_ceil(size.get())],
        }
    }

    /// True where every group of a row of `cols` is full.
    #[must_use]
    pub fn divides(self, cols: usize) -> bool {
        match self {
            Self::Group(size) => cols.is_multiple_of(size.get()),
            Self::Tensor | Self::Channel => true,
        }
    }
}

/// The type that scales are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScaleType {
    /// Half precision: 11 significant bits, up to 65504. The default: a scale's precision matters more than its range.
    #[default]
    F16,
    /// 8 significant bits, the range of f32.
    BF16,
    /// Single precision.
    F32,
}

impl ScaleType {
    /// Bytes per scale.
    #[must_use]
    pub const fn nbytes(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 2,
            Self::F32 => 4,
        }
    }

    /// The nearest value of this type (ties to even); infinite where the scale is too large.
    #[must_use]
    pub fn round(self, scale: f32) -> f32 {
        match self {
            Self::F16 => half::f16::from_f32(scale).to_f32(),
            Self::BF16 => half::bf16::from_f32(scale).to_f32(),
            Self::F32 => scale,
        }
    }

    /// The largest value of this type that is not above a scale, which is not negative; infinite where [`Self::round`] is.
    #[must_use]
    pub fn round_down(self, scale: f32) -> f32 {
        let nearest = self.round(scale);
        if nearest <= scale || nearest.is_infinite() {
            return nearest;
        }
        match self {
            Self::F16 => half::f16::from_bits(half::f16::from_f32(scale).to_bits() - 1).to_f32(),
            Self::BF16 => half::bf16::from_bits(half::bf16::from_f32(scale).to_bits() - 1).to_f32(),
            Self::F32 => scale,
        }
    }

    /// The smallest positive value.
    #[must_use]
    pub fn smallest(self) -> f32 {
        match self {
            Self::F16 => half::f16::MIN_POSITIVE_SUBNORMAL.to_f32(),
            Self::BF16 => half::bf16::MIN_POSITIVE_SUBNORMAL.to_f32(),
            Self::F32 => f32::from_bits(1),
        }
    }
}

impl fmt::Display for ScaleType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F32 => "f32",
        })
    }
}

/// With what inputs products of a weight are computed, as far as its file says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activations {
    /// As they are: only weights are quantized.
    #[default]
    Float,
    /// Rounded to eight bits, by a scale of each token (W8A8).
    Dynamic,
    /// Rounded to eight bits, by one scale that calibration found and the file states.
    Static,
}

/// An integer encoding.
///
/// ```
/// # use taper_quant::scheme::{Scheme, ScaleType};
/// let scheme = Scheme::int4(32)?.asymmetric().with_scales(ScaleType::BF16);
/// assert_eq!(scheme.to_string(), "int4 g32 asym");
/// # Ok::<(), taper_quant::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Scheme {
    /// Bits per code.
    pub bits: Bits,
    /// Where zero lies.
    pub symmetry: Symmetry,
    /// How many weights share a scale.
    pub granularity: Granularity,
    /// The type of stored scales.
    pub scales: ScaleType,
    /// With what inputs products are computed.
    #[serde(default)]
    pub activations: Activations,
}

impl Scheme {
    /// Symmetric integers with f16 scales.
    #[must_use]
    pub fn new(bits: Bits, granularity: Granularity) -> Self {
        let (symmetry, activations) = (Symmetry::Symmetric, Activations::Float);
        Self { bits, symmetry, granularity, scales: ScaleType::F16, activations }
    }

    /// Eight bits, one scale per output channel.
    #[must_use]
    pub fn int8() -> Self {
        Self::new(Bits::EIGHT, Granularity::Channel)
    }

    /// Four bits in groups of `group`.
    ///
    /// # Errors
    /// [`Error::EmptyGroup`] where `group` is 0.
    pub fn int4(group: usize) -> Result<Self> {
        Ok(Self::new(Bits::FOUR, Granularity::group(group)?))
    }

    /// With a zero point beside every scale.
    #[must_use]
    pub fn asymmetric(mut self) -> Self {
        self.symmetry = Symmetry::Asymmetric;
        self
    }

    /// With scales stored in this type.
    #[must_use]
    pub fn with_scales(mut self, scales: ScaleType) -> Self {
        self.scales = scales;
        self
    }

    /// With scales shared like this.
    #[must_use]
    pub fn with_granularity(mut self, granularity: Granularity) -> Self {
        self.granularity = granularity;
        self
    }

    /// With products of inputs that are rounded like this.
    #[must_use]
    pub fn with_activations(mut self, activations: Activations) -> Self {
        self.activations = activations;
        self
    }

    /// True where code 0 is zero.
    #[must_use]
    pub fn is_symmetric(&self) -> bool {
        self.symmetry == Symmetry::Symmetric
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "int{}", self.bits.get())?;
        match self.granularity {
            Granularity::Tensor => f.write_str(" tensor")?,
            Granularity::Channel => f.write_str(" channel")?,
            Granularity::Group(size) => write!(f, " g{size}")?,
        }
        if !self.is_symmetric() {
            f.write_str(" asym")?;
        }
        match self.activations {
            Activations::Float => Ok(()),
            Activations::Dynamic => f.write_str(", dynamic int8 inputs"),
            Activations::Static => f.write_str(", static int8 inputs"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_outside_two_to_eight_are_refused() {
        for bits in [0, 1, 9, 256, u64::MAX] {
            assert_eq!(Bits::new(bits), Err(Error::Bits { bits }));
        }
        assert_eq!((Bits::FOUR.lowest(), Bits::FOUR.highest(), Bits::FOUR.steps()), (-8, 7, 15));
        assert_eq!((Bits::EIGHT.lowest(), Bits::EIGHT.highest(), Bits::EIGHT.steps()), (-128, 127, 255));
    }

    #[test]
    fn a_short_last_group_has_its_own_scale() -> Result<()> {
        let groups = Granularity::group(32)?;
        assert_eq!(groups.scale_shape(3, 172), [3, 6]);
        assert!(!groups.divides(172) && groups.divides(64));
        assert_eq!(Granularity::group(0), Err(Error::EmptyGroup));
        Ok(())
    }
}
