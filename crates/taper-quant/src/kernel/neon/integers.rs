//! Integer products: a panel of 16 rows times tiles of up to six tokens.
//!
//! ```text
//! dot product   sdot: four products a lane
//! plain         smull of both halves, addp to pairs, sadalp to lanes; pairs fit 16 bits, as |a| ≤ 127:
//!               bytes 2 · 128 · 127 < 2¹⁵, nibbles (two quads before the pairs) 4 · 15 · 127 < 2¹⁵
//! Σ code · a  = Σ (code − 128) · a + 128 · Σ a
//! ```
//!
//! Neighbours: [`super::floats`] is the same with f32.

use std::arch::{
    aarch64::{
        int8x16_t, int32x4_t, vandq_u8, vcvtq_f32_s32, vdupq_n_s32, vdupq_n_u8, veorq_u8, vfmaq_f32,
        vget_low_s8, vld1q_f32, vld1q_s32, vld1q_u8, vmlal_high_s8, vmlal_s8, vmlaq_n_s32, vmull_high_s8,
        vmull_s8, vmulq_n_f32, vpadalq_s16, vpaddq_s16, vqtbl1q_u8, vreinterpretq_s8_s32,
        vreinterpretq_s8_u8, vshrq_n_u8, vst1q_f32,
    },
    asm,
};

use crate::kernel::{
    Cells, CodeForm, TileI8,
    tiles::{LANES, LINE},
};

const BYTES: u8 = 0;
const NIBBLES: u8 = 1;
const TABLE: u8 = 2;

#[target_feature(enable = "neon")]
pub(super) fn tile_i8(job: &TileI8<'_>, c: &mut Cells<'_>) {
    // SAFETY: the instructions are enabled.
    unsafe { tiles::<Plain>(job, c) }
}

#[target_feature(enable = "neon,dotprod")]
pub(super) fn tile_i8_dot(job: &TileI8<'_>, c: &mut Cells<'_>) {
    // SAFETY: the instructions are enabled.
    unsafe { tiles::<DotProduct>(job, c) }
}

/// Sums of products of signed bytes.
///
/// # Safety
/// Only for functions that enable the instructions of the implementation: all is inlined there.
unsafe trait Products {
    /// Σ of four products, added to each sum.
    unsafe fn bytes(sum: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t;
    /// Σ of eight products of nibbles and bytes, added to each sum.
    unsafe fn nibbles(
        sum: int32x4_t,
        low: int8x16_t,
        a: int8x16_t,
        high: int8x16_t,
        b: int8x16_t,
    ) -> int32x4_t;
}

struct Plain;

// SAFETY: the instructions are those of `Isa::Neon`.
unsafe impl Products for Plain {
    #[inline(always)]
    unsafe fn bytes(sum: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
        // SAFETY: the caller's promise, here and below.
        unsafe {
            let first = vmull_s8(vget_low_s8(w), vget_low_s8(a));
            vpadalq_s16(sum, vpaddq_s16(first, vmull_high_s8(w, a)))
        }
    }

    #[inline(always)]
    unsafe fn nibbles(
        sum: int32x4_t,
        low: int8x16_t,
        a: int8x16_t,
        high: int8x16_t,
        b: int8x16_t,
    ) -> int32x4_t {
        // SAFETY: as above.
        unsafe {
            let first = vmull_s8(vget_low_s8(low), vget_low_s8(a));
            let first = vmlal_s8(first, vget_low_s8(high), vget_low_s8(b));
            let second = vmlal_high_s8(vmull_high_s8(low, a), high, b);
            vpadalq_s16(sum, vpaddq_s16(first, second))
        }
    }
}

struct DotProduct;

// SAFETY: the instructions are those of `Isa::Neon` with `Features::dot_product`.
unsafe impl Products for DotProduct {
    #[inline(always)]
    unsafe fn bytes(mut sum: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
        // SAFETY: as above; it reads and writes nothing but its registers. The intrinsic is not stable yet.
        unsafe {
            asm!("sdot {sum:v}.4s, {w:v}.16b, {a:v}.16b", sum = inout(vreg) sum, w = in(vreg) w, a = in(vreg) a,
                options(pure, nomem, nostack, preserves_flags));
        }
        sum
    }

    #[inline(always)]
    unsafe fn nibbles(
        sum: int32x4_t,
        low: int8x16_t,
        a: int8x16_t,
        high: int8x16_t,
        b: int8x16_t,
    ) -> int32x4_t {
        // SAFETY: as above.
        unsafe { Self::bytes(Self::bytes(sum, low, a), high, b) }
    }
}

/// Calls [`tile`] with the form and the number of tokens as constants.
///
/// # Safety
/// As for [`Products`].
#[inline(always)]
unsafe fn tiles<P: Products>(job: &TileI8<'_>, c: &mut Cells<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        match job.codes.form {
            CodeForm::Bytes => by_tokens::<P, BYTES>(job, c),
            CodeForm::Nibbles => by_tokens::<P, NIBBLES>(job, c),
            CodeForm::Table(_) => by_tokens::<P, TABLE>(job, c),
        }
    }
}

/// # Safety
/// As for [`Products`].
#[inline(always)]
unsafe fn by_tokens<P: Products, const FORM: u8>(job: &TileI8<'_>, c: &mut Cells<'_>) {
    for panel in 0..c.panels {
        // SAFETY: the caller's promise.
        unsafe {
            match c.tokens {
                1 => tile::<P, FORM, 1>(job, panel, c),
                2 => tile::<P, FORM, 2>(job, panel, c),
                3 => tile::<P, FORM, 3>(job, panel, c),
                4 => tile::<P, FORM, 4>(job, panel, c),
                5 => tile::<P, FORM, 5>(job, panel, c),
                _ => tile::<P, FORM, 6>(job, panel, c),
            }
        }
    }
}

/// One panel times `T` tokens.
///
/// # Safety
/// As for [`Products`].
#[inline(always)]
unsafe fn tile<P: Products, const FORM: u8, const T: usize>(
    job: &TileI8<'_>,
    panel: usize,
    c: &mut Cells<'_>,
) {
    // SAFETY: the caller's promise; arrays have as many values as are loaded.
    unsafe {
        let (low, flip) = (vdupq_n_u8(15), vdupq_n_u8(128));
        let table = match job.codes.form {
            CodeForm::Table(table) => veorq_u8(vld1q_u8(table.as_ptr()), flip),
            _ => low,
        };
        let signed =
            |nibbles| vreinterpretq_s8_u8(if FORM == TABLE { vqtbl1q_u8(table, nibbles) } else { nibbles });
        let mut lines = job.codes.bytes[panel * job.codes.stride..].as_chunks::<LINE>().0.iter();
        let mut tokens = job.a.as_chunks::<4>().0.as_chunks::<T>().0;
        for (s, &quads) in job.quads.iter().enumerate() {
            let at = panel * job.grids.stride + s * LANES;
            let (a, rest) = tokens.split_at(quads as usize);
            tokens = rest;
            let mut sums = [[vdupq_n_s32(0); 4]; T];
            for (t, sums) in sums.iter_mut().enumerate() {
                let begin = job.starts[s * T + t];
                let less = if FORM == NIBBLES { 0 } else { 128 * sum_of(job, begin, a, t) };
                *sums = start(job, at, begin, less);
            }
            if FORM == BYTES {
                // The line comes second: it must stay where activations end.
                for (a, line) in a.iter().zip(lines.by_ref()) {
                    let a = a.map(|a| broadcast(a));
                    for (v, line) in line.as_chunks::<16>().0.iter().enumerate() {
                        let w = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(line.as_ptr()), flip));
                        for t in 0..T {
                            sums[t][v] = P::bytes(sums[t][v], w, a[t]);
                        }
                    }
                }
            } else {
                for ([a, b], line) in a.as_chunks::<2>().0.iter().zip(lines.by_ref()) {
                    let (a, b) = (a.map(|a| broadcast(a)), b.map(|b| broadcast(b)));
                    for (v, line) in line.as_chunks::<16>().0.iter().enumerate() {
                        let line = vld1q_u8(line.as_ptr());
                        let (first, second) = (signed(vandq_u8(line, low)), signed(vshrq_n_u8::<4>(line)));
                        for t in 0..T {
                            sums[t][v] = if FORM == TABLE {
                                P::bytes(P::bytes(sums[t][v], first, a[t]), second, b[t])
                            } else {
                                P::nibbles(sums[t][v], first, a[t], second, b[t])
                            };
                        }
                    }
                }
            }
            for (t, sums) in sums.iter().enumerate() {
                let scales = &job.grids.scales[at..at + LANES];
                let cells = &mut c.values[panel * c.stride + t * LANES..][..LANES];
                add(cells, sums, scales, job.steps[s * T + t]);
            }
        }
    }
}

/// Σ a of a token and a segment, from what its sums begin with; only where that does not tell, from the activations.
#[inline(always)]
fn sum_of<const T: usize>(job: &TileI8<'_>, start: i32, a: &[[[i8; 4]; T]], t: usize) -> i32 {
    match (job.grids.centers, job.grids.offset) {
        (Some(_), _) => -start,
        (None, 0) => a.iter().flat_map(|a| a[t]).map(i32::from).sum(),
        (None, offset) => -start / offset,
    }
}

/// What the centers take away, and `less` that codes are short of.
#[inline]
#[target_feature(enable = "neon")]
fn start(job: &TileI8<'_>, at: usize, start: i32, less: i32) -> [int32x4_t; 4] {
    let Some(centers) = job.grids.centers else { return [vdupq_n_s32(start + less); 4] };
    let mut out = [vdupq_n_s32(less); 4];
    for (out, centers) in out.iter_mut().zip(centers[at..at + LANES].as_chunks::<4>().0) {
        // SAFETY: the array has 4 numbers.
        *out = vmlaq_n_s32(*out, unsafe { vld1q_s32(centers.as_ptr()) }, start);
    }
    out
}

/// Four activations beside every row.
#[inline]
#[target_feature(enable = "neon")]
fn broadcast(a: [i8; 4]) -> int8x16_t {
    vreinterpretq_s8_s32(vdupq_n_s32(i32::from_ne_bytes(a.map(i8::cast_unsigned))))
}

/// `cells += sums · scales · step`.
#[inline]
#[target_feature(enable = "neon")]
fn add(cells: &mut [f32], sums: &[int32x4_t; 4], scales: &[f32], step: f32) {
    let (cells, scales) = (cells.as_chunks_mut::<4>().0, scales.as_chunks::<4>().0);
    for ((cells, sum), scales) in cells.iter_mut().zip(sums).zip(scales) {
        // SAFETY: the arrays have 4 values.
        unsafe {
            let factor = vmulq_n_f32(vld1q_f32(scales.as_ptr()), step);
            let total = vfmaq_f32(vld1q_f32(cells.as_ptr()), vcvtq_f32_s32(*sum), factor);
            vst1q_f32(cells.as_mut_ptr(), total);
        }
    }
}
