//! Products of bfloat16 pairs: `vdpbf16ps` adds two exact products to an f32 sum at a time.
//!
//! Values below 2⁻¹²⁶ count as zero, as the instruction has it.
//!
//! Neighbours: [`super::super::dense`] uses this where weights and activations are both bfloat16.

use half::bf16;
use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_dpbf16_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_maskz_loadu_epi16, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_si512,
    _mm512_storeu_ps, _mm512_storeu_si512,
};

use super::transpose;
use crate::kernel::{
    loops::{ROWS, by_tokens, in_turn, lanes_sum},
    table::Pairs,
};

/// Rows of a panel: two vectors.
const LANES: usize = 32;

pub(super) static PAIRS: Pairs = Pairs {
    lanes: LANES,
    tokens: 12,
    // SAFETY: `table::active` only hands this out where `Features` has `bf16`, here and below.
    rows: |w, cols, x, out| unsafe { rows(w, cols, x, out) },
    // SAFETY: as above.
    panel: |w, cols, depth, out| unsafe { panel(w, cols, depth, out) },
    // SAFETY: as above.
    tile: |a, panel, c| unsafe { tile(a, panel, c) },
};

/// As the operand of `vdpbf16ps`.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn brains(v: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of which every pattern is a value.
    unsafe { std::mem::transmute(v) }
}

/// Up to 32 values; zeros beyond the end.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load(values: &[bf16]) -> __m512i {
    if values.len() >= 32 {
        // SAFETY: 32 values were just checked.
        unsafe { _mm512_loadu_si512(values.as_ptr().cast()) }
    } else {
        // SAFETY: only values within the slice are touched.
        unsafe { _mm512_maskz_loadu_epi16((1 << values.len()) - 1, values.as_ptr().cast()) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn rows(w: &[bf16], cols: usize, x: &[bf16], out: &mut [f32]) {
    let count = w.len() / cols;
    for (x, out) in x.chunks(4 * cols).zip(out.chunks_mut(4 * count)) {
        let tokens = x.len() / cols;
        match (count == ROWS && !in_turn::<bf16>(cols, tokens), tokens) {
            (true, 4) => rows_of::<ROWS, 4>(w, cols, x, out),
            (true, 3) => rows_of::<ROWS, 3>(w, cols, x, out),
            (true, 2) => rows_of::<ROWS, 2>(w, cols, x, out),
            (true, _) => rows_of::<ROWS, 1>(w, cols, x, out),
            _ => {
                for (t, x) in x.chunks_exact(cols).enumerate() {
                    for (r, w) in w.chunks_exact(cols).enumerate() {
                        rows_of::<1, 1>(w, cols, x, &mut out[t * count + r..][..1]);
                    }
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn rows_of<const R: usize, const N: usize>(w: &[bf16], cols: usize, x: &[bf16], out: &mut [f32]) {
    assert!(w.len() == R * cols && x.len() == N * cols && out.len() == R * N, "{R} rows, {N} tokens");
    let mut sums = [[_mm512_set1_ps(0.0); N]; R];
    for column in (0..cols).step_by(32) {
        let x: [__m512bh; N] = std::array::from_fn(|t| brains(load(&x[t * cols + column..(t + 1) * cols])));
        for (r, sums) in sums.iter_mut().enumerate() {
            let at = r * cols + column;
            // Any address may be asked for.
            _mm_prefetch::<_MM_HINT_T0>(w.as_ptr().wrapping_add(at + R * cols).cast());
            let w = brains(load(&w[at..(r + 1) * cols]));
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = _mm512_dpbf16_ps(*sum, w, x);
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        for (t, sum) in sums.into_iter().enumerate() {
            out[t * R + r] = total(sum);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn total(sum: __m512) -> f32 {
    let mut lanes = [0f32; 16];
    // SAFETY: the array has sixteen values.
    unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sum) };
    lanes_sum(&mut lanes)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn panel(w: &[bf16], cols: usize, depth: usize, out: &mut [u32]) {
    for half in [0, 16] {
        for column in (0..depth).step_by(32) {
            let mut block = [_mm512_setzero_si512(); 16];
            for (row, block) in w.chunks(cols).skip(half).zip(&mut block) {
                *block = load(&row[column.min(row.len())..depth.min(row.len())]);
            }
            let pairs = out[column / 2 * LANES..].as_chunks_mut::<LANES>().0;
            for (word, pair) in transpose(block).into_iter().zip(pairs) {
                // SAFETY: the array has 32 words, of which this is one half.
                unsafe { _mm512_storeu_si512(pair[half..].as_mut_ptr().cast(), word) };
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn tile(a: &[u32], panel: &[u32], c: &mut [f32]) {
    by_tokens!(c.len() / LANES, 12, tile_of, a, panel, c);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn tile_of<const T: usize>(a: &[u32], panel: &[u32], c: &mut [f32]) {
    let c = c.as_chunks_mut::<LANES>().0;
    assert!(c.len() == T, "a tile of {T} tokens");
    let mut sums = [[_mm512_set1_ps(0.0); 2]; T];
    for (sums, c) in sums.iter_mut().zip(c.iter()) {
        // SAFETY: the array has 32 values.
        *sums = unsafe { [_mm512_loadu_ps(c.as_ptr()), _mm512_loadu_ps(c[16..].as_ptr())] };
    }
    for (a, w) in a.as_chunks::<T>().0.iter().zip(panel.as_chunks::<LANES>().0) {
        // SAFETY: the array has 32 words.
        let w =
            unsafe { [_mm512_loadu_si512(w.as_ptr().cast()), _mm512_loadu_si512(w[16..].as_ptr().cast())] };
        for t in 0..T {
            let a = brains(_mm512_set1_epi32(a[t].cast_signed()));
            sums[t][0] = _mm512_dpbf16_ps(sums[t][0], brains(w[0]), a);
            sums[t][1] = _mm512_dpbf16_ps(sums[t][1], brains(w[1]), a);
        }
    }
    for (sums, c) in sums.iter().zip(c) {
        // SAFETY: the array has 32 values.
        unsafe {
            _mm512_storeu_ps(c.as_mut_ptr(), sums[0]);
            _mm512_storeu_ps(c[16..].as_mut_ptr(), sums[1]);
        }
    }
}
