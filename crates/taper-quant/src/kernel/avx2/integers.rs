//! Integer products: a panel of 16 rows times tiles of up to eight tokens.
//!
//! ```text
//! nibbles   maddubs: two products of a code (up to 15) and a rounded activation (up to 127) in 16 bits.
//!           Eight of them fit (8 · 2 · 15 · 127 = 30,480): eight quads before one madd with ones makes 32 bits of them
//! bytes     low nibbles and high ones apart, each as above; madd with 1 and with 16
//! table     sixteen low nibbles and sixteen high ones, by byte shuffles
//! ```
//!
//! Sixteen registers hold the 16-bit sums of eight tokens and eight rows; sums of 32 bits are touched once in eight quads.
//! Few tokens take all 16 rows of a panel at once.
//!
//! Neighbours: [`super::wide`] is faster for many tokens of bytes and tables; [`super::vnni`] is the same where the machine sums up four products itself; [`super::floats`] is for f32.

#![expect(clippy::needless_range_loop, reason = "indices run over several arrays of registers at once")]

use std::arch::x86_64::{
    __m128i, __m256i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm256_add_epi16, _mm256_add_epi32,
    _mm256_and_si256, _mm256_broadcastsi128_si256, _mm256_cvtepi32_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_mullo_epi32,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_si256,
    _mm256_shuffle_epi8, _mm256_srli_epi16, _mm256_storeu_ps,
};

use crate::kernel::{
    Cells, CodeForm, TileI8,
    tiles::{LANES, LINE},
};

/// Most tokens of a tile: of nibbles, and of anything else, which needs twice the sums.
pub(super) const TOKENS: [usize; 2] = [8, 4];

const BYTES: u8 = 0;
const NIBBLES: u8 = 1;
const TABLE: u8 = 2;

/// Quads of which 16 bits hold the sum.
const QUADS: usize = 8;

/// Bytes ahead that are asked for while codes stream from memory.
const AHEAD: usize = 512;

/// Rows of a vector.
pub(super) const ROWS: usize = LANES / 2;

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn tile_i8(job: &TileI8<'_>, c: &mut Cells<'_>) {
    check(job, c);
    for panel in 0..c.panels {
        match job.codes.form {
            CodeForm::Bytes => split::<BYTES>(job, panel, c),
            CodeForm::Nibbles => nibbles(job, panel, c),
            CodeForm::Table(_) => split::<TABLE>(job, panel, c),
        }
    }
}

/// Everything that [`tile`] reads and writes through pointers is there.
fn check(job: &TileI8<'_>, c: &Cells<'_>) {
    let (per_line, most) = match job.codes.form {
        CodeForm::Bytes => (1, TOKENS[1]),
        CodeForm::Nibbles => (2, TOKENS[0]),
        CodeForm::Table(_) => (2, TOKENS[1]),
    };
    let (last, tokens) = (c.panels - 1, c.tokens);
    let (quads, segments) = (job.quads.iter().map(|q| *q as usize).sum::<usize>(), job.quads.len());
    assert!((1..=most).contains(&tokens), "a tile of {tokens} tokens");
    assert!(job.quads.iter().all(|q| (*q as usize).is_multiple_of(per_line)), "segments of whole lines");
    assert!(job.codes.bytes.len() >= last * job.codes.stride + quads / per_line * LINE, "codes");
    let grids = last * job.grids.stride + segments * LANES;
    assert!(job.grids.scales.len() >= grids && job.grids.centers.is_none_or(|c| c.len() >= grids), "grids");
    assert!(job.a.len() >= quads * tokens * 4, "activations");
    assert!(job.starts.len() >= segments * tokens && job.steps.len() >= segments * tokens, "steps");
    assert!(c.values.len() >= last * c.stride + tokens * LANES, "cells");
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn nibbles(job: &TileI8<'_>, panel: usize, c: &mut Cells<'_>) {
    match c.tokens {
        1 => tile::<NIBBLES, 1, 2>(job, panel, 0, c),
        2 => tile::<NIBBLES, 2, 2>(job, panel, 0, c),
        3 => tile::<NIBBLES, 3, 2>(job, panel, 0, c),
        4 => tile::<NIBBLES, 4, 2>(job, panel, 0, c),
        5 => [0, 1].into_iter().for_each(|v| tile::<NIBBLES, 5, 1>(job, panel, v, c)),
        6 => [0, 1].into_iter().for_each(|v| tile::<NIBBLES, 6, 1>(job, panel, v, c)),
        7 => [0, 1].into_iter().for_each(|v| tile::<NIBBLES, 7, 1>(job, panel, v, c)),
        _ => [0, 1].into_iter().for_each(|v| tile::<NIBBLES, 8, 1>(job, panel, v, c)),
    }
}

/// Bytes, of which nibbles are taken apart.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn split<const FORM: u8>(job: &TileI8<'_>, panel: usize, c: &mut Cells<'_>) {
    match c.tokens {
        1 => tile::<FORM, 1, 2>(job, panel, 0, c),
        2 => tile::<FORM, 2, 2>(job, panel, 0, c),
        3 => [0, 1].into_iter().for_each(|v| tile::<FORM, 3, 1>(job, panel, v, c)),
        _ => [0, 1].into_iter().for_each(|v| tile::<FORM, 4, 1>(job, panel, v, c)),
    }
}

/// `V` vectors of eight rows of a panel, from vector `first` on, times `T` tokens, of which the tile has no more.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn tile<const FORM: u8, const T: usize, const V: usize>(
    job: &TileI8<'_>,
    panel: usize,
    first: usize,
    c: &mut Cells<'_>,
) {
    let parts = Parts::<FORM>::new(job.codes.form);
    let mut streams = Streams {
        codes: job.codes.bytes.as_ptr().wrapping_add(panel * job.codes.stride + first * LINE / 2),
        a: job.a.as_ptr().cast(),
    };
    for (s, &quads) in job.quads.iter().enumerate() {
        let at = panel * job.grids.stride + s * LANES + first * ROWS;
        let mut left = quads as usize / Parts::<FORM>::PER_LINE;
        // SAFETY: checked by the caller.
        let mut sums: [[__m256i; V]; T] = unsafe { streams.sum(parts, &mut left) };
        while left > 0 {
            // SAFETY: checked by the caller.
            let more: [[__m256i; V]; T] = unsafe { streams.sum(parts, &mut left) };
            for t in 0..T {
                for v in 0..V {
                    sums[t][v] = _mm256_add_epi32(sums[t][v], more[t][v]);
                }
            }
        }
        for t in 0..T {
            for v in 0..V {
                // SAFETY: checked by the caller.
                unsafe {
                    let step = _mm256_set1_ps(*job.steps.get_unchecked(s * T + t));
                    let scale = _mm256_loadu_ps(job.grids.scales.as_ptr().add(at + v * ROWS));
                    let cell = panel * c.stride + t * LANES + (first + v) * ROWS;
                    let cell = c.values.as_mut_ptr().add(cell);
                    let start = start(job, at + v * ROWS, *job.starts.get_unchecked(s * T + t));
                    let sum = _mm256_cvtepi32_ps(_mm256_add_epi32(sums[t][v], start));
                    let total = _mm256_fmadd_ps(sum, _mm256_mul_ps(scale, step), _mm256_loadu_ps(cell));
                    _mm256_storeu_ps(cell, total);
                }
            }
        }
    }
}

/// What a tile reads on the way.
struct Streams {
    codes: *const u8,
    a: *const i32,
}

impl Streams {
    /// Sums of products of the next [`QUADS`] quads, or of what is left; so many lines fewer are left then.
    ///
    /// The number of lines stays a variable: compilers that know it unroll them all, and then lack registers.
    ///
    /// # Safety
    /// Codes of so many lines and activations of as many quads can be read.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn sum<const FORM: u8, const T: usize, const V: usize>(
        &mut self,
        parts: Parts<FORM>,
        left: &mut usize,
    ) -> [[__m256i; V]; T] {
        let lines = (*left).min(QUADS / Parts::<FORM>::PER_LINE);
        *left -= lines;
        let mut low = [[_mm256_setzero_si256(); V]; T];
        let mut high = low;
        for _ in 0..lines {
            let mut line = [_mm256_setzero_si256(); V];
            for v in 0..V {
                // SAFETY: as the caller promises.
                line[v] = unsafe { _mm256_loadu_si256(self.codes.add(v * LINE / 2).cast()) };
            }
            _mm_prefetch::<_MM_HINT_T0>(self.codes.wrapping_add(AHEAD).cast());
            self.codes = self.codes.wrapping_add(LINE);
            for quad in 0..Parts::<FORM>::PER_LINE {
                let mut w = [[_mm256_setzero_si256(); 2]; V];
                for v in 0..V {
                    w[v] = parts.of(line[v], quad);
                }
                for t in 0..T {
                    // SAFETY: as the caller promises.
                    let a = _mm256_set1_epi32(unsafe { self.a.add(t).read_unaligned() });
                    for v in 0..V {
                        low[t][v] = _mm256_add_epi16(low[t][v], _mm256_maddubs_epi16(w[v][0], a));
                        if FORM != NIBBLES {
                            high[t][v] = _mm256_add_epi16(high[t][v], _mm256_maddubs_epi16(w[v][1], a));
                        }
                    }
                }
                self.a = self.a.wrapping_add(T);
            }
        }
        let mut sums = low;
        for t in 0..T {
            for v in 0..V {
                sums[t][v] = _mm256_madd_epi16(low[t][v], _mm256_set1_epi16(1));
                if FORM != NIBBLES {
                    let sixteens = _mm256_madd_epi16(high[t][v], _mm256_set1_epi16(16));
                    sums[t][v] = _mm256_add_epi32(sums[t][v], sixteens);
                }
            }
        }
        sums
    }
}

/// How a line becomes factors below 16: of ones, and of sixteens.
#[derive(Clone, Copy)]
struct Parts<const FORM: u8> {
    tables: [__m256i; 2],
}

impl<const FORM: u8> Parts<FORM> {
    /// Quads of a line.
    const PER_LINE: usize = if FORM == BYTES { 1 } else { 2 };

    #[inline]
    #[target_feature(enable = "avx2")]
    fn new(form: CodeForm<'_>) -> Self {
        let tables = match form {
            CodeForm::Table(table) => {
                [broadcast(&table.map(|byte| byte & 15)), broadcast(&table.map(|byte| byte >> 4))]
            }
            _ => [_mm256_setzero_si256(); 2],
        };
        Self { tables }
    }

    /// Those of a quad of a line.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn of(self, line: __m256i, quad: usize) -> [__m256i; 2] {
        let mask = _mm256_set1_epi8(15);
        let low = _mm256_and_si256(line, mask);
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(line), mask);
        let nibble = if quad == 0 { low } else { high };
        match FORM {
            BYTES => [low, high],
            NIBBLES => [nibble; 2],
            _ => self.tables.map(|table| _mm256_shuffle_epi8(table, nibble)),
        }
    }
}

/// What the centers of eight rows take away.
///
/// # Safety
/// There are centers for eight rows from `at` on, or none at all.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn start(job: &TileI8<'_>, at: usize, start: i32) -> __m256i {
    let start = _mm256_set1_epi32(start);
    match job.grids.centers {
        None => start,
        // SAFETY: as the caller promises.
        Some(centers) => unsafe {
            _mm256_mullo_epi32(start, _mm256_loadu_si256(centers.as_ptr().add(at).cast()))
        },
    }
}

/// Sixteen bytes, in both halves of a vector: a table for byte shuffles.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn broadcast(table: &[u8; 16]) -> __m256i {
    // SAFETY: the array has 16 bytes.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(table.as_ptr().cast::<__m128i>()) })
}
