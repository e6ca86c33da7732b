//! f32 products: a panel of 16 rows times tiles of up to six tokens.
//!
//! ```text
//! 24 accumulators + 4 vectors of the panel + broadcasts of tokens, of 32 registers
//! ```
//!
//! Neighbours: [`super::integers`] is the same with bytes.

use std::arch::aarch64::{float32x4_t, vdupq_n_f32, vfmaq_n_f32, vld1q_f32, vst1q_f32};

use crate::kernel::{Cells, tiles::LANES};

#[target_feature(enable = "neon")]
pub(super) fn tile_f32(a: &[f32], panels: &[f32], stride: usize, c: &mut Cells<'_>) {
    for p in 0..c.panels {
        let (panel, tokens) = (&panels[p * stride..], c.tokens);
        let cells = c.panel(p);
        match tokens {
            1 => tile::<1>(a, panel, cells),
            2 => tile::<2>(a, panel, cells),
            3 => tile::<3>(a, panel, cells),
            4 => tile::<4>(a, panel, cells),
            5 => tile::<5>(a, panel, cells),
            _ => tile::<6>(a, panel, cells),
        }
    }
}

#[target_feature(enable = "neon")]
fn tile<const T: usize>(a: &[f32], panel: &[f32], c: &mut [[f32; LANES]]) {
    assert!(c.len() == T, "a tile of {T} tokens");
    let mut sums = [[vdupq_n_f32(0.0); 4]; T];
    for (sums, c) in sums.iter_mut().zip(c.iter()) {
        *sums = load(c);
    }
    for (a, w) in a.as_chunks::<T>().0.iter().zip(panel.as_chunks::<LANES>().0) {
        let w = load(w);
        for t in 0..T {
            for v in 0..4 {
                sums[t][v] = vfmaq_n_f32(sums[t][v], w[v], a[t]);
            }
        }
    }
    for (sums, c) in sums.iter().zip(c) {
        for (sum, c) in sums.iter().zip(c.as_chunks_mut::<4>().0) {
            // SAFETY: the array has 4 values.
            unsafe { vst1q_f32(c.as_mut_ptr(), *sum) };
        }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn load(values: &[f32; LANES]) -> [float32x4_t; 4] {
    let mut out = [vdupq_n_f32(0.0); 4];
    for (out, values) in out.iter_mut().zip(values.as_chunks::<4>().0) {
        // SAFETY: the array has 4 values.
        *out = unsafe { vld1q_f32(values.as_ptr()) };
    }
    out
}
