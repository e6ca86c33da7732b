//! Integer products of codes wider than nibbles, as words of 16 bits: for more tokens than one tile has.
//!
//! ```text
//! a quad of a panel    16 rows × (c0 c2), then 16 rows × (c1 c3)        made once, for all tiles of tokens
//! a quad of a token    (a0 a2) (a1 a3)                                  madd: two products and their sum, in 32 bits
//! ```
//!
//! Neighbours: [`super::integers`] takes nibbles of bytes apart instead, which asks for nothing to be made before.

#![expect(clippy::needless_range_loop, reason = "indices run over several arrays of registers at once")]

use std::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_and_si256, _mm256_cvtepi32_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_mul_ps, _mm256_set1_epi8, _mm256_set1_epi16,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_srli_epi16,
    _mm256_storeu_ps, _mm256_storeu_si256,
};

use taper_core::kernel::lent::Lent;

use super::integers::{ROWS, broadcast, start};
use crate::kernel::{
    Cells, Expand, TileI8, scalar,
    tiles::{LANES, LINE},
};

/// Most tokens of a tile.
pub(super) const TOKENS: usize = 6;

/// Bytes of a quad of a panel.
const QUAD: usize = 2 * LINE;

/// Codes of a panel as words, `[quads, 2, 16, 2]`: even columns, then odd ones.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn expand(job: &Expand<'_>, out: &mut [u8]) {
    let mut quads = out.as_chunks_mut::<QUAD>().0.iter_mut();
    match (job.bits, job.table) {
        (8, None) => split(job.codes.as_chunks::<LINE>().0, quads),
        (4, Some(table)) => {
            let (table, mask) = (broadcast(table), _mm256_set1_epi8(15));
            for line in job.codes.as_chunks::<LINE>().0 {
                let Some([first, second]) = quads.next().zip(quads.next()).map(<[_; 2]>::from) else { break };
                for v in 0..2 {
                    // SAFETY: the array has 64 bytes.
                    let codes = unsafe { _mm256_loadu_si256(line[v * LINE / 2..].as_ptr().cast()) };
                    let low = _mm256_and_si256(codes, mask);
                    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), mask);
                    store(_mm256_shuffle_epi8(table, low), v, first);
                    store(_mm256_shuffle_epi8(table, high), v, second);
                }
            }
        }
        _ => {
            let mut bytes = Lent::<u8>::new(quads.len() * LINE);
            scalar::expand(job, &mut bytes);
            split(bytes.as_chunks::<LINE>().0, quads);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn split<'a>(lines: &[[u8; LINE]], quads: impl Iterator<Item = &'a mut [u8; QUAD]>) {
    for (line, quad) in lines.iter().zip(quads) {
        for v in 0..2 {
            // SAFETY: the array has 64 bytes.
            store(unsafe { _mm256_loadu_si256(line[v * LINE / 2..].as_ptr().cast()) }, v, quad);
        }
    }
}

/// Bytes of eight rows, as words.
#[inline]
#[target_feature(enable = "avx2")]
fn store(bytes: __m256i, v: usize, quad: &mut [u8; QUAD]) {
    let even = _mm256_and_si256(bytes, _mm256_set1_epi16(255));
    let odd = _mm256_srli_epi16::<8>(bytes);
    let (evens, odds) = quad.split_at_mut(LINE);
    // SAFETY: both have 64 bytes.
    unsafe {
        _mm256_storeu_si256(evens[v * LINE / 2..].as_mut_ptr().cast(), even);
        _mm256_storeu_si256(odds[v * LINE / 2..].as_mut_ptr().cast(), odd);
    }
}

/// As [`super::integers::tile_i8`], of words: codes are those of [`expand`], activations `[quads, tokens, 2, 2]` words.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn tile_i8(job: &TileI8<'_>, c: &mut Cells<'_>) {
    check(job, c);
    for panel in 0..c.panels {
        match c.tokens {
            1 => tile::<1>(job, panel, c),
            2 => tile::<2>(job, panel, c),
            3 => tile::<3>(job, panel, c),
            4 => tile::<4>(job, panel, c),
            5 => tile::<5>(job, panel, c),
            _ => tile::<6>(job, panel, c),
        }
    }
}

/// Everything that [`tile`] reads and writes through pointers is there.
fn check(job: &TileI8<'_>, c: &Cells<'_>) {
    let (last, tokens) = (c.panels - 1, c.tokens);
    let (quads, segments) = (job.quads.iter().map(|q| *q as usize).sum::<usize>(), job.quads.len());
    assert!((1..=TOKENS).contains(&tokens), "a tile of {tokens} tokens");
    assert!(job.codes.bytes.len() >= last * job.codes.stride + quads * QUAD, "codes");
    let grids = last * job.grids.stride + segments * LANES;
    assert!(job.grids.scales.len() >= grids && job.grids.centers.is_none_or(|c| c.len() >= grids), "grids");
    assert!(job.a.len() >= quads * tokens * 8, "activations");
    assert!(job.starts.len() >= segments * tokens && job.steps.len() >= segments * tokens, "steps");
    assert!(c.values.len() >= last * c.stride + tokens * LANES, "cells");
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn tile<const T: usize>(job: &TileI8<'_>, panel: usize, c: &mut Cells<'_>) {
    let mut codes = job.codes.bytes.as_ptr().wrapping_add(panel * job.codes.stride);
    let mut a = job.a.as_ptr().cast::<i32>();
    for (s, &quads) in job.quads.iter().enumerate() {
        let mut sums = [[_mm256_setzero_si256(); 2]; T];
        for _ in 0..quads {
            for part in 0..2 {
                // SAFETY: checked by the caller.
                unsafe {
                    let w = [load(codes.add(part * LINE)), load(codes.add(part * LINE + LINE / 2))];
                    for t in 0..T {
                        let a = _mm256_set1_epi32(a.add(2 * t + part).read_unaligned());
                        for v in 0..2 {
                            sums[t][v] = _mm256_add_epi32(sums[t][v], _mm256_madd_epi16(w[v], a));
                        }
                    }
                }
            }
            (codes, a) = (codes.wrapping_add(QUAD), a.wrapping_add(2 * T));
        }
        let at = panel * job.grids.stride + s * LANES;
        for t in 0..T {
            for v in 0..2 {
                // SAFETY: checked by the caller.
                unsafe {
                    let step = _mm256_set1_ps(*job.steps.get_unchecked(s * T + t));
                    let scale = _mm256_loadu_ps(job.grids.scales.as_ptr().add(at + v * ROWS));
                    let cell = c.values.as_mut_ptr().add(panel * c.stride + t * LANES + v * ROWS);
                    let start = start(job, at + v * ROWS, *job.starts.get_unchecked(s * T + t));
                    let sum = _mm256_cvtepi32_ps(_mm256_add_epi32(sums[t][v], start));
                    let total = _mm256_fmadd_ps(sum, _mm256_mul_ps(scale, step), _mm256_loadu_ps(cell));
                    _mm256_storeu_ps(cell, total);
                }
            }
        }
    }
}

/// Thirty-two bytes.
///
/// # Safety
/// They can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load(bytes: *const u8) -> __m256i {
    // SAFETY: as the caller promises.
    unsafe { _mm256_loadu_si256(bytes.cast()) }
}
