//! Rows of codes times one token.
//!
//! Four rows at a time where they share what is loaded of the token; four independent sums also hide the latency of a
//! multiply-add.
//!
//! Neighbours: [`super::panels`] for many tokens.

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm512_add_epi32, _mm512_add_ps,
    _mm512_and_si512, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_dpbusd_epi32, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_madd_epi16, _mm512_maskz_loadu_epi8,
    _mm512_maskz_loadu_epi32, _mm512_maskz_loadu_ps, _mm512_maskz_set1_epi32, _mm512_mul_ps,
    _mm512_permutexvar_epi32, _mm512_permutexvar_ps, _mm512_reduce_add_ps, _mm512_set1_epi8,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_srli_epi16,
    _mm512_srli_epi32, _mm512_sub_ps,
};

use super::{first16, first64, load_bytes};
use crate::kernel::{Levels, NibblesI8, RowF32, RowI8, SlicedF32};

/// Sixteen values.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load16(values: &[f32; 16]) -> __m512 {
    // SAFETY: the array has 16 values.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

/// Up to 16 values; zeros beyond the end of the slice.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_floats(values: &[f32]) -> __m512 {
    // SAFETY: only values within the slice are touched.
    unsafe { _mm512_maskz_loadu_ps(first16(values.len()), values.as_ptr()) }
}

/// Up to 16 values; zeros beyond the end of the slice.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_ints(values: &[i32]) -> __m512i {
    // SAFETY: only values within the slice are touched.
    unsafe { _mm512_maskz_loadu_epi32(first16(values.len()), values.as_ptr()) }
}

/// Up to 16 codes, a word each; zeros beyond the end of the slice.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn code_words(codes: &[u8]) -> __m512i {
    let mut bytes = [0u8; 16];
    let source = if codes.len() >= 16 {
        codes.as_ptr()
    } else {
        bytes[..codes.len()].copy_from_slice(codes);
        bytes.as_ptr()
    };
    // SAFETY: 16 bytes are there, in the slice or in the array.
    _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(source.cast()) })
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn row_f32(job: &RowF32<'_>) -> f32 {
    match job.levels {
        Levels::Integers => row_by::<false>(job, _mm512_setzero_ps()),
        Levels::Table(table) => row_by::<true>(job, load16(table)),
    }
}

/// Sixteen codes as levels.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn levels<const TABLE: bool>(codes: &[u8], center: __m512, table: __m512) -> __m512 {
    let codes = code_words(codes);
    if TABLE { _mm512_permutexvar_ps(codes, table) } else { _mm512_sub_ps(_mm512_cvtepi32_ps(codes), center) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn row_by<const TABLE: bool>(job: &RowF32<'_>, table: __m512) -> f32 {
    let mut total = _mm512_setzero_ps();
    for (g, (codes, x)) in job.codes.chunks(job.span).zip(job.x.chunks(job.span)).enumerate() {
        let center = _mm512_set1_ps(job.centers[g]);
        let mut sums = [_mm512_setzero_ps(); 4];
        let (codes64, codes_rest) = codes.as_chunks::<64>();
        let (x64, x_rest) = x.as_chunks::<64>();
        for (codes, x) in codes64.iter().zip(x64) {
            for ((codes, x), sum) in codes.chunks_exact(16).zip(x.as_chunks::<16>().0).zip(&mut sums) {
                *sum = _mm512_fmadd_ps(levels::<TABLE>(codes, center, table), load16(x), *sum);
            }
        }
        for (codes, x) in codes_rest.chunks(16).zip(x_rest.chunks(16)) {
            sums[0] = _mm512_fmadd_ps(levels::<TABLE>(codes, center, table), load_floats(x), sums[0]);
        }
        let sum = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
        total = _mm512_fmadd_ps(sum, _mm512_set1_ps(job.scales[g]), total);
    }
    _mm512_reduce_add_ps(total)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn sliced_f32(job: &SlicedF32<'_>, out: &mut [f32]) {
    match job.bits {
        2 => sliced_by::<2, 16>(job, out),
        _ => sliced_by::<4, 8>(job, out),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn sliced_by<const BITS: u32, const STEPS: usize>(job: &SlicedF32<'_>, out: &mut [f32]) {
    match job.tokens {
        1 => sliced_rows::<BITS, STEPS, 4, 1>(job, out),
        2 => sliced_rows::<BITS, STEPS, 4, 2>(job, out),
        3 => sliced_rows::<BITS, STEPS, 2, 3>(job, out),
        _ => sliced_rows::<BITS, STEPS, 2, 4>(job, out),
    }
}

/// `R` rows at a time, then one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn sliced_rows<const BITS: u32, const STEPS: usize, const R: usize, const T: usize>(
    job: &SlicedF32<'_>,
    out: &mut [f32],
) {
    let whole = job.rows - job.rows % R;
    for row in (0..whole).step_by(R) {
        for (r, sums) in sliced::<BITS, STEPS, R, T>(job, row).iter().enumerate() {
            sums.iter().enumerate().for_each(|(t, sum)| out[t * job.rows + row + r] = *sum);
        }
    }
    for row in whole..job.rows {
        let [sums] = sliced::<BITS, STEPS, 1, T>(job, row);
        sums.iter().enumerate().for_each(|(t, sum)| out[t * job.rows + row] = *sum);
    }
}

/// How many steps of rows ahead bytes are asked for: from memory three measured faster than one, from caches the same.
const AHEAD: usize = 3;

/// Sixty-four bytes from `block · 64` on, fewer at the end of a row of `used` bytes; zeros beyond.
///
/// Also asks for the bytes `ahead` of these, which the next rows will want: several rows at once, each shorter than a
/// page, are a pattern that the hardware does not foresee.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_block(row: &[u8], block: usize, used: usize, ahead: usize) -> __m512i {
    let left = used - block * 64;
    let start = row.as_ptr().wrapping_add(block * 64);
    // SAFETY: callers pass rows of at least `used` bytes, and blocks that begin within them; a prefetch reads nothing,
    // whatever its address.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(ahead).cast());
        if left >= 64 {
            _mm512_loadu_si512(start.cast())
        } else {
            _mm512_maskz_loadu_epi8(first64(left), start.cast())
        }
    }
}

/// `R` rows of `width` items each, from `row` on.
#[inline(always)]
fn rows_of<T, const R: usize>(items: &[T], width: usize, row: usize) -> [&[T]; R] {
    std::array::from_fn(|r| &items[(row + r) * width..][..width])
}

/// `R` rows from `row` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[expect(
    clippy::needless_range_loop,
    reason = "`k` indexes the second dimension of `x`, whose first is the token"
)]
fn sliced<const BITS: u32, const STEPS: usize, const R: usize, const T: usize>(
    job: &SlicedF32<'_>,
    row: usize,
) -> [[f32; T]; R] {
    let (block, groups) = (16 * STEPS, job.scales.len() / job.rows);
    // Two-bit codes leave neighbours in the upper half of the index: the table repeats.
    let table = match job.levels {
        Levels::Integers => std::array::from_fn(|i| (i & ((1 << BITS) - 1)) as f32),
        Levels::Table(table) => std::array::from_fn(|i| table[i & ((1 << BITS) - 1)]),
    };
    let table = load16(&table);
    let used = (job.cols * BITS as usize).div_ceil(8);
    assert!(used <= job.row_bytes, "rows hold all columns");
    let rows: [&[u8]; R] = rows_of(job.codes, job.row_bytes, row);
    let scales: [&[f32]; R] = rows_of(job.scales, groups, row);
    let centers: [&[f32]; R] = rows_of(job.centers, groups, row);
    let splat = groups == 1 || job.span.is_multiple_of(block);
    let (blocks_per_group, per_block) = (job.span.div_ceil(block), block / job.span.min(block));
    let lanes: [i32; 16] = std::array::from_fn(|lane| (lane * STEPS / job.span.min(block)) as i32);
    let lanes = load_ints(&lanes);
    let blocks = job.cols.div_ceil(block);
    let x: [&[[[f32; 16]; STEPS]]; T] = std::array::from_fn(|token| {
        &job.x.as_chunks::<16>().0.as_chunks::<STEPS>().0[token * blocks..][..blocks]
    });
    let mut sums = [[_mm512_setzero_ps(); T]; R];
    let (mut g, mut left) = (0, blocks_per_group);
    for b in 0..blocks {
        let x: [&[[f32; 16]; STEPS]; T] = std::array::from_fn(|token| &x[token][b]);
        let mut words = [_mm512_setzero_si512(); R];
        for r in 0..R {
            words[r] = load_block(rows[r], b, used, AHEAD * R * job.row_bytes);
        }
        if splat {
            // The group's table of decoded weights: they are then looked up as they are.
            let mut decoded = [table; R];
            for r in 0..R {
                let level = _mm512_sub_ps(table, _mm512_set1_ps(centers[r][g]));
                decoded[r] = _mm512_mul_ps(level, _mm512_set1_ps(scales[r][g]));
            }
            for k in 0..STEPS {
                for r in 0..R {
                    let w = _mm512_permutexvar_ps(words[r], decoded[r]);
                    words[r] = _mm512_srli_epi32::<BITS>(words[r]);
                    for token in 0..T {
                        sums[r][token] = _mm512_fmadd_ps(w, load16(&x[token][k]), sums[r][token]);
                    }
                }
            }
            left -= 1;
            if left == 0 {
                (g, left) = (g + 1, blocks_per_group);
            }
        } else {
            let run = g..(g + per_block).min(groups);
            let (mut scale, mut center) = ([table; R], [table; R]);
            for r in 0..R {
                scale[r] = _mm512_permutexvar_ps(lanes, load_floats(&scales[r][run.clone()]));
                center[r] = _mm512_permutexvar_ps(lanes, load_floats(&centers[r][run.clone()]));
            }
            for k in 0..STEPS {
                for r in 0..R {
                    let w = _mm512_sub_ps(_mm512_permutexvar_ps(words[r], table), center[r]);
                    let w = _mm512_mul_ps(w, scale[r]);
                    words[r] = _mm512_srli_epi32::<BITS>(words[r]);
                    for token in 0..T {
                        sums[r][token] = _mm512_fmadd_ps(w, load16(&x[token][k]), sums[r][token]);
                    }
                }
            }
            g += per_block;
        }
    }
    let mut out = [[0f32; T]; R];
    for (out, sums) in out.iter_mut().zip(sums) {
        *out = totals(sums);
    }
    out
}

/// Each vector summed up, in one fixed order.
#[inline]
#[target_feature(enable = "avx512f")]
fn totals<const R: usize>(sums: [__m512; R]) -> [f32; R] {
    let mut out = [0f32; R];
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = _mm512_reduce_add_ps(sum);
    }
    out
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn row_i8(job: &RowI8<'_>) -> f32 {
    let token = job.token;
    let mut total = _mm512_setzero_ps();
    for (g, (codes, a)) in job.codes.chunks(job.span).zip(token.bytes.chunks_exact(token.stride)).enumerate()
    {
        // What the center takes away starts off the first lane.
        let mut sum = _mm512_maskz_set1_epi32(1, -job.centers[g] * token.sums[g]);
        let mut other = _mm512_set1_epi32(0);
        for (codes, a) in codes.chunks(128).zip(a.chunks(128)) {
            sum = _mm512_dpbusd_epi32(sum, load_bytes(codes), load_signed(a));
            if codes.len() > 64 {
                other = _mm512_dpbusd_epi32(other, load_bytes(&codes[64..]), load_signed(&a[64..]));
            }
        }
        let sum = _mm512_add_epi32(sum, other);
        let scale = _mm512_set1_ps(job.scales[g] * token.steps[g]);
        total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, total);
    }
    _mm512_reduce_add_ps(total)
}

/// Up to 64 signed bytes; zeros beyond the end of the slice.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_signed(a: &[i8]) -> __m512i {
    // SAFETY: only bytes within the slice are touched.
    unsafe { _mm512_maskz_loadu_epi8(first64(a.len()), a.as_ptr()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn nibbles_i8(job: &NibblesI8<'_>, out: &mut [f32]) {
    let groups = job.scales.len() / out.len().max(1);
    let (fours, rest) = out.as_chunks_mut::<4>();
    let mut row = 0;
    for four in fours {
        *four = nibbles::<4>(job, groups, row);
        row += 4;
    }
    for one in rest {
        [*one] = nibbles::<1>(job, groups, row);
        row += 1;
    }
}

/// `R` rows from `row` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn nibbles<const R: usize>(job: &NibblesI8<'_>, groups: usize, row: usize) -> [f32; R] {
    let token = job.token;
    let used = job.cols.div_ceil(2);
    assert!(used <= job.row_bytes, "rows hold all columns");
    let rows: [&[u8]; R] = rows_of(job.codes, job.row_bytes, row);
    let scales: [&[f32]; R] = rows_of(job.scales, groups, row);
    let centers: [&[i32]; R] = rows_of(job.centers, groups, row);
    let splat = groups == 1 || job.span.is_multiple_of(128);
    let (blocks_per_group, per_block) = (job.span.div_ceil(128), 128 / job.span.min(128));
    let lanes: [i32; 16] = std::array::from_fn(|lane| (lane * 8 / job.span.min(128)) as i32);
    let lanes = load_ints(&lanes);
    let low = _mm512_set1_epi8(15);
    let mut sums = [_mm512_setzero_ps(); R];
    let (mut g, mut left) = (0, blocks_per_group);
    let blocks = token.halves.as_chunks::<128>().0.iter().zip(token.negative_sums.as_chunks::<16>().0);
    for (b, (a, negative)) in blocks.enumerate().take(job.cols.div_ceil(128)) {
        // SAFETY: the arrays have 128 bytes and 16 integers.
        let (even, odd, negative) = unsafe {
            (
                _mm512_loadu_si512(a.as_ptr().cast()),
                _mm512_loadu_si512(a[64..].as_ptr().cast()),
                _mm512_loadu_si512(negative.as_ptr().cast()),
            )
        };
        let run = g..(g + per_block).min(groups);
        for r in 0..R {
            let (scale, center) = if splat {
                (_mm512_set1_ps(scales[r][g] * token.steps[g]), _mm512_set1_epi32(centers[r][g]))
            } else {
                let scale = _mm512_mul_ps(
                    load_floats(&scales[r][run.clone()]),
                    load_floats(&token.steps[run.clone()]),
                );
                let center = load_ints(&centers[r][run.clone()]);
                (_mm512_permutexvar_ps(lanes, scale), _mm512_permutexvar_epi32(lanes, center))
            };
            let codes = load_block(rows[r], b, used, AHEAD * R * job.row_bytes);
            // Sums of eight activations fit 16 bits, and so do centers: one multiply-add of pairs is their product.
            let sum = _mm512_madd_epi16(negative, center);
            let sum = _mm512_dpbusd_epi32(sum, _mm512_and_si512(codes, low), even);
            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(codes), low);
            let sum = _mm512_dpbusd_epi32(sum, high, odd);
            sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, sums[r]);
        }
        if !splat {
            g += per_block;
            continue;
        }
        left -= 1;
        if left == 0 {
            (g, left) = (g + 1, blocks_per_group);
        }
    }
    totals(sums)
}
