//! Numbers side by side: one f32, or a vector of them, with the few operations that encoders need.
//!
//! ```text
//! one algorithm, written over `Lanes`  ──▶  f32 (the specification) | 8 lanes of AVX2 | 16 lanes of AVX-512
//! ```
//!
//! Lanes never mix, and no operation is fused, so an algorithm gives the same bits on every table. Only what the
//! operations are called with differs: the specification sees one group at a time, a vector sees as many as it has lanes.
//!
//! Everything is `#[inline(always)]`, because it becomes vector code only inside a function that enables the
//! instructions; closures would not.
//!
//! Neighbours: the vectors are in `avx2/encode.rs` and `avx512/encode.rs`; [`super::plain`] and [`super::search`] use them.

use std::ops::{Add, Div, Mul, Sub};

use crate::{code::nf4, fit::ROUND, scheme::ScaleType};

/// Several f32 that go the same way.
pub(crate) trait Lanes:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// How many.
    const WIDTH: usize;
    /// One truth per lane.
    type Mask: Copy;

    /// The same number in each lane.
    fn splat(value: f32) -> Self;
    /// The first `WIDTH` numbers of a slice that has as many.
    fn load(from: &[f32]) -> Self;
    /// The first `WIDTH / 2^LOG` numbers of a slice that has `WIDTH`, 2^LOG times each; the first alone where that is more.
    fn spread<const LOG: usize>(from: &[f32]) -> Self;
    /// Into the first `WIDTH` numbers of a slice that has as many.
    fn store(self, into: &mut [f32]);
    /// The smaller; `other` where the two are equal or one is NaN.
    fn least(self, other: Self) -> Self;
    /// The larger; `other` where the two are equal or one is NaN.
    fn most(self, other: Self) -> Self;
    /// Without its sign.
    fn magnitude(self) -> Self;
    /// The smallest of all lanes, none of them NaN.
    fn smallest(self) -> f32;
    /// The largest of all lanes, none of them NaN.
    fn largest(self) -> f32;
    /// The nearest integer, half to even; numbers below 2²².
    fn round(self) -> Self;
    /// The integer not above it.
    fn floor(self) -> Self;
    /// The square root.
    fn root(self) -> Self;
    /// ⌊log₂⌋ of a normal number above 0.
    fn exponent(self) -> Self;
    /// A normal number above 0, divided by a power of two that leaves it in 1 ≤ x < 2.
    fn fraction(self) -> Self;
    /// 2 to the power of an integer between −126 and 127.
    fn power_of_two(self) -> Self;
    /// Rounded to a type of scales; beyond it infinite, below it 0.
    fn stored(self, scales: ScaleType) -> Self;
    /// Rounded to a type of scales, towards zero; a number below the type's least normal one to the nearest.
    #[inline(always)]
    fn stored_below(self, scales: ScaleType) -> Self {
        let nearest = self.stored(scales);
        // Between half a step and a whole one less, which rounds to a step less.
        let less = match scales {
            ScaleType::F16 => 1.0 - 1.0 / 2048.0,
            ScaleType::BF16 => 1.0 - 1.0 / 256.0,
            ScaleType::F32 => 1.0,
        };
        Self::choose(self.below(nearest), (nearest * Self::splat(less)).stored(scales), nearest)
    }
    /// Where `self` < `other`.
    fn below(self, other: Self) -> Self::Mask;
    /// `yes` where the mask says so.
    fn choose(mask: Self::Mask, yes: Self, no: Self) -> Self;
    /// Where both say so.
    fn both(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// Whether any lane says so.
    fn any(mask: Self::Mask) -> bool;
    /// The low bytes of the bits of each lane, into the first `WIDTH` bytes of a slice that has as many.
    fn low_bytes(self, into: &mut [u8]);
    /// The nearest level of NF4.
    fn level(self) -> Self;
    /// The code of the nearest level of NF4, into the first `WIDTH` bytes of a slice that has as many.
    fn level_codes(self, into: &mut [u8]);
}

/// `numbers` from the first on, as many as there are; zeros beyond the last.
#[inline(always)]
pub(super) fn load_some<L: Lanes>(numbers: &[f32]) -> L {
    if numbers.len() >= L::WIDTH {
        return L::load(numbers);
    }
    let mut padded = [0f32; 16];
    padded[..numbers.len()].copy_from_slice(numbers);
    L::load(&padded)
}

/// One lane: the specification.
impl Lanes for f32 {
    const WIDTH: usize = 1;
    type Mask = bool;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        from[0]
    }

    #[inline(always)]
    fn spread<const LOG: usize>(from: &[f32]) -> Self {
        from[0]
    }

    #[inline(always)]
    fn store(self, into: &mut [f32]) {
        into[0] = self;
    }

    #[inline(always)]
    fn least(self, other: Self) -> Self {
        if self < other { self } else { other }
    }

    #[inline(always)]
    fn most(self, other: Self) -> Self {
        if self > other { self } else { other }
    }

    #[inline(always)]
    fn magnitude(self) -> Self {
        self.abs()
    }

    #[inline(always)]
    fn smallest(self) -> f32 {
        self
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        self
    }

    #[inline(always)]
    fn round(self) -> Self {
        // As one instruction would, zeros keep their sign; nothing here looks at it.
        (self + ROUND) - ROUND
    }

    #[inline(always)]
    fn floor(self) -> Self {
        f32::floor(self)
    }

    #[inline(always)]
    fn root(self) -> Self {
        self.sqrt()
    }

    #[inline(always)]
    fn exponent(self) -> Self {
        ((self.to_bits() >> 23) as i32 - 127) as f32
    }

    #[inline(always)]
    fn fraction(self) -> Self {
        f32::from_bits(self.to_bits() & 0x007f_ffff | 0x3f80_0000)
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        f32::from_bits(((self as i32 + 127) as u32) << 23)
    }

    #[inline(always)]
    fn stored(self, scales: ScaleType) -> Self {
        scales.round(self)
    }

    #[inline(always)]
    fn below(self, other: Self) -> bool {
        self < other
    }

    #[inline(always)]
    fn choose(mask: bool, yes: Self, no: Self) -> Self {
        if mask { yes } else { no }
    }

    #[inline(always)]
    fn both(a: bool, b: bool) -> bool {
        a & b
    }

    #[inline(always)]
    fn any(mask: bool) -> bool {
        mask
    }

    #[inline(always)]
    fn low_bytes(self, into: &mut [u8]) {
        into[0] = self.to_bits() as u8;
    }

    #[inline(always)]
    fn level(self) -> Self {
        nf4::TABLE[usize::from(nf4::nearest(self) & 15)]
    }

    #[inline(always)]
    fn level_codes(self, into: &mut [u8]) {
        into[0] = nf4::nearest(self);
    }
}
