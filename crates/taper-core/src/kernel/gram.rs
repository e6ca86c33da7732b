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
use std::ops::Range;

use super::{
    lent::Lent,
    table::{self, Kernels},
};

/// Tokens whose products are summed in f32.
pub const CHUNK: usize = 256;

/// Chunks that share one walk over G.
const TOGETHER: usize = 4;

/// Tiles of rows of a task.
const TILES: usize = 8;

/// Panels that one task packs: what it reads of a token lies together.
const PANELS: usize = 4;

/// Tokens of a strip that are packed before those of the next.
const ABREAST: usize = 16;

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
    lower_with(kernels, &chunks, d, &mut rows);
    mirror(out, d);
}

/// Adds Xᵀ · X to a lower triangle whose row i is `rows[i]`, of at least i + 1 values.
///
/// `chunks` are stretches of tokens, `[at most CHUNK, d]` each: what is summed in f32 before it is added. Panics where the
/// lengths do not fit.
pub fn lower(chunks: &[&[f32]], d: usize, rows: &mut [&mut [f64]]) {
    lower_with(table::active(), chunks, d, rows);
}

fn lower_with(kernels: &Kernels, chunks: &[&[f32]], d: usize, rows: &mut [&mut [f64]]) {
    let mut rows: Vec<&mut [f64]> = rows.iter_mut().enumerate().map(|(i, row)| &mut row[..=i]).collect();
    add(kernels, chunks, chunks, d, &mut rows);
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
    add(kernels, &a, &b, d, &mut rows);
}

/// Adds Aᵀ · B to the first columns of each row, as many as it has: no row has more than the next.
fn add(kernels: &Kernels, a: &[&[f32]], b: &[&[f32]], d: usize, rows: &mut [&mut [f64]]) {
    assert!(rows.len() == d, "{} rows of a matrix of {d} inputs", rows.len());
    let whole = |x: &&[f32]| x.len().is_multiple_of(d.max(1)) && x.len() <= CHUNK * d;
    assert!(a.iter().chain(b).all(whole), "chunks are up to {CHUNK} vectors of {d}");
    for (a, b) in a.chunks(TOGETHER).zip(b.chunks(TOGETHER)) {
        let tokens = b.iter().map(|b| b.len() / d).sum();
        let panels = panels(kernels, b, d, tokens);
        let walk = Walk { kernels, a, panels: &panels, d, tokens };
        // As many tasks as threads can share, and no more walks over the panels than that takes.
        let tiles = d.div_ceil(kernels.tokens * 8 * rayon::current_num_threads()).clamp(1, TILES);
        let count = tiles * kernels.tokens;
        // The last tasks have the longest rows: they begin first.
        rows.par_chunks_mut(count).enumerate().rev().with_max_len(1).for_each(|(task, rows)| {
            walk.rows(task * count, rows);
        });
    }
}

/// `[panels, tokens, lanes]`: stretches of columns, side by side; zeros beyond the last.
fn panels(kernels: &Kernels, x: &[&[f32]], d: usize, tokens: usize) -> Lent<f32> {
    let (lanes, size) = (kernels.lanes, kernels.lanes * tokens);
    let mut out = Lent::new(d.div_ceil(lanes) * size);
    out.par_chunks_mut((PANELS * size).max(1)).enumerate().for_each(|(task, out)| {
        let first = task * PANELS * lanes;
        let columns = first..(first + out.len() / tokens).min(d);
        strips(x, d, columns, lanes, out);
    });
    out
}

/// Some chunks on their way into a matrix.
struct Walk<'a> {
    kernels: &'a Kernels,
    a: &'a [&'a [f32]],
    /// Of B.
    panels: &'a [f32],
    d: usize,
    /// Of all chunks.
    tokens: usize,
}

impl Walk<'_> {
    /// Rows from `first` on.
    fn rows(&self, first: usize, rows: &mut [&mut [f64]]) {
        let &Walk { kernels, a: x, panels, d, tokens } = self;
        let (lanes, most) = (kernels.lanes, kernels.tokens);
        let mut a = Lent::<f32>::new(rows.len().div_ceil(most) * tokens * most);
        strips(x, d, first..first + rows.len(), most, &mut a);
        let width = rows.last().map_or(0, |row| row.len());
        for p in 0..width.div_ceil(lanes) {
            let panel = &panels[p * tokens * lanes..(p + 1) * tokens * lanes];
            for (a, rows) in a.chunks_exact((tokens * most).max(1)).zip(rows.chunks_mut(most)) {
                // Rows that end before the panel lie beyond the triangle.
                if rows.last().is_none_or(|row| row.len() <= p * lanes) {
                    continue;
                }
                // The next panel's part of these rows comes from memory while this one's is summed.
                let next: Vec<*const f64> =
                    rows.iter().map(|row| row.as_ptr().wrapping_add((p + 1) * lanes)).collect();
                let (mut start, mut next) = (0, next.chunks(most.div_ceil(x.len())));
                for run in x.iter().map(|x| x.len() / d) {
                    let panel = &panel[start * lanes..(start + run) * lanes];
                    let (a, next) = (&a[start * most..(start + run) * most], next.next().unwrap_or_default());
                    (kernels.outer)(a, panel, p * lanes, rows, next);
                    start += run;
                }
            }
        }
    }
}

/// Some columns as strips `[strips, tokens, width]`; zeros beyond the last.
fn strips(x: &[&[f32]], d: usize, columns: Range<usize>, width: usize, out: &mut [f32]) {
    // Moves of known size are instructions, others are calls.
    match width {
        6 => strips_of::<6>(x, d, columns, out),
        8 => strips_of::<8>(x, d, columns, out),
        12 => strips_of::<12>(x, d, columns, out),
        16 => strips_of::<16>(x, d, columns, out),
        32 => strips_of::<32>(x, d, columns, out),
        other => unreachable!("strips of {other} columns"),
    }
}

fn strips_of<const WIDTH: usize>(x: &[&[f32]], d: usize, columns: Range<usize>, out: &mut [f32]) {
    let tokens: usize = x.iter().map(|x| x.len() / d).sum();
    let (out, _) = out.as_chunks_mut::<WIDTH>();
    let mut first = 0;
    // Some tokens of one strip after the other: strips lie so far apart that they would push each other out of the cache.
    for x in x.iter().flat_map(|x| x.chunks(ABREAST * d)) {
        for (strip, out) in out.chunks_mut(tokens.max(1)).enumerate() {
            let start = columns.start + strip * WIDTH;
            for (x, out) in x.chunks_exact(d).zip(&mut out[first..]) {
                if let (true, Some(x)) = (start + WIDTH <= columns.end, x[start..].first_chunk()) {
                    *out = *x;
                } else {
                    let x = &x[start..columns.end];
                    out[..x.len()].copy_from_slice(x);
                    out[x.len()..].fill(0.0);
                }
            }
        }
        first += x.len() / d;
    }
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
