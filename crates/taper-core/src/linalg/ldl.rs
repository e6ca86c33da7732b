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
//! Left-looking by blocks of 128 rows of U = Lᵀ, in the memory of the matrix: nearly all work is products. Columns are cut
//! in panels of fixed size, and at the end U is turned over to L.
//!
//! ```text
//!        done  │ block  │ columns ▶         P = H − (rows done)ᵀ D (rows done)
//!  U    ▓▓▓▓▓▓▓│▓▓▓▓▓▓▓▓│▓▓▓▓▓▓▓▓▓▓         on the diagonal   P = L D Lᵀ, which gives 128 columns of L
//!              │P=L D Lᵀ│ D⁻¹ L⁻¹ P         right of it       rows of U are D⁻¹ L⁻¹ P
//! ```

use rayon::prelude::*;

use super::kernel::{Real, View, product};

/// Rows per block: the triangular part costs n² · 128 multiplications of n³ / 6 in all.
const BLOCK: usize = 128;

/// Columns per task.
const PANEL: usize = 128;

/// Rows and columns of a square that is turned over at once.
const SQUARE: usize = 32;

/// The factor of a symmetric matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Ldl<T> {
    order: usize,
    /// Row-major `[order, order]`; zeros above the diagonal.
    lower: Vec<T>,
    pivots: Vec<f64>,
}

impl<T: Real> Ldl<T> {
    /// Factors a matrix, `[order, order]` row-major, of which only the upper triangle is read. `None` where a pivot is
    /// below `least` (or not a number): the matrix is not positive definite by that margin at this precision.
    #[must_use]
    pub fn of(mut a: Vec<T>, order: usize, least: f64) -> Option<Self> {
        assert_eq!(a.len(), order * order, "a square matrix");
        let mut pivots = Vec::with_capacity(order);
        for from in (0..order).step_by(BLOCK) {
            let to = (from + BLOCK).min(order);
            let (done, rest) = a.split_at_mut(from * order);
            let block = Block { rows: &rest[..(to - from) * order], done, order, from, to };
            let scaled = block.scaled(&pivots);
            let (unit, found) = factor_diagonal(&block.reduced(from..to, &scaled), to - from, least)?;
            let solver = solver(&unit, &found);
            pivots.extend(found);
            let panels: Vec<Vec<T>> = (to..order)
                .into_par_iter()
                .step_by(PANEL)
                .map(|first| block.solved(first..(first + PANEL).min(order), &scaled, &solver))
                .collect();
            let width = to - from;
            rest[..width * order].par_chunks_mut(order).enumerate().for_each(|(i, row)| {
                for (k, x) in row[from + i..to].iter_mut().enumerate() {
                    *x = T::of(unit[(i + k) * width + i]);
                }
                for (panel, row) in panels.iter().zip(row[to..].chunks_mut(PANEL)) {
                    row.copy_from_slice(&panel[i * row.len()..][..row.len()]);
                }
            });
        }
        turn_over(&mut a, order);
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
        let inverse: Vec<f64> = s.iter().map(|s| 1.0 / s).collect();
        self.lower.par_chunks_exact_mut(order).enumerate().for_each(|(i, row)| {
            // Ones stay ones, zeros zeros.
            for (x, inverse) in row[..i].iter_mut().zip(&inverse) {
                *x = T::of(x.wide() * s[i] * inverse);
            }
        });
        Ldl { order: self.order, lower: T::narrowed(self.lower), pivots }
    }
}

/// Rows `from .. to` of the matrix, and those of U above them.
struct Block<'a, T> {
    done: &'a [T],
    rows: &'a [T],
    order: usize,
    from: usize,
    to: usize,
}

impl<T: Real> Block<'_, T> {
    fn width(&self) -> usize {
        self.to - self.from
    }

    /// The block's columns of the rows done, each row times its pivot: `[from, width]`.
    fn scaled(&self, pivots: &[f64]) -> Vec<T> {
        let mut out = Vec::with_capacity(self.from * self.width());
        for (row, &pivot) in self.done.chunks_exact(self.order.max(1)).zip(pivots) {
            let pivot = T::of(pivot);
            out.extend(row[self.from..self.to].iter().map(|&x| x * pivot));
        }
        out
    }

    /// P of some columns, `[width, columns]`.
    fn reduced(&self, columns: std::ops::Range<usize>, scaled: &[T]) -> Vec<T> {
        let (width, count) = (self.width(), columns.len());
        let mut out = Vec::with_capacity(width * count);
        for row in self.rows.chunks_exact(self.order) {
            out.extend_from_slice(&row[columns.clone()]);
        }
        if self.from > 0 {
            let right = View::rows(&self.done[columns.start..], self.order);
            let shape = (width, count, self.from);
            product(&mut out, count, shape, (1.0, -1.0), View::columns(scaled, width), right);
        }
        out
    }

    /// Rows of U at some columns right of the diagonal, `[width, columns]`.
    fn solved(&self, columns: std::ops::Range<usize>, scaled: &[T], solver: &[T]) -> Vec<T> {
        let (width, count) = (self.width(), columns.len());
        let reduced = self.reduced(columns, scaled);
        let mut out = vec![T::ZERO; width * count];
        let (left, right) = (View::rows(solver, width), View::rows(&reduced, count));
        product(&mut out, count, (width, count, width), (0.0, 1.0), left, right);
        out
    }
}

/// L `[width, width]` and D of a diagonal block, of which the upper triangle is read; in f64.
fn factor_diagonal<T: Real>(block: &[T], width: usize, least: f64) -> Option<(Vec<f64>, Vec<f64>)> {
    // Row i of the upper triangle becomes row i of D U, then column i of L.
    let mut rest: Vec<f64> = block.iter().map(|x| x.wide()).collect();
    let (mut unit, mut pivots) = (vec![0f64; width * width], Vec::with_capacity(width));
    for k in 0..width {
        let (above, below) = rest.split_at_mut((k + 1) * width);
        let row = &above[k * width..];
        let pivot = row[k];
        // A pivot that is not a number is refused as well.
        if !(pivot >= least && pivot.is_finite()) {
            return None;
        }
        for (i, lower) in (k..width).zip(unit[k * width + k..].iter_mut().step_by(width)) {
            *lower = row[i] / pivot;
        }
        for (i, target) in (k + 1..width).zip(below.chunks_exact_mut(width)) {
            let factor = row[i] / pivot;
            target[i..].iter_mut().zip(&row[i..]).for_each(|(x, y)| *x -= factor * y);
        }
        pivots.push(pivot);
    }
    Some((unit, pivots))
}

/// D⁻¹ L⁻¹ of a unit lower triangle, `[width, width]`.
fn solver<T: Real>(unit: &[f64], pivots: &[f64]) -> Vec<T> {
    let width = pivots.len();
    let mut inverse = vec![0f64; width * width];
    for i in 0..width {
        let (done, here) = inverse.split_at_mut(i * width);
        for (factor, done) in unit[i * width..][..i].iter().zip(done.chunks_exact(width)) {
            here[..i].iter_mut().zip(done).for_each(|(x, y)| *x -= factor * y);
        }
        here[i] = 1.0;
    }
    let rows = inverse.chunks_exact(width.max(1)).zip(pivots);
    rows.flat_map(|(row, pivot)| row.iter().map(move |x| T::of(x / pivot))).collect()
}

/// The transpose of an upper triangle, in place; zeros where that was.
fn turn_over<T: Real>(a: &mut [T], order: usize) {
    for first in (0..order).step_by(SQUARE) {
        let count = SQUARE.min(order - first);
        let (block, below) = a[first * order..].split_at_mut(count * order);
        for i in 0..count {
            for j in i + 1..count {
                block[j * order + first + i] = block[i * order + first + j];
                block[i * order + first + j] = T::ZERO;
            }
        }
        let columns = first + count;
        let upper = &*block;
        below.par_chunks_mut(SQUARE * order).enumerate().for_each(|(square, rows)| {
            for (i, row) in rows.chunks_exact_mut(order).enumerate() {
                let from = upper[columns + square * SQUARE + i..].iter().step_by(order);
                row[first..first + count].iter_mut().zip(from).for_each(|(x, from)| *x = *from);
            }
        });
        block.par_chunks_mut(order).for_each(|row| row[columns..].fill(T::ZERO));
    }
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
        assert!(Ldl::of(vec![1.0, 1.0, 0.0, 1.0], 2, 1e-9).is_none(), "singular");
        assert!(Ldl::of(vec![1.0, 2.0, 0.0, 1.0], 2, 0.0).is_none(), "indefinite");
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
