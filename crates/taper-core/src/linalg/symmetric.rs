//! A symmetric matrix that keeps one triangle: half the memory, and half the work of a Gram sum.
//!
//! ```text
//! row i holds A[i, 0..=i], after row i − 1:      A[i, j] at i (i + 1) / 2 + j,   j ≤ i
//! ```
//!
//! Neighbours: [`crate::stats`] fills one per half of the calibration inputs.

use rayon::prelude::*;

use crate::kernel::fresh;

/// A symmetric matrix of f64, as its lower triangle.
#[derive(Debug, Clone, PartialEq)]
pub struct Symmetric {
    order: usize,
    lower: Vec<f64>,
}

/// Elements of a triangle with its diagonal.
#[must_use]
pub const fn triangle(order: usize) -> usize {
    order * (order + 1) / 2
}

impl Symmetric {
    /// Zeros, `[order, order]`.
    #[must_use]
    pub fn zeros(order: usize) -> Self {
        Self { order, lower: fresh::repeated(0.0, triangle(order)) }
    }

    /// The matrix of this lower triangle, row by row; `None` where its length is not that of a triangle of `order`.
    #[must_use]
    pub fn from_lower(order: usize, lower: Vec<f64>) -> Option<Self> {
        (lower.len() == triangle(order)).then_some(Self { order, lower })
    }

    /// Rows, which are as many as columns.
    #[must_use]
    pub fn order(&self) -> usize {
        self.order
    }

    /// Element (i, j), of either triangle.
    #[inline]
    #[must_use]
    pub fn get(&self, i: usize, j: usize) -> f64 {
        let (i, j) = if i >= j { (i, j) } else { (j, i) };
        self.lower[triangle(i) + j]
    }

    /// The lower triangle, row by row.
    #[must_use]
    pub fn lower(&self) -> &[f64] {
        &self.lower
    }

    /// Row `i` up to its diagonal: `i + 1` elements.
    #[must_use]
    pub fn row(&self, i: usize) -> &[f64] {
        &self.lower[triangle(i)..triangle(i + 1)]
    }

    /// All rows up to their diagonals, to be written in parallel.
    pub fn rows_mut(&mut self) -> Vec<&mut [f64]> {
        let mut rest = self.lower.as_mut_slice();
        (0..self.order)
            .map(|i| {
                let (row, later) = std::mem::take(&mut rest).split_at_mut(i + 1);
                rest = later;
                row
            })
            .collect()
    }

    /// The diagonal.
    #[must_use]
    pub fn diagonal(&self) -> Vec<f64> {
        (0..self.order).map(|i| self.lower[triangle(i) + i]).collect()
    }

    /// The sum of this matrix and another of the same order.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        assert_eq!(self.order, other.order, "matrices of one order are added");
        let lower = self.lower.par_iter().zip(&other.lower).map(|(a, b)| a + b).collect();
        Self { order: self.order, lower }
    }

    /// All elements, `[order, order]` row-major.
    #[must_use]
    pub fn to_full(&self) -> Vec<f64> {
        let d = self.order;
        let mut full = vec![0.0; d * d];
        if d == 0 {
            return full;
        }
        full.par_chunks_mut(d).enumerate().for_each(|(i, out)| {
            out[..=i].copy_from_slice(self.row(i));
            for (j, out) in out.iter_mut().enumerate().skip(i + 1) {
                *out = self.lower[triangle(j) + i];
            }
        });
        full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_triangles_read_the_same_elements() {
        let mut a = Symmetric::zeros(3);
        for (i, row) in a.rows_mut().into_iter().enumerate() {
            row.iter_mut().enumerate().for_each(|(j, x)| *x = (10 * i + j) as f64);
        }
        assert_eq!((a.get(2, 1), a.get(1, 2), a.diagonal()), (21.0, 21.0, vec![0.0, 11.0, 22.0]));
        assert_eq!(a.to_full(), [0.0, 10.0, 20.0, 10.0, 11.0, 21.0, 20.0, 21.0, 22.0]);
        assert_eq!(a.plus(&a).get(0, 2), 40.0);
        assert_eq!(Symmetric::from_lower(3, a.lower().to_vec()), Some(a));
        assert_eq!(Symmetric::from_lower(2, vec![0.0; 4]), None);
    }
}
