//! Pairs of bfloat16, made of f32 on the way: `vdpbf16ps` adds two exact products to an f32 sum at a time.
//!
//! ```text
//! along    x₀ x₁ x₂ x₃ …   ─▶   (x₀ x₁) (x₂ x₃) …       a word is two depths, the first in the low half
//! across   x₀ … of depth 0, y₀ … of depth 1   ─▶   (x₀ y₀) (x₁ y₁) …
//! ```
//!
//! Neighbours: [`super`] cuts products into these tiles; [`super::single`] does the same with f32.

use half::bf16;
use std::arch::x86_64::{
    __m256bh, __m256i, __m512bh, __m512i, _mm256_setzero_si256, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh,
    _mm512_cvtneps_pbh, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_storeu_epi32,
    _mm512_maskz_loadu_ps, _mm512_or_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_slli_epi32,
    _mm512_storeu_ps,
};

use super::{Loops, Operand, Part, Sizes, Stretch};
use crate::kernel::{lent::Lent, loops::by_tokens, table::Pairs};

/// Columns of a panel: two vectors.
const LANES: usize = 32;

/// For machines on which [`crate::kernel::table::Kernels::pairs`] found these loops: they have the instructions.
pub(super) struct Halves(pub(super) &'static Pairs);

impl Loops for Halves {
    type Word = u32;
    const SPAN: usize = 2;

    fn sizes(&self) -> (usize, usize) {
        (LANES, 12)
    }

    fn panel(&self, b: Operand<'_>, sizes: Sizes, columns: Part, out: &mut [u32]) {
        let words = sizes.depth.div_ceil(2);
        match b {
            Operand::Along(b) => {
                let rows = &b[columns.first * sizes.depth..][..columns.count * sizes.depth];
                let mut halves = Lent::<u32>::new(columns.count * words);
                for (row, halves) in rows.chunks_exact(sizes.depth).zip(halves.chunks_exact_mut(words)) {
                    // SAFETY: there are such loops, so the machine has the instructions; below too.
                    unsafe { along(row, halves) };
                }
                let halves: &[bf16] = bytemuck::cast_slice(&halves);
                (self.0.panel)(halves, 2 * words, 2 * words, out);
            }
            Operand::Across(b) => {
                for (word, out) in out.chunks_exact_mut(LANES).enumerate() {
                    self.pair(b, (sizes.columns, sizes.depth), columns, word, &mut out[..columns.count]);
                }
            }
        }
    }

    fn stretch<'a>(
        &self,
        a: Operand<'a>,
        sizes: Sizes,
        (rows, words): (Part, Part),
        room: &'a mut [u32],
    ) -> Stretch<'a, u32> {
        match a {
            Operand::Along(a) => {
                let start = 2 * words.first;
                let end = (start + 2 * words.count).min(sizes.depth);
                let a = a.chunks_exact(sizes.depth).skip(rows.first);
                for (row, out) in a.zip(room.chunks_exact_mut(words.count)) {
                    // SAFETY: as above.
                    unsafe { along(&row[start..end], out) };
                }
                Stretch { values: room, rows: rows.count, row: words.count, depth: 1 }
            }
            Operand::Across(a) => {
                for (word, out) in room.chunks_exact_mut(rows.count).enumerate() {
                    self.pair(a, (sizes.rows, sizes.depth), rows, words.first + word, out);
                }
                Stretch { values: room, rows: rows.count, row: 1, depth: rows.count }
            }
        }
    }

    fn tile(&self, a: Stretch<'_, u32>, panel: &[u32], c: &mut [f32], stride: usize) {
        // SAFETY: as above.
        unsafe { tile(a, panel, c, stride) }
    }
}

impl Halves {
    /// A word of depth of some of `[depth, side]` values.
    fn pair(&self, x: &[f32], (side, depth): (usize, usize), part: Part, word: usize, out: &mut [u32]) {
        let row = |at: usize| &x[at * side + part.first..][..part.count];
        let second = if 2 * word + 1 < depth { Some(row(2 * word + 1)) } else { None };
        // SAFETY: as above.
        unsafe { across(row(2 * word), second, out) };
    }
}

/// As the operand of `vdpbf16ps`.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn brains(v: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of which every pattern is a value.
    unsafe { std::mem::transmute(v) }
}

/// Sixteen words, of which the first `count` are stored.
#[inline]
#[target_feature(enable = "avx512f")]
fn store(out: &mut [u32], words: __m512i) {
    let mask = if out.len() >= 16 { u16::MAX } else { (1 << out.len()) - 1 };
    // SAFETY: only words within the slice are written.
    unsafe { _mm512_mask_storeu_epi32(out.as_mut_ptr().cast(), mask, words) }
}

/// Sixteen values, zeros beyond the end.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(x: &[f32]) -> std::arch::x86_64::__m512 {
    let mask = if x.len() >= 16 { u16::MAX } else { (1 << x.len()) - 1 };
    // SAFETY: only values within the slice are read.
    unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr()) }
}

/// Neighbours as words; a last one alone has zero beside it.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn along(x: &[f32], out: &mut [u32]) {
    assert!(x.len().div_ceil(2) == out.len(), "{} values as {} words", x.len(), out.len());
    for (x, out) in x.chunks(32).zip(out.chunks_mut(16)) {
        let (low, high) = x.split_at(x.len().min(16));
        let both = _mm512_cvtne2ps_pbh(load(high), load(low));
        // SAFETY: both are 64 bytes of which every pattern is a value.
        store(out, unsafe { std::mem::transmute::<__m512bh, __m512i>(both) });
    }
}

/// Values of two depths as words.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn across(first: &[f32], second: Option<&[f32]>, out: &mut [u32]) {
    assert!(first.len() == out.len() && second.is_none_or(|s| s.len() == out.len()), "one word per value");
    for start in (0..out.len()).step_by(16) {
        let low = _mm512_cvtepu16_epi32(half(&first[start..]));
        let high = match second {
            Some(second) => half(&second[start..]),
            None => _mm256_setzero_si256(),
        };
        let high = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(high));
        store(&mut out[start..], _mm512_or_si512(low, high));
    }
}

/// Up to sixteen values as bfloat16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn half(x: &[f32]) -> __m256i {
    // SAFETY: both are 32 bytes of which every pattern is a value.
    unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(load(x))) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn tile(a: Stretch<'_, u32>, panel: &[u32], c: &mut [f32], stride: usize) {
    by_tokens!(a.rows, 12, tile_of, a, panel, c, stride);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn tile_of<const T: usize>(a: Stretch<'_, u32>, panel: &[u32], c: &mut [f32], stride: usize) {
    let last = (T - 1) * a.row + (panel.len() / LANES).saturating_sub(1) * a.depth;
    assert!(last < a.values.len() && c.len() >= (T - 1) * stride + LANES, "a tile of {T} rows");
    // SAFETY: the last word that is read and the last vector that is written were just checked.
    unsafe {
        let mut sums = [[_mm512_set1_ps(0.0); 2]; T];
        for (t, sums) in sums.iter_mut().enumerate() {
            let c = c.as_ptr().add(t * stride);
            *sums = [_mm512_loadu_ps(c), _mm512_loadu_ps(c.add(16))];
        }
        // As in `single`: pointers of every third row.
        let mut bases = [a.values.as_ptr(); 4];
        for (i, base) in bases.iter_mut().enumerate() {
            *base = base.wrapping_add(3 * i * a.row);
        }
        for w in panel.as_chunks::<LANES>().0 {
            let w = [_mm512_loadu_si512(w.as_ptr().cast()), _mm512_loadu_si512(w[16..].as_ptr().cast())];
            for t in 0..T {
                let x = *bases[t / 3].wrapping_add(t % 3 * a.row);
                let x = brains(_mm512_set1_epi32(x.cast_signed()));
                sums[t][0] = _mm512_dpbf16_ps(sums[t][0], brains(w[0]), x);
                sums[t][1] = _mm512_dpbf16_ps(sums[t][1], brains(w[1]), x);
            }
            for base in &mut bases {
                *base = base.wrapping_add(a.depth);
            }
        }
        for (t, sums) in sums.iter().enumerate() {
            let c = c.as_mut_ptr().add(t * stride);
            _mm512_storeu_ps(c, sums[0]);
            _mm512_storeu_ps(c.add(16), sums[1]);
        }
    }
}
