//! Panels of 16 rows times tiles of tokens.
//!
//! ```text
//! f32    12 accumulators + 2 vectors of the panel + 1 broadcast of a token = 15 of 16 registers
//! i8      8 accumulators + 4 halves of the panel + 2 of a token
//! ```
//!
//! Neighbours: [`super::rows`] for one token.

use std::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_and_si256, _mm256_cvtepi32_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_mul_ps, _mm256_mullo_epi32, _mm256_set1_epi16,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_si256, _mm256_slli_epi16, _mm256_srai_epi16,
    _mm256_srli_epi16, _mm256_storeu_ps, _mm256_sub_epi32,
};

use crate::kernel::{PanelF32, TileI8, scalar};

/// Rows of a panel: two vectors of f32.
pub(super) const LANES: usize = 16;

/// Most tokens of an f32 tile.
pub(super) const TOKENS_F32: usize = 6;

/// Most tokens of an integer tile.
pub(super) const TOKENS_I8: usize = 4;

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn panel_f32(job: &PanelF32<'_>, out: &mut [f32]) {
    scalar::panel_f32_by::<LANES>(job, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn panel_i8(codes: &[u8], depth: usize, out: &mut [u8]) {
    scalar::panel_i8_by::<LANES>(codes, depth, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn tile_f32(a: &[f32], panel: &[f32], c: &mut [f32]) {
    match c.len() / LANES {
        1 => tile_f32_of::<1>(a, panel, c),
        2 => tile_f32_of::<2>(a, panel, c),
        3 => tile_f32_of::<3>(a, panel, c),
        4 => tile_f32_of::<4>(a, panel, c),
        5 => tile_f32_of::<5>(a, panel, c),
        _ => tile_f32_of::<6>(a, panel, c),
    }
}

#[target_feature(enable = "avx2,fma")]
fn tile_f32_of<const T: usize>(a: &[f32], panel: &[f32], c: &mut [f32]) {
    let c = c.as_chunks_mut::<LANES>().0;
    assert!(c.len() == T, "a tile of {T} tokens");
    let mut sums = [[_mm256_set1_ps(0.0); 2]; T];
    for (sums, c) in sums.iter_mut().zip(c.iter()) {
        // SAFETY: the array has 16 values.
        *sums = unsafe { [_mm256_loadu_ps(c.as_ptr()), _mm256_loadu_ps(c[8..].as_ptr())] };
    }
    for (a, w) in a.as_chunks::<T>().0.iter().zip(panel.as_chunks::<LANES>().0) {
        // SAFETY: the array has 16 values.
        let w = unsafe { [_mm256_loadu_ps(w.as_ptr()), _mm256_loadu_ps(w[8..].as_ptr())] };
        for t in 0..T {
            let a = _mm256_set1_ps(a[t]);
            sums[t][0] = _mm256_fmadd_ps(a, w[0], sums[t][0]);
            sums[t][1] = _mm256_fmadd_ps(a, w[1], sums[t][1]);
        }
    }
    for (sums, c) in sums.iter().zip(c) {
        // SAFETY: the array has 16 values.
        unsafe {
            _mm256_storeu_ps(c.as_mut_ptr(), sums[0]);
            _mm256_storeu_ps(c[8..].as_mut_ptr(), sums[1]);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn tile_i8(job: &TileI8<'_>, c: &mut [f32]) {
    match job.tokens {
        1 => tile_i8_of::<1>(job, c),
        2 => tile_i8_of::<2>(job, c),
        3 => tile_i8_of::<3>(job, c),
        _ => tile_i8_of::<4>(job, c),
    }
}

#[target_feature(enable = "avx2,fma")]
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
        let dots = dots::<T>(a, panel);
        for half in 0..2 {
            // SAFETY: the arrays have 16 values, of which these are one half.
            let (scale, center) = unsafe {
                (
                    _mm256_loadu_ps(scales[half * 8..].as_ptr()),
                    _mm256_loadu_si256(centers[half * 8..].as_ptr().cast()),
                )
            };
            for t in 0..T {
                let out = &mut c[t][half * 8..half * 8 + 8];
                let taken = _mm256_mullo_epi32(center, _mm256_set1_epi32(sums[t]));
                let dot = _mm256_cvtepi32_ps(_mm256_sub_epi32(dots[t][half], taken));
                // SAFETY: the slice has 8 values.
                unsafe {
                    let before = _mm256_loadu_ps(out.as_ptr());
                    let scaled = _mm256_mul_ps(dot, _mm256_set1_ps(steps[t]));
                    _mm256_storeu_ps(out.as_mut_ptr(), _mm256_fmadd_ps(scaled, scale, before));
                }
            }
        }
    }
}

/// Σ code · a of one group, for 16 rows and `T` tokens: bytes 0 and 2 of each word, then 1 and 3, in 16 bits.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn dots<const T: usize>(a: &[i8], panel: &[u8]) -> [[__m256i; 2]; T] {
    let even = _mm256_set1_epi16(255);
    let mut dots = [[_mm256_setzero_si256(); 2]; T];
    for (a, w) in a.as_chunks::<4>().0.as_chunks::<T>().0.iter().zip(panel.as_chunks::<{ LANES * 4 }>().0) {
        // SAFETY: the array has 64 bytes.
        let w =
            unsafe { [_mm256_loadu_si256(w.as_ptr().cast()), _mm256_loadu_si256(w[32..].as_ptr().cast())] };
        let w_even = [_mm256_and_si256(w[0], even), _mm256_and_si256(w[1], even)];
        let w_odd = [_mm256_srli_epi16::<8>(w[0]), _mm256_srli_epi16::<8>(w[1])];
        for t in 0..T {
            let a = _mm256_set1_epi32(i32::from_ne_bytes(a[t].map(i8::cast_unsigned)));
            let (a_even, a_odd) =
                (_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(a)), _mm256_srai_epi16::<8>(a));
            for v in 0..2 {
                dots[t][v] = _mm256_add_epi32(dots[t][v], _mm256_madd_epi16(w_even[v], a_even));
                dots[t][v] = _mm256_add_epi32(dots[t][v], _mm256_madd_epi16(w_odd[v], a_odd));
            }
        }
    }
    dots
}
