//! AVX-512: sixteen values side by side, and products of pairs of bfloat16 where the machine has them.
//!
//! Neighbours: [`super::loops`] are the loops; [`pairs`] has those of bfloat16.

mod pairs;

use half::{bf16, f16};
use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _mm_prefetch, _mm256_castpd_ps, _mm256_loadu_si256, _mm512_add_pd,
    _mm512_castps_pd, _mm512_castps_si512, _mm512_castps512_ps256, _mm512_castsi512_ps,
    _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_cvtps_pd, _mm512_extractf64x4_pd, _mm512_fmadd_ps,
    _mm512_loadu_pd, _mm512_loadu_ps, _mm512_set1_ps, _mm512_shuffle_i32x4, _mm512_slli_epi32,
    _mm512_storeu_pd, _mm512_storeu_ps, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32,
    _mm512_unpacklo_epi64,
};

use super::{Isa, table::table, vector::Vector};

/// One register.
#[derive(Clone, Copy)]
pub(super) struct Sixteen(__m512);

/// Sixteen rows of sixteen 32-bit words, turned over.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(r: [__m512i; 16]) -> [__m512i; 16] {
    let mut t = r;
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
    let mut out = t;
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

// SAFETY: the instructions are those of `Isa::Avx512`.
unsafe impl Vector for Sixteen {
    const WIDTH: usize = 16;
    const TOKENS: usize = 12;
    const FEW: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller has the instructions; so everywhere below, where it also promises sixteen values.
        Self(unsafe { _mm512_set1_ps(x) })
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_loadu_ps(p) })
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) })
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        // SAFETY: as above.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(p, self.0) }
    }

    #[inline(always)]
    unsafe fn add_to(self, p: *mut f64) {
        // SAFETY: as above.
        unsafe {
            let low = _mm512_cvtps_pd(_mm512_castps512_ps256(self.0));
            let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0));
            let high = _mm512_cvtps_pd(_mm256_castpd_ps(high));
            _mm512_storeu_pd(p, _mm512_add_pd(_mm512_loadu_pd(p), low));
            _mm512_storeu_pd(p.add(8), _mm512_add_pd(_mm512_loadu_pd(p.add(8)), high));
        }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
    }

    #[inline(always)]
    unsafe fn transpose(block: &mut [Self; 16]) {
        // SAFETY: as above.
        unsafe {
            // Loops, not closures: a closure does not inherit the instructions, so nothing in it would be inlined.
            let mut words = [_mm512_castps_si512(block[0].0); 16];
            for i in 0..16 {
                words[i] = _mm512_castps_si512(block[i].0);
            }
            let words = transpose(words);
            for i in 0..16 {
                block[i].0 = _mm512_castsi512_ps(words[i]);
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch<T>(p: *const T) {
        // SAFETY: as above; a prefetch of any address is allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}

table!(Sixteen, Isa::Avx512, "avx512f,avx512bw,avx512vl,avx2,fma,f16c", Some(&pairs::PAIRS));
