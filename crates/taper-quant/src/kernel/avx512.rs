//! AVX-512: F, BW, VL, VBMI and VNNI, with AVX2, FMA and F16C beneath.
//!
//! ```text
//! unpack    permb brings the bytes of eight codes into each 64-bit lane, multishift cuts them apart: any width, 64 a step
//! nibbles   one load, two masks, two vpdpbusd for 128 weights
//! sliced    vpermps looks up sixteen weights by the low four bits of each word: no mask, no conversion
//! ```
//!
//! Neighbours: [`rows`] multiplies one token, [`panels`] many.

pub(super) mod encode;
mod panels;
mod rows;

use std::arch::x86_64::{
    __m512i, __mmask64, _mm_loadu_si128, _mm256_maskz_loadu_epi16, _mm512_and_si512, _mm512_cvtepi32_ps,
    _mm512_cvtepu8_epi32, _mm512_cvtph_ps, _mm512_loadu_si512, _mm512_mask_storeu_epi8,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_epi8, _mm512_mul_ps, _mm512_multishift_epi64_epi8,
    _mm512_permutexvar_epi8, _mm512_permutexvar_ps, _mm512_set1_epi8, _mm512_set1_ps, _mm512_storeu_ps,
    _mm512_storeu_si512, _mm512_sub_ps, _mm512_xor_si512,
};

use half::f16;

use super::{Isa, Kernels, Stream, scalar};

/// The table, where the machine has every feature that the functions of this folder enable.
pub(super) fn table() -> Option<&'static Kernels> {
    let present = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vnni");
    present.then_some(&TABLE)
}

static TABLE: Kernels = Kernels {
    isa: Isa::Avx512,
    lanes: panels::LANES,
    tokens_f32: panels::TOKENS,
    tokens_i8: panels::TOKENS,
    prefetch: super::avx2::prefetch,
    // SAFETY: this table is only handed out after the features were detected, here and below.
    unpack: |row, stream, out| unsafe { unpack(row, stream, out) },
    // SAFETY: as above.
    widen: |halves, out| unsafe { widen(halves, out) },
    // SAFETY: as above.
    decode: |codes, center, scale, out| unsafe { decode(codes, center, scale, out) },
    // SAFETY: as above.
    lookup: |codes, levels, scale, out| unsafe { lookup(codes, levels, scale, out) },
    // SAFETY: as above.
    row_f32: |job| unsafe { rows::row_f32(job) },
    // SAFETY: as above.
    sliced_f32: Some(|job, out| unsafe { rows::sliced_f32(job, out) }),
    // SAFETY: as above.
    panel_f32: |job, out| unsafe { panels::panel_f32(job, out) },
    // SAFETY: as above.
    tile_f32: |a, panel, c| unsafe { panels::tile_f32(a, panel, c) },
    // SAFETY: as above.
    quantize: |x, out| unsafe { quantize(x, out) },
    // SAFETY: as above.
    row_i8: |job| unsafe { rows::row_i8(job) },
    // SAFETY: as above.
    nibbles_i8: Some(|job, out| unsafe { rows::nibbles_i8(job, out) }),
    // SAFETY: as above.
    panel_i8: |codes, depth, out| unsafe { panels::panel_i8(codes, depth, out) },
    // SAFETY: as above.
    panel_nibbles: Some(|job, out| unsafe { panels::panel_nibbles(job, out) }),
    // SAFETY: as above.
    tile_i8: |job, c| unsafe { panels::tile_i8(job, c) },
};

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
    let table = _mm512_mul_ps(rows::load16(levels), _mm512_set1_ps(scale));
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
