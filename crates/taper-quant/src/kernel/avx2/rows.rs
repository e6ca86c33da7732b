//! Rows of codes times one token.
//!
//! Neighbours: [`super::panels`] for many tokens.

use std::arch::x86_64::{
    __m256, __m256i, _mm_loadl_epi64, _mm_loadu_si128, _mm256_add_epi16, _mm256_add_epi32, _mm256_add_ps,
    _mm256_and_si256, _mm256_blendv_ps, _mm256_castsi256_ps, _mm256_cvtepi8_epi16, _mm256_cvtepi32_ps,
    _mm256_cvtepu8_epi16, _mm256_cvtepu8_epi32, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_permutevar8x32_ps, _mm256_set1_epi8,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32, _mm256_setzero_ps,
    _mm256_slli_epi32, _mm256_srli_epi16, _mm256_storeu_ps, _mm256_sub_ps,
};

use crate::kernel::{Levels, NibblesI8, RowF32, RowI8};

/// Eight values.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn load8(values: &[f32; 8]) -> __m256 {
    // SAFETY: the array has 8 values.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

/// Thirty-two bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn load32(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the array has 32 bytes.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// The first `N` of a slice; defaults beyond its end.
#[inline(always)]
fn padded<T: Copy + Default, const N: usize>(values: &[T]) -> [T; N] {
    match values.first_chunk::<N>() {
        Some(values) => *values,
        None => {
            let mut out = [T::default(); N];
            out[..values.len()].copy_from_slice(values);
            out
        }
    }
}

/// The sum of eight lanes, in one fixed order.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn total(v: __m256) -> f32 {
    let mut lanes = [0f32; 8];
    // SAFETY: the array has 8 values.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), v) };
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// A table of sixteen values in two registers.
#[derive(Clone, Copy)]
struct Table {
    low: __m256,
    high: __m256,
}

impl Table {
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn new(table: &[f32; 16]) -> Self {
        // SAFETY: the array has 16 values.
        unsafe { Self { low: _mm256_loadu_ps(table.as_ptr()), high: _mm256_loadu_ps(table[8..].as_ptr()) } }
    }
}

/// Eight codes as levels.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn levels<const TABLE: bool>(codes: &[u8; 8], center: __m256, table: Table) -> __m256 {
    // SAFETY: the array has 8 bytes.
    let codes = _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(codes.as_ptr().cast()) });
    if TABLE {
        let (low, high) =
            (_mm256_permutevar8x32_ps(table.low, codes), _mm256_permutevar8x32_ps(table.high, codes));
        // Bit 3 of the code chooses the half; blends look at the sign bit.
        _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes)))
    } else {
        _mm256_sub_ps(_mm256_cvtepi32_ps(codes), center)
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn row_f32(job: &RowF32<'_>) -> f32 {
    match job.levels {
        Levels::Integers => row_by::<false>(job, Table::new(&[0.0; 16])),
        Levels::Table(table) => row_by::<true>(job, Table::new(table)),
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn row_by<const TABLE: bool>(job: &RowF32<'_>, table: Table) -> f32 {
    let mut sum_of_groups = _mm256_setzero_ps();
    for (g, (codes, x)) in job.codes.chunks(job.span).zip(job.x.chunks(job.span)).enumerate() {
        let center = _mm256_set1_ps(job.centers[g]);
        let mut sums = [_mm256_setzero_ps(); 4];
        let (codes32, codes_rest) = codes.as_chunks::<32>();
        let (x32, x_rest) = x.as_chunks::<32>();
        for (codes, x) in codes32.iter().zip(x32) {
            for ((codes, x), sum) in codes.as_chunks::<8>().0.iter().zip(x.as_chunks::<8>().0).zip(&mut sums)
            {
                *sum = _mm256_fmadd_ps(levels::<TABLE>(codes, center, table), load8(x), *sum);
            }
        }
        for (codes, x) in codes_rest.chunks(8).zip(x_rest.chunks(8)) {
            let (codes, x) = (padded::<u8, 8>(codes), padded::<f32, 8>(x));
            sums[0] = _mm256_fmadd_ps(levels::<TABLE>(&codes, center, table), load8(&x), sums[0]);
        }
        let sum = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
        sum_of_groups = _mm256_fmadd_ps(sum, _mm256_set1_ps(job.scales[g]), sum_of_groups);
    }
    total(sum_of_groups)
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn row_i8(job: &RowI8<'_>) -> f32 {
    let token = job.token;
    let mut sum_of_groups = _mm256_setzero_ps();
    for (g, (codes, a)) in job.codes.chunks(job.span).zip(token.bytes.chunks_exact(token.stride)).enumerate()
    {
        // What the center takes away starts off the first lane.
        let start = -job.centers[g] * token.sums[g];
        let mut sum = _mm256_setr_epi32(start, 0, 0, 0, 0, 0, 0, 0);
        // The activations of a group are padded with zeros to whole vectors.
        for (codes, a) in codes.chunks(16).zip(a.as_chunks::<16>().0) {
            let codes = padded::<u8, 16>(codes);
            // SAFETY: both arrays have 16 bytes.
            let (codes, a) =
                unsafe { (_mm_loadu_si128(codes.as_ptr().cast()), _mm_loadu_si128(a.as_ptr().cast())) };
            let dot = _mm256_madd_epi16(_mm256_cvtepu8_epi16(codes), _mm256_cvtepi8_epi16(a));
            sum = _mm256_add_epi32(sum, dot);
        }
        let scale = _mm256_set1_ps(job.scales[g] * token.steps[g]);
        sum_of_groups = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, sum_of_groups);
    }
    total(sum_of_groups)
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn nibbles_i8(job: &NibblesI8<'_>, out: &mut [f32]) {
    let groups = job.scales.len() / out.len().max(1);
    let (twos, rest) = out.as_chunks_mut::<2>();
    let mut row = 0;
    for two in twos {
        *two = nibbles::<2>(job, groups, row);
        row += 2;
    }
    for one in rest {
        [*one] = nibbles::<1>(job, groups, row);
        row += 1;
    }
}

/// The scale or center of the group of each of eight words, from `word` on.
#[inline(always)]
fn per_word<T: Copy>(values: &[T], word: usize, span: usize) -> [T; 8] {
    std::array::from_fn(|lane| values[((word + lane) * 8 / span).min(values.len() - 1)])
}

/// `R` rows from `row` on.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn nibbles<const R: usize>(job: &NibblesI8<'_>, groups: usize, row: usize) -> [f32; R] {
    let token = job.token;
    let low = _mm256_set1_epi8(15);
    let mut sums = [_mm256_setzero_ps(); R];
    // Half blocks: words 8 h .. 8 h + 8 of each block of 128 columns.
    for (h, negative) in token.negative_sums.as_chunks::<8>().0.iter().enumerate() {
        let start = h * 64;
        if start >= job.cols {
            break;
        }
        let used = (job.cols - start).min(64).div_ceil(2);
        let (even, odd) = halves(&token.halves, h);
        // SAFETY: the array has 8 integers.
        let negative = unsafe { _mm256_loadu_si256(negative.as_ptr().cast()) };
        let splat = job.span.is_multiple_of(64) || groups == 1;
        let g = (start / job.span).min(groups - 1);
        let steps = if splat {
            _mm256_set1_ps(token.steps[g])
        } else {
            load8(&per_word(&token.steps, h * 8, job.span))
        };
        for (r, sum) in sums.iter_mut().enumerate() {
            let scales = &job.scales[(row + r) * groups..][..groups];
            let centers = &job.centers[(row + r) * groups..][..groups];
            let (scale, center) = if splat {
                (_mm256_set1_ps(scales[g]), _mm256_set1_epi32(centers[g]))
            } else {
                let centers = per_word(centers, h * 8, job.span);
                // SAFETY: the array has 8 integers.
                let centers = unsafe { _mm256_loadu_si256(centers.as_ptr().cast()) };
                (load8(&per_word(scales, h * 8, job.span)), centers)
            };
            let codes = &job.codes[(row + r) * job.row_bytes + h * 32..][..used];
            let dot = nibble_dot(load32(&padded::<u8, 32>(codes)), low, even, odd);
            // Sums of eight activations fit 16 bits, and so do centers: one multiply-add of pairs is their product.
            let dot = _mm256_add_epi32(dot, _mm256_madd_epi16(negative, center));
            *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_mul_ps(scale, steps), *sum);
        }
    }
    let mut out = [0f32; R];
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = total(sum);
    }
    out
}

/// The even and the odd activations of half a block.
#[inline]
#[target_feature(enable = "avx2")]
fn halves(halves: &[i8], h: usize) -> (__m256i, __m256i) {
    let block = &halves[h / 2 * 128..][..128];
    let at = h % 2 * 32;
    let (even, odd) = (&block[at..at + 32], &block[64 + at..96 + at]);
    // SAFETY: both slices have 32 bytes.
    unsafe { (_mm256_loadu_si256(even.as_ptr().cast()), _mm256_loadu_si256(odd.as_ptr().cast())) }
}

/// Σ code · a of each 32-bit word; a pair of products is at most 2 · 15 · 127, and two pairs add up in 16 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn nibble_dot(codes: __m256i, low: __m256i, even: __m256i, odd: __m256i) -> __m256i {
    let first = _mm256_maddubs_epi16(_mm256_and_si256(codes, low), even);
    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low);
    let second = _mm256_maddubs_epi16(high, odd);
    let pairs = _mm256_add_epi16(first, second);
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}
