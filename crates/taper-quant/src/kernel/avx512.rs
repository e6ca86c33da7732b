//! AVX-512: F, BW, VL, VBMI and VNNI, with AVX2, FMA and F16C beneath.
//!
//! ```text
//! unpack    permb brings the bytes of eight codes into each 64-bit lane, multishift cuts them apart: any width, 64 a step
//! ```
//!
//! Neighbours: [`expand`] spreads the codes of panels, [`integers`] and [`floats`] multiply by them.

pub(super) mod encode;
mod expand;
mod floats;
mod integers;

use std::arch::x86_64::{
    __m512, __m512i, __mmask64, _mm_loadu_si128, _mm256_maskz_loadu_epi16, _mm512_and_si512,
    _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_cvtph_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_storeu_epi8, _mm512_mask_storeu_ps, _mm512_maskz_loadu_epi8, _mm512_mul_ps,
    _mm512_multishift_epi64_epi8, _mm512_permutexvar_epi8, _mm512_permutexvar_ps, _mm512_set1_epi8,
    _mm512_set1_ps, _mm512_storeu_ps, _mm512_storeu_si512, _mm512_sub_ps, _mm512_xor_si512,
};

use half::f16;

use super::{Bf16, Isa, Kernels, Stream, scalar};

/// For machines with every feature that the functions of this folder enable, those of [`Isa::Avx512`].
pub(super) fn table() -> &'static Kernels {
    if taper_core::kernel::features().bf16 { &WITH_BF16 } else { &TABLE }
}

/// Calls a tile kernel with the number of tokens as a constant.
macro_rules! by_tokens {
    ($tokens:expr, $kernel:ident, $($constant:tt),+; $($argument:expr),+) => {
        match $tokens {
            1 => $kernel::<$($constant),+, 1>($($argument),+),
            2 => $kernel::<$($constant),+, 2>($($argument),+),
            3 => $kernel::<$($constant),+, 3>($($argument),+),
            4 => $kernel::<$($constant),+, 4>($($argument),+),
            5 => $kernel::<$($constant),+, 5>($($argument),+),
            6 => $kernel::<$($constant),+, 6>($($argument),+),
            7 => $kernel::<$($constant),+, 7>($($argument),+),
            8 => $kernel::<$($constant),+, 8>($($argument),+),
            9 => $kernel::<$($constant),+, 9>($($argument),+),
            10 => $kernel::<$($constant),+, 10>($($argument),+),
            11 => $kernel::<$($constant),+, 11>($($argument),+),
            _ => $kernel::<$($constant),+, 12>($($argument),+),
        }
    };
}
use by_tokens;

static TABLE: Kernels = Kernels {
    isa: Isa::Avx512,
    tokens: 12,
    tokens_i8: [12; 2],
    // SAFETY: this table is only handed out after the features were detected, here and below.
    unpack: |row, stream, out| unsafe { unpack(row, stream, out) },
    // SAFETY: as above.
    widen: |halves, out| unsafe { widen(halves, out) },
    // SAFETY: as above.
    decode: |codes, center, scale, out| unsafe { decode(codes, center, scale, out) },
    // SAFETY: as above.
    lookup: |codes, levels, scale, out| unsafe { lookup(codes, levels, scale, out) },
    // SAFETY: as above.
    quantize: |x, out| unsafe { quantize(x, out) },
    // SAFETY: as above.
    expand: |job, out| unsafe { expand::expand(job, out) },
    // SAFETY: as above.
    expand_f32: |job, out| unsafe { expand::expand_f32(job, out) },
    bf16: None,
    unpacks_along: true,
    // SAFETY: as above.
    tile_i8: |job, c| unsafe { integers::tile_i8(job, c) },
    wide: None,
    // SAFETY: as above.
    few_f32: Some(|job, c| unsafe { floats::few_f32(job, c) }),
    // SAFETY: as above.
    tile_f32: |a, panels, stride, c| unsafe { floats::tile_f32(a, panels, stride, c) },
};

static WITH_BF16: Kernels = Kernels {
    bf16: Some(Bf16 {
        // SAFETY: as above, and bf16 products as well.
        expand: |job, out| unsafe { expand::expand_bf16(job, out) },
        // SAFETY: as above.
        tile: |job, c| unsafe { floats::tile_bf16(job, c) },
        // SAFETY: as above.
        few: |job, c| unsafe { floats::few_bf16(job, c) },
    }),
    ..TABLE
};

/// Sixteen values.
#[inline]
#[target_feature(enable = "avx512f")]
fn load16(values: &[f32; 16]) -> __m512 {
    // SAFETY: the array has 16 values.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

/// The lowest `count` bits of a mask of 64.
#[inline(always)]
fn first64(count: usize) -> __mmask64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// The lowest `count` bits of a mask of 16.
#[inline(always)]
fn first16(count: usize) -> u16 {
    if count >= 16 { u16::MAX } else { (1 << count) - 1 }
}

/// Up to 64 bytes of a slice; zeros beyond its end.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_bytes(bytes: &[u8]) -> __m512i {
    if bytes.len() >= 64 {
        // SAFETY: 64 bytes were just checked.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    } else {
        // SAFETY: only bytes within the slice are touched.
        unsafe { _mm512_maskz_loadu_epi8(first64(bytes.len()), bytes.as_ptr().cast()) }
    }
}

/// Up to 64 bytes into a slice.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn store_bytes(v: __m512i, out: &mut [u8]) {
    if out.len() >= 64 {
        // A whole store can be read back at once, one under a mask only after it has reached the cache.
        // SAFETY: 64 bytes were just checked.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), v) }
    } else {
        // SAFETY: only bytes within the slice are touched.
        unsafe { _mm512_mask_storeu_epi8(out.as_mut_ptr().cast(), first64(out.len()), v) }
    }
}

/// For each number of bits (at 0 nibbles with the first one high): where the bytes of each 64-bit lane come from, and at
/// which bits its eight codes begin.
static CUTS: [[[u8; 64]; 2]; 8] = {
    let mut cuts = [[[0u8; 64]; 2]; 8];
    let mut row = 0;
    while row < 8 {
        let bits = if row == 0 { 4 } else { row };
        let mut i = 0;
        while i < 64 {
            // Beyond the last code of seven bits there is nothing to take.
            let from = i / 8 * bits + i % 8;
            cuts[row][0][i] = if from < 64 { from as u8 } else { 63 };
            cuts[row][1][i] = (if row == 0 { (i % 8) ^ 1 } else { i % 8 } * bits) as u8;
            i += 1;
        }
        row += 1;
    }
    cuts
};

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn unpack(row: &[u8], stream: Stream, out: &mut [u8]) {
    let bits = stream.bits();
    if bits == 8 {
        let flip = _mm512_set1_epi8(if stream == Stream::Signed { i8::MIN } else { 0 });
        for (i, out) in out.chunks_mut(64).enumerate() {
            let bytes = load_bytes(row.get(i * 64..).unwrap_or_default());
            let present = row.len().saturating_sub(i * 64).min(out.len());
            store_bytes(_mm512_xor_si512(bytes, flip), &mut out[..present]);
            out[present..].fill(0);
        }
        return;
    }
    let [gather, shifts] = &CUTS[if stream == Stream::High { 0 } else { bits }];
    let (gather, shifts) = (load_bytes(gather), load_bytes(shifts));
    let mask = _mm512_set1_epi8(((1u16 << bits) - 1) as i8);
    for (i, out) in out.chunks_mut(64).enumerate() {
        let row = row.get(i * 8 * bits..).unwrap_or_default();
        let bytes = load_bytes(&row[..row.len().min(8 * bits)]);
        let words = _mm512_permutexvar_epi8(gather, bytes);
        store_bytes(_mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, words), mask), out);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn widen(halves: &[f16], out: &mut [f32]) {
    for (halves, out) in halves.chunks(16).zip(out.chunks_mut(16)) {
        let mask = first16(halves.len().min(out.len()));
        // SAFETY: only what lies within both slices is touched.
        unsafe {
            let halves = _mm256_maskz_loadu_epi16(mask, halves.as_ptr().cast());
            _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, _mm512_cvtph_ps(halves));
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn decode(codes: &[u8], center: f32, scale: f32, out: &mut [f32]) {
    let (codes16, codes_rest) = codes.as_chunks::<16>();
    let (out16, out_rest) = out.as_chunks_mut::<16>();
    let (c, s) = (_mm512_set1_ps(center), _mm512_set1_ps(scale));
    for (codes, out) in codes16.iter().zip(out16) {
        // SAFETY: the array has 16 bytes.
        let codes = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(codes.as_ptr().cast()) });
        let values = _mm512_mul_ps(_mm512_sub_ps(_mm512_cvtepi32_ps(codes), c), s);
        // SAFETY: the array has 16 values.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), values) };
    }
    scalar::decode(codes_rest, center, scale, out_rest);
}

#[target_feature(enable = "avx512f,avx512bw")]
fn lookup(codes: &[u8], levels: &[f32; 16], scale: f32, out: &mut [f32]) {
    let (codes16, codes_rest) = codes.as_chunks::<16>();
    let (out16, out_rest) = out.as_chunks_mut::<16>();
    // Scaled once; the product is the same as after the lookup.
    let table = _mm512_mul_ps(load16(levels), _mm512_set1_ps(scale));
    for (codes, out) in codes16.iter().zip(out16) {
        // SAFETY: the array has 16 bytes.
        let codes = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(codes.as_ptr().cast()) });
        // SAFETY: the array has 16 values.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_permutexvar_ps(codes, table)) };
    }
    scalar::lookup(codes_rest, levels, scale, out_rest);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn quantize(x: &[f32], out: &mut [i8]) -> f32 {
    scalar::quantize(x, out)
}
