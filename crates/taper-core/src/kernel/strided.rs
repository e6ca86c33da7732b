//! C ← α C + β A B for f32 matrices with strides, by the tiles of dense products.
//!
//! ```text
//!            lanes  lanes  lanes  lanes          a stretch of B, DEPTH rows of up to four panels, made once
//!          ┌──────┬──────┬──────┬──────┐
//!   tile   │  c   │      │      │      │         and read by every tile of rows of A, [depth, tokens]
//! ```
//!
//! It runs on the thread that calls it. Sums are f32, in an order that depends on the shape and the table alone.
//!
//! Neighbours: [`super::dense`] multiplies whole weights with all threads; `linalg` factors and solves with this.

use std::ops::Range;

use super::{
    lent::Lent,
    table::{self, Kernels},
};

/// Rows of B that are packed at a time: four panels are then 256 KiB, the tiles of [`ROWS`] rows of A 576, of which one is 24.
const DEPTH: usize = 512;

/// Panels that share a tile of A.
const TOGETHER: usize = 4;

/// Rows of C whose sums are held at a time.
const ROWS: usize = 288;

/// A matrix within a slice: element (i, j) at `i · row + j · col`. Callers check that it stays within.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) row: usize,
    pub(crate) col: usize,
}

/// C ← α C + β A B for C `[m, n]` in `c` with rows `stride` apart, A `[m, k]`, B `[k, n]`.
pub(crate) fn product(
    c: &mut [f32],
    stride: usize,
    (m, n, k): (usize, usize, usize),
    (alpha, beta): (f32, f32),
    a: Strided<'_>,
    b: Strided<'_>,
) {
    let kernels = table::active();
    let (lanes, most) = (kernels.lanes, kernels.tokens);
    let mut panels = Lent::<f32>::new(TOGETHER * lanes * DEPTH.min(k));
    let mut tiles = Lent::<f32>::new(ROWS.min(m).next_multiple_of(most) * DEPTH.min(k));
    for columns in (0..n).step_by(TOGETHER * lanes).map(|from| from..(from + TOGETHER * lanes).min(n)) {
        let count = columns.len().div_ceil(lanes);
        for rows in (0..m).step_by(ROWS).map(|from| from..(from + ROWS).min(m)) {
            // Of each tile, of each panel: `[tokens, lanes]`.
            let mut sums = Lent::<f32>::zeros(rows.len() * count * lanes);
            for from in (0..k).step_by(DEPTH) {
                let depth = DEPTH.min(k - from);
                for (p, panel) in panels.chunks_exact_mut(depth * lanes).take(count).enumerate() {
                    pack_panel(kernels, b, (from, columns.start + p * lanes, columns.end), depth, panel);
                }
                pack_tiles(a, rows.clone(), (from, depth), most, &mut tiles);
                let tiles = tiles.chunks(most * depth).zip(sums.chunks_mut(most * count * lanes));
                for (tile, sums) in tiles {
                    let tokens = sums.len() / (count * lanes);
                    let panels = panels.chunks_exact(depth * lanes);
                    for (panel, c) in panels.zip(sums.chunks_exact_mut(tokens * lanes)) {
                        (kernels.tile)(&tile[..depth * tokens], panel, c);
                    }
                }
            }
            for (start, sums) in rows.clone().step_by(most).zip(sums.chunks(most * count * lanes)) {
                let tokens = most.min(rows.end - start);
                for (p, sums) in sums.chunks_exact(tokens * lanes).enumerate() {
                    let (first, last) = (columns.start + p * lanes, (columns.start + (p + 1) * lanes).min(n));
                    for (t, sums) in sums.chunks_exact(lanes).enumerate() {
                        let at = (start + t) * stride;
                        write(&mut c[at + first..at + last], sums, alpha, beta);
                    }
                }
            }
        }
    }
}

/// What stood there counts only where it is asked for: it may be anything.
fn write(c: &mut [f32], sums: &[f32], alpha: f32, beta: f32) {
    if alpha == 0.0 {
        c.iter_mut().zip(sums).for_each(|(c, s)| *c = beta * s);
    } else {
        c.iter_mut().zip(sums).for_each(|(c, s)| *c = alpha * *c + beta * s);
    }
}

/// Rows `from ..` of B, from column `first` to a panel's width or `end`: `[depth, lanes]`, zeros beyond.
fn pack_panel(
    kernels: &Kernels,
    b: Strided<'_>,
    (from, first, end): (usize, usize, usize),
    depth: usize,
    out: &mut [f32],
) {
    let lanes = kernels.lanes;
    let count = lanes.min(end - first);
    let start = from * b.row + first * b.col;
    if b.col == 1 && count == lanes {
        copy_rows(&b.values[start..], b.row, lanes, out);
    } else if b.col == 1 {
        for (k, out) in out.chunks_exact_mut(lanes).enumerate() {
            let at = start + k * b.row;
            out[..count].copy_from_slice(&b.values[at..at + count]);
            out[count..].fill(0.0);
        }
    } else if b.row == 1 {
        // Columns of B lie in rows: turned over, as those of a weight are.
        let last = start + (count - 1) * b.col + depth;
        (kernels.f32.panel)(&b.values[start..last], b.col, depth, out);
    } else {
        for (k, out) in out.chunks_exact_mut(lanes).enumerate() {
            out.fill(0.0);
            (0..count).for_each(|j| out[j] = b.values[start + k * b.row + j * b.col]);
        }
    }
}

/// Some rows of A, columns from `from` on, as tiles of up to `most` rows one after another, each `[depth, rows]`.
fn pack_tiles(
    a: Strided<'_>,
    rows: Range<usize>,
    (from, depth): (usize, usize),
    most: usize,
    out: &mut [f32],
) {
    let tiles = out.chunks_mut(most * depth).zip(rows.clone().step_by(most));
    if a.row != 1 {
        for (out, first) in tiles {
            let tokens = most.min(rows.end - first);
            for t in 0..tokens {
                let values = a.values[(first + t) * a.row + from * a.col..].iter().step_by(a.col);
                let out = out[t..].iter_mut().step_by(tokens).take(depth);
                out.zip(values).for_each(|(out, value)| *out = *value);
            }
        }
        return;
    }
    // Each column is read once, to all tiles: so many columns apart, tile by tile would miss the cache again and again.
    for k in 0..depth {
        let column = &a.values[rows.start + (from + k) * a.col..][..rows.len()];
        for (tile, values) in column.chunks(most).enumerate() {
            let at = tile * most * depth + k * values.len();
            let out = &mut out[at..at + values.len()];
            match (<&mut [f32; TWELVE]>::try_from(&mut *out), <&[f32; TWELVE]>::try_from(values)) {
                (Ok(out), Ok(values)) => *out = *values,
                _ => out.copy_from_slice(values),
            }
        }
    }
}

/// The usual height of a tile, as a constant: a copy of so few bytes is not worth a call.
const TWELVE: usize = 12;

/// The first `width` values of rows `stride` apart, side by side.
fn copy_rows(from: &[f32], stride: usize, width: usize, out: &mut [f32]) {
    match width {
        // The usual widths as constants.
        8 => copy::<8>(from, stride, out),
        16 => copy::<16>(from, stride, out),
        32 => copy::<32>(from, stride, out),
        _ => {
            for (k, out) in out.chunks_exact_mut(width).enumerate() {
                out.copy_from_slice(&from[k * stride..k * stride + width]);
            }
        }
    }
}

fn copy<const N: usize>(from: &[f32], stride: usize, out: &mut [f32]) {
    for (k, out) in out.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        if let Some(row) = from[k * stride..].first_chunk::<N>() {
            *out = *row;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 300.0 - 1.6).collect()
    }

    #[test]
    fn every_stride_gives_the_plain_sums() {
        for (m, n, k) in [(1, 1, 1), (12, 32, 7), (13, 33, 600), (250, 140, 5), (3, 129, 1030)] {
            let (a, b, before) = (numbers(m * k, 1), numbers(k * n, 2), numbers(m * (n + 3), 3));
            let turned = |x: &[f32], rows: usize, cols: usize| -> Vec<f32> {
                (0..rows * cols).map(|at| x[at % rows * cols + at / rows]).collect()
            };
            let (a_turned, b_turned) = (turned(&a, m, k), turned(&b, k, n));
            let rows =
                [Strided { values: &a, row: k, col: 1 }, Strided { values: &a_turned, row: 1, col: m }];
            let columns =
                [Strided { values: &b, row: n, col: 1 }, Strided { values: &b_turned, row: 1, col: k }];
            for (left, right) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let mut c = before.clone();
                product(&mut c, n + 3, (m, n, k), (0.5, -2.0), rows[left], columns[right]);
                for i in 0..m {
                    for j in 0..n {
                        let terms = (0..k).map(|x| f64::from(a[i * k + x]) * f64::from(b[x * n + j]));
                        let (sum, size) = terms.fold((0.0, 0.0), |(s, t), x| (s + x, t + x.abs()));
                        let expected = 0.5 * f64::from(before[i * (n + 3) + j]) - 2.0 * sum;
                        let off = (f64::from(c[i * (n + 3) + j]) - expected).abs();
                        assert!(off <= 1e-6 * (size + 4.0), "{m} {n} {k}: {i} {j}: {off}");
                    }
                    assert_eq!(
                        c[i * (n + 3) + n..][..3],
                        before[i * (n + 3) + n..][..3],
                        "beyond the result"
                    );
                }
            }
        }
    }

    #[test]
    fn what_stood_there_does_not_count_where_it_is_not_asked_for() {
        let (a, b, mut c) = ([2.0f32], [3.0f32], [f32::NAN]);
        let one = |values| Strided { values, row: 1, col: 1 };
        product(&mut c, 1, (1, 1, 1), (0.0, 1.0), one(&a), one(&b));
        assert_eq!(c, [6.0]);
    }
}
