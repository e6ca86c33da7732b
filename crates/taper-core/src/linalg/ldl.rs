//! H = L D Lᵀ, blocked.
//!
//! L is unit lower triangular. Of a Gram matrix H it says how inputs predict each other: column k holds, below its
//! diagonal, how an error at a later input j > k is made up for at input k,
//!
//! ```text
//! ‖E X‖² = tr E H Eᵀ = Σ_k D_k (E L)_k²        (E L)_k = E_k + Σ_{j>k} E_j L_jk
//! ```
//!
//! so whoever settles inputs from the last to the first, each at the value that cancels Σ_{j>k} E_j L_jk, is left with D_k
//! times the square of what could not be cancelled (Chee et al., QuIP, 2023, theorem 1: this is GPTQ, without an inverse).
//!
//! Left-looking by blocks of 128 columns: nearly all work is products. Rows are cut in pieces of fixed size.

use rayon::prelude::*;

use super::kernel::{Real, View, product};

/// Columns per block: the triangular part costs n² · 128 multiplications of n³ / 3 in all.
const BLOCK: usize = 128;

/// Rows per task.
const ROWS: usize = 256;

/// The factor of a symmetric matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Ldl<T> {
    order: usize,
    /// Row-major `[order, order]`; zeros above the diagonal.
    lower: Vec<T>,
    pivots: Vec<f64>,
}

impl<T: Real> Ldl<T> {
    /// Factors a matrix, `[order, order]` row-major, of which only the lower triangle is read. `None` where a pivot is
    /// below `least` (or not a number): the matrix is not positive definite by that margin at this precision.
    #[must_use]
    pub fn of(mut a: Vec<T>, order: usize, least: f64) -> Option<Self> {
        assert_eq!(a.len(), order * order, "a square matrix");
        let mut pivots = Vec::with_capacity(order);
        for from in (0..order).step_by(BLOCK) {
            let to = (from + BLOCK).min(order);
            let width = to - from;
            let (above, below) = a.split_at_mut(to * order);
            reduce_diagonal(above, order, from, &pivots);
            let block = &mut above[from * order..];
            pivots.extend(factor_diagonal(block, order, from, least)?);
            let inverse = inverse_of_unit(block, order, from, width);
            // Rows of L so far, times D: what the rows below are reduced by.
            let scaled = scaled(block, order, width, &pivots[..from]);
            below.par_chunks_mut(ROWS * order).for_each(|rows| {
                let (m, stride) = (rows.len() / order, order);
                let mut panel = vec![T::ZERO; m * width];
                for (panel, row) in panel.chunks_exact_mut(width).zip(rows.chunks_exact(stride)) {
                    panel.copy_from_slice(&row[from..to]);
                }
                let (done, shape) = (View::rows(rows, stride), (m, width, from));
                product(&mut panel, width, shape, (1.0, -1.0), done, View::columns(&scaled, from.max(1)));
                let shape = (m, width, width);
                let right = View::columns(&inverse, width);
                product(&mut rows[from..], stride, shape, (0.0, 1.0), View::rows(&panel, width), right);
                for row in rows.chunks_exact_mut(stride) {
                    for (x, &pivot) in row[from..to].iter_mut().zip(&pivots[from..]) {
                        *x = *x / T::of(pivot);
                    }
                }
            });
        }
        for (i, row) in a.chunks_exact_mut(order.max(1)).enumerate() {
            row[i] = T::ONE;
            row[i + 1..].fill(T::ZERO);
        }
        Some(Self { order, lower: a, pivots })
    }

    /// Rows, which are as many as columns.
    #[must_use]
    pub fn order(&self) -> usize {
        self.order
    }

    /// L, `[order, order]` row-major, with ones on its diagonal and zeros above.
    #[must_use]
    pub fn lower(&self) -> &[T] {
        &self.lower
    }

    /// D.
    #[must_use]
    pub fn pivots(&self) -> &[f64] {
        &self.pivots
    }

    /// The factor of S H S, for a diagonal S > 0, in f32.
    #[must_use]
    pub fn rescaled(mut self, s: &[f64]) -> Ldl<f32> {
        let pivots = self.pivots.iter().zip(s).map(|(d, s)| d * s * s).collect();
        let order = self.order.max(1);
        let lower = self
            .lower
            .par_chunks_exact_mut(order)
            .enumerate()
            .flat_map_iter(|(i, row)| {
                row.iter().enumerate().map(|(k, x)| (x.wide() * s[i] / s[k]) as f32).collect::<Vec<_>>()
            })
            .collect();
        Ldl { order: self.order, lower, pivots }
    }
}

/// A[block, block] −= L D Lᵀ of the columns before.
fn reduce_diagonal<T: Real>(above: &mut [T], order: usize, from: usize, pivots: &[f64]) {
    let width = above.len() / order - from;
    let block = &mut above[from * order..];
    let scaled = scaled(block, order, width, pivots);
    let mut square = vec![T::ZERO; width * width];
    let shape = (width, width, from);
    let right = View::columns(&scaled, from.max(1));
    product(&mut square, width, shape, (0.0, 1.0), View::rows(block, order), right);
    for (row, minus) in block.chunks_exact_mut(order).zip(square.chunks_exact(width)) {
        for (x, &minus) in row[from..from + width].iter_mut().zip(minus) {
            *x = *x - minus;
        }
    }
}

/// The first `pivots.len()` columns of some rows, each times its pivot; `[rows, pivots.len()]`.
fn scaled<T: Real>(rows: &[T], order: usize, count: usize, pivots: &[f64]) -> Vec<T> {
    let mut out = Vec::with_capacity(count * pivots.len());
    for row in rows.chunks_exact(order).take(count) {
        out.extend(row.iter().zip(pivots).map(|(&x, &d)| x * T::of(d)));
    }
    out
}

/// L D Lᵀ of one diagonal block, in place, summed in f64.
fn factor_diagonal<T: Real>(block: &mut [T], order: usize, from: usize, least: f64) -> Option<Vec<f64>> {
    let width = block.len() / order;
    let mut l = vec![0f64; width * width];
    let mut pivots = vec![0f64; width];
    for i in 0..width {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|k| l[i * width + k] * l[j * width + k] * pivots[k]).sum();
            let rest = block[i * order + from + j].wide() - dot;
            if i == j {
                // A pivot that is not a number is refused as well.
                if !(rest >= least && rest.is_finite()) {
                    return None;
                }
                pivots[i] = rest;
                l[i * width + i] = 1.0;
            } else {
                l[i * width + j] = rest / pivots[j];
            }
        }
    }
    for (row, l) in block.chunks_exact_mut(order).zip(l.chunks_exact(width)) {
        for (x, &l) in row[from..from + width].iter_mut().zip(l) {
            *x = T::of(l);
        }
    }
    Some(pivots)
}

/// The inverse of a unit lower triangle, `[width, width]`.
fn inverse_of_unit<T: Real>(block: &[T], order: usize, from: usize, width: usize) -> Vec<T> {
    let mut inverse = vec![0f64; width * width];
    for i in 0..width {
        for k in 0..i {
            let factor = block[i * order + from + k].wide();
            let (done, here) = inverse.split_at_mut(i * width);
            for (x, &y) in here[..=k].iter_mut().zip(&done[k * width..]) {
                *x -= factor * y;
            }
        }
        inverse[i * width + i] = 1.0;
    }
    inverse.into_iter().map(T::of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A correlation-like matrix with eigenvalues not below about 0.1.
    fn matrix(order: usize) -> Vec<f64> {
        let mut a = vec![0f64; order * order];
        for i in 0..order {
            for j in 0..order {
                let far = i.abs_diff(j) as f64;
                a[i * order + j] = 0.8f64.powf(far) + if i == j { 0.1 } else { 0.0 };
            }
        }
        a
    }

    #[test]
    fn the_factor_multiplies_back_at_any_order_and_precision() {
        for order in [1, 5, 128, 131, 300] {
            let a = matrix(order);
            let wide = Ldl::of(a.clone(), order, 0.0).unwrap();
            let narrow = Ldl::of(a.iter().map(|&x| x as f32).collect(), order, 0.0).unwrap();
            for i in 0..order {
                for j in 0..=i {
                    let (mut exact, mut close) = (0.0, 0.0);
                    for k in 0..order {
                        let l = |f: &Ldl<f64>, r: usize| f.lower()[r * order + k];
                        exact += l(&wide, i) * l(&wide, j) * wide.pivots()[k];
                        let l = |r: usize| f64::from(narrow.lower()[r * order + k]);
                        close += l(i) * l(j) * narrow.pivots()[k];
                    }
                    assert!((exact - a[i * order + j]).abs() < 1e-12, "{order}: {i} {j}");
                    assert!((close - a[i * order + j]).abs() < 1e-5, "{order}: {i} {j}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_positive_definite_is_refused() {
        assert!(Ldl::of(vec![1.0, 0.0, 1.0, 1.0], 2, 1e-9).is_none(), "singular");
        assert!(Ldl::of(vec![1.0, 0.0, 2.0, 1.0], 2, 0.0).is_none(), "indefinite");
        assert!(Ldl::of(vec![f64::NAN], 1, 0.0).is_none());
    }

    #[test]
    fn rescaling_the_factor_is_factoring_the_rescaled_matrix() {
        let (order, a) = (140, matrix(140));
        let s: Vec<f64> = (0..order).map(|i| 1.0 + (i % 7) as f64).collect();
        let scaled: Vec<f64> = (0..order * order).map(|at| a[at] * s[at / order] * s[at % order]).collect();
        let direct = Ldl::of(scaled, order, 0.0).unwrap();
        let rescaled = Ldl::of(a, order, 0.0).unwrap().rescaled(&s);
        for (a, b) in direct.lower().iter().zip(rescaled.lower()) {
            assert!((a - f64::from(*b)).abs() < 1e-5);
        }
        for (a, b) in direct.pivots().iter().zip(rescaled.pivots()) {
            assert!((a - b).abs() < 1e-9 * a);
        }
    }
}
