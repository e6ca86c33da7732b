//! A packed matrix as the kernels see it.
//!
//! ```text
//! row o, column i:   ŵ = scale[o, g] · (code[o, i] − center[o, g])      or scale[o, g] · table[code[o, i]]
//! ```
//!
//! Neighbours: [`super::exact`] and [`super::int8`] multiply by it; `PackedInt` and `PackedNf4` make it.

use super::{Kernels, Levels, Stream};

/// Scales and centers of a row: `fill(row, scales, centers)` writes one of each per group.
pub(crate) type Grids<'a> = &'a (dyn Fn(usize, &mut [f32], &mut [f32]) + Sync);

/// A matrix of packed codes.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// `[rows, row_bytes]`.
    pub(crate) codes: &'a [u8],
    pub(crate) row_bytes: usize,
    pub(crate) stream: Stream,
    pub(crate) levels: Levels<'a>,
    /// Columns per group; `cols` where a row has one scale.
    pub(crate) span: usize,
    /// The group of each column, where that is not `column / span`.
    pub(crate) column_groups: Option<&'a [u32]>,
    pub(crate) groups: usize,
    pub(crate) grids: Grids<'a>,
}

impl Matrix<'_> {
    /// The bytes of a row.
    pub(crate) fn row(&self, row: usize) -> &[u8] {
        self.codes.get(row * self.row_bytes..(row + 1) * self.row_bytes).unwrap_or_default()
    }

    /// The bytes of some rows.
    pub(crate) fn rows_of(&self, first: usize, count: usize) -> &[u8] {
        self.codes.get(first * self.row_bytes..(first + count) * self.row_bytes).unwrap_or_default()
    }

    /// The codes of `out.len()` columns from `column` on, which is a multiple of 8.
    pub(crate) fn unpack(&self, kernels: &Kernels, row: usize, column: usize, out: &mut [u8]) {
        let start = column * self.stream.bits() / 8;
        (kernels.unpack)(self.row(row).get(start..).unwrap_or_default(), self.stream, out);
    }

    /// The group of a column.
    pub(crate) fn group(&self, column: usize) -> usize {
        self.column_groups.map_or(column / self.span, |groups| groups[column] as usize)
    }

    /// Scales and centers of rows `first .. first + count`, `[groups, lanes]`; zeros beyond the last row.
    pub(crate) fn panel_grids(&self, first: usize, count: usize, lanes: usize) -> (Vec<f32>, Vec<f32>) {
        let (mut scales, mut centers) = (vec![0f32; self.groups * lanes], vec![0f32; self.groups * lanes]);
        let (mut scale, mut center) = (vec![0f32; self.groups], vec![0f32; self.groups]);
        for lane in 0..count {
            (self.grids)(first + lane, &mut scale, &mut center);
            for g in 0..self.groups {
                (scales[g * lanes + lane], centers[g * lanes + lane]) = (scale[g], center[g]);
            }
        }
        (scales, centers)
    }

    /// Writes one decoded row.
    pub(crate) fn decode_row(&self, kernels: &Kernels, row: usize, out: &mut [f32]) {
        let mut codes = vec![0u8; self.cols];
        let (mut scales, mut centers) = (vec![0f32; self.groups], vec![0f32; self.groups]);
        (self.grids)(row, &mut scales, &mut centers);
        self.unpack(kernels, row, 0, &mut codes);
        if let Some(groups) = self.column_groups {
            for ((out, code), &g) in out.iter_mut().zip(codes).zip(groups) {
                *out = (f32::from(code) - centers[g as usize]) * scales[g as usize];
            }
            return;
        }
        for (g, (out, codes)) in out.chunks_mut(self.span).zip(codes.chunks(self.span)).enumerate() {
            match self.levels {
                Levels::Integers => (kernels.decode)(codes, centers[g], scales[g], out),
                Levels::Table(table) => (kernels.lookup)(codes, table, scales[g], out),
            }
        }
    }
}

/// Tokens per tile: as few tiles as `most` allows, of nearly the same size; they add up to `tokens`.
pub(crate) fn tiles(tokens: usize, most: usize) -> Vec<usize> {
    let count = tokens.div_ceil(most);
    (0..count).map(|i| (i + 1) * tokens / count - i * tokens / count).collect()
}
