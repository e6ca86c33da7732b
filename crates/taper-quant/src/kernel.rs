//! Products of packed weights, in the fastest instructions that the machine has.
//!
//! ```text
//! rows, as files have them ──▶ Tiles     panels of 16 rows, repacked once; only one of the two is held
//!                                │
//!                             product    exact: f32 activations  |  bf16  |  int8: bytes, integer sums per group
//!                                │
//!                             Kernels    scalar | neon | avx2 | avx512      chosen once, at run time
//! ```
//!
//! A `Kernels` table holds one function per inner loop. `scalar` is the specification; the other tables agree with it,
//! integers exactly and floats within the bounds that `conform` states. Tables differ in the order of f32 sums, so results
//! have the same bits for any number of threads, but not on any machine: force a table where that matters.
//!
//! `unsafe` lives in `kernel/` folders only: calls of functions that need instructions which were detected, and loads and
//! stores through pointers within slices whose length was checked.
//!
//! Neighbours: `taper_core::kernel` knows the instruction sets and the threads; [`crate::code`] is the arithmetic of encoding
//! and decoding, without regard to speed.

#![allow(unsafe_code)]

pub(crate) mod encode;
pub(crate) mod matrix;
pub(crate) mod product;
pub(crate) mod scalar;
pub(crate) mod store;
pub(crate) mod tiles;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(test)]
mod conform;

use half::f16;
use std::fmt;

pub use taper_core::kernel::{ISA_VARIABLE, Isa, available, force, isa};

/// With what numbers a product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Arithmetic {
    /// f32 activations times decoded weights, f32 sums: exact up to the order of summation.
    #[default]
    Exact,
    /// Activations rounded to bf16 (2⁻⁹ of each), f32 sums. Integer weights stay exact, NF4 levels are rounded to bf16.
    ///
    /// For activations that are bf16 already nothing is lost, and machines with bf16 products take half the time.
    Bf16,
    /// Activations rounded to eight bits per token and group of the weight; integer sums per group, f32 between groups.
    ///
    /// An activation x becomes round(127 x / max |x|) within its group: an error of at most max |x| / 254 each. On normal
    /// activations that adds 0.5 % (groups of 32) to 0.7 % (whole rows) of the output's norm, against 10 % that
    /// int4 itself adds. NF4 levels become bytes as well: 1/254 of the block's largest.
    Int8,
}

/// Where activations that are rounded to eight bits get their scale.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum ActivationScale {
    /// From the largest activation of each token and group of the weight (at most 1024 columns): max |x| / 127.
    #[default]
    Dynamic,
    /// One scale for all, known from calibration, as W8A8 files state it: activations beyond ±127 scales are clipped.
    Static(f32),
}

impl Arithmetic {
    /// x · Wᵀ: `x` is `[tokens, cols]`, the result `[tokens, rows]`.
    pub(crate) fn product(
        self,
        scale: ActivationScale,
        (kernels, w): (&Kernels, &tiles::Tiles),
        x: &[f32],
        tokens: usize,
    ) -> Vec<f32> {
        match self {
            Self::Exact => product::exact::exact(kernels, w, x, tokens),
            Self::Bf16 => product::bf16::rounded(kernels, w, x, tokens),
            Self::Int8 => product::int8::rounded(kernels, w, x, tokens, scale),
        }
    }
}

/// The table of an instruction set; `None` where the machine lacks it.
fn table(isa: Isa) -> Option<&'static Kernels> {
    if !isa.is_available() {
        return None;
    }
    match isa {
        Isa::Scalar => Some(&scalar::TABLE),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => Some(avx2::table()),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => Some(avx512::table()),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => Some(neon::table()),
        _ => None,
    }
}

/// The table in use.
pub(crate) fn active() -> &'static Kernels {
    table(isa()).unwrap_or(&scalar::TABLE)
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
/// Codes are unsigned bytes everywhere (offset binary). `center` is the code of zero. A panel is 16 rows side by side
/// ([`tiles`]), so that vectors run across rows and no sum crosses lanes.
pub(crate) struct Kernels {
    pub(crate) isa: Isa,
    /// Most tokens of a tile of f32 or bf16; at most 12.
    pub(crate) tokens: usize,
    /// As `tokens`, for integer products of nibbles and of anything else.
    pub(crate) tokens_i8: [usize; 2],
    /// Codes of `out.len()` columns, one byte each; bytes that the row lacks count as 0.
    pub(crate) unpack: fn(row: &[u8], stream: Stream, out: &mut [u8]),
    /// Half to single precision.
    pub(crate) widen: fn(&[f16], out: &mut [f32]),
    /// `out[i] = (codes[i] − center) · scale`.
    pub(crate) decode: fn(codes: &[u8], center: f32, scale: f32, out: &mut [f32]),
    /// `out[i] = levels[codes[i]] · scale`; codes are below 16.
    pub(crate) lookup: fn(codes: &[u8], levels: &[f32; 16], scale: f32, out: &mut [f32]),
    /// Rounds one group of activations to bytes; the result is their scale, NaN where one is not finite.
    pub(crate) quantize: fn(x: &[f32], out: &mut [i8]) -> f32,
    /// Codes of a panel, one byte each: `[quads, 16, 4]`.
    pub(crate) expand: fn(&Expand<'_>, out: &mut [u8]),
    /// Decoded weights of a panel, `[columns, 16]`.
    pub(crate) expand_f32: fn(&ExpandFloat<'_>, out: &mut [f32]),
    /// Products of bf16; `None` where the machine has no instruction for them.
    pub(crate) bf16: Option<Bf16>,
    /// Nibbles are unpacked anew beside the products of every tile, in instructions that those leave free; else once.
    pub(crate) unpacks_along: bool,
    /// Sums of integer products, scaled segment by segment.
    pub(crate) tile_i8: fn(&TileI8<'_>, c: &mut Cells<'_>),
    /// The same of codes wider than nibbles, for more tokens than one tile has; `None` where bytes are no slower.
    pub(crate) wide: Option<Wide>,
    /// Up to twelve tokens times packed codes; `None` where that gains nothing.
    pub(crate) few_f32: Option<fn(&FewF32<'_>, c: &mut Cells<'_>)>,
    /// `c += a · panel`: `a` is `[columns, tokens]`, panels are `[columns, 16]`, `stride` values apart.
    pub(crate) tile_f32: fn(a: &[f32], panels: &[f32], stride: usize, c: &mut Cells<'_>),
}

/// Integer products of words of 16 bits: a code of a panel and a rounded activation each take two bytes.
#[derive(Clone, Copy)]
pub(crate) struct Wide {
    /// Most tokens of a tile.
    pub(crate) tokens: usize,
    /// Codes of a panel, `[quads, 2, 16, 2]` words: of each quad the columns 0 and 2, then 1 and 3.
    pub(crate) expand: fn(&Expand<'_>, out: &mut [u8]),
    /// As [`Kernels::tile_i8`], with activations `[quads, tokens, 2, 2]`.
    pub(crate) tile: fn(&TileI8<'_>, c: &mut Cells<'_>),
}

/// The inner loops of bf16 products.
#[derive(Clone, Copy)]
pub(crate) struct Bf16 {
    /// Levels of a panel, not scaled, in pairs of columns: `[columns / 2, 16, 2]`.
    pub(crate) expand: fn(&ExpandFloat<'_>, out: &mut [u16]),
    /// As [`Kernels::tile_i8`].
    pub(crate) tile: fn(&TileBf16<'_>, c: &mut Cells<'_>),
    /// Up to twelve tokens times packed nibbles.
    pub(crate) few: fn(&FewBf16<'_>, c: &mut Cells<'_>),
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

/// A panel's codes, to be spread to bytes.
#[derive(Debug)]
pub(crate) struct Expand<'a> {
    /// Whole units of lines.
    pub(crate) codes: &'a [u8],
    /// Bits of a code.
    pub(crate) bits: usize,
    /// What becomes of four-bit codes.
    pub(crate) table: Option<&'a [u8; 16]>,
}

/// A panel's codes, to become numbers.
#[derive(Debug)]
pub(crate) struct ExpandFloat<'a> {
    /// `[quads, 16, 4]`.
    pub(crate) codes: &'a [u8],
    pub(crate) levels: Levels<'a>,
    /// Quads of each segment.
    pub(crate) quads: &'a [u32],
    /// `[segments, 16]`.
    pub(crate) scales: &'a [f32],
    pub(crate) offset: i32,
    /// `[segments, 16]`, where not all are `offset`.
    pub(crate) centers: Option<&'a [i32]>,
}

/// Sums of some panels and tokens.
#[derive(Debug)]
pub(crate) struct Cells<'a> {
    /// Panel `p` has its `[tokens, 16]` sums from `p · stride` on.
    pub(crate) values: &'a mut [f32],
    pub(crate) stride: usize,
    /// 1, 2 or 4.
    pub(crate) panels: usize,
    pub(crate) tokens: usize,
}

impl Cells<'_> {
    /// The sums of a panel.
    pub(crate) fn panel(&mut self, panel: usize) -> &mut [[f32; tiles::LANES]] {
        let start = panel * self.stride;
        self.values[start..start + self.tokens * tiles::LANES].as_chunks_mut().0
    }
}

/// Codes of panels, side by side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PanelCodes<'a> {
    pub(crate) bytes: &'a [u8],
    /// Bytes from one panel to the next.
    pub(crate) stride: usize,
    pub(crate) form: CodeForm<'a>,
}

/// How a line says codes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum CodeForm<'a> {
    /// A quad of bytes.
    Bytes,
    /// A quad of low nibbles and one of high nibbles.
    Nibbles,
    /// As nibbles, each of which stands for a byte.
    Table(&'a [u8; 16]),
}

/// Scales and centers of panels, side by side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PanelGrids<'a> {
    /// `[segments, 16]` of each panel.
    pub(crate) scales: &'a [f32],
    /// Numbers from one panel to the next.
    pub(crate) stride: usize,
    pub(crate) offset: i32,
    /// As the scales, where not all centers are `offset`.
    pub(crate) centers: Option<&'a [i32]>,
}

/// `c[t, n] += Σ over segments of (Σ code · a − center · Σ a) · step · scale`.
#[derive(Debug)]
pub(crate) struct TileI8<'a> {
    pub(crate) codes: PanelCodes<'a>,
    /// Quads of each segment; even for nibbles.
    pub(crate) quads: &'a [u32],
    pub(crate) grids: PanelGrids<'a>,
    /// `[quads, tokens, 4]`.
    pub(crate) a: &'a [i8],
    /// −Σ a, times the offset unless there are centers: `[segments, tokens]`.
    pub(crate) starts: &'a [i32],
    /// Scales of the activations, `[segments, tokens]`.
    pub(crate) steps: &'a [f32],
}

/// `c[t, n] += Σ over segments of scale · Σ level · x`.
#[derive(Debug)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only AVX-512 reads it"))]
pub(crate) struct FewF32<'a> {
    pub(crate) codes: PanelCodes<'a>,
    /// The sixteen levels of nibbles, where there is no center to take away.
    pub(crate) levels: Levels<'a>,
    pub(crate) quads: &'a [u32],
    pub(crate) grids: PanelGrids<'a>,
    /// `[columns, tokens]`.
    pub(crate) x: &'a [f32],
}

/// `c[t, n] += Σ over segments of scale · Σ level · a`.
#[derive(Debug)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only AVX-512 reads it"))]
pub(crate) struct TileBf16<'a> {
    /// `[columns / 2, 16, 2]` of each panel.
    pub(crate) panels: &'a [u16],
    /// Numbers from one panel to the next.
    pub(crate) stride: usize,
    pub(crate) quads: &'a [u32],
    pub(crate) grids: PanelGrids<'a>,
    /// `[columns / 2, tokens, 2]`.
    pub(crate) a: &'a [u16],
}

/// `c[t, n] += Σ over segments of scale · Σ level · a`, straight from nibbles.
#[derive(Debug)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only AVX-512 reads it"))]
pub(crate) struct FewBf16<'a> {
    pub(crate) codes: PanelCodes<'a>,
    /// bf16 of each code.
    pub(crate) levels: [u16; 16],
    pub(crate) quads: &'a [u32],
    pub(crate) grids: PanelGrids<'a>,
    /// Of each eight columns the pairs of [`tiles::NIBBLE_PAIRS`]: `[columns / 2, tokens, 2]`.
    pub(crate) a: &'a [u16],
}
