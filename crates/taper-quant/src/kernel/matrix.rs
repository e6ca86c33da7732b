//! A packed matrix as the kernels see it.
//!
//! ```text
//! row o, column i:   ŵ = scale[o, g] · (code[o, i] − center[o, g])      or scale[o, g] · table[code[o, i]]
//! ```
//!
//! Neighbours: [`super::exact`] and [`super::int8`] multiply by it; `PackedInt` and `PackedNf4` make it.

use half::{bf16, f16};
use std::sync::Arc;

use super::{Kernels, Levels, Stream};

/// Columns that are unpacked, then decoded: few enough that the machine unpacks the next while it still writes these.
const PIECE: usize = 256;

/// Scales as they are stored.
#[derive(Clone, Copy)]
pub(crate) enum ScaleSource<'a> {
    F16(&'a [f16]),
    BF16(&'a [bf16]),
    F32(&'a [f32]),
    /// Computed.
    Each(&'a FillScales),
}

/// Writes the scales of the groups of a row.
pub(crate) type FillScales = Arc<dyn Fn(usize, &mut [f32]) + Send + Sync>;

/// Scales and centers of all groups.
#[derive(Clone, Copy)]
pub(crate) struct Grids<'a> {
    /// `[rows, groups]`, or one for all.
    pub(crate) scales: ScaleSource<'a>,
    /// True where all rows share one scale and center.
    pub(crate) shared: bool,
    /// The code of zero where the zero point is 0.
    pub(crate) offset: i16,
    /// Zero points beside the scales.
    pub(crate) zeros: Option<&'a [i8]>,
}

impl Grids<'_> {
    /// Scales of rows from `first` on, `groups` each.
    pub(crate) fn scales(&self, kernels: &Kernels, groups: usize, first: usize, out: &mut [f32]) {
        let start = if self.shared { 0 } else { first * groups };
        let (copied, repeated) =
            out.split_at_mut(if self.shared { groups.min(out.len()) } else { out.len() });
        let range = start..start + copied.len();
        match self.scales {
            ScaleSource::F16(s) => (kernels.widen)(&s[range], copied),
            ScaleSource::BF16(s) => copied.iter_mut().zip(&s[range]).for_each(|(out, s)| *out = s.to_f32()),
            ScaleSource::F32(s) => copied.copy_from_slice(&s[range]),
            ScaleSource::Each(fill) => {
                copied.chunks_exact_mut(groups).enumerate().for_each(|(row, out)| fill(first + row, out));
            }
        }
        repeated.fill(copied.first().copied().unwrap_or(0.0));
    }

    /// Centers of rows from `first` on, `groups` each.
    pub(crate) fn centers<T: From<i16> + Copy>(&self, groups: usize, first: usize, out: &mut [T]) {
        let Some(zeros) = self.zeros else { return out.fill(T::from(self.offset)) };
        if self.shared {
            return out.fill(T::from(self.offset + zeros.first().map_or(0, |z| i16::from(*z))));
        }
        for (out, zero) in out.iter_mut().zip(&zeros[first * groups..]) {
            *out = T::from(self.offset + i16::from(*zero));
        }
    }
}

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

    /// The codes of `out.len()` columns from `column` on, which is a multiple of 8.
    pub(crate) fn unpack(&self, kernels: &Kernels, row: usize, column: usize, out: &mut [u8]) {
        let start = column * self.stream.bits() / 8;
        (kernels.unpack)(self.row(row).get(start..).unwrap_or_default(), self.stream, out);
    }

    /// Writes decoded rows from `first` on.
    pub(crate) fn decode_rows(&self, kernels: &Kernels, first: usize, out: &mut [f32]) {
        let mut codes = vec![0u8; if self.column_groups.is_some() { self.cols } else { PIECE }];
        let (mut scales, mut centers) = (vec![0f32; self.groups], vec![0f32; self.groups]);
        for (i, out) in out.chunks_exact_mut(self.cols.max(1)).enumerate() {
            let row = first + i;
            self.grids.scales(kernels, self.groups, row, &mut scales);
            self.grids.centers(self.groups, row, &mut centers);
            if let Some(groups) = self.column_groups {
                self.unpack(kernels, row, 0, &mut codes);
                for ((out, code), &g) in out.iter_mut().zip(&codes).zip(groups) {
                    *out = (f32::from(*code) - centers[g as usize]) * scales[g as usize];
                }
                continue;
            }
            for (i, out) in out.chunks_mut(PIECE).enumerate() {
                let codes = &mut codes[..out.len()];
                self.unpack(kernels, row, i * PIECE, codes);
                self.decode_piece(kernels, i * PIECE, codes, (&scales, &centers), out);
            }
        }
    }

    /// Decodes the codes of columns from `start` on, group by group.
    fn decode_piece(
        &self,
        kernels: &Kernels,
        start: usize,
        codes: &[u8],
        (scales, centers): (&[f32], &[f32]),
        out: &mut [f32],
    ) {
        let mut at = 0;
        while at < out.len() {
            let g = (start + at) / self.span;
            let range = at..out.len().min((g + 1) * self.span - start);
            at = range.end;
            let (codes, out) = (&codes[range.clone()], &mut out[range]);
            match self.levels {
                Levels::Integers => (kernels.decode)(codes, centers[g], scales[g], out),
                Levels::Table(table) => (kernels.lookup)(codes, table, scales[g], out),
            }
        }
    }
}
