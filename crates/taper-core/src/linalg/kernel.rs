//! One product of strided matrices, with its bounds checked.
//!
//! ```text
//! C ← α C + β A B          C [m, n]    A [m, k]    B [k, n]
//! ```
//!
//! f32 goes through the tiles of `kernel/strided.rs`, f64 through the `gemm` crate. It runs on the thread that calls it: who
//! wants several threads cuts C in pieces that do not depend on the number of threads, and gets results that do not either.

#![allow(unsafe_code)]

use std::fmt;

use crate::kernel::strided::{self, Strided};

/// f32 or f64.
pub trait Real: num::Float {}

impl Real for f32 {}
impl Real for f64 {}

mod num {
    /// What the factorisation needs of a number; sealed.
    pub trait Float:
        Copy
        + Send
        + Sync
        + PartialOrd
        + std::fmt::Debug
        + std::ops::Add<Output = Self>
        + std::ops::Sub<Output = Self>
        + std::ops::Mul<Output = Self>
        + std::ops::Div<Output = Self>
        + 'static
    {
        /// 0.
        const ZERO: Self;
        /// 1.
        const ONE: Self;
        /// The nearest number of this type.
        fn of(x: f64) -> Self;
        /// As f64.
        fn wide(self) -> f64;
        /// Numbers as f32; no copy where they are.
        fn narrowed(values: Vec<Self>) -> Vec<f32>;
        /// See [`super::product`], which has checked the bounds.
        fn product(
            c: &mut [Self],
            stride: usize,
            shape: (usize, usize, usize),
            factors: (f64, f64),
            a: super::View<'_, Self>,
            b: super::View<'_, Self>,
        );
    }

    impl Float for f32 {
        const ZERO: Self = 0.0;
        const ONE: Self = 1.0;
        #[inline(always)]
        fn of(x: f64) -> Self {
            x as Self
        }
        #[inline(always)]
        fn wide(self) -> f64 {
            f64::from(self)
        }
        fn narrowed(values: Vec<Self>) -> Vec<f32> {
            values
        }
        fn product(
            c: &mut [Self],
            stride: usize,
            shape: (usize, usize, usize),
            (alpha, beta): (f64, f64),
            a: super::View<'_, Self>,
            b: super::View<'_, Self>,
        ) {
            super::strided::product(
                c,
                stride,
                shape,
                (alpha as Self, beta as Self),
                a.strided(),
                b.strided(),
            );
        }
    }

    impl Float for f64 {
        const ZERO: Self = 0.0;
        const ONE: Self = 1.0;
        #[inline(always)]
        fn of(x: f64) -> Self {
            x
        }
        #[inline(always)]
        fn wide(self) -> f64 {
            self
        }
        fn narrowed(values: Vec<Self>) -> Vec<f32> {
            values.into_iter().map(|x| x as f32).collect()
        }
        fn product(
            c: &mut [Self],
            stride: usize,
            shape: (usize, usize, usize),
            factors: (f64, f64),
            a: super::View<'_, Self>,
            b: super::View<'_, Self>,
        ) {
            super::double(c, stride, shape, factors, a, b);
        }
    }
}

/// A matrix within a slice: element (i, j) at `i · row + j · col`.
#[derive(Clone, Copy)]
pub struct View<'a, T> {
    values: &'a [T],
    row: usize,
    col: usize,
}

impl<T> fmt::Debug for View<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("row", &self.row).field("col", &self.col).finish_non_exhaustive()
    }
}

impl<'a> View<'a, f32> {
    fn strided(self) -> Strided<'a> {
        Strided { values: self.values, row: self.row, col: self.col }
    }
}

impl<'a, T> View<'a, T> {
    /// Row-major, with rows `stride` apart.
    #[must_use]
    pub fn rows(values: &'a [T], stride: usize) -> Self {
        Self { values, row: stride, col: 1 }
    }

    /// The transpose of [`View::rows`].
    #[must_use]
    pub fn columns(values: &'a [T], stride: usize) -> Self {
        Self { values, row: 1, col: stride }
    }

    fn holds(&self, m: usize, n: usize) -> bool {
        m == 0 || n == 0 || (m - 1) * self.row + (n - 1) * self.col < self.values.len()
    }
}

/// C ← α C + β A B, for C `[m, n]` in `c` with rows `stride` apart. Panics where a matrix leaves its slice.
pub fn product<T: Real>(
    c: &mut [T],
    stride: usize,
    (m, n, k): (usize, usize, usize),
    (alpha, beta): (f64, f64),
    a: View<'_, T>,
    b: View<'_, T>,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(n <= stride && (m - 1) * stride + n <= c.len(), "the result leaves its slice");
    assert!(a.holds(m, k) && b.holds(k, n), "a factor leaves its slice");
    T::product(c, stride, (m, n, k), (alpha, beta), a, b);
}

/// [`product`] of f64, whose bounds were checked.
fn double(
    c: &mut [f64],
    stride: usize,
    (m, n, k): (usize, usize, usize),
    (alpha, beta): (f64, f64),
    a: View<'_, f64>,
    b: View<'_, f64>,
) {
    let at = |stride: usize| stride as isize;
    // SAFETY: all elements that the strides reach lie within the slices (asserted by `product`, the only caller); `c` is
    // borrowed mutably, so it overlaps neither factor.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            at(stride),
            alpha != 0.0,
            a.values.as_ptr(),
            at(a.col),
            at(a.row),
            b.values.as_ptr(),
            at(b.col),
            at(b.row),
            alpha,
            beta,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
