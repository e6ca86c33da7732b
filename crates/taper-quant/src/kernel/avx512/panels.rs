//! Panels of 32 rows times tiles of up to twelve tokens.
//!
//! ```text
//! 24 accumulators + 2 vectors of the panel + 1 broadcast of a token = 27 of 32 registers
//! ```
//!
//! Neighbours: [`super::rows`] for one token.

use std::arch::x86_64::{
    __m512, __m512i, _mm512_and_si512, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps, _mm512_mullo_epi32, _mm512_permutexvar_ps,
    _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_si512, _mm512_shuffle_i32x4,
    _mm512_srli_epi16, _mm512_srli_epi32, _mm512_storeu_ps, _mm512_storeu_si512, _mm512_sub_epi32,
    _mm512_sub_ps, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32,
    _mm512_unpacklo_epi64,
};

use super::{load_bytes, rows::load16};
use crate::kernel::{Levels, PanelF32, PanelNibbles, TileI8};

/// Rows of a panel: two vectors of f32.
pub(super) const LANES: usize = 32;

/// Most tokens of a tile.
pub(super) const TOKENS: usize = 12;

/// Sixteen rows of sixteen 32-bit words, turned over.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(r: [__m512i; 16]) -> [__m512i; 16] {
    let mut t = [_mm512_setzero_si512(); 16];
    // Within 128-bit lanes: 4 × 4 words of each four rows.
    for i in 0..4 {
        let [a, b, c, d] = [r[4 * i], r[4 * i + 1], r[4 * i + 2], r[4 * i + 3]];
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        t[4 * i] = _mm512_unpacklo_epi64(ab_low, cd_low);
        t[4 * i + 1] = _mm512_unpackhi_epi64(ab_low, cd_low);
        t[4 * i + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
        t[4 * i + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
    }
    // Across lanes: lane l of t[4 i + j] holds word 4 l + j of rows 4 i .. 4 i + 4.
    let mut out = [_mm512_setzero_si512(); 16];
    for j in 0..4 {
        let [a, b, c, d] = [t[j], t[4 + j], t[8 + j], t[12 + j]];
        let (ab_even, ab_odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (cd_even, cd_odd) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
        out[j] = _mm512_shuffle_i32x4::<0x88>(ab_even, cd_even);
        out[8 + j] = _mm512_shuffle_i32x4::<0xdd>(ab_even, cd_even);
        out[4 + j] = _mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd);
        out[12 + j] = _mm512_shuffle_i32x4::<0xdd>(ab_odd, cd_odd);
    }
    out
}

/// Words of four codes of sixteen rows from `row` on, columns `column .. column + 64`; zeros beyond `depth`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn words(codes: &[u8], depth: usize, row: usize, column: usize) -> [__m512i; 16] {
    let mut rows = [_mm512_setzero_si512(); 16];
    for (lane, out) in rows.iter_mut().enumerate() {
        *out = load_bytes(&codes[(row + lane) * depth + column..(row + lane + 1) * depth]);
    }
    transpose(rows)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn panel_f32(job: &PanelF32<'_>, out: &mut [f32]) {
    match job.levels {
        Levels::Integers => panel_f32_by::<false>(job, load16(&[0.0; 16]), out),
        Levels::Table(table) => panel_f32_by::<true>(job, load16(table), out),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn panel_f32_by<const TABLE: bool>(job: &PanelF32<'_>, table: __m512, out: &mut [f32]) {
    let byte = _mm512_set1_epi32(255);
    for half in [0, 16] {
        // Groups change rarely: their scales stay in registers.
        let (mut group, mut scale, mut center) = (u32::MAX, table, table);
        for column in (0..job.depth).step_by(64) {
            let words = words(job.codes, job.depth, half, column);
            let quads = out[column * LANES..].chunks_mut(4 * LANES).zip(job.groups[column..].chunks(4));
            for (word, (out, groups)) in words.iter().zip(quads) {
                let mut word = *word;
                for (out, &g) in out.as_chunks_mut::<LANES>().0.iter_mut().zip(groups) {
                    if g != group {
                        let start = g as usize * LANES + half;
                        (scale, center) = (load_half(&job.scales[start..]), load_half(&job.centers[start..]));
                        group = g;
                    }
                    let level = if TABLE {
                        _mm512_permutexvar_ps(word, table)
                    } else {
                        _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_and_si512(word, byte)), center)
                    };
                    let value = _mm512_mul_ps(level, scale);
                    // SAFETY: the array has 32 values, of which this is one half.
                    unsafe { _mm512_storeu_ps(out[half..].as_mut_ptr(), value) };
                    word = _mm512_srli_epi32::<8>(word);
                }
            }
        }
    }
}

/// The first sixteen values of a slice that has as many.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_half(values: &[f32]) -> __m512 {
    let values = &values[..16];
    // SAFETY: the slice has 16 values.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn panel_i8(codes: &[u8], depth: usize, out: &mut [u8]) {
    for half in [0, 16] {
        for column in (0..depth).step_by(64) {
            let words = words(codes, depth, half, column);
            let quads = out[column * LANES..].as_chunks_mut::<{ LANES * 4 }>().0;
            for (word, quad) in words.iter().zip(quads) {
                store_half(*word, quad, half);
            }
        }
    }
}

/// Codes of sixteen rows, one half of a quad of columns.
#[inline]
#[target_feature(enable = "avx512f")]
fn store_half(word: __m512i, quad: &mut [u8; LANES * 4], half: usize) {
    let out = &mut quad[half * 4..half * 4 + 64];
    // SAFETY: the slice has 64 bytes.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), word) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn panel_nibbles(job: &PanelNibbles<'_>, out: &mut [u8]) {
    let low = _mm512_set1_epi8(15);
    for half in [0, 16] {
        for column in (0..job.depth).step_by(128) {
            let mut rows = [_mm512_setzero_si512(); 16];
            let take = (job.depth - column).div_ceil(2).min(64);
            for (lane, out) in rows.iter_mut().enumerate().take(job.rows.saturating_sub(half)) {
                let row = &job.codes[(half + lane) * job.row_bytes..][..job.row_bytes];
                let start = (job.start + column) / 2;
                *out = load_bytes(row.get(start..row.len().min(start + take)).unwrap_or_default());
            }
            let quads = out[column * LANES..].as_chunks_mut::<{ LANES * 4 }>().0;
            let (pairs, odd) = quads.as_chunks_mut::<2>();
            debug_assert!(odd.is_empty(), "a panel of nibbles has whole words of eight columns");
            for (word, [even, odd]) in transpose(rows).iter().zip(pairs) {
                store_half(_mm512_and_si512(*word, low), even, half);
                store_half(_mm512_and_si512(_mm512_srli_epi16::<4>(*word), low), odd, half);
            }
        }
    }
}

/// Calls a tile kernel with the number of tokens as a constant.
macro_rules! by_tokens {
    ($tokens:expr, $kernel:ident, $($argument:expr),+) => {
        match $tokens {
            1 => $kernel::<1>($($argument),+),
            2 => $kernel::<2>($($argument),+),
            3 => $kernel::<3>($($argument),+),
            4 => $kernel::<4>($($argument),+),
            5 => $kernel::<5>($($argument),+),
            6 => $kernel::<6>($($argument),+),
            7 => $kernel::<7>($($argument),+),
            8 => $kernel::<8>($($argument),+),
            9 => $kernel::<9>($($argument),+),
            10 => $kernel::<10>($($argument),+),
            11 => $kernel::<11>($($argument),+),
            _ => $kernel::<12>($($argument),+),
        }
    };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn tile_f32(a: &[f32], panel: &[f32], c: &mut [f32]) {
    by_tokens!(c.len() / LANES, tile_f32_of, a, panel, c);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn tile_f32_of<const T: usize>(a: &[f32], panel: &[f32], c: &mut [f32]) {
    let c = c.as_chunks_mut::<LANES>().0;
    assert!(c.len() == T, "a tile of {T} tokens");
    let mut sums = [[_mm512_set1_ps(0.0); 2]; T];
    for (sums, c) in sums.iter_mut().zip(c.iter()) {
        // SAFETY: the array has 32 values.
        *sums = unsafe { [_mm512_loadu_ps(c.as_ptr()), _mm512_loadu_ps(c[16..].as_ptr())] };
    }
    for (a, w) in a.as_chunks::<T>().0.iter().zip(panel.as_chunks::<LANES>().0) {
        // SAFETY: the array has 32 values.
        let w = unsafe { [_mm512_loadu_ps(w.as_ptr()), _mm512_loadu_ps(w[16..].as_ptr())] };
        for t in 0..T {
            let a = _mm512_set1_ps(a[t]);
            sums[t][0] = _mm512_fmadd_ps(a, w[0], sums[t][0]);
            sums[t][1] = _mm512_fmadd_ps(a, w[1], sums[t][1]);
        }
    }
    for (sums, c) in sums.iter().zip(c) {
        // SAFETY: the array has 32 values.
        unsafe {
            _mm512_storeu_ps(c.as_mut_ptr(), sums[0]);
            _mm512_storeu_ps(c[16..].as_mut_ptr(), sums[1]);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn tile_i8(job: &TileI8<'_>, c: &mut [f32]) {
    by_tokens!(job.tokens, tile_i8_of, job, c);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn tile_i8_of<const T: usize>(job: &TileI8<'_>, c: &mut [f32]) {
    let c = c.as_chunks_mut::<LANES>().0;
    assert!(c.len() == T, "a tile of {T} tokens");
    let groups = job
        .a
        .chunks_exact(job.quads * T * 4)
        .zip(job.panel.chunks_exact(job.quads * LANES * 4))
        .zip(job.steps.as_chunks::<T>().0.iter().zip(job.sums.as_chunks::<T>().0))
        .zip(job.scales.as_chunks::<LANES>().0.iter().zip(job.centers.as_chunks::<LANES>().0));
    for (((a, panel), (steps, sums)), (scales, centers)) in groups {
        let mut dots = [[_mm512_setzero_si512(); 2]; T];
        for (a, w) in a.as_chunks::<4>().0.as_chunks::<T>().0.iter().zip(panel.as_chunks::<{ LANES * 4 }>().0)
        {
            // SAFETY: the array has 128 bytes.
            let w = unsafe {
                [_mm512_loadu_si512(w.as_ptr().cast()), _mm512_loadu_si512(w[64..].as_ptr().cast())]
            };
            for t in 0..T {
                let a = _mm512_set1_epi32(i32::from_ne_bytes(a[t].map(i8::cast_unsigned)));
                dots[t][0] = _mm512_dpbusd_epi32(dots[t][0], w[0], a);
                dots[t][1] = _mm512_dpbusd_epi32(dots[t][1], w[1], a);
            }
        }
        for half in 0..2 {
            // SAFETY: the arrays have 32 values, of which these are one half.
            let (scale, center) = unsafe {
                (
                    _mm512_loadu_ps(scales[half * 16..].as_ptr()),
                    _mm512_loadu_si512(centers[half * 16..].as_ptr().cast()),
                )
            };
            for t in 0..T {
                let out = &mut c[t][half * 16..half * 16 + 16];
                let taken = _mm512_mullo_epi32(center, _mm512_set1_epi32(sums[t]));
                let dot = _mm512_cvtepi32_ps(_mm512_sub_epi32(dots[t][half], taken));
                // SAFETY: the slice has 16 values.
                unsafe {
                    let before = _mm512_loadu_ps(out.as_ptr());
                    let scaled = _mm512_mul_ps(dot, _mm512_set1_ps(steps[t]));
                    _mm512_storeu_ps(out.as_mut_ptr(), _mm512_fmadd_ps(scaled, scale, before));
                }
            }
        }
    }
}
