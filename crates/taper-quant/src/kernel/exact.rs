//! x · Wᵀ with f32 activations: the weight is decoded, nothing else is rounded but f32 products and sums.
//!
//! ```text
//! few tokens    row by row, straight from the codes
//! more          panels of decoded rows, `[depth, lanes]`, times tiles of tokens, `[depth, tokens]`
//! ```
//!
//! Error against the exact sum: at most (cols + 2) · 2⁻²⁴ · Σ |w x|, as for any f32 sum.
//!
//! Neighbours: [`super::int8`] is the same with rounded activations.

use rayon::prelude::*;

use super::{
    Kernels, PanelF32, RowF32, SLICED, SlicedF32, Stream,
    aligned::Aligned,
    matrix::{Matrix, tiles},
    sheet::{self, Stretch},
};

/// Columns that are decoded at a time, and panels that share one walk over the tokens.
///
/// Many tokens: four panels of 32 rows are 256 KiB, and a tile of twelve tokens 24 KiB. One tile: a panel of 16 KiB is
/// written and read within the nearest cache. The order of sums is the same.
fn depth_and_panels(tiles: usize) -> (usize, usize) {
    if tiles == 1 { (128, 1) } else { (512, 4) }
}

/// Most tokens that are multiplied row by row, where rows must be unpacked first.
const FEW: usize = 3;

/// Most tokens that are multiplied row by row, straight from packed codes.
const FEW_SLICED: usize = 12;

/// Rows whose grids are fetched together.
const ROWS: usize = 16;

/// x · Wᵀ: `x` is `[tokens, cols]`, the result `[tokens, rows]`.
pub(crate) fn product(kernels: &Kernels, w: &Matrix<'_>, x: &[f32], tokens: usize) -> Vec<f32> {
    if w.cols == 0 || tokens == 0 {
        return vec![0.0; w.rows * tokens];
    }
    let sliced = kernels.sliced_f32.filter(|_| can_slice(w));
    let few = if sliced.is_some() { FEW_SLICED } else { FEW };
    if tokens > few || w.column_groups.is_some() {
        return by_panels(kernels, w, x, tokens);
    }
    if let Some(kernel) = sliced {
        let x = slice(x, w.cols, w.stream);
        return sheet::fill(tokens, w.rows, ROWS, w.cols * tokens, |out| {
            sliced_rows(kernels, kernel, w, (&x, tokens), out);
        });
    }
    sheet::fill(tokens, w.rows, ROWS, w.cols * tokens, |out| plain_rows(kernels, w, x, out))
}

/// Columns of 64 bytes of codes.
fn block(stream: Stream) -> usize {
    512 / stream.bits()
}

/// True where scales change at whole 32-bit words only, in a way that the sliced kernel follows.
fn can_slice(w: &Matrix<'_>) -> bool {
    let bits = w.stream.bits();
    let block = block(w.stream);
    let splat = w.span.is_multiple_of(block) || w.groups == 1;
    let lanes = block.is_multiple_of(w.span) && w.span.is_multiple_of(32 / bits);
    matches!(bits, 2 | 4) && (splat || lanes)
}

/// Activations in the order in which the sliced kernel meets the codes.
fn slice(x: &[f32], cols: usize, stream: Stream) -> Aligned<f32> {
    let (block, per_word) = (block(stream), 32 / stream.bits());
    // In a word of nibbles with the first one high, step k shifts out column k ^ 1.
    let swap = usize::from(stream == Stream::High);
    let padded = cols.next_multiple_of(block);
    let mut out = Aligned::zeros(x.len() / cols * padded);
    for (out, x) in out.chunks_exact_mut(padded).zip(x.chunks_exact(cols)) {
        for (out, x) in out.chunks_exact_mut(block).zip(x.chunks(block)) {
            for (lane, x) in x.chunks(per_word).enumerate() {
                for (i, x) in x.iter().enumerate() {
                    out[(i ^ swap) * 16 + lane] = *x;
                }
            }
        }
    }
    out
}

fn sliced_rows(
    kernels: &Kernels,
    kernel: fn(&SlicedF32<'_>, &mut [f32]),
    w: &Matrix<'_>,
    (x, tokens): (&[f32], usize),
    out: &mut Stretch<'_>,
) {
    let (mut scales, mut centers) = (vec![0f32; ROWS * w.groups], vec![0f32; ROWS * w.groups]);
    let mut y = [0f32; ROWS * SLICED];
    let each = x.len() / tokens;
    for start in (0..out.len).step_by(ROWS) {
        let (first, rows) = (out.first + start, ROWS.min(out.len - start));
        let (scales, centers) = (&mut scales[..rows * w.groups], &mut centers[..rows * w.groups]);
        w.grids.scales(kernels, w.groups, first, scales);
        w.grids.centers(w.groups, first, centers);
        for (run, x) in x.chunks(SLICED * each).enumerate() {
            let job = SlicedF32 {
                rows,
                tokens: x.len() / each,
                codes: w.rows_of(first, rows),
                row_bytes: w.row_bytes,
                bits: w.stream.bits(),
                cols: w.cols,
                span: w.span,
                levels: w.levels,
                scales,
                centers,
                x,
            };
            kernel(&job, &mut y[..rows * job.tokens]);
            for (t, y) in y[..rows * job.tokens].chunks_exact(rows).enumerate() {
                out.of(run * SLICED + t)[start..start + rows].copy_from_slice(y);
            }
        }
    }
}

fn plain_rows(kernels: &Kernels, w: &Matrix<'_>, x: &[f32], out: &mut Stretch<'_>) {
    let (mut scales, mut centers) = (vec![0f32; w.groups], vec![0f32; w.groups]);
    let mut codes = vec![0u8; w.cols];
    for start in 0..out.len {
        let row = out.first + start;
        w.grids.scales(kernels, w.groups, row, &mut scales);
        w.grids.centers(w.groups, row, &mut centers);
        let codes = match w.stream {
            Stream::Low(8) => &w.row(row)[..w.cols],
            _ => {
                w.unpack(kernels, row, 0, &mut codes);
                &codes
            }
        };
        for (token, x) in x.chunks_exact(w.cols).enumerate() {
            let job = RowF32 { codes, levels: w.levels, span: w.span, scales: &scales, centers: &centers, x };
            out.of(token)[start] = (kernels.row_f32)(&job);
        }
    }
}

fn by_panels(kernels: &Kernels, w: &Matrix<'_>, x: &[f32], tokens: usize) -> Vec<f32> {
    let tiles = tiles(tokens, kernels.tokens_f32);
    let a = pack(x, w.cols, &tiles);
    let groups: Vec<u32> = (0..w.cols).map(|column| w.group(column) as u32).collect();
    let together = depth_and_panels(tiles.len()).1 * kernels.lanes;
    sheet::fill(tokens, w.rows, kernels.lanes, w.cols * tokens, |out| {
        for start in (0..out.len).step_by(together) {
            let rows = together.min(out.len - start);
            let c = panels(kernels, w, (&a, &tiles), &groups, out.first + start, rows);
            for (p, c) in c.chunks_exact(tokens * kernels.lanes).enumerate() {
                let at = start + p * kernels.lanes;
                let valid = kernels.lanes.min(out.len - at);
                for (token, c) in c.chunks_exact(kernels.lanes).enumerate() {
                    out.of(token)[at..at + valid].copy_from_slice(&c[..valid]);
                }
            }
        }
    })
}

/// Activations as `[cols, tokens of the tile]`, tile after tile.
fn pack(x: &[f32], cols: usize, tiles: &[usize]) -> Aligned<f32> {
    let mut a = Aligned::zeros(x.len());
    let (mut rest_a, mut rest_x) = (&mut a[..], x);
    let mut jobs = Vec::with_capacity(tiles.len());
    for &tile in tiles {
        let (a, more_a) = std::mem::take(&mut rest_a).split_at_mut(tile * cols);
        let (x, more_x) = rest_x.split_at(tile * cols);
        jobs.push((tile, a, x));
        (rest_a, rest_x) = (more_a, more_x);
    }
    let one = |(tile, a, x): (usize, &mut [f32], &[f32])| {
        // Sixteen columns at a time, so that both sides stay in the nearest cache.
        for (run, a) in a.chunks_mut(16 * tile).enumerate() {
            for (t, x) in x.chunks_exact(cols).enumerate() {
                for (a, x) in a.iter_mut().skip(t).step_by(tile).zip(&x[run * 16..]) {
                    *a = *x;
                }
            }
        }
    };
    if x.len() < 1 << 16 {
        jobs.into_iter().for_each(one);
    } else {
        jobs.into_par_iter().for_each(one);
    }
    a
}

/// Some panels times all tokens: `[panels, tokens, lanes]`.
fn panels(
    kernels: &Kernels,
    w: &Matrix<'_>,
    (a, tiles): (&[f32], &[usize]),
    groups: &[u32],
    first: usize,
    rows: usize,
) -> Aligned<f32> {
    let (lanes, tokens) = (kernels.lanes, tiles.iter().sum::<usize>());
    let (count, most) = (rows.div_ceil(lanes), depth_and_panels(tiles.len()).0.min(w.cols));
    let mut c = Aligned::zeros(count * tokens * lanes);
    let mut codes = Aligned::zeros(lanes * most);
    let mut decoded = Aligned::zeros(count * lanes * most);
    let starts = (0..count).map(|p| p * lanes);
    let grids: Vec<_> =
        starts.map(|at| w.panel_grids(kernels, first + at, lanes.min(rows - at), lanes)).collect();
    for column in (0..w.cols).step_by(most) {
        let depth = most.min(w.cols - column);
        for (p, (scales, centers)) in grids.iter().enumerate() {
            let codes = &mut codes[..lanes * depth];
            codes.fill(0);
            for (lane, codes) in codes.chunks_exact_mut(depth).take(rows - p * lanes).enumerate() {
                let row = first + p * lanes + lane;
                w.unpack(kernels, row, column, codes);
                if column + depth < w.cols {
                    w.prefetch(kernels, row, column + depth, most);
                } else {
                    w.prefetch(kernels, row + count * lanes, 0, most);
                }
            }
            let groups = &groups[column..column + depth];
            let job = PanelF32 { codes, depth, levels: w.levels, groups, scales, centers };
            (kernels.panel_f32)(&job, &mut decoded[p * lanes * depth..(p + 1) * lanes * depth]);
        }
        let mut token = 0;
        for &tile in tiles {
            let a = &a[token * w.cols + column * tile..][..depth * tile];
            for p in 0..count {
                let c = &mut c[(p * tokens + token) * lanes..][..tile * lanes];
                (kernels.tile_f32)(a, &decoded[p * lanes * depth..(p + 1) * lanes * depth], c);
            }
            token += tile;
        }
    }
    c
}
