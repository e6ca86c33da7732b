//! x · Wᵀ with activations rounded to eight bits: integer products and sums within a group, f32 between groups.
//!
//! ```text
//! step = max |x| / 127    a = round(x / step)                                    per token and group
//! y = Σ_groups scale · step · (Σ code · a − center · Σ a)
//! ```
//!
//! The integers are the same on every machine; f32 sums differ in order between tables. An activation that is not finite
//! makes its step NaN, so the result says so. Groups longer than [`LONGEST`] are cut, so that no sum overflows.
//!
//! Neighbours: [`super::exact`] is the same with activations as they are.

use rayon::prelude::*;

use super::{
    Kernels, NibblesI8, PanelNibbles, RowI8, Stream, TileI8,
    aligned::Aligned,
    matrix::{Matrix, across, tiles},
    sheet::{self, Stretch},
};

/// Longest run of columns with one integer sum: 255 · 127 · 2¹⁵ is half of what 32 bits hold.
pub(crate) const LONGEST: usize = 1 << 15;

/// Columns of a panel, unless a group is longer.
const DEPTH: usize = 1024;

/// Panels that share one walk over the tokens.
const PANELS: usize = 4;

/// Most tokens that are multiplied row by row.
const FEW: usize = 4;

/// Rows whose grids are fetched together.
const ROWS: usize = 16;

/// Bytes that a group of [`Token::bytes`] is padded to.
const VECTOR: usize = 64;

/// One token of activations, rounded.
#[derive(Debug)]
pub(crate) struct Token {
    /// One scale per group.
    pub(crate) steps: Vec<f32>,
    /// Σ a of each group.
    pub(crate) sums: Vec<i32>,
    /// `[groups, stride]`; zeros beyond each group.
    pub(crate) bytes: Aligned<i8>,
    pub(crate) stride: usize,
    /// For [`NibblesI8`]: of each 128 columns the even ones, then the odd ones; zeros beyond the last.
    pub(crate) halves: Aligned<i8>,
    /// For [`NibblesI8`]: −Σ a of each 8 columns.
    pub(crate) negative_sums: Aligned<i32>,
}

/// How columns fall into integer sums.
#[derive(Debug, Clone, Copy)]
struct Segments {
    /// Columns of each; the last may have fewer.
    span: usize,
    count: usize,
    /// Columns per group of the weight; a multiple of `span`, or beyond all columns.
    group: usize,
    /// Columns that a segment takes in a panel.
    padded: usize,
    /// True where panels are made of packed nibbles, so that even columns come before odd ones.
    halves: bool,
}

impl Segments {
    fn of(kernels: &Kernels, w: &Matrix<'_>) -> Self {
        let span = if w.span <= LONGEST {
            w.span
        } else if w.groups == 1 {
            LONGEST
        } else {
            LONGEST.min(1 << w.span.trailing_zeros())
        };
        let (count, longest) = (w.cols.div_ceil(span), span.min(w.cols));
        let halves = kernels.panel_nibbles.is_some()
            && w.stream == Stream::Low(4)
            && (span.is_multiple_of(8) || count == 1);
        let padded = longest.next_multiple_of(if halves { 8 } else { 4 });
        Self { span, count, group: w.span, padded, halves }
    }

    /// Scales and centers of rows from `first` on, `[rows, segments]`.
    fn grids(self, kernels: &Kernels, w: &Matrix<'_>, first: usize, scales: &mut [f32], centers: &mut [i32]) {
        if self.count == w.groups {
            w.grids.scales(kernels, w.groups, first, scales);
            w.grids.centers(w.groups, first, centers);
            return;
        }
        let (mut scale, mut center) = (vec![0f32; w.groups], vec![0i32; w.groups]);
        let rows = scales.chunks_exact_mut(self.count).zip(centers.chunks_exact_mut(self.count));
        for (row, (scales, centers)) in rows.enumerate() {
            w.grids.scales(kernels, w.groups, first + row, &mut scale);
            w.grids.centers(w.groups, first + row, &mut center);
            for (s, (scale_out, center_out)) in scales.iter_mut().zip(centers).enumerate() {
                let g = (s * self.span / self.group).min(w.groups - 1);
                (*scale_out, *center_out) = (scale[g], center[g]);
            }
        }
    }
}

/// x · Wᵀ: `x` is `[tokens, cols]`, the result `[tokens, rows]`.
///
/// The matrix holds integers, without reordered columns.
pub(crate) fn product(kernels: &Kernels, w: &Matrix<'_>, x: &[f32], tokens: usize) -> Vec<f32> {
    if w.cols == 0 || tokens == 0 {
        return vec![0.0; w.rows * tokens];
    }
    let segments = Segments::of(kernels, w);
    if tokens > FEW {
        return by_panels(kernels, w, segments, x, tokens);
    }
    let nibbles = kernels.nibbles_i8.filter(|_| nibbles_fit(w, segments));
    let x: Vec<Token> =
        x.chunks_exact(w.cols).map(|x| Token::new(kernels, x, segments.span, nibbles.is_some())).collect();
    sheet::fill(tokens, w.rows, ROWS, w.cols * tokens / 2, |out| match nibbles {
        Some(kernel) => nibble_rows(kernels, kernel, w, segments, &x, out),
        None => byte_rows(kernels, w, segments, &x, out),
    })
}

fn nibbles_fit(w: &Matrix<'_>, segments: Segments) -> bool {
    let span = segments.span;
    let lanes = 128usize.is_multiple_of(span) && span.is_multiple_of(8);
    w.stream == Stream::Low(4) && (span.is_multiple_of(128) || segments.count == 1 || lanes)
}

impl Token {
    /// Rounds one token in groups of `span`.
    pub(crate) fn new(kernels: &Kernels, x: &[f32], span: usize, nibbles: bool) -> Self {
        let stride = span.min(x.len()).next_multiple_of(VECTOR);
        let groups = x.len().div_ceil(span);
        let mut token = Self {
            steps: Vec::with_capacity(groups),
            sums: Vec::with_capacity(groups),
            bytes: Aligned::zeros(groups * stride),
            stride,
            halves: Aligned::zeros(0),
            negative_sums: Aligned::zeros(0),
        };
        for (x, a) in x.chunks(span).zip(token.bytes.chunks_exact_mut(stride)) {
            token.steps.push((kernels.quantize)(x, &mut a[..x.len()]));
            token.sums.push(a.iter().map(|&a| i32::from(a)).sum());
        }
        if nibbles {
            token.halve(x.len(), span);
        }
        token
    }

    fn halve(&mut self, cols: usize, span: usize) {
        let mut dense = vec![0i8; cols.next_multiple_of(128)];
        for (dense, a) in dense[..cols].chunks_mut(span).zip(self.bytes.chunks_exact(self.stride)) {
            dense.copy_from_slice(&a[..dense.len()]);
        }
        self.halves = Aligned::zeros(dense.len());
        for (out, a) in self.halves.as_chunks_mut::<128>().0.iter_mut().zip(dense.as_chunks::<128>().0) {
            for (i, [even, odd]) in a.as_chunks::<2>().0.iter().enumerate() {
                (out[i], out[64 + i]) = (*even, *odd);
            }
        }
        self.negative_sums = Aligned::zeros(dense.len() / 8);
        for (out, a) in self.negative_sums.iter_mut().zip(dense.as_chunks::<8>().0) {
            *out = -a.iter().map(|&a| i32::from(a)).sum::<i32>();
        }
    }
}

fn nibble_rows(
    kernels: &Kernels,
    kernel: fn(&NibblesI8<'_>, &mut [f32]),
    w: &Matrix<'_>,
    segments: Segments,
    x: &[Token],
    out: &mut Stretch<'_>,
) {
    let (mut scales, mut centers) = (vec![0f32; ROWS * segments.count], vec![0i32; ROWS * segments.count]);
    for start in (0..out.len).step_by(ROWS) {
        let (first, rows) = (out.first + start, ROWS.min(out.len - start));
        let (scales, centers) = (&mut scales[..rows * segments.count], &mut centers[..rows * segments.count]);
        segments.grids(kernels, w, first, scales, centers);
        for (t, token) in x.iter().enumerate() {
            let codes = w.rows_of(first, rows);
            let (row_bytes, cols, span) = (w.row_bytes, w.cols, segments.span);
            let job = NibblesI8 { codes, row_bytes, cols, span, scales, centers, token };
            kernel(&job, &mut out.of(t)[start..start + rows]);
        }
    }
}

fn byte_rows(kernels: &Kernels, w: &Matrix<'_>, segments: Segments, x: &[Token], out: &mut Stretch<'_>) {
    let (mut scales, mut centers) = (vec![0f32; segments.count], vec![0i32; segments.count]);
    let mut codes = vec![0u8; w.cols];
    for start in 0..out.len {
        let row = out.first + start;
        segments.grids(kernels, w, row, &mut scales, &mut centers);
        let codes = match w.stream {
            Stream::Low(8) => &w.row(row)[..w.cols],
            _ => {
                w.unpack(kernels, row, 0, &mut codes);
                &codes
            }
        };
        for (t, token) in x.iter().enumerate() {
            let job = RowI8 { codes, span: segments.span, scales: &scales, centers: &centers, token };
            out.of(t)[start] = (kernels.row_i8)(&job);
        }
    }
}

/// Tokens of one tile, rounded and packed.
struct Tile {
    tokens: usize,
    /// `[segments · quads, tokens, 4]`.
    a: Aligned<i8>,
    /// `[segments, tokens]`.
    steps: Vec<f32>,
    /// `[segments, tokens]`.
    sums: Vec<i32>,
}

impl Tile {
    fn new(kernels: &Kernels, x: &[f32], cols: usize, segments: Segments) -> Self {
        let tokens = x.len() / cols;
        let quads = segments.padded / 4;
        let mut tile = Self {
            tokens,
            a: Aligned::zeros(segments.count * quads * tokens * 4),
            steps: vec![0.0; segments.count * tokens],
            sums: vec![0; segments.count * tokens],
        };
        let mut bytes = vec![0i8; quads * 4];
        for (t, x) in x.chunks_exact(cols).enumerate() {
            for (s, x) in x.chunks(segments.span).enumerate() {
                bytes[x.len()..].fill(0);
                tile.steps[s * tokens + t] = (kernels.quantize)(x, &mut bytes[..x.len()]);
                tile.sums[s * tokens + t] = bytes.iter().map(|&a| i32::from(a)).sum();
                let out = tile.a[s * quads * tokens * 4..].as_chunks_mut::<4>().0;
                if segments.halves {
                    for (q, [a, b, c, d, e, f, g, h]) in bytes.as_chunks::<8>().0.iter().enumerate() {
                        out[2 * q * tokens + t] = [*a, *c, *e, *g];
                        out[(2 * q + 1) * tokens + t] = [*b, *d, *f, *h];
                    }
                    continue;
                }
                for (q, quad) in bytes.as_chunks::<4>().0.iter().enumerate() {
                    out[q * tokens + t] = *quad;
                }
            }
        }
        tile
    }
}

fn by_panels(kernels: &Kernels, w: &Matrix<'_>, segments: Segments, x: &[f32], tokens: usize) -> Vec<f32> {
    let sizes = tiles(tokens, kernels.tokens_i8);
    let mut rest = x;
    let mut parts = Vec::with_capacity(sizes.len());
    for size in sizes {
        let (part, more) = rest.split_at(size * w.cols);
        parts.push(part);
        rest = more;
    }
    let tile = |x: &[f32]| Tile::new(kernels, x, w.cols, segments);
    let tiles: Vec<Tile> = match x.len() {
        ..65_536 => parts.into_iter().map(tile).collect(),
        _ => parts.into_par_iter().map(tile).collect(),
    };
    sheet::fill(tokens, w.rows, kernels.lanes, w.cols * tokens / 2, |out| {
        for start in (0..out.len).step_by(PANELS * kernels.lanes) {
            let rows = (PANELS * kernels.lanes).min(out.len - start);
            let c = panels(kernels, w, segments, &tiles, out.first + start, rows);
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

/// Up to [`PANELS`] panels times all tokens: `[panels, tokens, lanes]`.
fn panels(
    kernels: &Kernels,
    w: &Matrix<'_>,
    segments: Segments,
    tiles: &[Tile],
    first: usize,
    rows: usize,
) -> Aligned<f32> {
    let (lanes, tokens) = (kernels.lanes, tiles.iter().map(|t| t.tokens).sum::<usize>());
    let (count, quads) = (rows.div_ceil(lanes), segments.padded / 4);
    let mut c = Aligned::zeros(count * tokens * lanes);
    let together = (DEPTH / (quads * 4)).clamp(1, segments.count);
    let mut panel = Aligned::zeros(count * lanes * together * quads * 4);
    let starts = (0..count).map(|p| p * lanes);
    let grids: Vec<_> =
        starts.map(|at| segments.panel_grids(kernels, w, first + at, lanes.min(rows - at))).collect();
    let mut loader =
        Loader { kernels, w, segments, codes: Aligned::zeros(lanes * together * quads * 4), row: vec![] };
    for s in (0..segments.count).step_by(together) {
        let run = together.min(segments.count - s);
        let depth = run * quads * 4;
        for p in 0..count {
            let present = lanes.min(rows - p * lanes);
            let out = &mut panel[p * lanes * depth..(p + 1) * lanes * depth];
            let rows = first + p * lanes;
            loader.load(rows, present, (s, run), out);
            let (ahead, column) = if s + run < segments.count {
                (rows, (s + run) * segments.span)
            } else {
                (rows + count * lanes, 0)
            };
            for row in ahead..(ahead + present).min(w.rows) {
                w.prefetch(kernels, row, column, together * segments.span);
            }
        }
        let mut token = 0;
        for tile in tiles {
            for (p, (scales, centers)) in grids.iter().enumerate() {
                let job = TileI8 {
                    tokens: tile.tokens,
                    a: &tile.a[s * quads * tile.tokens * 4..][..run * quads * tile.tokens * 4],
                    panel: &panel[p * lanes * depth..(p + 1) * lanes * depth],
                    quads,
                    scales: &scales[s * lanes..(s + run) * lanes],
                    centers: &centers[s * lanes..(s + run) * lanes],
                    steps: &tile.steps[s * tile.tokens..(s + run) * tile.tokens],
                    sums: &tile.sums[s * tile.tokens..(s + run) * tile.tokens],
                };
                let c = &mut c[(p * tokens + token) * lanes..][..tile.tokens * lanes];
                (kernels.tile_i8)(&job, c);
            }
            token += tile.tokens;
        }
    }
    c
}

impl Segments {
    /// Scales and centers of a panel, `[segments, lanes]`; zeros beyond the last row.
    fn panel_grids(
        self,
        kernels: &Kernels,
        w: &Matrix<'_>,
        first: usize,
        count: usize,
    ) -> (Aligned<f32>, Aligned<i32>) {
        let (mut scales, mut centers) = (vec![0f32; self.count * count], vec![0i32; self.count * count]);
        self.grids(kernels, w, first, &mut scales, &mut centers);
        (across(&scales, self.count, kernels.lanes), across(&centers, self.count, kernels.lanes))
    }
}

/// Reads panels of codes.
struct Loader<'a, 'm> {
    kernels: &'a Kernels,
    w: &'a Matrix<'m>,
    segments: Segments,
    /// `[lanes, depth]`.
    codes: Aligned<u8>,
    /// One whole row, where segments are not whole bytes.
    row: Vec<u8>,
}

impl Loader<'_, '_> {
    /// Segments `s .. s + run` of `present` rows, as the tiles want them.
    fn load(&mut self, first: usize, present: usize, (s, run): (usize, usize), out: &mut [u8]) {
        let padded = self.segments.padded;
        let depth = run * padded;
        let span = self.segments.span;
        if let Some(kernel) = self.kernels.panel_nibbles.filter(|_| self.segments.halves) {
            let codes = self.w.rows_of(first, present);
            let (row_bytes, start) = (self.w.row_bytes, s * span);
            kernel(&PanelNibbles { codes, row_bytes, rows: present, start, depth }, out);
            return;
        }
        let codes = &mut self.codes[..self.kernels.lanes * depth];
        codes[present * depth..].fill(0);
        for (lane, codes) in codes.chunks_exact_mut(depth).take(present).enumerate() {
            if span.is_multiple_of(8) || self.segments.count == 1 {
                self.w.unpack(self.kernels, first + lane, s * span, codes);
                continue;
            }
            self.row.resize(self.w.cols, 0);
            self.w.unpack(self.kernels, first + lane, 0, &mut self.row);
            for (codes, row) in codes.chunks_exact_mut(padded).zip(self.row.chunks(span).skip(s)) {
                codes[..row.len()].copy_from_slice(row);
                codes[row.len()..].fill(0);
            }
        }
        (self.kernels.panel_i8)(codes, depth, out);
    }
}
