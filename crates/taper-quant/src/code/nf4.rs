//! NF4: sixteen quantiles of a normal distribution, one scale per block (Dettmers et al., QLoRA, 2023).
//!
//! ```text
//! x̂ = absmax_block · TABLE[code]       two codes per byte, the first in the high nibble
//! ```
//!
//! Blocks run over the flattened row-major weight, as in bitsandbytes: they may cross rows, and the last may be short.
//! With double quantization the scales themselves are bytes: absmax = map[u8] · nested + offset, see [`Nested`].
//!
//! Under [`Fit::AbsMax`] codes and scales equal those of bitsandbytes; under [`Fit::Search`] the scale is the positive one
//! of least squared error, and codes are chosen for the scale as it will be read back.
//!
//! Neighbours: `blocks.rs` drives the encoder over blocks, [`super::nested`] has the scales of scales.

pub use super::nested::{NESTED_BLOCK, Nested, dynamic_map};

use super::blocks;
use crate::{
    Error, Result,
    fit::{Fit, Levels, Sample, search},
    kernel::encode::Encoders,
    values::Values,
};
use std::{mem::MaybeUninit, num::NonZeroUsize};

/// The sixteen levels.
#[expect(clippy::excessive_precision, reason = "the digits that bitsandbytes publishes")]
pub const TABLE: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

/// The code of zero.
pub const ZERO_CODE: u8 = 7;

/// Cells of the lookup grid over −1..=1: finer than the narrowest gap between thresholds, so a cell holds at most one.
pub(crate) const CELLS: usize = 32;

/// What larger values count as when their cell is looked for: the last cell, which holds no threshold beyond this.
pub(crate) const LAST: f32 = 0.99;

/// Largest f32 not above each midpoint of neighbouring levels: u > threshold exactly where the upper level is nearer.
const THRESHOLDS: [f32; 15] = {
    let mut thresholds = [0f32; 15];
    let mut i = 0;
    while i < 15 {
        let middle = (TABLE[i] as f64 + TABLE[i + 1] as f64) / 2.0;
        let rounded = middle as f32;
        thresholds[i] = if rounded as f64 > middle { rounded.next_down() } else { rounded };
        i += 1;
    }
    thresholds
};

/// For each cell ⌊16 (u + 1)⌋: the threshold in it (or beyond it) and the code below that threshold.
pub(crate) const LOOKUP: [(f32, u8); CELLS] = {
    let mut lookup = [(f32::INFINITY, 15u8); CELLS];
    let mut cell = 0;
    while cell < CELLS {
        // A little wider than the cell, because u + 1 is rounded.
        let start = cell as f64 / (CELLS / 2) as f64 - 1.0 - 1e-6;
        let mut code = 0;
        while code < 15 && (THRESHOLDS[code] as f64) < start {
            code += 1;
        }
        if code < 15 {
            lookup[cell] = (THRESHOLDS[code], code as u8);
        }
        cell += 1;
    }
    lookup
};

/// The code of the level nearest to `u`; of two equally near ones the lower.
#[inline]
#[must_use]
pub fn nearest(u: f32) -> u8 {
    let inside = if u > -1.0 { u } else { -1.0 };
    let inside = if inside < LAST { inside } else { LAST };
    let cell = ((inside + 1.0) * (CELLS / 2) as f32) as usize;
    let (threshold, below) = LOOKUP[cell.min(CELLS - 1)];
    below + u8::from(u > threshold)
}

/// The levels as the scale search sees them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quantiles;

impl Levels for Quantiles {
    #[inline(always)]
    fn nearest(self, u: f32) -> f32 {
        TABLE[usize::from(nearest(u) & 15)]
    }
}

/// The scales of all blocks.
#[derive(Debug, Clone, PartialEq)]
pub enum Absmax {
    /// One f32 per block.
    Plain(Vec<f32>),
    /// One byte per block: double quantization.
    Nested(Nested),
}

impl Absmax {
    /// The scale of a block; 0 beyond the last.
    #[inline]
    #[must_use]
    pub fn get(&self, block: usize) -> f32 {
        match self {
            Self::Plain(absmax) => absmax.get(block).copied().unwrap_or(0.0),
            Self::Nested(nested) => nested.get(block),
        }
    }

    /// How many blocks there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Plain(absmax) => absmax.len(),
            Self::Nested(nested) => nested.codes.len(),
        }
    }

    /// True where there is no block.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What an NF4 encoding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nf4Scheme {
    /// Elements per scale.
    pub block: NonZeroUsize,
    /// Whether the scales are bytes themselves.
    pub scales: BlockScales,
}

/// How the scales of NF4 blocks are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BlockScales {
    /// f32: 32 / block bits per weight.
    #[default]
    Plain,
    /// Double quantization: about 8 / block bits per weight.
    Double,
}

impl Nf4Scheme {
    /// Blocks of `block` elements with f32 scales.
    ///
    /// # Errors
    /// [`Error::EmptyBlock`] where `block` is 0.
    pub fn new(block: usize) -> Result<Self> {
        let block = NonZeroUsize::new(block).ok_or(Error::EmptyBlock)?;
        Ok(Self { block, scales: BlockScales::Plain })
    }

    /// With doubly quantized scales.
    #[must_use]
    pub fn double_quant(mut self) -> Self {
        self.scales = BlockScales::Double;
        self
    }
}

impl std::fmt::Display for Nf4Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let double = if self.scales == BlockScales::Double { " dq" } else { "" };
        write!(f, "nf4 b{}{double}", self.block)
    }
}

/// A weight of NF4 codes with its scales.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedNf4 {
    /// Two codes per byte, ⌈elements / 2⌉ bytes; a last odd nibble is [`ZERO_CODE`].
    pub codes: Vec<u8>,
    /// The scales.
    pub absmax: Absmax,
}

/// Encodes values, row-major with `cols` columns (which only importance looks at).
///
/// # Errors
/// [`Error::Conflict`] for [`Fit::MinMax`]; slices that do not fit together; values that are not finite.
pub fn encode(
    values: &[f32],
    cols: usize,
    scheme: Nf4Scheme,
    fit: &Fit,
    importance: Option<&[f32]>,
) -> Result<EncodedNf4> {
    encode_values(Values::F32(values), cols, scheme, fit, importance)
}

/// As [`encode`], from values of any type.
///
/// # Errors
/// As [`encode`].
pub fn encode_values(
    values: Values<'_>,
    cols: usize,
    scheme: Nf4Scheme,
    fit: &Fit,
    importance: Option<&[f32]>,
) -> Result<EncodedNf4> {
    let (codes, absmax) =
        blocks::encode::<Box<[MaybeUninit<u8>]>>(Encoders::active(), values, cols, scheme, fit, importance)?;
    Ok(EncodedNf4 { codes, absmax })
}

/// Checks that a fit can serve NF4.
pub(crate) fn check_fit(fit: &Fit) -> Result<()> {
    match fit {
        Fit::AbsMax | Fit::Search(_) => Ok(()),
        Fit::MinMax | Fit::Hqq(_) => Err(Error::Conflict {
            option: "fit",
            conflict: "has no meaning for nf4: minmax and hqq spread integer codes".into(),
            expected: "choose absmax (as bitsandbytes does) or search".into(),
        }),
    }
}

/// The scale of one block; 0 where all values are.
pub(crate) fn fit_sample(sample: Sample<'_>, fit: &Fit) -> f32 {
    let (low, high) = sample.extremes();
    let peak = high.max(-low);
    match fit {
        Fit::Search(search) if peak > 0.0 => {
            search::unit_scale(sample, peak, Quantiles, search.steps).unwrap_or(peak)
        }
        _ => peak,
    }
}

/// The code of a value under a scale other than 0.
#[inline]
pub(crate) fn nearest_scaled(x: f32, scale: f32) -> u8 {
    let inverse = 1.0 / scale;
    // bitsandbytes multiplies by the reciprocal.
    if inverse.is_finite() { nearest(x * inverse) } else { nearest(x / scale) }
}

/// Decodes the elements from `start` on into `out`.
///
/// `codes` holds at least `start + out.len()` nibbles.
pub fn decode(codes: &[u8], table: &[f32; 16], absmax: &Absmax, block: usize, start: usize, out: &mut [f32]) {
    levels(codes, table, start, out);
    let (mut at, mut rest) = (start, out);
    while !rest.is_empty() {
        let here = (block - at % block).min(rest.len());
        let (values, later) = rest.split_at_mut(here);
        let scale = absmax.get(at / block);
        for value in values {
            *value *= scale;
        }
        at += here;
        rest = later;
    }
}

/// The levels of nibbles `start..`, without their scales.
fn levels(codes: &[u8], table: &[f32; 16], start: usize, out: &mut [f32]) {
    let (mut bytes, mut out) = (codes.get(start / 2..).unwrap_or_default(), out);
    if !start.is_multiple_of(2) {
        if let ([byte, later @ ..], [first, rest @ ..]) = (bytes, out) {
            *first = table[usize::from(byte & 15)];
            (bytes, out) = (later, rest);
        } else {
            return;
        }
    }
    let (pairs, last) = out.as_chunks_mut::<2>();
    for ([first, second], &byte) in pairs.iter_mut().zip(bytes) {
        (*first, *second) = (table[usize::from(byte >> 4)], table[usize::from(byte & 15)]);
    }
    if let ([value], Some(byte)) = (last, bytes.get(pairs.len())) {
        *value = table[usize::from(byte >> 4)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: the smallest distance, and of equal ones the first.
    fn by_definition(u: f32) -> u8 {
        let distance = |t: f32| (f64::from(u) - f64::from(t)).abs();
        (0..16u8)
            .reduce(|a, b| if distance(TABLE[b as usize]) < distance(TABLE[a as usize]) { b } else { a })
            .unwrap()
    }

    #[test]
    fn ties_fall_to_the_lower_code() {
        for (i, t) in THRESHOLDS.iter().enumerate() {
            for u in [t.next_down(), *t, t.next_up()] {
                assert_eq!(nearest(u), by_definition(u), "near threshold {i}: {u}");
            }
        }
        assert_eq!((nearest(-7.0), nearest(7.0), nearest(0.0), nearest(-0.0)), (0, 15, ZERO_CODE, ZERO_CODE));
    }

    #[test]
    fn every_level_is_its_own_code() {
        for (code, level) in TABLE.iter().enumerate() {
            assert_eq!(usize::from(nearest(*level)), code);
        }
    }

    #[test]
    fn encodes_the_published_vector() {
        let w: Vec<f32> = (0..64).map(|i| (i as f32 - 32.0) / 16.0).collect();
        let encoded = encode(&w, 64, Nf4Scheme::new(64).unwrap(), &Fit::AbsMax, None).unwrap();
        assert_eq!(encoded.absmax, Absmax::Plain(vec![2.0]));
        let hex: String = encoded.codes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "000001111111122222333344455566677788999aaabbbccccddddeeeeeeeffff");
        let pair = [TABLE[1], TABLE[2], -1.0];
        let first = encode(&pair, 3, Nf4Scheme::new(64).unwrap(), &Fit::AbsMax, None).unwrap();
        assert_eq!(first.codes, [0x12, 0x07]);
    }

    proptest! {
        #[test]
        fn lookup_agrees_with_the_definition(u in -1.2f32..1.2) {
            prop_assert_eq!(nearest(u), by_definition(u));
        }

        #[test]
        fn decoding_from_any_start_agrees_with_decoding_all(
            values in prop::collection::vec(-3f32..3.0, 1..200),
            block in 1usize..70, from in 0usize..200,
        ) {
            let scheme = Nf4Scheme::new(block).unwrap();
            let encoded = encode(&values, values.len(), scheme, &Fit::AbsMax, None).unwrap();
            let mut all = vec![0f32; values.len()];
            decode(&encoded.codes, &TABLE, &encoded.absmax, block, 0, &mut all);
            for (i, (x, decoded)) in values.iter().zip(&all).enumerate() {
                let scale = encoded.absmax.get(i / block);
                let best = TABLE.iter().map(|t| (t * scale - x).abs()).fold(f32::MAX, f32::min);
                prop_assert!((decoded - x).abs() <= best + 1e-6 * scale);
            }
            let from = from.min(values.len());
            let mut part = vec![0f32; values.len() - from];
            decode(&encoded.codes, &TABLE, &encoded.absmax, block, from, &mut part);
            prop_assert_eq!(&part, &all[from..]);
        }
    }
}
