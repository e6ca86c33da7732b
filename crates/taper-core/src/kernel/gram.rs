//! G += Xᵀ · X: what calibration sums up for second-order methods.
//!
//! ```text
//!            j ▶
//!     i  ┌────────────        tokens   256 at a time in f32, those sums in f64
//!     ▼  │▓                   ▓        computed, one panel of columns times one tile of rows after another
//!        │▓▓▓                 ·        mirrored at the end
//!        │▓▓▓▓▓···
//! ```
//!
//! Error of an entry: at most 264 · 2⁻²⁴ · Σ |x_i x_j|, whatever the number of tokens. A task owns whole rows of G, and each
//! entry is summed in the order of tokens: the same bits for any number of threads. [`cross`] is the same for two matrices.
//!
//! Neighbours: `stats` calls this; [`super::dense`] uses the same tiles.

use rayon::prelude::*;

use super::{
    aligned::Aligned,
    table::{self, Kernels},
};

/// Tokens whose products are summed in f32.
pub const CHUNK: usize = 256;

/// Chunks that share one walk over G.
const TOGETHER: usize = 4;

/// Tiles of rows of a task.
const TILES: usize = 8;

/// Rows and columns of a block that is mirrored at once.
const BLOCK: usize = 32;

/// Adds Xᵀ · X to `out`: `x` is `[tokens, d]`, `out` is `[d, d]` and symmetric, both row-major.
///
/// Panics where the lengths do not fit.
pub fn gram(x: &[f32], d: usize, out: &mut [f64]) {
    gram_with(table::active(), x, d, out);
}

pub(super) fn gram_with(kernels: &Kernels, x: &[f32], d: usize, out: &mut [f64]) {
    assert!(out.len() == d * d, "{} values are not a Gram matrix of {d} inputs", out.len());
    if d == 0 {
        return;
    }
    let chunks: Vec<&[f32]> = x.chunks(CHUNK * d).collect();
    let mut rows: Vec<&mut [f64]> = out.chunks_exact_mut(d).collect();
    add(kernels, &chunks, &chunks, d, Part::Lower, &mut rows);
    mirror(out, d);
}

/// Adds Xᵀ · X to a lower triangle whose row i is `rows[i]`, of at least i + 1 values.
///
/// `chunks` are stretches of tokens, `[at most CHUNK, d]` each: what is summed in f32 before it is added. Panics where the
/// lengths do not fit.
pub fn lower(chunks: &[&[f32]], d: usize, rows: &mut [&mut [f64]]) {
    assert!(rows.iter().enumerate().all(|(i, row)| row.len() > i), "row i of a triangle has i + 1 values");
    add(table::active(), chunks, chunks, d, Part::Lower, rows);
}

/// Adds Aᵀ · B to `out`, `[d, d]` row-major: `a` and `b` are `[tokens, d]`. Panics where the lengths do not fit.
pub fn cross(a: &[f32], b: &[f32], d: usize, out: &mut [f64]) {
    cross_with(table::active(), a, b, d, out);
}

pub(super) fn cross_with(kernels: &Kernels, a: &[f32], b: &[f32], d: usize, out: &mut [f64]) {
    assert!(a.len() == b.len(), "{} values beside {}", a.len(), b.len());
    assert!(out.len() == d * d, "{} values are not a matrix of {d} inputs", out.len());
    if d == 0 {
        return;
    }
    let (a, b): (Vec<&[f32]>, Vec<&[f32]>) = a.chunks(CHUNK * d).zip(b.chunks(CHUNK * d)).unzip();
    let mut rows: Vec<&mut [f64]> = out.chunks_exact_mut(d).collect();
    add(kernels, &a, &b, d, Part::Whole, &mut rows);
}

/// What of a matrix is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Lower,
    Whole,
}

fn add(kernels: &Kernels, a: &[&[f32]], b: &[&[f32]], d: usize, part: Part, rows: &mut [&mut [f64]]) {
    assert!(rows.len() == d, "{} rows of a matrix of {d} inputs", rows.len());
    let whole = |x: &&[f32]| x.len().is_multiple_of(d.max(1)) && x.len() <= CHUNK * d;
    assert!(a.iter().chain(b).all(whole), "chunks are up to {CHUNK} vectors of {d}");
    for (a, b) in a.chunks(TOGETHER).zip(b.chunks(TOGETHER)) {
        let panels = panels(kernels, b, d);
        // As many tasks as threads can share, and no more walks over the panels than that takes.
        let tiles = d.div_ceil(kernels.tokens * 8 * rayon::current_num_threads()).clamp(1, TILES);
        let count = tiles * kernels.tokens;
        // The last tasks have the longest rows: they begin first.
        rows.par_chunks_mut(count).enumerate().rev().with_max_len(1).for_each(|(task, rows)| {
            some_rows(kernels, a, &panels, (d, task * count), part, rows);
        });
    }
}

/// `[panels, tokens, lanes]`: stretches of columns, side by side; zeros beyond the last.
fn panels(kernels: &Kernels, x: &[&[f32]], d: usize) -> Aligned<f32> {
    let (lanes, tokens) = (kernels.lanes, tokens(x, d));
    let mut out = Aligned::zeros(d.div_ceil(lanes) * tokens * lanes);
    out.par_chunks_mut((tokens * lanes).max(1)).enumerate().for_each(|(panel, out)| {
        let columns = panel * lanes..((panel + 1) * lanes).min(d);
        let x = x.iter().flat_map(|x| x.chunks_exact(d));
        for (x, out) in x.zip(out.chunks_exact_mut(lanes)) {
            out[..columns.len()].copy_from_slice(&x[columns.clone()]);
        }
    });
    out
}

fn tokens(x: &[&[f32]], d: usize) -> usize {
    x.iter().map(|x| x.len() / d).sum()
}

/// Rows from `first` on: all columns, or those of the lower triangle.
fn some_rows(
    kernels: &Kernels,
    x: &[&[f32]],
    panels: &[f32],
    (d, first): (usize, usize),
    part: Part,
    rows: &mut [&mut [f64]],
) {
    let (lanes, most, tokens) = (kernels.lanes, kernels.tokens, tokens(x, d));
    let a = tiles(x, d, (first, rows.len()), most);
    let mut sums = vec![0f64; rows.len().div_ceil(most) * most * lanes];
    let mut c = Aligned::<f32>::zeros(most * lanes);
    let width = if part == Part::Lower { first + rows.len() } else { d };
    for p in 0..width.div_ceil(lanes) {
        let panel = &panels[p * tokens * lanes..(p + 1) * tokens * lanes];
        // What stood there is where sums begin: they do not depend on how many chunks come together.
        let columns = |i: usize| {
            let end = if part == Part::Lower { first + i + 1 } else { d };
            p * lanes..((p + 1) * lanes).min(end)
        };
        for (i, (row, sums)) in rows.iter().zip(sums.chunks_exact_mut(lanes)).enumerate() {
            let columns = columns(i);
            if !columns.is_empty() {
                sums[..columns.len()].copy_from_slice(&row[columns]);
            }
        }
        // Tiles that end above the first column of the panel lie beyond the triangle.
        let begin = if part == Part::Lower { (p * lanes).saturating_sub(first) / most } else { 0 };
        let mut start = 0;
        for run in x.iter().map(|x| x.len() / d) {
            let panel = &panel[start * lanes..(start + run) * lanes];
            let tiles =
                a.chunks_exact((tokens * most).max(1)).zip(sums.chunks_exact_mut(most * lanes)).skip(begin);
            for (a, sums) in tiles {
                c.fill(0.0);
                (kernels.tile)(&a[start * most..(start + run) * most], panel, &mut c);
                sums.iter_mut().zip(c.iter()).for_each(|(sum, c)| *sum += f64::from(*c));
            }
            start += run;
        }
        for (i, (row, sums)) in rows.iter_mut().zip(sums.chunks_exact(lanes)).enumerate() {
            let columns = columns(i);
            if !columns.is_empty() {
                let count = columns.len();
                row[columns].copy_from_slice(&sums[..count]);
            }
        }
    }
}

/// Columns from `first` on as tiles, `[tiles, tokens, most]`; zeros beyond the last.
fn tiles(x: &[&[f32]], d: usize, (first, rows): (usize, usize), most: usize) -> Aligned<f32> {
    let tokens = tokens(x, d);
    let mut a = Aligned::zeros(rows.div_ceil(most) * tokens * most);
    for (tile, out) in a.chunks_exact_mut((tokens * most).max(1)).enumerate() {
        let start = first + tile * most;
        let count = most.min(first + rows - start);
        for (x, out) in x.iter().flat_map(|x| x.chunks_exact(d)).zip(out.chunks_exact_mut(most)) {
            out[..count].copy_from_slice(&x[start..start + count]);
        }
    }
    a
}

/// Copies the lower triangle to the upper one.
fn mirror(out: &mut [f64], d: usize) {
    // Blocks of rows are handed out whole; each reads blocks below it, which nobody writes above their diagonal.
    let mut rest = out;
    let mut first = 0;
    while first < d {
        let count = BLOCK.min(d - first);
        let (block, below) = rest.split_at_mut(count * d);
        for i in 0..count {
            for j in i + 1..count {
                block[i * d + first + j] = block[j * d + first + i];
            }
        }
        let columns = first + count;
        let below = &*below;
        block.par_chunks_mut(d).enumerate().with_min_len(8).for_each(|(i, row)| {
            for (row, below) in row[columns..].iter_mut().zip(below.chunks_exact(d)) {
                *row = below[first + i];
            }
        });
        rest = &mut rest[count * d..];
        first += count;
    }
}
