//! Sums of single inputs: Σ x, Σ |x|, Σ x², least and largest.
//!
//! ```text
//!  columns ▶   16 at a time, in registers
//!  tokens ▼    64 at a time, out of the cache that the columns beside them brought
//! ```
//!
//! Each column is summed in f64, token by token: the same bits on every table and for any number of threads.
//!
//! Neighbours: `stats` calls this; [`super::gram`] sums up products.

use rayon::prelude::*;

use super::table::{self, Kernels};

/// Columns that are one task's.
const COLUMNS: usize = 128;

/// Columns whose sums stay in registers.
const ABREAST: usize = 16;

/// Tokens that are summed up before the columns beside them.
const TOKENS: usize = 64;

/// Where the inputs of some columns are summed up.
#[derive(Debug)]
pub(crate) struct Norms<'a> {
    /// Σ x.
    pub(crate) sum: &'a mut [f64],
    /// Σ |x|.
    pub(crate) sum_abs: &'a mut [f64],
    /// Σ x².
    pub(crate) sum_squares: &'a mut [f64],
    /// The least x.
    pub(crate) min: &'a mut [f32],
    /// The largest x.
    pub(crate) max: &'a mut [f32],
}

/// Adds vectors, `[tokens, d]` row-major, to the sums of d columns. Panics where the lengths do not fit.
pub(crate) fn norms(x: &[f32], sums: Norms<'_>) {
    norms_with(table::active(), x, sums);
}

pub(super) fn norms_with(kernels: &Kernels, x: &[f32], sums: Norms<'_>) {
    let d = sums.sum.len();
    assert!(d > 0 && x.len().is_multiple_of(d), "{} values are not vectors of {d}", x.len());
    let Norms { sum, sum_abs, sum_squares, min, max } = sums;
    let wide = sum.par_chunks_mut(COLUMNS).zip(sum_abs.par_chunks_mut(COLUMNS));
    let wide = wide.zip(sum_squares.par_chunks_mut(COLUMNS));
    let all = wide.zip(min.par_chunks_mut(COLUMNS).zip(max.par_chunks_mut(COLUMNS))).enumerate();
    all.for_each(|(task, (((sum, sum_abs), sum_squares), (min, max)))| {
        let mut sums = Norms { sum, sum_abs, sum_squares, min, max };
        for x in x.chunks(TOKENS * d) {
            (kernels.norms)(&x[task * COLUMNS..], d, &mut sums);
        }
    });
}

/// See [`Kernels::norms`].
#[inline(always)]
pub(super) fn add_rows(x: &[f32], stride: usize, sums: &mut Norms<'_>) {
    let count = sums.sum.len();
    let whole = count - count % ABREAST;
    for at in (0..whole).step_by(ABREAST) {
        abreast::<ABREAST>(x, stride, at, sums);
    }
    for at in whole..count {
        abreast::<1>(x, stride, at, sums);
    }
}

#[inline(always)]
fn abreast<const N: usize>(x: &[f32], stride: usize, at: usize, sums: &mut Norms<'_>) {
    let (mut sum, mut sum_abs, mut sum_squares) = ([0f64; N], [0f64; N], [0f64; N]);
    let (mut min, mut max) = ([0f32; N], [0f32; N]);
    sum.copy_from_slice(&sums.sum[at..at + N]);
    sum_abs.copy_from_slice(&sums.sum_abs[at..at + N]);
    sum_squares.copy_from_slice(&sums.sum_squares[at..at + N]);
    min.copy_from_slice(&sums.min[at..at + N]);
    max.copy_from_slice(&sums.max[at..at + N]);
    for x in x.chunks(stride) {
        let Some(x) = x.get(at..).and_then(|x| x.first_chunk::<N>()) else { continue };
        for i in 0..N {
            let wide = f64::from(x[i]);
            sum[i] += wide;
            sum_abs[i] += wide.abs();
            sum_squares[i] += wide * wide;
            min[i] = if x[i] < min[i] { x[i] } else { min[i] };
            max[i] = if x[i] > max[i] { x[i] } else { max[i] };
        }
    }
    sums.sum[at..at + N].copy_from_slice(&sum);
    sums.sum_abs[at..at + N].copy_from_slice(&sum_abs);
    sums.sum_squares[at..at + N].copy_from_slice(&sum_squares);
    sums.min[at..at + N].copy_from_slice(&min);
    sums.max[at..at + N].copy_from_slice(&max);
}
