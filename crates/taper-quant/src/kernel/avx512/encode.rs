//! Encoders in AVX-512: sixteen lanes.
//!
//! ```text
//! NF4   cell = ⌊16 (u + 1)⌋ of 32; two vpermt2 look up its threshold and the code below it, one compare adds 1
//! ```
//!
//! Neighbours: the algorithms are in [`crate::kernel::encode`].

use half::{bf16, f16};
use std::{
    arch::x86_64::{
        __m512, __m512i, __mmask16, _CMP_LT_OQ, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_SRC, _mm_storeu_si128,
        _mm256_loadu_si256, _mm512_abs_ps, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512,
        _mm512_castps_si512, _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_cvtepi32_epi8,
        _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_cvtps_ph, _mm512_cvttps_epi32, _mm512_div_ps,
        _mm512_getexp_ps, _mm512_getmant_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_add_epi32,
        _mm512_mask_blend_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_permutex2var_epi32,
        _mm512_permutex2var_ps, _mm512_permutexvar_ps, _mm512_reduce_max_ps, _mm512_reduce_min_ps,
        _mm512_roundscale_ps, _mm512_scalef_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_slli_epi32,
        _mm512_sqrt_ps, _mm512_srli_epi32, _mm512_storeu_ps, _mm512_sub_ps,
    },
    ops::{Add, Div, Mul, Sub},
};

use super::super::Isa;
use super::super::encode::{
    Codes, Encoders, Spread, Tile,
    hqq::{self, Refining},
    lanes::Lanes,
    plain, search,
};
use crate::{
    code::nf4,
    fit::Hqq,
    scheme::{Bits, ScaleType},
};

/// The table, where the machine has every feature that the functions of this file enable.
pub(in crate::kernel) fn table() -> Option<&'static Encoders> {
    (Isa::Avx512.is_available() && is_x86_feature_detected!("avx512dq")).then_some(&TABLE)
}

static TABLE: Encoders = Encoders {
    lanes: Sixteen::WIDTH,
    // SAFETY: this table is only handed out after the features were detected, here and below.
    widen_f16: |from, out| unsafe { widen_f16(from, out) },
    // SAFETY: as above.
    widen_bf16: |from, out| unsafe { widen_bf16(from, out) },
    // SAFETY: as above.
    peaks: |x, span, out| unsafe { peaks(x, span, out) },
    // SAFETY: as above.
    extremes: |x, span, low, high| unsafe { extremes(x, span, low, high) },
    // SAFETY: as above.
    grids: |job, low, high, scales, zeros| unsafe { grids(job, low, high, scales, zeros) },
    // SAFETY: as above.
    search: |job, steps, scales, zeros| unsafe { search(job, steps, scales, zeros) },
    // SAFETY: as above.
    refine: |job, how, refining, scales, zeros| unsafe { refine(job, how, refining, scales, zeros) },
    // SAFETY: as above.
    codes: |job, x, out| unsafe { codes(job, x, out) },
    // SAFETY: as above.
    pack: |codes, bits, out| unsafe { pack(codes, bits, out) },
    // SAFETY: as above.
    levels: |x, scale, out| unsafe { levels(x, scale, out) },
    // SAFETY: as above.
    pack_high: |codes, out| unsafe { pack_high(codes, out) },
};

/// Sixteen f32.
#[derive(Clone, Copy)]
struct Sixteen(__m512);

/// An operator, by the instruction of the same name.
macro_rules! operator {
    ($trait:ident, $method:ident, $instruction:ident) => {
        impl $trait for Sixteen {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: the type is private, and used only by the functions of this file that enable the features.
                Self(unsafe { $instruction(self.0, other.0) })
            }
        }
    };
}

operator!(Add, add, _mm512_add_ps);
operator!(Sub, sub, _mm512_sub_ps);
operator!(Mul, mul, _mm512_mul_ps);
operator!(Div, div, _mm512_div_ps);

/// For each of 32 cells, the threshold and the code below it.
const fn halves() -> ([[f32; 16]; 2], [[u32; 16]; 2]) {
    let (mut thresholds, mut codes) = ([[0f32; 16]; 2], [[0u32; 16]; 2]);
    let mut cell = 0;
    while cell < nf4::CELLS {
        (thresholds[cell / 16][cell % 16], codes[cell / 16][cell % 16]) =
            (nf4::LOOKUP[cell].0, nf4::LOOKUP[cell].1 as u32);
        cell += 1;
    }
    (thresholds, codes)
}

static THRESHOLDS: [[f32; 16]; 2] = halves().0;
static BELOW: [[u32; 16]; 2] = halves().1;

impl Sixteen {
    /// The NF4 code of each lane, as integers.
    #[inline(always)]
    fn quantiles(self) -> __m512i {
        // SAFETY: as for the operators; the tables have 16 numbers each.
        unsafe {
            let inside =
                _mm512_min_ps(_mm512_max_ps(self.0, _mm512_set1_ps(-1.0)), _mm512_set1_ps(nf4::LAST));
            let cell = _mm512_cvttps_epi32(_mm512_mul_ps(
                _mm512_add_ps(inside, _mm512_set1_ps(1.0)),
                _mm512_set1_ps(nf4::CELLS as f32 / 2.0),
            ));
            let load = |half: &[f32; 16]| _mm512_loadu_ps(half.as_ptr());
            let threshold = _mm512_permutex2var_ps(load(&THRESHOLDS[0]), cell, load(&THRESHOLDS[1]));
            let load = |half: &[u32; 16]| _mm512_loadu_si512(half.as_ptr().cast());
            let below = _mm512_permutex2var_epi32(load(&BELOW[0]), cell, load(&BELOW[1]));
            let above = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(threshold, self.0);
            _mm512_mask_add_epi32(below, above, below, _mm512_set1_epi32(1))
        }
    }
}

impl Lanes for Sixteen {
    const WIDTH: usize = 16;
    type Mask = __mmask16;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: as for the operators, here and below.
        Self(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        assert!(from.len() >= 16);
        // SAFETY: 16 numbers were just checked.
        Self(unsafe { _mm512_loadu_ps(from.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, into: &mut [f32]) {
        assert!(into.len() >= 16);
        // SAFETY: 16 numbers were just checked.
        unsafe { _mm512_storeu_ps(into.as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn least(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn most(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn magnitude(self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_abs_ps(self.0) })
    }

    #[inline(always)]
    fn smallest(self) -> f32 {
        // SAFETY: as above.
        unsafe { _mm512_reduce_min_ps(self.0) }
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: as above.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }

    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: as above. 8: to the nearest, half to even, no exceptions.
        Self(unsafe { _mm512_roundscale_ps::<8>(self.0) })
    }

    #[inline(always)]
    fn floor(self) -> Self {
        // SAFETY: as above. 9: down, no exceptions.
        Self(unsafe { _mm512_roundscale_ps::<9>(self.0) })
    }

    #[inline(always)]
    fn root(self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_sqrt_ps(self.0) })
    }

    #[inline(always)]
    fn exponent(self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_getexp_ps(self.0) })
    }

    #[inline(always)]
    fn fraction(self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_getmant_ps::<_MM_MANT_NORM_1_2, _MM_MANT_SIGN_SRC>(self.0) })
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_scalef_ps(_mm512_set1_ps(1.0), self.0) })
    }

    #[inline(always)]
    fn stored(self, scales: ScaleType) -> Self {
        // SAFETY: as above. 8: to the nearest, half to even, no exceptions.
        unsafe {
            match scales {
                ScaleType::F32 => self,
                ScaleType::F16 => Self(_mm512_cvtph_ps(_mm512_cvtps_ph::<8>(self.0))),
                ScaleType::BF16 => {
                    let bits = _mm512_castps_si512(self.0);
                    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                    let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
                    Self(_mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32(-0x1_0000))))
                }
            }
        }
    }

    #[inline(always)]
    fn below(self, other: Self) -> __mmask16 {
        // SAFETY: as above.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0) }
    }

    #[inline(always)]
    fn choose(mask: __mmask16, yes: Self, no: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_mask_blend_ps(mask, no.0, yes.0) })
    }

    #[inline(always)]
    fn both(a: __mmask16, b: __mmask16) -> __mmask16 {
        a & b
    }

    #[inline(always)]
    fn any(mask: __mmask16) -> bool {
        mask != 0
    }

    #[inline(always)]
    fn low_bytes(self, into: &mut [u8]) {
        assert!(into.len() >= 16);
        // SAFETY: as above; 16 bytes were just checked.
        unsafe {
            _mm_storeu_si128(into.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_castps_si512(self.0)));
        }
    }

    #[inline(always)]
    fn level(self) -> Self {
        // SAFETY: as above; the table has 16 numbers.
        Self(unsafe { _mm512_permutexvar_ps(self.quantiles(), _mm512_loadu_ps(nf4::TABLE.as_ptr())) })
    }

    #[inline(always)]
    fn level_codes(self, into: &mut [u8]) {
        assert!(into.len() >= 16);
        // SAFETY: as above; 16 bytes were just checked.
        unsafe { _mm_storeu_si128(into.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(self.quantiles())) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
fn widen_f16(from: &[f16], out: &mut [f32]) {
    let ((from16, from_rest), (out16, out_rest)) = (from.as_chunks::<16>(), out.as_chunks_mut::<16>());
    for (from, out) in from16.iter().zip(out16) {
        // SAFETY: the arrays have 16 numbers each.
        unsafe {
            _mm512_storeu_ps(out.as_mut_ptr(), _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())));
        }
    }
    for (out, half) in out_rest.iter_mut().zip(from_rest) {
        *out = half.to_f32();
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
fn widen_bf16(from: &[bf16], out: &mut [f32]) {
    let ((from16, from_rest), (out16, out_rest)) = (from.as_chunks::<16>(), out.as_chunks_mut::<16>());
    for (from, out) in from16.iter().zip(out16) {
        // SAFETY: the arrays have 16 numbers each.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_storeu_ps(out.as_mut_ptr(), _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)));
        }
    }
    for (out, half) in out_rest.iter_mut().zip(from_rest) {
        *out = half.to_f32();
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
fn peaks(x: &[f32], span: usize, out: &mut [f32]) -> bool {
    plain::peaks::<Sixteen>(x, span, out)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
fn extremes(x: &[f32], span: usize, low: &mut [f32], high: &mut [f32]) -> bool {
    plain::extremes::<Sixteen>(x, span, low, high)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
fn grids(job: &Spread, low: &[f32], high: &[f32], scales: &mut [f32], zeros: &mut [f32]) -> bool {
    plain::grids(job, low, high, scales, zeros)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
fn search(job: &Tile<'_>, steps: u16, scales: &mut [f32], zeros: &mut [f32]) {
    search::search::<Sixteen>(job, steps, scales, zeros);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
fn refine(job: &Tile<'_>, how: Hqq, refining: &mut Refining, scales: &mut [f32], zeros: &mut [f32]) {
    hqq::refine::<Sixteen>(job, how, refining, scales, zeros);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
fn codes(job: &Codes<'_>, x: &[f32], out: &mut [u8]) {
    plain::codes::<Sixteen>(job, x, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
fn pack(codes: &[u8], bits: Bits, out: &mut [u8]) {
    plain::pack(codes, bits, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
fn levels(x: &[f32], scale: f32, out: &mut [u8]) {
    plain::levels::<Sixteen>(x, scale, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
fn pack_high(codes: &[u8], out: &mut [u8]) {
    plain::pack_high(codes, out);
}
