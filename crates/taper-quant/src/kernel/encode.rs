//! Encoders, in the fastest instructions that the machine has.
//!
//! ```text
//! values ──▶ extremes ──▶ grids ──▶ (search) ──▶ codes ──▶ pack          a few rows at a time, out of the cache
//! ```
//!
//! An [`Encoders`] table holds one function per step. All tables are the same few algorithms, compiled over lanes of
//! different width, and give the same bits: the bytes of an encoded weight depend neither on the machine nor on threads.
//!
//! Neighbours: [`lanes`] says what a lane can do, [`plain`], [`mod@search`] and [`mod@hqq`] are the algorithms, [`fresh`] the memory that
//! results go to; [`crate::code`] drives them over rows.

pub(crate) mod fresh;
pub(crate) mod hqq;
pub(crate) mod lanes;
pub(crate) mod plain;
pub(crate) mod search;

#[cfg(test)]
mod conform;

use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::{Isa, isa};
use crate::{
    fit::{Hqq, ScaleSign},
    scheme::{Bits, ScaleType},
};

/// Most lanes of any table.
pub(crate) const LANES: usize = 16;

/// The steps of encoding, for one instruction set.
pub(crate) struct Encoders {
    /// Groups that are searched side by side; at most [`LANES`].
    pub(crate) lanes: usize,
    /// Half to single precision.
    pub(crate) widen_f16: fn(&[f16], out: &mut [f32]),
    /// bfloat16 to single precision.
    pub(crate) widen_bf16: fn(&[bf16], out: &mut [f32]),
    /// max |x| of each run of `span` values; false where a value is not finite, and then peaks mean nothing.
    pub(crate) peaks: fn(x: &[f32], span: usize, peaks: &mut [f32]) -> bool,
    /// The smallest and largest value of each run of `span`, widened to contain 0; false as above.
    pub(crate) extremes: fn(x: &[f32], span: usize, low: &mut [f32], high: &mut [f32]) -> bool,
    /// The grids that spread codes over extremes; false where the scale of one does not fit its type.
    pub(crate) grids: Grids,
    /// The searched grids of `lanes` groups, over so many candidates on the coarse grid; a scale of 0 where no candidate could be
    /// judged.
    pub(crate) search: fn(&Tile<'_>, steps: u16, scales: &mut [f32], zeros: &mut [f32]),
    /// Half-quadratic fits of `lanes` groups, until one of those in progress is done: its grid, as above.
    pub(crate) refine: fn(&Tile<'_>, Hqq, &mut hqq::Refining, scales: &mut [f32], zeros: &mut [f32]),
    /// The codes of runs of `span` values, each on its grid, one byte each.
    pub(crate) codes: fn(&Codes<'_>, x: &[f32], out: &mut [u8]),
    /// Codes as a stream of bits, low bits first; the rest of `out` becomes 0.
    pub(crate) pack: fn(codes: &[u8], bits: Bits, out: &mut [u8]),
    /// The codes of the levels of NF4 nearest to x / scale.
    pub(crate) levels: fn(x: &[f32], scale: f32, out: &mut [u8]),
    /// Pairs of codes below 16 as bytes, the first in the high nibble.
    pub(crate) pack_high: fn(codes: &[u8], out: &mut [u8]),
}

/// Lows and highs to scales and zero points.
pub(crate) type Grids = fn(&Spread, low: &[f32], high: &[f32], scales: &mut [f32], zeros: &mut [f32]) -> bool;

/// How a grid follows from extremes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Spreading {
    /// scale = max |x| / steps.
    Peak(f32),
    /// scale = (high − low) / steps, and a zero point.
    Range(f32),
}

/// What [`Encoders::grids`] has to know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) how: Spreading,
    pub(crate) scales: ScaleType,
    /// The lowest code.
    pub(crate) lowest: f32,
    /// The highest code.
    pub(crate) highest: f32,
}

impl Spread {
    /// Whether every code of a grid decodes to something finite: near the end of f32 even a finite scale has codes that do
    /// not.
    #[inline(always)]
    pub(crate) fn holds(&self, scale: f32, zero: f32) -> bool {
        let (down, up) = (zero - self.lowest, self.highest - zero);
        (scale * if down > up { down } else { up }).is_finite()
    }
}

/// Rows of grids and the codes to use.
#[derive(Debug)]
pub(crate) struct Codes<'a> {
    pub(crate) span: usize,
    /// One per run.
    pub(crate) scales: &'a [f32],
    /// One per run; without them all are 0.
    pub(crate) zeros: Option<&'a [f32]>,
    /// The lowest code.
    pub(crate) lowest: f32,
    /// The highest code.
    pub(crate) highest: f32,
    /// What is added to a code before it is stored; even.
    pub(crate) offset: f32,
}

/// What numbers a searched grid makes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Number {
    /// Integers around zero.
    Symmetric { bits: Bits, sign: ScaleSign, stored: ScaleType },
    /// Integers with a zero point.
    Asymmetric { bits: Bits, stored: ScaleType },
    /// NF4, with f32 scales.
    Quantiles,
}

/// How grids are looked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Method {
    /// The least squared error, over so many candidates on the coarse grid.
    Search { steps: u16 },
    /// The least sum of powers of errors.
    HalfQuadratic(Hqq),
}

/// Groups side by side, all of at most [`search::LONGEST`] values: `[values, lanes]`, shorter groups filled up with zeros.
#[derive(Debug)]
pub(crate) struct Tile<'a> {
    pub(crate) number: Number,
    pub(crate) values: &'a [f32],
    /// How much each value matters; zeros where groups are filled up.
    pub(crate) weights: Option<&'a [f32]>,
    /// Of each lane, at most 0.
    pub(crate) low: &'a [f32],
    /// Of each lane, at least 0.
    pub(crate) high: &'a [f32],
    /// The true number of values of each lane.
    pub(crate) counts: &'a [f32],
}

/// The specification.
static SCALAR: Encoders = Encoders {
    lanes: 1,
    widen_f16: |from, out| from.convert_to_f32_slice(out),
    widen_bf16: |from, out| from.convert_to_f32_slice(out),
    peaks: plain::peaks::<f32>,
    extremes: plain::extremes::<f32>,
    grids: plain::grids,
    search: search::search::<f32>,
    refine: hqq::refine::<f32>,
    codes: plain::codes::<f32>,
    pack: plain::pack,
    levels: plain::levels::<f32>,
    pack_high: plain::pack_high,
};

impl Encoders {
    /// The table of an instruction set, where the machine has all that its encoders need.
    pub(crate) fn of(isa: Isa) -> Option<&'static Self> {
        match isa {
            // Compilers make NEON of it where they can.
            Isa::Scalar | Isa::Neon => Some(&SCALAR),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => super::avx2::encode::table(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => super::avx512::encode::table(),
            _ => None,
        }
    }

    /// The table in use.
    pub(crate) fn active() -> &'static Self {
        Self::of(isa()).unwrap_or(&SCALAR)
    }
}

impl std::fmt::Debug for Encoders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoders").field("lanes", &self.lanes).finish_non_exhaustive()
    }
}
