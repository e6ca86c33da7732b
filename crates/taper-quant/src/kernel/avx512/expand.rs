//! Codes of a panel as bytes, and as numbers.
//!
//! ```text
//! bytes    a line of plane (width, base): shift, mask, shift: one quad; planes are added up
//! f32      a quad's byte j of each row: shift, mask, convert, less center, times scale
//! bf16     two columns as f32, whose upper halves are bf16 already (levels are exact in it)
//! ```
//!
//! Neighbours: [`super::integers`] and [`super::floats`] multiply what is made here.

use std::arch::x86_64::{
    __m128i, __m512, __m512i, _mm_cvtsi32_si128, _mm_loadu_si128, _mm512_and_si512, _mm512_broadcast_i32x4,
    _mm512_castps_si512, _mm512_cvtepi32_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps,
    _mm512_or_si512, _mm512_permutexvar_ps, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_shuffle_epi8, _mm512_sll_epi16, _mm512_srl_epi16, _mm512_srli_epi16, _mm512_srli_epi32,
    _mm512_storeu_ps, _mm512_storeu_si512, _mm512_sub_ps,
};

use super::load16;
use crate::kernel::{
    Expand, ExpandFloat, Levels,
    tiles::{LANES, LINE, planes, unit},
};

/// Sixty-four bytes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load64(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the array has 64 bytes.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// Sixteen bytes, in every quarter of a vector: a table for byte shuffles.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn table_bytes(table: &[u8; 16]) -> __m512i {
    // SAFETY: the array has 16 bytes.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(table.as_ptr().cast::<__m128i>()) })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store64(v: __m512i, out: &mut [u8; 64]) {
    // SAFETY: the array has 64 bytes.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), v) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn expand(job: &Expand<'_>, out: &mut [u8]) {
    let (lines, quads) = (job.codes.as_chunks::<LINE>().0, out.as_chunks_mut::<LINE>().0);
    match (job.bits, job.table) {
        (4, None) => nibbles(lines, quads, |codes| codes),
        (4, Some(table)) => {
            let table = table_bytes(table);
            nibbles(lines, quads, |codes| _mm512_shuffle_epi8(table, codes));
        }
        (bits, table) => {
            by_planes(bits, lines, quads);
            if let Some(table) = table {
                let table = table_bytes(table);
                for quad in out.as_chunks_mut::<LINE>().0 {
                    store64(_mm512_shuffle_epi8(table, load64(quad)), quad);
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn nibbles(lines: &[[u8; LINE]], quads: &mut [[u8; LINE]], map: impl Fn(__m512i) -> __m512i) {
    let low = _mm512_set1_epi8(15);
    for (line, [even, odd]) in lines.iter().zip(quads.as_chunks_mut::<2>().0) {
        let codes = load64(line);
        store64(map(_mm512_and_si512(codes, low)), even);
        store64(map(_mm512_and_si512(_mm512_srli_epi16::<4>(codes), low)), odd);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn by_planes(bits: usize, lines: &[[u8; LINE]], quads: &mut [[u8; LINE]]) {
    let mut lines = lines.iter();
    for quads in quads.chunks_exact_mut(unit(bits) / 4) {
        for (i, &(width, base)) in planes(bits).iter().enumerate() {
            let mask = _mm512_set1_epi8(((1u32 << width) - 1) as i8);
            let up = _mm_cvtsi32_si128(base as i32);
            for (quads, line) in quads.chunks_exact_mut((8 / width) as usize).zip(lines.by_ref()) {
                let codes = load64(line);
                for (s, quad) in quads.iter_mut().enumerate() {
                    let part = _mm512_srl_epi16(codes, _mm_cvtsi32_si128((width as usize * s) as i32));
                    let part = _mm512_sll_epi16(_mm512_and_si512(part, mask), up);
                    let whole = if i == 0 { part } else { _mm512_or_si512(load64(quad), part) };
                    store64(whole, quad);
                }
            }
        }
    }
}

/// How the byte of a row becomes its level.
#[derive(Clone, Copy)]
struct Decoder {
    table: Option<__m512>,
    center: __m512,
}

impl Decoder {
    /// Levels of the lowest bytes of sixteen words.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn level(self, words: __m512i) -> __m512 {
        match self.table {
            Some(table) => _mm512_permutexvar_ps(words, table),
            None => {
                let code = _mm512_and_si512(words, _mm512_set1_epi32(255));
                _mm512_sub_ps(_mm512_cvtepi32_ps(code), self.center)
            }
        }
    }
}

/// The segments of a panel: its quads, how to decode them, and the scale.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn each_segment<'a>(job: &'a ExpandFloat<'_>, mut work: impl FnMut(Decoder, __m512, &'a [[u8; LINE]])) {
    let mut lines = job.codes.as_chunks::<LINE>().0;
    let table = match job.levels {
        Levels::Integers => None,
        Levels::Table(table) => Some(load16(table)),
    };
    for (s, &quads) in job.quads.iter().enumerate() {
        let (segment, rest) = lines.split_at(quads as usize);
        lines = rest;
        let center = match job.centers {
            None => _mm512_set1_ps(job.offset as f32),
            Some(centers) => {
                let centers = &centers[s * LANES..(s + 1) * LANES];
                // SAFETY: the slice has 16 numbers.
                _mm512_cvtepi32_ps(unsafe { _mm512_loadu_si512(centers.as_ptr().cast()) })
            }
        };
        let scales = &job.scales[s * LANES..(s + 1) * LANES];
        // SAFETY: the slice has 16 numbers.
        work(Decoder { table, center }, unsafe { _mm512_loadu_ps(scales.as_ptr()) }, segment);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn expand_f32(job: &ExpandFloat<'_>, out: &mut [f32]) {
    let mut out = out.as_chunks_mut::<LANES>().0.as_chunks_mut::<4>().0.iter_mut();
    each_segment(job, |decoder, scale, lines| {
        for (line, out) in lines.iter().zip(out.by_ref()) {
            // SAFETY: this function is only called where these features are there; the arrays have 16 values.
            unsafe {
                let mut words = load64(line);
                for out in out {
                    _mm512_storeu_ps(out.as_mut_ptr(), _mm512_mul_ps(decoder.level(words), scale));
                    words = _mm512_srli_epi32::<8>(words);
                }
            }
        }
    });
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn expand_bf16(job: &ExpandFloat<'_>, out: &mut [u16]) {
    let mut out = out.as_chunks_mut::<{ 2 * LANES }>().0.as_chunks_mut::<2>().0.iter_mut();
    each_segment(job, |decoder, _, lines| {
        for (line, out) in lines.iter().zip(out.by_ref()) {
            // SAFETY: this function is only called where these features are there; the arrays have 32 values.
            unsafe {
                let mut words = load64(line);
                for out in out {
                    let low = _mm512_castps_si512(decoder.level(words));
                    let high = decoder.level(_mm512_srli_epi32::<8>(words));
                    let high = _mm512_and_si512(_mm512_castps_si512(high), _mm512_set1_epi32(-65_536));
                    let pair = _mm512_or_si512(high, _mm512_srli_epi32::<16>(low));
                    _mm512_storeu_si512(out.as_mut_ptr().cast(), pair);
                    words = _mm512_srli_epi32::<16>(words);
                }
            }
        }
    });
}
