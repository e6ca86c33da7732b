//! A packed matrix in the order in which kernels read it: repacked once, held instead of the rows, never beside them.
//!
//! ```text
//! panel       16 rows side by side, so that vectors run across rows and no sum crosses lanes
//! segment     the columns of one group, padded to whole units
//! unit        the columns of which every plane has whole lines
//! plane       4, 2 or 1 bits of every code: 3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2, 7 = 4 + 2 + 1
//! line        64 bytes: 16 rows of 4 bytes; byte j of a row holds bits of columns 4 q + j, for quads q = 8 / width · line …
//! ```
//!
//! Four bits: the low nibbles of a line are one quad of columns, its high nibbles the next. Eight bits: a line is a quad.
//! Nothing is rounded and nothing is lost: [`Tiles::codes_of_row`] and [`Tiles::scales_of_row`] give the rows back.
//!
//! Neighbours: [`super::matrix`] is the row form, [`super::store`] decides which of the two a weight holds.

use half::{bf16, f16};
use rayon::prelude::*;

use taper_core::kernel::aligned::Aligned;

use super::{
    Kernels, Levels,
    matrix::{FillScales, Grids, Matrix, ScaleSource},
};

/// Rows of a panel.
pub(crate) const LANES: usize = 16;

/// Bytes of a line.
pub(crate) const LINE: usize = LANES * 4;

/// Most columns of a segment: two panels of as many bytes stay in the nearest cache while tokens pass, integer sums are far
/// from overflow, and eight-bit activations get a scale for each such stretch.
pub(crate) const LONGEST: usize = 1024;

/// Of the two half-words in which a row of a line says eight nibbles: the columns that come to the bottom of both, after
/// each shift by four bits.
pub(crate) const NIBBLE_PAIRS: [[usize; 2]; 4] = [[0, 2], [4, 6], [1, 3], [5, 7]];

/// The planes of codes of each number of bits: width and lowest bit.
const PLANES: [&[(u32, u32)]; 9] = [
    &[],
    &[(1, 0)],
    &[(2, 0)],
    &[(2, 0), (1, 2)],
    &[(4, 0)],
    &[(4, 0), (1, 4)],
    &[(4, 0), (2, 4)],
    &[(4, 0), (2, 4), (1, 6)],
    &[(8, 0)],
];

/// Columns with one scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Its group among those of a row.
    pub(crate) group: usize,
    /// First column, in the order of the tiles.
    pub(crate) start: usize,
    /// Columns that it has.
    pub(crate) len: usize,
    /// First column, where every segment is padded.
    pub(crate) at: usize,
    /// Columns that it takes, a multiple of the unit.
    pub(crate) padded: usize,
}

/// Scales in the order of the tiles, in the type in which they are stored.
pub(crate) enum TileScales {
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    F32(Vec<f32>),
    /// Computed row by row, because they take fewer bytes as they are stored.
    Each(FillScales),
}

impl std::fmt::Debug for TileScales {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TileScales")
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Tiles {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) bits: usize,
    pub(crate) groups: usize,
    pub(crate) segments: Vec<Segment>,
    /// Columns of a row with every segment padded.
    pub(crate) padded: usize,
    /// The column at each place, where columns were reordered before grouping.
    pub(crate) order: Option<Vec<u32>>,
    /// `[panels, panel_bytes]`.
    codes: Aligned<u8>,
    /// `[panels, groups, 16]`, or one for all.
    pub(crate) scales: TileScales,
    pub(crate) shared: bool,
    /// The code of zero where the zero point is 0.
    pub(crate) offset: i16,
    /// As the scales.
    pub(crate) zeros: Option<Vec<i8>>,
    /// What codes stand for, where not for integers.
    pub(crate) table: Option<[f32; 16]>,
}

/// The planes of a number of bits.
pub(crate) fn planes(bits: usize) -> &'static [(u32, u32)] {
    PLANES[bits.min(8)]
}

/// Columns of a unit.
pub(crate) fn unit(bits: usize) -> usize {
    let narrowest = planes(bits).iter().map(|(width, _)| *width as usize).min().unwrap_or(8);
    4 * (8 / narrowest)
}

impl Tiles {
    /// Repacks a matrix.
    pub(crate) fn new(kernels: &Kernels, w: &Matrix<'_>) -> Self {
        let bits = w.stream.bits();
        let (order, segments) = segments(w, unit(bits));
        let padded = segments.last().map_or(0, |s| s.at + s.padded);
        let panels = w.rows.div_ceil(LANES);
        let panel_bytes = padded * LANES * bits / 8;
        let mut codes = Aligned::zeros(panels * panel_bytes);
        let layout = Layout { bits, padded, segments: &segments, order: order.as_deref() };
        codes.par_chunks_mut(panel_bytes.max(1)).enumerate().for_each_init(
            || (vec![0u8; w.cols], vec![0u8; LANES * padded]),
            |(row, codes), (panel, out)| {
                codes.fill(0);
                for (lane, codes) in codes.chunks_exact_mut(padded).enumerate() {
                    if panel * LANES + lane < w.rows {
                        w.unpack(kernels, panel * LANES + lane, 0, row);
                        layout.place(row, codes);
                    }
                }
                layout.pack(codes, out);
            },
        );
        let (scales, zeros) = grids(&w.grids, w.rows, w.groups);
        Self {
            rows: w.rows,
            cols: w.cols,
            bits,
            groups: w.groups,
            segments,
            padded,
            order,
            codes,
            scales,
            shared: w.grids.shared,
            offset: w.grids.offset,
            zeros,
            table: match w.levels {
                Levels::Integers => None,
                Levels::Table(table) => Some(*table),
            },
        }
    }

    /// Bytes of a panel.
    pub(crate) fn panel_bytes(&self) -> usize {
        self.padded * LANES * self.bits / 8
    }

    /// The bytes of a panel and all that follow it, from a padded column on that begins a unit.
    pub(crate) fn codes_from(&self, panel: usize, column: usize) -> &[u8] {
        let start = panel * self.panel_bytes() + column * LANES * self.bits / 8;
        self.codes.get(start..).unwrap_or_default()
    }

    /// The codes of a row, one byte each, in the original order of columns.
    pub(crate) fn codes_of_row(&self, row: usize, out: &mut [u8]) {
        let (panel, lane) = (row / LANES, row % LANES);
        let codes = self.codes_from(panel, 0);
        let unit_bytes = unit(self.bits) * LANES * self.bits / 8;
        let quads = unit(self.bits) / 4;
        let mut padded = vec![[0u8; 4]; self.padded / 4];
        for (codes, out) in codes.chunks_exact(unit_bytes.max(1)).zip(padded.chunks_exact_mut(quads)) {
            let mut lines = codes.as_chunks::<LINE>().0.iter();
            for &(width, base) in planes(self.bits) {
                let (per_line, mask) = ((8 / width) as usize, spread(width));
                for out in out.chunks_exact_mut(per_line) {
                    let line = lines.next().map_or(&[0u8; LINE][..], |line| &line[..]);
                    let word = dword(line, lane);
                    for (s, out) in out.iter_mut().enumerate() {
                        let part = (word >> (width as usize * s)) & mask;
                        *out = (u32::from_le_bytes(*out) | part << base).to_le_bytes();
                    }
                }
            }
        }
        let padded = padded.as_flattened();
        for segment in &self.segments {
            let codes = &padded[segment.at..segment.at + segment.len];
            match &self.order {
                None => out[segment.start..segment.start + segment.len].copy_from_slice(codes),
                Some(order) => {
                    for (column, code) in order[segment.start..].iter().zip(codes) {
                        out[*column as usize] = *code;
                    }
                }
            }
        }
    }

    /// Writes decoded rows from `first` on.
    pub(crate) fn decode_rows(&self, kernels: &Kernels, first: usize, out: &mut [f32]) {
        for (i, out) in out.chunks_exact_mut(self.cols.max(1)).enumerate() {
            self.decode_row(kernels, first + i, out);
        }
    }

    /// Writes one decoded row.
    pub(crate) fn decode_row(&self, kernels: &Kernels, row: usize, out: &mut [f32]) {
        let mut codes = vec![0u8; self.cols];
        self.codes_of_row(row, &mut codes);
        let mut scales = vec![0f32; self.groups];
        match &self.scales {
            TileScales::Each(fill) => fill(row, &mut scales),
            _ => scales.iter_mut().enumerate().for_each(|(g, scale)| *scale = self.scale(row, g)),
        }
        let mut values = vec![0f32; if self.order.is_some() { self.cols } else { 0 }];
        for segment in &self.segments {
            let range = segment.start..segment.start + segment.len;
            let (scale, center) =
                (scales[segment.group], f32::from(self.offset) + f32::from(self.zero(row, segment.group)));
            let Some(order) = &self.order else {
                let (codes, out) = (&codes[range.clone()], &mut out[range]);
                match &self.table {
                    None => (kernels.decode)(codes, center, scale, out),
                    Some(table) => (kernels.lookup)(codes, table, scale, out),
                }
                continue;
            };
            for column in &order[range] {
                let column = *column as usize;
                values[column] = (f32::from(codes[column]) - center) * scale;
            }
        }
        if self.order.is_some() {
            out.copy_from_slice(&values);
        }
    }

    /// Scales of the segments of some panels, `[panels, segments, 16]`.
    pub(crate) fn segment_scales(&self, kernels: &Kernels, first: usize, out: &mut [f32]) {
        if self.shared {
            return out.fill(self.scale(0, 0));
        }
        let groups = self.groups * LANES;
        if self.segments_are_groups() {
            return self.panel_scales(kernels, first, out);
        }
        let each = self.segments.len() * LANES;
        let mut all = vec![0f32; groups];
        for (panel, out) in out.chunks_exact_mut(each.max(1)).enumerate() {
            self.panel_scales(kernels, first + panel, &mut all);
            for (out, segment) in out.chunks_exact_mut(LANES).zip(&self.segments) {
                out.copy_from_slice(&all[segment.group * LANES..][..LANES]);
            }
        }
    }

    /// Centers of the segments of some panels, `[panels, segments, 16]`; `None` where all are the offset.
    pub(crate) fn segment_centers(&self, first: usize, panels: usize) -> Option<Aligned<i32>> {
        let zeros = self.zeros.as_ref()?;
        let mut out = Aligned::zeros(panels * self.segments.len() * LANES);
        let center = |zero: i8| i32::from(self.offset) + i32::from(zero);
        if self.shared {
            out.fill(center(zeros.first().copied().unwrap_or(0)));
            return Some(out);
        }
        let each = (self.segments.len() * LANES).max(1);
        for (panel, out) in out.chunks_exact_mut(each).enumerate() {
            let zeros = &zeros[(first + panel) * self.groups * LANES..];
            for (out, segment) in out.chunks_exact_mut(LANES).zip(&self.segments) {
                let zeros = &zeros[segment.group * LANES..][..LANES];
                out.iter_mut().zip(zeros).for_each(|(out, zero)| *out = center(*zero));
            }
        }
        Some(out)
    }

    /// Scales of the groups of some panels, `[panels, groups, 16]`.
    fn panel_scales(&self, kernels: &Kernels, first: usize, out: &mut [f32]) {
        let start = first * self.groups * LANES;
        let range = start..start + out.len();
        match &self.scales {
            TileScales::F16(s) => (kernels.widen)(&s[range], out),
            TileScales::BF16(s) => out.iter_mut().zip(&s[range]).for_each(|(out, s)| *out = s.to_f32()),
            TileScales::F32(s) => out.copy_from_slice(&s[range]),
            TileScales::Each(fill) => {
                let mut row = vec![0f32; self.groups];
                for (panel, out) in out.chunks_exact_mut(self.groups * LANES).enumerate() {
                    let rows = (first + panel) * LANES..self.rows.min((first + panel + 1) * LANES);
                    out.fill(0.0);
                    for (lane, at) in rows.enumerate() {
                        fill(at, &mut row);
                        out.iter_mut().skip(lane).step_by(LANES).zip(&row).for_each(|(out, s)| *out = *s);
                    }
                }
            }
        }
    }

    /// The scale of a group of a row.
    pub(crate) fn scale(&self, row: usize, group: usize) -> f32 {
        let at = if self.shared { 0 } else { (row / LANES * self.groups + group) * LANES + row % LANES };
        match &self.scales {
            TileScales::F16(s) => s.get(at).map_or(0.0, |s| s.to_f32()),
            TileScales::BF16(s) => s.get(at).map_or(0.0, |s| s.to_f32()),
            TileScales::F32(s) => s.get(at).copied().unwrap_or(0.0),
            TileScales::Each(fill) => {
                let mut all = vec![0f32; self.groups];
                fill(row, &mut all);
                all.get(group).copied().unwrap_or(0.0)
            }
        }
    }

    /// The zero point of a group of a row.
    pub(crate) fn zero(&self, row: usize, group: usize) -> i8 {
        let at = if self.shared { 0 } else { (row / LANES * self.groups + group) * LANES + row % LANES };
        self.zeros.as_ref().and_then(|zeros| zeros.get(at)).copied().unwrap_or(0)
    }

    fn segments_are_groups(&self) -> bool {
        self.segments.len() == self.groups && self.segments.iter().enumerate().all(|(g, s)| s.group == g)
    }

    /// Bytes that it holds.
    #[cfg(test)]
    pub(crate) fn nbytes(&self) -> usize {
        let scales = match &self.scales {
            TileScales::F16(s) => 2 * s.len(),
            TileScales::BF16(s) => 2 * s.len(),
            TileScales::F32(s) => 4 * s.len(),
            TileScales::Each(_) => 0,
        };
        self.codes.len() + scales + self.zeros.as_ref().map_or(0, Vec::len)
    }
}

/// How codes lie in a panel.
struct Layout<'a> {
    bits: usize,
    padded: usize,
    segments: &'a [Segment],
    order: Option<&'a [u32]>,
}

impl Layout<'_> {
    /// A row of codes, each segment at its padded place.
    fn place(&self, row: &[u8], out: &mut [u8]) {
        for segment in self.segments {
            let out = &mut out[segment.at..segment.at + segment.len];
            match self.order {
                None => out.copy_from_slice(&row[segment.start..segment.start + segment.len]),
                Some(order) => {
                    for (out, column) in out.iter_mut().zip(&order[segment.start..]) {
                        *out = row[*column as usize];
                    }
                }
            }
        }
    }

    /// Packs `[16, padded]` codes.
    fn pack(&self, codes: &[u8], out: &mut [u8]) {
        let unit = unit(self.bits);
        let unit_bytes = unit * LANES * self.bits / 8;
        for (u, out) in out.chunks_exact_mut(unit_bytes).enumerate() {
            let mut lines = out.as_chunks_mut::<LINE>().0.iter_mut();
            for &(width, base) in planes(self.bits) {
                let (per_line, mask) = ((8 / width) as usize, spread(width));
                for (first, line) in (0..unit / 4).step_by(per_line).zip(lines.by_ref()) {
                    for (lane, out) in line.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                        let codes = &codes[lane * self.padded + u * unit + first * 4..][..per_line * 4];
                        let quads = codes.as_chunks::<4>().0.iter().enumerate();
                        let word = quads.fold(0, |word, (s, quad)| {
                            word | ((u32::from_le_bytes(*quad) >> base) & mask) << (width as usize * s)
                        });
                        *out = word.to_le_bytes();
                    }
                }
            }
        }
    }
}

/// `width` low bits of each of four bytes.
fn spread(width: u32) -> u32 {
    0x0101_0101 * ((1 << width) - 1)
}

fn dword(line: &[u8], lane: usize) -> u32 {
    line.as_chunks::<4>().0.get(lane).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// The order of columns, where it is not theirs, and the segments.
fn segments(w: &Matrix<'_>, unit: usize) -> (Option<Vec<u32>>, Vec<Segment>) {
    let mut order = None;
    let lengths: Vec<usize> = match w.column_groups {
        None => {
            let span = w.span.max(1);
            (0..w.groups).map(|g| span.min(w.cols.saturating_sub(g * span))).collect()
        }
        Some(groups) => {
            let mut columns: Vec<u32> = (0..w.cols as u32).collect();
            columns.sort_by_key(|column| groups[*column as usize]);
            order = Some(columns);
            let mut lengths = vec![0; w.groups];
            groups.iter().for_each(|g| lengths[*g as usize] += 1);
            lengths
        }
    };
    let (mut start, mut at, mut segments) = (0, 0, Vec::with_capacity(lengths.len()));
    for (group, length) in lengths.into_iter().enumerate() {
        for from in (0..length).step_by(LONGEST) {
            let len = LONGEST.min(length - from);
            let padded = len.next_multiple_of(unit);
            segments.push(Segment { group, start, len, at, padded });
            (start, at) = (start + len, at + padded);
        }
    }
    (order, segments)
}

/// Scales and zero points in the order of the tiles.
fn grids(grids: &Grids<'_>, rows: usize, groups: usize) -> (TileScales, Option<Vec<i8>>) {
    let shared = grids.shared;
    let scales = match grids.scales {
        ScaleSource::F16(s) => TileScales::F16(across(s, rows, groups, shared)),
        ScaleSource::BF16(s) => TileScales::BF16(across(s, rows, groups, shared)),
        ScaleSource::F32(s) => TileScales::F32(across(s, rows, groups, shared)),
        ScaleSource::Each(fill) => TileScales::Each(fill.clone()),
    };
    (scales, grids.zeros.map(|zeros| across(zeros, rows, groups, shared)))
}

/// Turns `[rows, groups]` into `[panels, groups, 16]`; defaults beyond the last row.
fn across<T: Copy + Default>(values: &[T], rows: usize, groups: usize, shared: bool) -> Vec<T> {
    if shared {
        return values[..1].to_vec();
    }
    let mut out = vec![T::default(); rows.next_multiple_of(LANES) * groups];
    for (row, values) in values.chunks_exact(groups.max(1)).take(rows).enumerate() {
        let out = &mut out[row / LANES * LANES * groups + row % LANES..];
        out.iter_mut().step_by(LANES).zip(values).for_each(|(out, value)| *out = *value);
    }
    out
}

/// The inverse of [`across`].
pub(crate) fn along<T: Copy + Default>(values: &[T], rows: usize, groups: usize, shared: bool) -> Vec<T> {
    if shared {
        return values.to_vec();
    }
    let mut out = vec![T::default(); rows * groups];
    for (row, out) in out.chunks_exact_mut(groups.max(1)).enumerate() {
        let values = &values[row / LANES * LANES * groups + row % LANES..];
        out.iter_mut().zip(values.iter().step_by(LANES)).for_each(|(out, value)| *out = *value);
    }
    out
}
