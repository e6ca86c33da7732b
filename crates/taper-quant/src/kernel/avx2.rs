//! AVX2 with FMA and F16C: what nearly every x86-64 machine of the last ten years has.
//!
//! Integer products: nibbles by `maddubs`, whose pairs cannot overflow 16 bits as long as codes stay below 128; wider codes
//! are widened to 16 bits first.
//!
//! Neighbours: [`rows`] multiplies one token, [`panels`] many; loops that compilers vectorise are [`scalar`]'s own.

pub(super) mod encode;
mod panels;
mod rows;

use half::f16;
use std::arch::x86_64::{_MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm256_cvtph_ps, _mm256_storeu_ps};

use super::{Isa, Kernels, Stream, scalar};

/// The table, where the machine has every feature that the functions of this folder enable.
pub(super) fn table() -> Option<&'static Kernels> {
    let present = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    present.then_some(&TABLE)
}

static TABLE: Kernels = Kernels {
    isa: Isa::Avx2,
    lanes: panels::LANES,
    tokens_f32: panels::TOKENS_F32,
    tokens_i8: panels::TOKENS_I8,
    prefetch,
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
    sliced_f32: None,
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
    panel_nibbles: None,
    // SAFETY: as above.
    tile_i8: |job, c| unsafe { panels::tile_i8(job, c) },
};

/// See [`Kernels::prefetch`]; SSE, so every x86-64 machine has it.
pub(super) fn prefetch(bytes: &[u8]) {
    for line in bytes.chunks(64) {
        // SAFETY: a prefetch reads nothing, whatever its address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn unpack(row: &[u8], stream: Stream, out: &mut [u8]) {
    scalar::unpack(row, stream, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn widen(halves: &[f16], out: &mut [f32]) {
    let ((halves8, halves_rest), (out8, out_rest)) = (halves.as_chunks::<8>(), out.as_chunks_mut::<8>());
    for (halves, out) in halves8.iter().zip(out8) {
        // SAFETY: the arrays have 8 values each.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(halves.as_ptr().cast())))
        };
    }
    for (out, half) in out_rest.iter_mut().zip(halves_rest) {
        *out = half.to_f32();
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn decode(codes: &[u8], center: f32, scale: f32, out: &mut [f32]) {
    scalar::decode(codes, center, scale, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn lookup(codes: &[u8], levels: &[f32; 16], scale: f32, out: &mut [f32]) {
    scalar::lookup(codes, levels, scale, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn quantize(x: &[f32], out: &mut [i8]) -> f32 {
    scalar::quantize(x, out)
}
