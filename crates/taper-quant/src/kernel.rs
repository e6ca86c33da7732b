//! Products of packed weights, in the fastest instructions that the machine has.
//!
//! ```text
//! Matrix (codes, grids) ──▶ exact::product   f32 activations, decoded weights
//!                       └─▶ int8::product    activations rounded to bytes, integer sums per group
//!                                │
//!                                ▼
//!                             Kernels: scalar | avx2 | avx512      chosen once, at run time
//! ```
//!
//! A `Kernels` table holds one function per inner loop. `scalar` is the specification; the other tables agree with it,
//! integers exactly and floats within the bounds that `conform` states. Tables differ in the order of f32 sums, so results
//! have the same bits for any number of threads, but not on any machine: force a table where that matters.
//!
//! `unsafe` lives in this folder only: calls of functions that need instructions which were detected, and loads and
//! stores through pointers within slices whose length was checked.
//!
//! Neighbours: [`crate::code`] is the arithmetic of encoding and decoding, without regard to speed.

#![allow(unsafe_code)]

pub(crate) mod aligned;
pub(crate) mod encode;
pub(crate) mod exact;
pub(crate) mod int8;
pub(crate) mod matrix;
pub(crate) mod scalar;
pub(crate) mod sheet;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

#[cfg(test)]
mod conform;

use half::f16;
use std::{
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicU8, Ordering},
    },
};

/// The environment variable that caps the instruction set: `scalar`, `avx2` or `avx512`.
pub const ISA_VARIABLE: &str = "TAPER_ISA";

/// With what numbers a product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Arithmetic {
    /// f32 activations times decoded weights, f32 sums: exact up to the order of summation.
    #[default]
    Exact,
    /// Activations rounded to eight bits per token and group of the weight; integer sums per group, f32 between groups.
    ///
    /// An activation x becomes round(127 x / max |x|) within its group: an error of at most max |x| / 254 each. On normal
    /// activations that adds about 0.6 % (groups of 32) to 0.9 % (rows of 4096) of the output's norm, against 10 % that
    /// int4 itself adds. Weights that the integer kernels do not know (NF4, reordered columns) stay exact.
    Int8,
}

/// An instruction set for which there is a table of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust: the specification.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL, VBMI and VNNI.
    Avx512,
}

impl Isa {
    const ALL: [Self; 3] = [Self::Scalar, Self::Avx2, Self::Avx512];

    /// What [`ISA_VARIABLE`] calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    fn table(self) -> Option<&'static Kernels> {
        match self {
            Self::Scalar => Some(&scalar::TABLE),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::table(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::table(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => None,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The instruction sets that this machine has, slowest first; always begins with [`Isa::Scalar`].
#[must_use]
pub fn available() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.table().is_some()).collect()
}

/// The instruction set in use.
#[must_use]
pub fn isa() -> Isa {
    active().isa
}

/// Uses this instruction set from now on, or with `None` the best one again (within what [`ISA_VARIABLE`] allows).
///
/// For tests and bug reports: it holds for the whole process. Returns false, and changes nothing, where the machine does
/// not have it.
pub fn force(isa: Option<Isa>) -> bool {
    if isa.is_some_and(|isa| isa.table().is_none()) {
        return false;
    }
    FORCED.store(isa.map_or(0, |isa| isa as u8 + 1), Ordering::Relaxed);
    true
}

/// 0 where nothing is forced, else one more than the [`Isa`].
static FORCED: AtomicU8 = AtomicU8::new(0);

/// The table in use.
pub(crate) fn active() -> &'static Kernels {
    static BEST: OnceLock<&'static Kernels> = OnceLock::new();
    let forced = Isa::ALL.get(usize::from(FORCED.load(Ordering::Relaxed)).wrapping_sub(1));
    match forced.and_then(|isa| isa.table()) {
        Some(table) => table,
        None => BEST.get_or_init(|| best(std::env::var(ISA_VARIABLE).ok().as_deref())),
    }
}

/// The best table that is not above the cap. An unknown name caps nothing.
fn best(cap: Option<&str>) -> &'static Kernels {
    let cap =
        cap.and_then(|name| Isa::ALL.into_iter().find(|isa| isa.name().eq_ignore_ascii_case(name.trim())));
    let allowed = Isa::ALL.into_iter().filter(|isa| cap.is_none_or(|cap| *isa <= cap));
    allowed.filter_map(Isa::table).next_back().unwrap_or(&scalar::TABLE)
}

/// How the bytes of a row say codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// This many bits each (2 to 8), low bits first, nothing between them.
    Low(usize),
    /// Two per byte, the first in the high nibble.
    High,
    /// One signed byte each; its code is 128 more.
    Signed,
}

impl Stream {
    /// Bits per code.
    pub(crate) const fn bits(self) -> usize {
        match self {
            Self::Low(bits) => bits,
            Self::High => 4,
            Self::Signed => 8,
        }
    }
}

/// The inner loops, for one instruction set.
///
/// Codes are unsigned bytes everywhere (offset binary). `center` is the code of zero. A panel is `lanes` rows side by
/// side, so that vectors run across rows and no sum crosses lanes.
pub(crate) struct Kernels {
    pub(crate) isa: Isa,
    /// Rows of a panel; at most 32.
    pub(crate) lanes: usize,
    /// Most tokens of an f32 tile.
    pub(crate) tokens_f32: usize,
    /// Most tokens of an integer tile.
    pub(crate) tokens_i8: usize,
    /// Brings bytes closer, without reading them.
    pub(crate) prefetch: fn(&[u8]),
    /// Codes of `out.len()` columns, one byte each; bytes that the row lacks count as 0.
    pub(crate) unpack: fn(row: &[u8], stream: Stream, out: &mut [u8]),
    /// Half to single precision.
    pub(crate) widen: fn(&[f16], out: &mut [f32]),
    /// `out[i] = (codes[i] − center) · scale`.
    pub(crate) decode: fn(codes: &[u8], center: f32, scale: f32, out: &mut [f32]),
    /// `out[i] = levels[codes[i]] · scale`; codes are below 16.
    pub(crate) lookup: fn(codes: &[u8], levels: &[f32; 16], scale: f32, out: &mut [f32]),
    /// One row of codes times one token.
    pub(crate) row_f32: fn(&RowF32<'_>) -> f32,
    /// Rows of packed codes times up to [`SLICED`] tokens, without unpacking them; `None` where that gains nothing.
    pub(crate) sliced_f32: Option<fn(&SlicedF32<'_>, out: &mut [f32])>,
    /// Decodes a panel, `out` is `[depth, lanes]`.
    pub(crate) panel_f32: fn(&PanelF32<'_>, out: &mut [f32]),
    /// `c += a · panel`: `a` is `[depth, tokens]`, `panel` `[depth, lanes]`, `c` `[tokens, lanes]`.
    pub(crate) tile_f32: fn(a: &[f32], panel: &[f32], c: &mut [f32]),
    /// Rounds one group of activations to bytes; the result is their scale, NaN where one is not finite.
    pub(crate) quantize: fn(x: &[f32], out: &mut [i8]) -> f32,
    /// One row of codes times one token of bytes.
    pub(crate) row_i8: fn(&RowI8<'_>) -> f32,
    /// Rows of packed nibbles times one token of bytes, without unpacking them.
    pub(crate) nibbles_i8: Option<fn(&NibblesI8<'_>, out: &mut [f32])>,
    /// Turns `[lanes, depth]` codes into `[depth / 4, lanes, 4]`.
    pub(crate) panel_i8: fn(codes: &[u8], depth: usize, out: &mut [u8]),
    /// As `panel_i8` from packed nibbles: of each eight columns the even ones make a quad, then the odd ones.
    pub(crate) panel_nibbles: Option<fn(&PanelNibbles<'_>, out: &mut [u8])>,
    /// Sums of integer products, scaled group by group.
    pub(crate) tile_i8: fn(&TileI8<'_>, c: &mut [f32]),
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernels").field("isa", &self.isa).finish_non_exhaustive()
    }
}

/// What a code stands for before its scale.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Levels<'a> {
    /// The code less the group's center.
    Integers,
    /// An entry of a table.
    Table(&'a [f32; 16]),
}

/// Σ over groups of scale · Σ (level · x).
#[derive(Debug)]
pub(crate) struct RowF32<'a> {
    /// One byte per column.
    pub(crate) codes: &'a [u8],
    pub(crate) levels: Levels<'a>,
    /// Columns per group.
    pub(crate) span: usize,
    /// One per group.
    pub(crate) scales: &'a [f32],
    /// One per group.
    pub(crate) centers: &'a [f32],
    /// One per column.
    pub(crate) x: &'a [f32],
}

/// Most tokens of [`SlicedF32`].
pub(crate) const SLICED: usize = 4;

/// As [`RowF32`] for several rows of packed codes of two or four bits and several tokens; the result is `[tokens, rows]`.
#[derive(Debug)]
pub(crate) struct SlicedF32<'a> {
    pub(crate) rows: usize,
    /// 1 to [`SLICED`].
    pub(crate) tokens: usize,
    /// `[rows, row_bytes]`.
    pub(crate) codes: &'a [u8],
    pub(crate) row_bytes: usize,
    /// 2 or 4.
    pub(crate) bits: usize,
    pub(crate) cols: usize,
    /// A multiple of a block (512 / bits columns), a divisor of it that is a multiple of 32 / bits, or all columns.
    pub(crate) span: usize,
    pub(crate) levels: Levels<'a>,
    /// `[rows, groups]`.
    pub(crate) scales: &'a [f32],
    /// `[rows, groups]`.
    pub(crate) centers: &'a [f32],
    /// Of each token, block by block, `[32 / bits, 16]`: the k-th code of each of sixteen 32-bit words; zeros beyond the last column.
    pub(crate) x: &'a [f32],
}

/// A panel to decode.
#[derive(Debug)]
pub(crate) struct PanelF32<'a> {
    /// `[lanes, depth]`.
    pub(crate) codes: &'a [u8],
    pub(crate) depth: usize,
    pub(crate) levels: Levels<'a>,
    /// The group of each of `depth` columns.
    pub(crate) groups: &'a [u32],
    /// `[groups, lanes]`.
    pub(crate) scales: &'a [f32],
    /// `[groups, lanes]`.
    pub(crate) centers: &'a [f32],
}

/// Σ over groups of scale · step · (Σ code · a − center · Σ a).
#[derive(Debug)]
pub(crate) struct RowI8<'a> {
    /// One byte per column.
    pub(crate) codes: &'a [u8],
    pub(crate) span: usize,
    /// One per group.
    pub(crate) scales: &'a [f32],
    /// One per group.
    pub(crate) centers: &'a [i32],
    pub(crate) token: &'a int8::Token,
}

/// As [`RowI8`] for several rows of packed nibbles.
#[derive(Debug)]
pub(crate) struct NibblesI8<'a> {
    /// `[out.len(), row_bytes]`.
    pub(crate) codes: &'a [u8],
    pub(crate) row_bytes: usize,
    pub(crate) cols: usize,
    /// A multiple of 128, a divisor of it that is a multiple of 8, or all columns.
    pub(crate) span: usize,
    /// `[out.len(), groups]`.
    pub(crate) scales: &'a [f32],
    /// `[out.len(), groups]`.
    pub(crate) centers: &'a [i32],
    pub(crate) token: &'a int8::Token,
}

/// A panel of packed nibbles; rows beyond the last, and columns beyond the end of a row, count as 0.
#[derive(Debug)]
pub(crate) struct PanelNibbles<'a> {
    /// `[rows, row_bytes]`.
    pub(crate) codes: &'a [u8],
    pub(crate) row_bytes: usize,
    pub(crate) rows: usize,
    /// First column, a multiple of 8.
    pub(crate) start: usize,
    /// Columns, a multiple of 8.
    pub(crate) depth: usize,
}

/// `c[t, n] += Σ over groups of (Σ code · a − center · Σ a) · step · scale`.
#[derive(Debug)]
pub(crate) struct TileI8<'a> {
    pub(crate) tokens: usize,
    /// `[groups · quads, tokens, 4]`.
    pub(crate) a: &'a [i8],
    /// `[groups · quads, lanes, 4]`.
    pub(crate) panel: &'a [u8],
    /// Runs of four columns per group.
    pub(crate) quads: usize,
    /// `[groups, lanes]`.
    pub(crate) scales: &'a [f32],
    /// `[groups, lanes]`.
    pub(crate) centers: &'a [i32],
    /// Scales of the activations, `[groups, tokens]`.
    pub(crate) steps: &'a [f32],
    /// Sums of the activations, `[groups, tokens]`.
    pub(crate) sums: &'a [i32],
}
