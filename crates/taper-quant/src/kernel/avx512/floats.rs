//! Products of f32 and of bf16: panels of 16 rows times tiles of up to twelve tokens.
//!
//! ```text
//! few     a nibble of each of sixteen rows: vpermps looks up its level by the low four bits, no mask, no conversion
//! f32     two panels and twelve tokens: 24 sums + 2 vectors of weights + 1 broadcast
//! bf16    the same with pairs of columns and twice the products: vdpbf16ps
//! ```
//!
//! Neighbours: [`super::integers`] is the same with bytes; [`super::expand`] decodes the panels.

#![expect(clippy::needless_range_loop, reason = "indices run over several arrays of registers at once")]

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_and_si512, _mm512_cvtepi32_ps,
    _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_permutexvar_epi16,
    _mm512_permutexvar_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_srli_epi16,
    _mm512_srli_epi32, _mm512_storeu_ps, _mm512_sub_ps,
};

use super::load16;
use crate::kernel::{
    Cells, CodeForm, FewBf16, FewF32, Levels, TileBf16,
    tiles::{LANES, LINE, NIBBLE_PAIRS},
};

/// The column of each nibble of a row's word, from the lowest on.
const NIBBLE_COLUMNS: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Bytes ahead that are asked for while codes stream from memory.
const AHEAD: usize = 256;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn few_f32(job: &FewF32<'_>, c: &mut Cells<'_>) {
    match job.codes.form {
        CodeForm::Bytes => few_by::<false>(job, c),
        _ => few_by::<true>(job, c),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn few_by<const NIBBLES: bool>(job: &FewF32<'_>, c: &mut Cells<'_>) {
    match (c.panels, c.tokens) {
        (4, 1) => few::<NIBBLES, 4, 1>(job, c),
        (4, _) => few::<NIBBLES, 4, 2>(job, c),
        (2, _) => super::by_tokens!(c.tokens, few, NIBBLES, 2; job, c),
        _ => super::by_tokens!(c.tokens, few, NIBBLES, 1; job, c),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn few<const NIBBLES: bool, const P: usize, const T: usize>(job: &FewF32<'_>, c: &mut Cells<'_>) {
    let quads: usize = job.quads.iter().map(|q| *q as usize).sum();
    let (segments, per_line) = (job.quads.len(), if NIBBLES { 2 } else { 1 });
    assert!(c.panels == P && c.tokens == T, "a tile of {P} by {T}");
    assert!(job.quads.iter().all(|q| (*q as usize).is_multiple_of(per_line)), "segments of whole lines");
    assert!(job.codes.bytes.len() >= (P - 1) * job.codes.stride + quads / per_line * LINE, "codes");
    assert!(job.grids.scales.len() >= (P - 1) * job.grids.stride + segments * LANES, "scales");
    assert!(job.grids.centers.is_none_or(|c| c.len() >= (P - 1) * job.grids.stride + segments * LANES));
    assert!(job.x.len() >= quads * 4 * T, "activations");
    assert!(c.values.len() >= (P - 1) * c.stride + T * LANES, "cells");
    let ready = matches!(job.levels, Levels::Table(_));
    let table = match job.levels {
        Levels::Table(table) => load16(table),
        Levels::Integers => load16(&std::array::from_fn(|code| code as f32)),
    };
    let mut x = job.x.as_ptr();
    let mut codes: [*const u8; P] =
        std::array::from_fn(|p| job.codes.bytes.as_ptr().wrapping_add(p * job.codes.stride));
    for (s, &quads) in job.quads.iter().enumerate() {
        let mut center = [_mm512_set1_ps(job.grids.offset as f32); P];
        if let Some(centers) = job.grids.centers {
            for (p, center) in center.iter_mut().enumerate() {
                let centers = centers[p * job.grids.stride + s * LANES..].as_ptr();
                // SAFETY: checked above.
                *center = _mm512_cvtepi32_ps(unsafe { _mm512_loadu_si512(centers.cast()) });
            }
        }
        let mut sums = [[_mm512_setzero_ps(); T]; P];
        for _ in 0..quads as usize / per_line {
            let mut words = [_mm512_set1_epi32(0); P];
            for p in 0..P {
                // SAFETY: checked above; a prefetch reads nothing.
                unsafe {
                    words[p] = _mm512_loadu_si512(codes[p].cast());
                    _mm_prefetch::<_MM_HINT_T0>(codes[p].wrapping_add(AHEAD).cast());
                    codes[p] = codes[p].add(LINE);
                }
            }
            for step in 0..4 * per_line {
                let column = if NIBBLES { NIBBLE_COLUMNS[step] } else { step };
                let mut level = [_mm512_setzero_ps(); P];
                for p in 0..P {
                    level[p] = if NIBBLES {
                        _mm512_permutexvar_ps(words[p], table)
                    } else {
                        _mm512_cvtepi32_ps(_mm512_and_si512(words[p], _mm512_set1_epi32(255)))
                    };
                    words[p] = shift::<NIBBLES>(words[p]);
                    if !NIBBLES || !ready {
                        level[p] = _mm512_sub_ps(level[p], center[p]);
                    }
                }
                for t in 0..T {
                    // SAFETY: checked above.
                    let x = _mm512_set1_ps(unsafe { *x.add(column * T + t) });
                    for p in 0..P {
                        sums[p][t] = _mm512_fmadd_ps(level[p], x, sums[p][t]);
                    }
                }
            }
            x = x.wrapping_add(4 * per_line * T);
        }
        for p in 0..P {
            let at = p * job.grids.stride + s * LANES;
            // SAFETY: checked above.
            unsafe {
                let scale = _mm512_loadu_ps(job.grids.scales.as_ptr().add(at));
                for t in 0..T {
                    let cell = c.values.as_mut_ptr().add(p * c.stride + t * LANES);
                    _mm512_storeu_ps(cell, _mm512_fmadd_ps(sums[p][t], scale, _mm512_loadu_ps(cell)));
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn shift<const NIBBLES: bool>(words: __m512i) -> __m512i {
    if NIBBLES { _mm512_srli_epi32::<4>(words) } else { _mm512_srli_epi32::<8>(words) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn tile_f32(a: &[f32], panels: &[f32], stride: usize, c: &mut Cells<'_>) {
    if c.panels == 2 {
        super::by_tokens!(c.tokens, tile_f32_of, 2; a, panels, stride, c);
    } else {
        for p in 0..c.panels {
            let (panels, values) = (&panels[p * stride..], &mut c.values[p * c.stride..]);
            let mut c = Cells { values, stride: 0, panels: 1, tokens: c.tokens };
            super::by_tokens!(c.tokens, tile_f32_of, 1; a, panels, stride, &mut c);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn tile_f32_of<const P: usize, const T: usize>(a: &[f32], panels: &[f32], stride: usize, c: &mut Cells<'_>) {
    let a = a.as_chunks::<T>().0;
    assert!(c.panels == P && c.tokens == T, "a tile of {P} by {T}");
    assert!(panels.len() >= (P - 1) * stride + a.len() * LANES, "panels");
    let mut sums = [[_mm512_setzero_ps(); T]; P];
    for (p, sums) in sums.iter_mut().enumerate() {
        sums.iter_mut().zip(c.panel(p).iter()).for_each(|(sum, c)| *sum = load16(c));
    }
    for (k, a) in a.iter().enumerate() {
        let mut w = [_mm512_setzero_ps(); P];
        for (p, w) in w.iter_mut().enumerate() {
            // SAFETY: checked above.
            *w = unsafe { _mm512_loadu_ps(panels.as_ptr().add(p * stride + k * LANES)) };
        }
        for t in 0..T {
            let a = _mm512_set1_ps(a[t]);
            for p in 0..P {
                sums[p][t] = _mm512_fmadd_ps(a, w[p], sums[p][t]);
            }
        }
    }
    for (p, sums) in sums.iter().enumerate() {
        for (c, sum) in c.panel(p).iter_mut().zip(sums) {
            // SAFETY: the array has 16 values.
            unsafe { _mm512_storeu_ps(c.as_mut_ptr(), *sum) };
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx512bf16")]
pub(super) fn tile_bf16(job: &TileBf16<'_>, c: &mut Cells<'_>) {
    if c.panels == 2 {
        super::by_tokens!(c.tokens, tile_bf16_of, 2; job, 0, c);
    } else {
        for p in 0..c.panels {
            let values = &mut c.values[p * c.stride..];
            let mut c = Cells { values, stride: 0, panels: 1, tokens: c.tokens };
            super::by_tokens!(c.tokens, tile_bf16_of, 1; job, p, &mut c);
        }
    }
}

/// Thirty-two numbers.
///
/// # Safety
/// They can be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn load_bf16(values: *const u16) -> __m512bh {
    // SAFETY: as the caller promises; every bit pattern is a vector of bf16.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(values.cast())) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn tile_bf16_of<const P: usize, const T: usize>(job: &TileBf16<'_>, first: usize, c: &mut Cells<'_>) {
    let pairs: usize = job.quads.iter().map(|q| 2 * *q as usize).sum();
    let segments = job.quads.len();
    assert!(c.panels == P && c.tokens == T, "a tile of {P} by {T}");
    assert!(job.panels.len() >= (first + P - 1) * job.stride + pairs * 2 * LANES, "panels");
    assert!(job.a.len() >= pairs * T * 2, "activations");
    assert!(job.grids.scales.len() >= (first + P - 1) * job.grids.stride + segments * LANES, "scales");
    let mut panels: [*const u16; P] =
        std::array::from_fn(|p| job.panels.as_ptr().wrapping_add((first + p) * job.stride));
    let mut a = job.a.as_ptr().cast::<i32>();
    // Cells stay in registers where there are enough of them.
    let held = P * T <= 12;
    let mut cells = [[_mm512_setzero_ps(); T]; P];
    for (p, cells) in cells.iter_mut().enumerate().filter(|_| held) {
        cells.iter_mut().zip(c.panel(p).iter()).for_each(|(cell, c)| *cell = load16(c));
    }
    for (s, &quads) in job.quads.iter().enumerate() {
        let mut sums = [[_mm512_setzero_ps(); T]; P];
        for _ in 0..2 * quads {
            // SAFETY: checked above.
            unsafe {
                let mut w = [load_bf16(panels[0]); P];
                for p in 0..P {
                    w[p] = load_bf16(panels[p]);
                    panels[p] = panels[p].add(2 * LANES);
                }
                for t in 0..T {
                    let token = _mm512_set1_epi32(a.add(t).read_unaligned());
                    let token = std::mem::transmute::<__m512i, __m512bh>(token);
                    for p in 0..P {
                        sums[p][t] = _mm512_dpbf16_ps(sums[p][t], w[p], token);
                    }
                }
                a = a.add(T);
            }
        }
        for p in 0..P {
            let at = (first + p) * job.grids.stride + s * LANES;
            // SAFETY: checked above.
            let scale: __m512 = unsafe { _mm512_loadu_ps(job.grids.scales.as_ptr().add(at)) };
            if held {
                for t in 0..T {
                    cells[p][t] = _mm512_fmadd_ps(sums[p][t], scale, cells[p][t]);
                }
                continue;
            }
            for (c, sum) in c.panel(p).iter_mut().zip(sums[p]) {
                let total = _mm512_fmadd_ps(sum, scale, load16(c));
                // SAFETY: the array has 16 values.
                unsafe { _mm512_storeu_ps(c.as_mut_ptr(), total) };
            }
        }
    }
    for (p, cells) in cells.iter().enumerate().filter(|_| held) {
        for (c, cell) in c.panel(p).iter_mut().zip(cells) {
            // SAFETY: the array has 16 values.
            unsafe { _mm512_storeu_ps(c.as_mut_ptr(), *cell) };
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx512bf16")]
pub(super) fn few_bf16(job: &FewBf16<'_>, c: &mut Cells<'_>) {
    match (c.panels, c.tokens) {
        (4, 1) => few_bf16_of::<4, 1>(job, c),
        (4, _) => few_bf16_of::<4, 2>(job, c),
        (2, _) => super::by_tokens!(c.tokens, few_bf16_of, 2; job, c),
        _ => super::by_tokens!(c.tokens, few_bf16_of, 1; job, c),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn few_bf16_of<const P: usize, const T: usize>(job: &FewBf16<'_>, c: &mut Cells<'_>) {
    let quads: usize = job.quads.iter().map(|q| *q as usize).sum();
    let segments = job.quads.len();
    assert!(c.panels == P && c.tokens == T, "a tile of {P} by {T}");
    assert!(job.quads.iter().all(|q| (*q as usize).is_multiple_of(2)), "segments of whole lines");
    assert!(job.codes.bytes.len() >= (P - 1) * job.codes.stride + quads / 2 * LINE, "codes");
    assert!(job.grids.scales.len() >= (P - 1) * job.grids.stride + segments * LANES, "scales");
    assert!(job.a.len() >= quads * 4 * T, "activations");
    assert!(c.values.len() >= (P - 1) * c.stride + T * LANES, "cells");
    // The lookup goes by five bits, the fifth of which belongs to a neighbour: the table repeats.
    let table: [u16; 32] = std::array::from_fn(|code| job.levels[code % 16]);
    // SAFETY: the array has 64 bytes.
    let table = unsafe { _mm512_loadu_si512(table.as_ptr().cast()) };
    let mut a = job.a.as_ptr().cast::<i32>();
    let mut codes: [*const u8; P] =
        std::array::from_fn(|p| job.codes.bytes.as_ptr().wrapping_add(p * job.codes.stride));
    for (s, &quads) in job.quads.iter().enumerate() {
        let mut sums = [[_mm512_setzero_ps(); T]; P];
        for _ in 0..quads / 2 {
            // SAFETY: checked above; a prefetch reads nothing; every bit pattern is a vector of bf16.
            unsafe {
                let mut words = [table; P];
                for p in 0..P {
                    words[p] = _mm512_loadu_si512(codes[p].cast());
                    _mm_prefetch::<_MM_HINT_T0>(codes[p].wrapping_add(AHEAD).cast());
                    codes[p] = codes[p].add(LINE);
                }
                for step in 0..NIBBLE_PAIRS.len() {
                    let mut levels = [load_bf16(job.a.as_ptr()); P];
                    for p in 0..P {
                        let level = _mm512_permutexvar_epi16(words[p], table);
                        levels[p] = std::mem::transmute::<__m512i, __m512bh>(level);
                        words[p] = _mm512_srli_epi16::<4>(words[p]);
                    }
                    for t in 0..T {
                        let token = _mm512_set1_epi32(a.add(step * T + t).read_unaligned());
                        let token = std::mem::transmute::<__m512i, __m512bh>(token);
                        for p in 0..P {
                            sums[p][t] = _mm512_dpbf16_ps(sums[p][t], levels[p], token);
                        }
                    }
                }
                a = a.add(NIBBLE_PAIRS.len() * T);
            }
        }
        for p in 0..P {
            let at = p * job.grids.stride + s * LANES;
            // SAFETY: checked above.
            unsafe {
                let scale = _mm512_loadu_ps(job.grids.scales.as_ptr().add(at));
                for t in 0..T {
                    let cell = c.values.as_mut_ptr().add(p * c.stride + t * LANES);
                    _mm512_storeu_ps(cell, _mm512_fmadd_ps(sums[p][t], scale, _mm512_loadu_ps(cell)));
                }
            }
        }
    }
}
