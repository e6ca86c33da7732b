//! C = A · B for operands that lie either way: what learning needs besides x · Wᵀ.
//!
//! ```text
//! y  = x · Wᵀ     A = x, along     B = W, along      [tokens, out]
//! ∂x = g · W      A = g, along     B = W, across     [tokens, in]
//! ∂W = gᵀ · x     A = g, across    B = x, across     [out, in]
//!
//! along    [side, depth]: what is summed lies side by side            across   [depth, side]
//! ```
//!
//! B is turned into panels `[depth, lanes]` once. A task owns some rows of C; it takes A a stretch of depth at a time and
//! multiplies tiles of its rows by one panel after the other. Every entry is summed by one thread in the order of depth, so
//! any number of threads gives the same bits.
//!
//! Neighbours: `multiply/single.rs` multiplies f32, `multiply/pairs.rs` pairs of bfloat16; [`super::dense`] is the product of
//! inference, which reads weights of every type where they lie.

#[cfg(target_arch = "x86_64")]
mod pairs;
mod single;

#[cfg(test)]
mod conform;

use rayon::prelude::*;

use super::{
    aligned::{Aligned, Number},
    lent::Lent,
    table::{self, Kernels},
};

/// Words of depth that are multiplied before the next ones are taken: a tile of A and a panel of B stay in near caches.
const DEPTH: usize = 512;

/// Most rows of C of a task; few enough for its stretch of A to stay in a near cache.
const ROWS: usize = 96;

/// Multiplications below which a second thread costs more than it brings.
const ALONE: usize = 1 << 18;

/// A matrix of two sides: the one that is kept, and depth, over which is summed.
#[derive(Debug, Clone, Copy)]
pub enum Operand<'a> {
    /// `[side, depth]`.
    Along(&'a [f32]),
    /// `[depth, side]`.
    Across(&'a [f32]),
}

/// How numbers are multiplied. Sums are f32 always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arithmetic {
    /// As they are.
    #[default]
    F32,
    /// Rounded to bfloat16 (half to even) first: relative errors of 2⁻⁹ per factor, twice the speed where the machine has
    /// AVX512_BF16, which counts values below 2⁻¹²⁶ as zero.
    BF16,
}

/// The sizes of a product: C is `[rows, columns]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// The side of A.
    pub rows: usize,
    /// The side of B.
    pub columns: usize,
    /// What is summed over.
    pub depth: usize,
}

impl Operand<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Along(values) | Self::Across(values) => values.len(),
        }
    }
}

/// A · B, row-major. Panics where the lengths do not fit.
#[must_use]
pub fn multiply(a: Operand<'_>, b: Operand<'_>, sizes: Sizes, arithmetic: Arithmetic) -> Vec<f32> {
    let mut c = vec![0f32; sizes.rows * sizes.columns];
    multiply_with(table::active(), a, b, sizes, arithmetic, &mut c);
    c
}

/// C ← C + A · B. Panics where the lengths do not fit.
pub fn add_product(a: Operand<'_>, b: Operand<'_>, sizes: Sizes, arithmetic: Arithmetic, c: &mut [f32]) {
    multiply_with(table::active(), a, b, sizes, arithmetic, c);
}

pub(super) fn multiply_with(
    kernels: &Kernels,
    a: Operand<'_>,
    b: Operand<'_>,
    sizes: Sizes,
    arithmetic: Arithmetic,
    c: &mut [f32],
) {
    let Sizes { rows, columns, depth } = sizes;
    assert!(a.len() == rows * depth, "{} values are not {rows} × {depth}", a.len());
    assert!(b.len() == columns * depth, "{} values are not {columns} × {depth}", b.len());
    assert!(c.len() == rows * columns, "{} values are not {rows} × {columns}", c.len());
    if rows * columns * depth == 0 {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if let (Arithmetic::BF16, Some(pairs)) = (arithmetic, kernels.pairs()) {
        return run(&pairs::Halves(pairs), a, b, sizes, c);
    }
    run(&single::of(kernels, arithmetic), a, b, sizes, c);
}

/// How words of one or two depths are made and multiplied.
trait Loops: Sync {
    type Word: Number + Default + Send + Sync;
    /// Depths of a word.
    const SPAN: usize;

    /// Columns of a panel, most rows of a tile.
    fn sizes(&self) -> (usize, usize);

    /// Some columns of B as a panel `[words, lanes]`, which is zero so far.
    fn panel(&self, b: Operand<'_>, sizes: Sizes, columns: Part, out: &mut [Self::Word]);

    /// Some words of some rows of A, in `room` or where they lie; `room` has a place for each.
    fn stretch<'a>(
        &self,
        a: Operand<'a>,
        sizes: Sizes,
        rows_and_words: (Part, Part),
        room: &'a mut [Self::Word],
    ) -> Stretch<'a, Self::Word>;

    /// `c += a · panel`, for rows that lie `stride` apart in `c`.
    fn tile(&self, a: Stretch<'_, Self::Word>, panel: &[Self::Word], c: &mut [f32], stride: usize);
}

/// Some rows, columns or words: the first, and how many.
#[derive(Debug, Clone, Copy)]
struct Part {
    first: usize,
    count: usize,
}

/// Rows of A, and how far apart in memory two rows and two words of depth are.
#[derive(Debug, Clone, Copy)]
struct Stretch<'a, T> {
    values: &'a [T],
    rows: usize,
    row: usize,
    depth: usize,
}

impl<T> Stretch<'_, T> {
    fn from(self, row: usize, most: usize) -> Self {
        Self { values: &self.values[row * self.row..], rows: most.min(self.rows - row), ..self }
    }
}

fn run<L: Loops>(loops: &L, a: Operand<'_>, b: Operand<'_>, sizes: Sizes, c: &mut [f32]) {
    let ((lanes, most), words) = (loops.sizes(), sizes.depth.div_ceil(L::SPAN));
    let size = words * lanes;
    let mut panels = Aligned::<L::Word>::zeros(sizes.columns.div_ceil(lanes) * size);
    let make = |(p, out): (usize, &mut [L::Word])| {
        let first = p * lanes;
        loops.panel(b, sizes, Part { first, count: lanes.min(sizes.columns - first) }, out);
    };
    if rayon::current_num_threads() == 1 || sizes.rows.saturating_mul(sizes.columns * sizes.depth) < ALONE {
        panels.chunks_mut(size).enumerate().for_each(make);
        for (task, c) in c.chunks_mut(ROWS * sizes.columns).enumerate() {
            some_rows(loops, a, &panels, sizes, task * ROWS, c);
        }
        return;
    }
    panels.par_chunks_mut(size).enumerate().for_each(make);
    // Some tasks per thread, so that one that the system halts does not hold up all.
    let each = sizes.rows.div_ceil(4 * rayon::current_num_threads()).next_multiple_of(most).min(ROWS);
    c.par_chunks_mut(each * sizes.columns).enumerate().with_max_len(1).for_each(|(task, c)| {
        some_rows(loops, a, &panels, sizes, task * each, c);
    });
}

/// Rows of C from `first` on.
fn some_rows<L: Loops>(
    loops: &L,
    a: Operand<'_>,
    panels: &[L::Word],
    sizes: Sizes,
    first: usize,
    c: &mut [f32],
) {
    let ((lanes, most), words, columns) = (loops.sizes(), sizes.depth.div_ceil(L::SPAN), sizes.columns);
    let rows = Part { first, count: c.len() / columns };
    let mut room = Lent::<L::Word>::new(rows.count * DEPTH.min(words));
    let mut edge = Lent::<f32>::new(most * lanes);
    for start in (0..words).step_by(DEPTH) {
        let run = Part { first: start, count: DEPTH.min(words - start) };
        let a = loops.stretch(a, sizes, (rows, run), &mut room[..rows.count * run.count]);
        for (panel, column) in panels.chunks_exact(words * lanes).zip((0..columns).step_by(lanes)) {
            let panel = &panel[start * lanes..][..run.count * lanes];
            let width = lanes.min(columns - column);
            for row in (0..rows.count).step_by(most) {
                let a = a.from(row, most);
                let c = &mut c[row * columns + column..];
                if width == lanes {
                    loops.tile(a, panel, c, columns);
                    continue;
                }
                edge.fill(0.0);
                loops.tile(a, panel, &mut edge, lanes);
                for (c, sums) in c.chunks_mut(columns).zip(edge.chunks_exact(lanes)).take(a.rows) {
                    c[..width].iter_mut().zip(sums).for_each(|(c, sum)| *c += sum);
                }
            }
        }
    }
}
