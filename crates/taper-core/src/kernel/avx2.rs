//! AVX2 with FMA and F16C: eight values side by side.
//!
//! Neighbours: [`super::loops`] are the loops.

use half::{bf16, f16};
use std::arch::x86_64::{
    __m256, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm256_add_pd, _mm256_castps256_ps128,
    _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_cvtps_pd, _mm256_extractf128_ps,
    _mm256_fmadd_ps, _mm256_loadu_pd, _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_set1_ps,
    _mm256_shuffle_ps, _mm256_slli_epi32, _mm256_storeu_pd, _mm256_storeu_ps, _mm256_unpackhi_ps,
    _mm256_unpacklo_ps,
};

use super::{Isa, table::table, vector::Vector};

/// One register.
#[derive(Clone, Copy)]
pub(super) struct Eight(__m256);

// SAFETY: the instructions are those of `Isa::Avx2`.
unsafe impl Vector for Eight {
    const WIDTH: usize = 8;
    const TOKENS: usize = 6;
    const FEW: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller has the instructions; so everywhere below, where it also promises eight values.
        Self(unsafe { _mm256_set1_ps(x) })
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_loadu_ps(p) })
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) })
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        // SAFETY: as above.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide)))
        }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(p, self.0) }
    }

    #[inline(always)]
    unsafe fn add_to(self, p: *mut f64) {
        // SAFETY: as above.
        unsafe {
            let low = _mm256_cvtps_pd(_mm256_castps256_ps128(self.0));
            let high = _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(self.0));
            _mm256_storeu_pd(p, _mm256_add_pd(_mm256_loadu_pd(p), low));
            _mm256_storeu_pd(p.add(4), _mm256_add_pd(_mm256_loadu_pd(p.add(4)), high));
        }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_fmadd_ps(a.0, b.0, self.0) })
    }

    #[inline(always)]
    unsafe fn transpose(block: &mut [Self; 16]) {
        // SAFETY: as above.
        unsafe {
            let mut t = [block[0].0; 8];
            // Within 128-bit lanes: 4 × 4 values of each four rows.
            for i in [0, 4] {
                let [a, b, c, d] = [block[i].0, block[i + 1].0, block[i + 2].0, block[i + 3].0];
                let (ab_low, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
                let (cd_low, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
                t[i] = _mm256_shuffle_ps::<0x44>(ab_low, cd_low);
                t[i + 1] = _mm256_shuffle_ps::<0xee>(ab_low, cd_low);
                t[i + 2] = _mm256_shuffle_ps::<0x44>(ab_high, cd_high);
                t[i + 3] = _mm256_shuffle_ps::<0xee>(ab_high, cd_high);
            }
            for j in 0..4 {
                block[j].0 = _mm256_permute2f128_ps::<0x20>(t[j], t[4 + j]);
                block[4 + j].0 = _mm256_permute2f128_ps::<0x31>(t[j], t[4 + j]);
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch<T>(p: *const T) {
        // SAFETY: as above; a prefetch of any address is allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}

table!(Eight, Isa::Avx2, "avx2,fma,f16c", None);
