//! Integer products: panels of 16 rows times tiles of up to twelve tokens.
//!
//! ```text
//! sum[p][t] += Σ of four  code(row, column) · a(token, column)          vpdpbusd, one quad of columns
//! two panels and twelve tokens: 24 sums + 4 vectors of codes + 1 broadcast of a token = 29 of 32 registers
//! ```
//!
//! What the centers take away starts off the sums, so that it costs nothing where all centers are the same.
//!
//! Neighbours: [`super::floats`] is the same with other numbers.

#![expect(clippy::needless_range_loop, reason = "indices run over several arrays of registers at once")]

use std::arch::x86_64::{
    __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_epi32, _mm512_and_si512, _mm512_cvtepi32_ps,
    _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps,
    _mm512_mullo_epi32, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_shuffle_epi8, _mm512_srli_epi16, _mm512_storeu_ps,
};

use super::expand::table_bytes;
use crate::kernel::{
    Cells, CodeForm, TileI8,
    tiles::{LANES, LINE},
};

/// Bytes ahead that are asked for while codes stream from memory: four lines, which hides more than half a page does.
const AHEAD: usize = 256;

const BYTES: u8 = 0;
const NIBBLES: u8 = 1;
const TABLE: u8 = 2;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn tile_i8(job: &TileI8<'_>, c: &mut Cells<'_>) {
    match job.codes.form {
        CodeForm::Bytes => by_panels::<BYTES>(job, c),
        CodeForm::Nibbles => by_panels::<NIBBLES>(job, c),
        CodeForm::Table(_) => by_panels::<TABLE>(job, c),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn by_panels<const FORM: u8>(job: &TileI8<'_>, c: &mut Cells<'_>) {
    match (c.panels, c.tokens) {
        (4, 1) => tile::<FORM, 4, 1>(job, c),
        (4, _) => tile::<FORM, 4, 2>(job, c),
        (2, _) => super::by_tokens!(c.tokens, tile, FORM, 2; job, c),
        _ => super::by_tokens!(c.tokens, tile, FORM, 1; job, c),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn tile<const FORM: u8, const P: usize, const T: usize>(job: &TileI8<'_>, c: &mut Cells<'_>) {
    let per_line = if FORM == BYTES { 1 } else { 2 };
    check::<P, T>(job, c, per_line);
    let low = _mm512_set1_epi8(15);
    let table = match job.codes.form {
        CodeForm::Table(table) => table_bytes(table),
        _ => low,
    };
    let mut a = job.a.as_ptr().cast::<i32>();
    let mut codes: [*const u8; P] =
        std::array::from_fn(|p| job.codes.bytes.as_ptr().wrapping_add(p * job.codes.stride));
    // Cells stay in registers where there are enough of them.
    let held = P * T <= 12;
    let mut cells = [[_mm512_setzero_ps(); T]; P];
    for p in 0..P {
        for t in 0..T {
            if held {
                // SAFETY: checked above.
                cells[p][t] = unsafe { _mm512_loadu_ps(c.values.as_ptr().add(p * c.stride + t * LANES)) };
            }
        }
    }
    for (s, &quads) in job.quads.iter().enumerate() {
        let mut sums = start::<P, T>(job, s);
        let mut others = [_mm512_setzero_si512(); P];
        for _ in 0..quads as usize / per_line {
            // SAFETY: the lengths of codes and activations were checked above; a prefetch reads nothing.
            unsafe {
                let mut first = [_mm512_setzero_si512(); P];
                let mut second = first;
                for p in 0..P {
                    let line = load(codes[p]);
                    if T <= 8 {
                        _mm_prefetch::<_MM_HINT_T0>(codes[p].wrapping_add(AHEAD).cast());
                    }
                    codes[p] = codes[p].add(LINE);
                    if FORM == BYTES {
                        first[p] = line;
                    } else {
                        first[p] = _mm512_and_si512(line, low);
                        second[p] = _mm512_and_si512(_mm512_srli_epi16::<4>(line), low);
                    }
                    if FORM == TABLE {
                        first[p] = _mm512_shuffle_epi8(table, first[p]);
                        second[p] = _mm512_shuffle_epi8(table, second[p]);
                    }
                }
                for t in 0..T {
                    let token = _mm512_set1_epi32(a.add(t).read_unaligned());
                    for p in 0..P {
                        sums[p][t] = _mm512_dpbusd_epi32(sums[p][t], first[p], token);
                    }
                }
                a = a.add(T);
                if FORM != BYTES {
                    for t in 0..T {
                        let token = _mm512_set1_epi32(a.add(t).read_unaligned());
                        for p in 0..P {
                            if T == 1 {
                                // A second chain: one token is too few to hide the latency of the first.
                                others[p] = _mm512_dpbusd_epi32(others[p], second[p], token);
                            } else {
                                sums[p][t] = _mm512_dpbusd_epi32(sums[p][t], second[p], token);
                            }
                        }
                    }
                    a = a.add(T);
                }
            }
        }
        for p in 0..P {
            let at = p * job.grids.stride + s * LANES;
            // SAFETY: checked above.
            unsafe {
                let scale = _mm512_loadu_ps(job.grids.scales.as_ptr().add(at));
                for t in 0..T {
                    let sum = if T == 1 { _mm512_add_epi32(sums[p][t], others[p]) } else { sums[p][t] };
                    let factor = _mm512_mul_ps(scale, _mm512_set1_ps(*job.steps.get_unchecked(s * T + t)));
                    let sum = _mm512_cvtepi32_ps(sum);
                    if held {
                        cells[p][t] = _mm512_fmadd_ps(sum, factor, cells[p][t]);
                    } else {
                        let cell = c.values.as_mut_ptr().add(p * c.stride + t * LANES);
                        _mm512_storeu_ps(cell, _mm512_fmadd_ps(sum, factor, _mm512_loadu_ps(cell)));
                    }
                }
            }
        }
    }
    for p in 0..P {
        for t in 0..T {
            if held {
                // SAFETY: checked above.
                unsafe { _mm512_storeu_ps(c.values.as_mut_ptr().add(p * c.stride + t * LANES), cells[p][t]) };
            }
        }
    }
}

/// What the centers take away, for segment `s`.
#[inline]
#[target_feature(enable = "avx512f")]
fn start<const P: usize, const T: usize>(job: &TileI8<'_>, s: usize) -> [[__m512i; T]; P] {
    let mut sums = [[_mm512_setzero_si512(); T]; P];
    for t in 0..T {
        // SAFETY: checked above.
        let start = _mm512_set1_epi32(unsafe { *job.starts.get_unchecked(s * T + t) });
        for p in 0..P {
            sums[p][t] = match job.grids.centers {
                None => start,
                Some(centers) => {
                    let at = p * job.grids.stride + s * LANES;
                    // SAFETY: checked above.
                    _mm512_mullo_epi32(start, unsafe { load(centers.as_ptr().add(at).cast()) })
                }
            };
        }
    }
    sums
}

/// Everything that [`tile`] reads through pointers is there.
#[inline(always)]
fn check<const P: usize, const T: usize>(job: &TileI8<'_>, c: &Cells<'_>, per_line: usize) {
    let quads: usize = job.quads.iter().map(|q| *q as usize).sum();
    let segments = job.quads.len();
    assert!(c.panels == P && c.tokens == T && quads.is_multiple_of(per_line), "a tile of {P} by {T}");
    assert!(job.quads.iter().all(|q| (*q as usize).is_multiple_of(per_line)), "segments of whole lines");
    assert!(job.codes.bytes.len() >= (P - 1) * job.codes.stride + quads / per_line * LINE, "codes");
    assert!(job.grids.scales.len() >= (P - 1) * job.grids.stride + segments * LANES, "scales");
    assert!(job.grids.centers.is_none_or(|c| c.len() >= (P - 1) * job.grids.stride + segments * LANES));
    assert!(
        job.a.len() >= quads * T * 4 && job.starts.len() >= segments * T && job.steps.len() >= segments * T
    );
    assert!(c.values.len() >= (P - 1) * c.stride + T * LANES, "cells");
}

/// Sixty-four bytes.
///
/// # Safety
/// They can be read.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(bytes: *const u8) -> __m512i {
    // SAFETY: as the caller promises.
    unsafe { _mm512_loadu_si512(bytes.cast()) }
}
