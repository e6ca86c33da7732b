//! Integer products where the machine sums up four of them itself (AVX-VNNI): a panel of 16 rows times tiles of up to six
//! tokens.
//!
//! Neighbours: [`super::integers`] is the same without.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm256_and_si256, _mm256_broadcastsi128_si256, _mm256_cvtepi32_ps,
    _mm256_dpbusd_avx_epi32, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_mul_ps,
    _mm256_mullo_epi32, _mm256_set1_epi8, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_si256,
    _mm256_shuffle_epi8, _mm256_srli_epi16, _mm256_storeu_ps,
};

use crate::kernel::{
    Cells, CodeForm, TileI8,
    tiles::{LANES, LINE},
};

const BYTES: u8 = 0;
const NIBBLES: u8 = 1;
const TABLE: u8 = 2;

/// Most tokens of a tile.
pub(super) const TOKENS: [usize; 2] = [6, 6];

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub(super) fn tile_i8(job: &TileI8<'_>, c: &mut Cells<'_>) {
    match job.codes.form {
        CodeForm::Bytes => by_tokens::<BYTES>(job, c),
        CodeForm::Nibbles => by_tokens::<NIBBLES>(job, c),
        CodeForm::Table(_) => by_tokens::<TABLE>(job, c),
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,avxvnni")]
fn by_tokens<const FORM: u8>(job: &TileI8<'_>, c: &mut Cells<'_>) {
    for panel in 0..c.panels {
        match c.tokens {
            1 => tile::<FORM, 1>(job, panel, c),
            2 => tile::<FORM, 2>(job, panel, c),
            3 => tile::<FORM, 3>(job, panel, c),
            4 => tile::<FORM, 4>(job, panel, c),
            5 => tile::<FORM, 5>(job, panel, c),
            _ => tile::<FORM, 6>(job, panel, c),
        }
    }
}

/// One panel times `T` tokens.
#[inline]
#[target_feature(enable = "avx2,fma,avxvnni")]
fn tile<const FORM: u8, const T: usize>(job: &TileI8<'_>, panel: usize, c: &mut Cells<'_>) {
    let low = _mm256_set1_epi8(15);
    let table = match job.codes.form {
        CodeForm::Table(table) => broadcast(table),
        _ => low,
    };
    let mut lines = job.codes.bytes[panel * job.codes.stride..].as_chunks::<LINE>().0.iter();
    let mut tokens = job.a.as_chunks::<4>().0.as_chunks::<T>().0.iter();
    for (s, &quads) in job.quads.iter().enumerate() {
        let at = panel * job.grids.stride + s * LANES;
        let mut sums = [[_mm256_setzero_si256(); 2]; T];
        for (t, sums) in sums.iter_mut().enumerate() {
            *sums = start(job, at, job.starts[s * T + t]);
        }
        if FORM == BYTES {
            for (line, a) in lines.by_ref().zip(tokens.by_ref()).take(quads as usize) {
                let w = halves(line);
                for (sums, a) in sums.iter_mut().zip(a) {
                    let a = _mm256_set1_epi32(i32::from_ne_bytes(a.map(i8::cast_unsigned)));
                    *sums = [
                        _mm256_dpbusd_avx_epi32(sums[0], w[0], a),
                        _mm256_dpbusd_avx_epi32(sums[1], w[1], a),
                    ];
                }
            }
        } else {
            for line in lines.by_ref().take(quads as usize / 2) {
                let [w0, w1] = halves(line);
                let mut first = [_mm256_and_si256(w0, low), _mm256_and_si256(w1, low)];
                let mut second = [
                    _mm256_and_si256(_mm256_srli_epi16::<4>(w0), low),
                    _mm256_and_si256(_mm256_srli_epi16::<4>(w1), low),
                ];
                if FORM == TABLE {
                    first = [_mm256_shuffle_epi8(table, first[0]), _mm256_shuffle_epi8(table, first[1])];
                    second = [_mm256_shuffle_epi8(table, second[0]), _mm256_shuffle_epi8(table, second[1])];
                }
                let (Some(a), Some(b)) = (tokens.next(), tokens.next()) else { break };
                for ((sums, a), b) in sums.iter_mut().zip(a).zip(b) {
                    let a = _mm256_set1_epi32(i32::from_ne_bytes(a.map(i8::cast_unsigned)));
                    let b = _mm256_set1_epi32(i32::from_ne_bytes(b.map(i8::cast_unsigned)));
                    for v in 0..2 {
                        sums[v] = _mm256_dpbusd_avx_epi32(sums[v], first[v], a);
                        sums[v] = _mm256_dpbusd_avx_epi32(sums[v], second[v], b);
                    }
                }
            }
        }
        for (t, sums) in sums.iter().enumerate() {
            let step = _mm256_set1_ps(job.steps[s * T + t]);
            for (v, sum) in sums.iter().enumerate() {
                let scales = &job.grids.scales[at + v * 8..at + v * 8 + 8];
                let cells = panel * c.stride + t * LANES + v * 8;
                let cells = &mut c.values[cells..cells + 8];
                // SAFETY: the slices have 8 values.
                unsafe {
                    let factor = _mm256_mul_ps(_mm256_loadu_ps(scales.as_ptr()), step);
                    let before = _mm256_loadu_ps(cells.as_ptr());
                    let total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(*sum), factor, before);
                    _mm256_storeu_ps(cells.as_mut_ptr(), total);
                }
            }
        }
    }
}

/// What the centers take away.
#[inline]
#[target_feature(enable = "avx2")]
fn start(job: &TileI8<'_>, at: usize, start: i32) -> [__m256i; 2] {
    let start = _mm256_set1_epi32(start);
    let Some(centers) = job.grids.centers else { return [start; 2] };
    let centers = &centers[at..at + LANES];
    // SAFETY: the slice has 16 numbers.
    let [first, second] = unsafe {
        [_mm256_loadu_si256(centers.as_ptr().cast()), _mm256_loadu_si256(centers[8..].as_ptr().cast())]
    };
    [_mm256_mullo_epi32(start, first), _mm256_mullo_epi32(start, second)]
}

/// Sixteen bytes, in both halves of a vector: a table for byte shuffles.
#[inline]
#[target_feature(enable = "avx2")]
fn broadcast(table: &[u8; 16]) -> __m256i {
    // SAFETY: the array has 16 bytes.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(table.as_ptr().cast::<__m128i>()) })
}

/// A line as two vectors.
#[inline]
#[target_feature(enable = "avx2")]
fn halves(line: &[u8; LINE]) -> [__m256i; 2] {
    // SAFETY: the array has 64 bytes.
    unsafe { [_mm256_loadu_si256(line.as_ptr().cast()), _mm256_loadu_si256(line[32..].as_ptr().cast())] }
}
