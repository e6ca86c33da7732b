//! Encoders in AVX2: eight lanes.
//!
//! Neighbours: the algorithms are in [`crate::kernel::encode`].

use half::{bf16, f16};
use std::{
    arch::x86_64::{
        __m256, __m256i, _CMP_LT_OQ, _mm_cvtss_f32, _mm_loadu_si128, _mm_max_ps, _mm_min_ps, _mm_movehl_ps,
        _mm_shuffle_ps, _mm_storel_epi64, _mm256_add_epi32, _mm256_add_ps, _mm256_and_ps, _mm256_and_si256,
        _mm256_andnot_ps, _mm256_blendv_ps, _mm256_castps_si256, _mm256_castps256_ps128, _mm256_castsi256_ps,
        _mm256_castsi256_si128, _mm256_cmp_ps, _mm256_cvtepi32_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps,
        _mm256_cvtps_ph, _mm256_cvttps_epi32, _mm256_div_ps, _mm256_extractf128_ps, _mm256_i32gather_epi32,
        _mm256_i32gather_ps, _mm256_loadu_ps, _mm256_max_ps, _mm256_min_ps, _mm256_movemask_ps,
        _mm256_mul_ps, _mm256_or_ps, _mm256_permutevar8x32_epi32, _mm256_round_ps, _mm256_set1_epi32,
        _mm256_set1_ps, _mm256_setr_epi8, _mm256_setr_epi32, _mm256_shuffle_epi8, _mm256_slli_epi32,
        _mm256_sqrt_ps, _mm256_srli_epi32, _mm256_storeu_ps, _mm256_sub_epi32, _mm256_sub_ps,
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
    Isa::Avx2.is_available().then_some(&TABLE)
}

static TABLE: Encoders = Encoders {
    lanes: Eight::WIDTH,
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

/// Eight f32.
#[derive(Clone, Copy)]
struct Eight(__m256);

/// An operator, by the instruction of the same name.
macro_rules! operator {
    ($trait:ident, $method:ident, $instruction:ident) => {
        impl $trait for Eight {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: the type is private, and used only by the functions of this file that enable the features.
                Self(unsafe { $instruction(self.0, other.0) })
            }
        }
    };
}

operator!(Add, add, _mm256_add_ps);
operator!(Sub, sub, _mm256_sub_ps);
operator!(Mul, mul, _mm256_mul_ps);
operator!(Div, div, _mm256_div_ps);

/// Of each of 32 cells the threshold.
static THRESHOLDS: [f32; nf4::CELLS] = {
    let (mut thresholds, mut cell) = ([0f32; nf4::CELLS], 0);
    while cell < nf4::CELLS {
        thresholds[cell] = nf4::LOOKUP[cell].0;
        cell += 1;
    }
    thresholds
};

/// Of each of 32 cells the code below its threshold.
static BELOW: [i32; nf4::CELLS] = {
    let (mut codes, mut cell) = ([0i32; nf4::CELLS], 0);
    while cell < nf4::CELLS {
        codes[cell] = nf4::LOOKUP[cell].1 as i32;
        cell += 1;
    }
    codes
};

impl Eight {
    /// The NF4 code of each lane, as integers.
    #[inline(always)]
    fn quantiles(self) -> __m256i {
        // SAFETY: as for the operators; cells are 0 to 31, as many as the tables have entries.
        unsafe {
            let inside =
                _mm256_min_ps(_mm256_max_ps(self.0, _mm256_set1_ps(-1.0)), _mm256_set1_ps(nf4::LAST));
            let cell = _mm256_cvttps_epi32(_mm256_mul_ps(
                _mm256_add_ps(inside, _mm256_set1_ps(1.0)),
                _mm256_set1_ps(nf4::CELLS as f32 / 2.0),
            ));
            let threshold = _mm256_i32gather_ps::<4>(THRESHOLDS.as_ptr(), cell);
            let below = _mm256_i32gather_epi32::<4>(BELOW.as_ptr(), cell);
            // All ones where the upper level is nearer: minus one.
            let above = _mm256_cmp_ps::<_CMP_LT_OQ>(threshold, self.0);
            _mm256_sub_epi32(below, _mm256_castps_si256(above))
        }
    }

    /// The low byte of each lane, into 8 bytes.
    #[inline(always)]
    fn bytes(lanes: __m256i, into: &mut [u8]) {
        assert!(into.len() >= 8);
        // SAFETY: as for the operators; 8 bytes were just checked.
        unsafe {
            let low = _mm256_setr_epi8(
                0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1,
                -1, -1, -1, -1, -1, -1, -1,
            );
            let quads = _mm256_shuffle_epi8(lanes, low);
            let first = _mm256_permutevar8x32_epi32(quads, _mm256_setr_epi32(0, 4, 0, 0, 0, 0, 0, 0));
            _mm_storel_epi64(into.as_mut_ptr().cast(), _mm256_castsi256_si128(first));
        }
    }
}

impl Lanes for Eight {
    const WIDTH: usize = 8;
    type Mask = __m256;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: as for the operators, here and below.
        Self(unsafe { _mm256_set1_ps(value) })
    }

    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        assert!(from.len() >= 8);
        // SAFETY: 8 numbers were just checked.
        Self(unsafe { _mm256_loadu_ps(from.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, into: &mut [f32]) {
        assert!(into.len() >= 8);
        // SAFETY: 8 numbers were just checked.
        unsafe { _mm256_storeu_ps(into.as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn least(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn most(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn magnitude(self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0) })
    }

    #[inline(always)]
    fn smallest(self) -> f32 {
        // SAFETY: as above.
        unsafe {
            let four = _mm_min_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_min_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_min_ps(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: as above.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ps(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: as above. 8: to the nearest, half to even, no exceptions.
        Self(unsafe { _mm256_round_ps::<8>(self.0) })
    }

    #[inline(always)]
    fn floor(self) -> Self {
        // SAFETY: as above. 9: down, no exceptions.
        Self(unsafe { _mm256_round_ps::<9>(self.0) })
    }

    #[inline(always)]
    fn root(self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_sqrt_ps(self.0) })
    }

    #[inline(always)]
    fn exponent(self) -> Self {
        // SAFETY: as above.
        unsafe {
            let biased = _mm256_srli_epi32::<23>(_mm256_castps_si256(self.0));
            Self(_mm256_cvtepi32_ps(_mm256_sub_epi32(biased, _mm256_set1_epi32(127))))
        }
    }

    #[inline(always)]
    fn fraction(self) -> Self {
        // SAFETY: as above.
        unsafe {
            let digits = _mm256_and_ps(self.0, _mm256_castsi256_ps(_mm256_set1_epi32(0x007f_ffff)));
            Self(_mm256_or_ps(digits, _mm256_set1_ps(1.0)))
        }
    }

    #[inline(always)]
    fn power_of_two(self) -> Self {
        // SAFETY: as above.
        unsafe {
            let biased = _mm256_add_epi32(_mm256_cvttps_epi32(self.0), _mm256_set1_epi32(127));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased)))
        }
    }

    #[inline(always)]
    fn stored(self, scales: ScaleType) -> Self {
        // SAFETY: as above. 0: to the nearest, half to even.
        unsafe {
            match scales {
                ScaleType::F32 => self,
                ScaleType::F16 => Self(_mm256_cvtph_ps(_mm256_cvtps_ph::<0>(self.0))),
                ScaleType::BF16 => {
                    let bits = _mm256_castps_si256(self.0);
                    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                    let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
                    Self(_mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32(-0x1_0000))))
                }
            }
        }
    }

    #[inline(always)]
    fn below(self, other: Self) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0) }
    }

    #[inline(always)]
    fn choose(mask: __m256, yes: Self, no: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_blendv_ps(no.0, yes.0, mask) })
    }

    #[inline(always)]
    fn both(a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_and_ps(a, b) }
    }

    #[inline(always)]
    fn any(mask: __m256) -> bool {
        // SAFETY: as above.
        unsafe { _mm256_movemask_ps(mask) != 0 }
    }

    #[inline(always)]
    fn low_bytes(self, into: &mut [u8]) {
        // SAFETY: as above.
        Self::bytes(unsafe { _mm256_castps_si256(self.0) }, into);
    }

    #[inline(always)]
    fn level(self) -> Self {
        // SAFETY: as above; codes are below 16.
        Self(unsafe { _mm256_i32gather_ps::<4>(nf4::TABLE.as_ptr(), self.quantiles()) })
    }

    #[inline(always)]
    fn level_codes(self, into: &mut [u8]) {
        Self::bytes(self.quantiles(), into);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn widen_f16(from: &[f16], out: &mut [f32]) {
    let ((from8, from_rest), (out8, out_rest)) = (from.as_chunks::<8>(), out.as_chunks_mut::<8>());
    for (from, out) in from8.iter().zip(out8) {
        // SAFETY: the arrays have 8 numbers each.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())));
        }
    }
    for (out, half) in out_rest.iter_mut().zip(from_rest) {
        *out = half.to_f32();
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn widen_bf16(from: &[bf16], out: &mut [f32]) {
    let ((from8, from_rest), (out8, out_rest)) = (from.as_chunks::<8>(), out.as_chunks_mut::<8>());
    for (from, out) in from8.iter().zip(out8) {
        // SAFETY: the arrays have 8 numbers each.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            _mm256_storeu_ps(out.as_mut_ptr(), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits)));
        }
    }
    for (out, half) in out_rest.iter_mut().zip(from_rest) {
        *out = half.to_f32();
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn peaks(x: &[f32], span: usize, out: &mut [f32]) -> bool {
    plain::peaks::<Eight>(x, span, out)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn extremes(x: &[f32], span: usize, low: &mut [f32], high: &mut [f32]) -> bool {
    plain::extremes::<Eight>(x, span, low, high)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn grids(job: &Spread, low: &[f32], high: &[f32], scales: &mut [f32], zeros: &mut [f32]) -> bool {
    plain::grids(job, low, high, scales, zeros)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn search(job: &Tile<'_>, steps: u16, scales: &mut [f32], zeros: &mut [f32]) {
    search::search::<Eight>(job, steps, scales, zeros);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn refine(job: &Tile<'_>, how: Hqq, refining: &mut Refining, scales: &mut [f32], zeros: &mut [f32]) {
    hqq::refine::<Eight>(job, how, refining, scales, zeros);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn codes(job: &Codes<'_>, x: &[f32], out: &mut [u8]) {
    plain::codes::<Eight>(job, x, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn pack(codes: &[u8], bits: Bits, out: &mut [u8]) {
    plain::pack(codes, bits, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn levels(x: &[f32], scale: f32, out: &mut [u8]) {
    plain::levels::<Eight>(x, scale, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn pack_high(codes: &[u8], out: &mut [u8]) {
    plain::pack_high(codes, out);
}
