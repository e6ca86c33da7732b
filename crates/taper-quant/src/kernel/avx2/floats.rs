//! f32 products: a panel of 16 rows times tiles of up to six tokens.
//!
//! ```text
//! 12 accumulators + 2 vectors of the panel + 1 broadcast of a token = 15 of 16 registers
//! ```
//!
//! Neighbours: [`super::integers`] is the same with bytes.

use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_storeu_ps};

use crate::kernel::{Cells, tiles::LANES};

#[target_feature(enable = "avx2,fma,f16c")]
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

#[target_feature(enable = "avx2,fma")]
fn tile<const T: usize>(a: &[f32], panel: &[f32], c: &mut [[f32; LANES]]) {
    assert!(c.len() == T, "a tile of {T} tokens");
    let mut sums = [[_mm256_set1_ps(0.0); 2]; T];
    for (sums, c) in sums.iter_mut().zip(c.iter()) {
        // SAFETY: the array has 16 values.
        *sums = unsafe { [_mm256_loadu_ps(c.as_ptr()), _mm256_loadu_ps(c[8..].as_ptr())] };
    }
    for (a, w) in a.as_chunks::<T>().0.iter().zip(panel.as_chunks::<LANES>().0) {
        // SAFETY: the array has 16 values.
        let w = unsafe { [_mm256_loadu_ps(w.as_ptr()), _mm256_loadu_ps(w[8..].as_ptr())] };
        for t in 0..T {
            let a = _mm256_set1_ps(a[t]);
            sums[t][0] = _mm256_fmadd_ps(a, w[0], sums[t][0]);
            sums[t][1] = _mm256_fmadd_ps(a, w[1], sums[t][1]);
        }
    }
    for (sums, c) in sums.iter().zip(c) {
        // SAFETY: the array has 16 values.
        unsafe {
            _mm256_storeu_ps(c.as_mut_ptr(), sums[0]);
            _mm256_storeu_ps(c[8..].as_mut_ptr(), sums[1]);
        }
    }
}
