//! AVX2 with FMA and F16C: what nearly every x86-64 machine of the last ten years has.
//!
//! Integer products are sums of 16 bits first, of factors below 16. Machines with AVX-VNNI need no such detour.
//!
//! Neighbours: [`integers`], [`wide`], [`vnni`] and [`floats`] multiply; loops that compilers vectorise are [`scalar`]'s own.

pub(super) mod encode;
mod floats;
mod integers;
mod vnni;
mod wide;

use half::f16;
use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};

use super::{Expand, ExpandFloat, Isa, Kernels, Stream, Wide, scalar};

/// For machines with every feature that the functions of this folder enable, those of [`Isa::Avx2`].
pub(super) fn table() -> &'static Kernels {
    if taper_core::kernel::features().avx_vnni { &WITH_VNNI } else { &TABLE }
}

static TABLE: Kernels = Kernels {
    isa: Isa::Avx2,
    tokens: 6,
    tokens_i8: integers::TOKENS,
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
    expand: |job, out| unsafe { expand(job, out) },
    // SAFETY: as above.
    expand_f32: |job, out| unsafe { expand_f32(job, out) },
    bf16: None,
    unpacks_along: true,
    // SAFETY: as above.
    tile_i8: |job, c| unsafe { integers::tile_i8(job, c) },
    wide: Some(Wide {
        tokens: wide::TOKENS,
        // SAFETY: as above.
        expand: |job, out| unsafe { wide::expand(job, out) },
        // SAFETY: as above.
        tile: |job, c| unsafe { wide::tile_i8(job, c) },
    }),
    few_f32: None,
    // SAFETY: as above.
    tile_f32: |a, panels, stride, c| unsafe { floats::tile_f32(a, panels, stride, c) },
};

static WITH_VNNI: Kernels = Kernels {
    // SAFETY: as above, and AVX-VNNI as well.
    tile_i8: |job, c| unsafe { vnni::tile_i8(job, c) },
    tokens_i8: vnni::TOKENS,
    wide: None,
    ..TABLE
};

#[target_feature(enable = "avx2,fma,f16c")]
fn expand(job: &Expand<'_>, out: &mut [u8]) {
    scalar::expand(job, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn expand_f32(job: &ExpandFloat<'_>, out: &mut [f32]) {
    scalar::expand_f32(job, out);
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
