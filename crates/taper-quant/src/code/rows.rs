//! Integers: rows of values to rows of packed codes, a few rows per task.
//!
//! ```text
//! rows ─▶ widen ─▶ extremes ─▶ grids ─▶ search ─▶ codes ─▶ bits       64 KiB of f32 at a time, read from memory once
//! ```
//!
//! A task writes codes, scales and zero points where they stay, in the types that they keep. Nothing that happens to a row
//! depends on another, so neither do the bytes on how rows are dealt out.
//!
//! Neighbours: [`crate::kernel::encode`] has the steps, [`crate::fit`] the rules for a single group.

use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;
use std::mem::MaybeUninit;

use super::{STRETCH, normalized};
use crate::{
    Error, Result,
    fit::{Fit, Found, Grid, Sample, Tiles, search},
    kernel::encode::{
        Codes, Encoders, Method, Number, Spread,
        fresh::{Fresh, Memory, Piece},
    },
    pack::RowAlign,
    scheme::{Bits, Granularity, Scheme},
    values::Values,
};

/// How the bytes of a row say codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Packed densely, offset by 2^(b−1).
    Packed(Bits),
    /// One signed byte each.
    Signed,
}

/// What is kept beside the codes of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// The scale.
    Scale,
    /// What bitsandbytes stores: 127 scales, which under absmax is the maximum itself, exactly.
    Maximum,
}

/// A type that scales are stored in.
pub(crate) trait StoredScale: Copy + Default + Send + Sync + 'static {
    /// From f32 that this type represents exactly.
    fn narrow(from: &[f32], into: &mut [Self]);
}

impl StoredScale for f32 {
    fn narrow(from: &[f32], into: &mut [Self]) {
        into.copy_from_slice(from);
    }
}

impl StoredScale for f16 {
    fn narrow(from: &[f32], into: &mut [Self]) {
        into.convert_from_f32_slice(from);
    }
}

impl StoredScale for bf16 {
    fn narrow(from: &[f32], into: &mut [Self]) {
        into.convert_from_f32_slice(from);
    }
}

/// An encoded matrix.
pub(crate) struct Filled<C, S> {
    pub(crate) codes: C,
    pub(crate) row_bytes: usize,
    pub(crate) scales: Vec<S>,
    pub(crate) zeros: Option<Vec<i8>>,
}

/// What is to be encoded, and how.
pub(crate) struct Job<'a> {
    pub(crate) encoders: &'static Encoders,
    pub(crate) cols: usize,
    pub(crate) scheme: &'a Scheme,
    pub(crate) fit: &'a Fit,
    pub(crate) form: Form,
    pub(crate) align: RowAlign,
    pub(crate) keep: Keep,
}

/// Why a task failed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Failure {
    /// Some value is not finite; which, is found out afterwards.
    NotFinite,
    /// The scale of a row does not fit.
    Overflow { row: usize, scale: f32 },
}

/// A few rows and where their results go.
struct Task<'a, S> {
    first: usize,
    values: Values<'a>,
    codes: Piece<'a, u8>,
    scales: Option<Piece<'a, S>>,
    zeros: Option<Piece<'a, i8>>,
}

/// What a thread writes to on the way.
#[derive(Default)]
struct Scratch {
    wide: Vec<f32>,
    low: Vec<f32>,
    high: Vec<f32>,
    scales: Vec<f32>,
    zeros: Vec<f32>,
    codes: Vec<u8>,
}

/// Rows of a slice of whole rows.
pub(crate) fn row_count(len: usize, cols: usize) -> Result<usize> {
    if cols == 0 || len.is_multiple_of(cols) {
        Ok(len.checked_div(cols).unwrap_or(0))
    } else {
        Err(Error::Length { what: "values", found: len, expected: len / cols * cols })
    }
}

impl Job<'_> {
    /// Encodes all rows; codes go to memory of kind `M`, scales become `S`.
    pub(crate) fn run<M, S>(
        &self,
        values: Values<'_>,
        importance: Option<&[f32]>,
    ) -> Result<Filled<M::Filled, S>>
    where
        M: Memory<u8>,
        S: StoredScale,
    {
        self.fit.check(self.scheme.symmetry)?;
        let rows = row_count(values.len(), self.cols)?;
        let overflow = Error::Length { what: "values", found: values.len(), expected: 0 };
        let row_bytes = self.align.row_bytes(self.cols, self.scheme.bits).ok_or(overflow)?;
        let weights = match normalized(importance, self.cols) {
            // Values are looked at first.
            Err(error) => return Err(values.check_finite().err().unwrap_or(error)),
            Ok(weights) => weights,
        };
        let work = Work {
            job: self,
            encoders: self.encoders,
            weights: weights.as_deref(),
            spread: self.fit.spread(self.scheme),
            groups: self.cols.div_ceil(self.scheme.granularity.span(self.cols)),
            row_bytes,
        };
        let whole = match self.scheme.granularity {
            Granularity::Tensor if rows > 0 => Some(work.whole(values)?),
            _ => None,
        };
        let per_task = (STRETCH.div_ceil(self.cols.max(1))).max(1);
        let shared = whole.is_some();
        let count = if shared { 0 } else { rows * work.groups };
        let mut codes = Fresh::<M>::new(rows * row_bytes);
        let mut scales = Fresh::<Box<[MaybeUninit<S>]>>::new(count);
        let asymmetric = !self.scheme.is_symmetric();
        let mut zeros = Fresh::<Box<[MaybeUninit<i8>]>>::new(if asymmetric { count } else { 0 });
        let mut scale_pieces = scales.pieces(per_task * work.groups);
        let mut zero_pieces = zeros.pieces(per_task * work.groups);
        let tasks: Vec<Task<'_, S>> = codes
            .pieces(per_task * row_bytes)
            .enumerate()
            .map(|(i, codes)| Task {
                first: i * per_task,
                values: values.part(i * per_task * self.cols..(i + 1) * per_task * self.cols),
                codes,
                scales: scale_pieces.next(),
                zeros: zero_pieces.next(),
            })
            .collect();
        drop((scale_pieces, zero_pieces));
        let failed = tasks
            .into_par_iter()
            .map_init(Scratch::default, |scratch, task| work.task(task, whole, scratch).err())
            .flatten()
            .min_by_key(|failure| match failure {
                Failure::NotFinite => (0, 0),
                Failure::Overflow { row, .. } => (1, *row),
            });
        match failed {
            None => {}
            Some(Failure::NotFinite) => values.check_finite()?,
            Some(Failure::Overflow { row, scale }) => return Err(self.overflow(row, scale)),
        }
        let (mut scales, mut zeros) =
            (scales.finish().unwrap_or_default(), zeros.finish().unwrap_or_default());
        if let Some(grid) = whole {
            scales = vec![S::default()];
            S::narrow(&[grid.scale], &mut scales);
            zeros = vec![grid.zero as i8];
        } else if rows == 0 && self.scheme.granularity == Granularity::Tensor {
            scales = vec![S::default()];
            S::narrow(&[1.0], &mut scales);
            zeros = vec![0];
        }
        Ok(Filled {
            codes: codes.finish().ok_or(Error::Empty { shape: vec![rows, self.cols] })?,
            row_bytes,
            scales,
            zeros: asymmetric.then_some(zeros),
        })
    }

    fn overflow(&self, row: usize, scale: f32) -> Error {
        Error::ScaleOverflow { row, scale, scales: self.scheme.scales }
    }
}

/// A job with what all its tasks share.
struct Work<'a> {
    job: &'a Job<'a>,
    encoders: &'static Encoders,
    weights: Option<&'a [f32]>,
    spread: Spread,
    /// Groups of a row.
    groups: usize,
    row_bytes: usize,
}

impl Work<'_> {
    fn span(&self) -> usize {
        self.job.scheme.granularity.span(self.job.cols)
    }

    /// The one grid of a whole matrix.
    fn whole(&self, values: Values<'_>) -> Result<Grid> {
        let parts: Option<Vec<(f32, f32)>> = (0..values.len().div_ceil(STRETCH))
            .into_par_iter()
            .map_init(Vec::new, |wide, i| {
                let x = values.part(i * STRETCH..(i + 1) * STRETCH).widened(self.encoders, wide);
                let (mut low, mut high) = ([0f32], [0f32]);
                (self.encoders.extremes)(x, x.len(), &mut low, &mut high).then_some((low[0], high[0]))
            })
            .collect();
        let Some(parts) = parts else {
            values.check_finite()?;
            return Err(Error::NotFinite { count: 0, first: 0 });
        };
        let (low, high) = parts.iter().fold((0f32, 0f32), |(low, high), p| (low.min(p.0), high.max(p.1)));
        // Only some fits look at the values again.
        let wide = match self.job.fit {
            Fit::Search(_) | Fit::Hqq(_) => values.all(self.encoders),
            Fit::AbsMax | Fit::MinMax => std::borrow::Cow::Borrowed(&[][..]),
        };
        let sample = Sample::weighted(&wide, self.weights);
        let grid = self.job.fit.grid_within(sample, low, high, self.job.scheme);
        grid.map_err(|scale| self.job.overflow(0, scale))
    }

    fn task<S: StoredScale>(
        &self,
        task: Task<'_, S>,
        whole: Option<Grid>,
        scratch: &mut Scratch,
    ) -> Result<(), Failure> {
        let Scratch { wide, low, high, scales, zeros, codes } = scratch;
        let x = task.values.widened(self.encoders, wide);
        let count = x.len() / self.job.cols.max(1) * self.groups;
        for buffer in [&mut *low, &mut *high, &mut *scales, &mut *zeros] {
            buffer.clear();
            buffer.resize(count, 0.0);
        }
        if let Some(grid) = whole {
            scales.fill(grid.scale);
            zeros.fill(grid.zero as f32);
        } else {
            self.grids(task.first, x, low, high, scales, zeros)?;
        }
        codes.resize(x.len(), 0);
        self.codes(x, scales, zeros, codes, task.codes.clear(0));
        if let Some(kept) = task.scales {
            self.keep(high, scales);
            S::narrow(scales, kept.clear(S::default()));
        }
        if let Some(kept) = task.zeros {
            kept.clear(0).iter_mut().zip(zeros).for_each(|(kept, zero)| *kept = *zero as i8);
        }
        Ok(())
    }

    /// Turns scales into what is kept.
    fn keep(&self, high: &[f32], scales: &mut [f32]) {
        match (self.job.keep, self.job.fit) {
            (Keep::Scale, _) => {}
            // The fit looked at peaks.
            (Keep::Maximum, Fit::AbsMax) => scales.copy_from_slice(high),
            (Keep::Maximum, _) => scales.iter_mut().for_each(|scale| *scale = (*scale * 127.0).min(f32::MAX)),
        }
    }

    /// The grids of all groups of some rows.
    fn grids(
        &self,
        first: usize,
        x: &[f32],
        low: &mut [f32],
        high: &mut [f32],
        scales: &mut [f32],
        zeros: &mut [f32],
    ) -> Result<(), Failure> {
        let (cols, span, groups) = (self.job.cols, self.span(), self.groups);
        let symmetric = self.job.scheme.is_symmetric() && self.job.fit.hunt(self.job.scheme).is_none();
        // Where groups fill rows, rows follow each other without a seam.
        let stride = if cols.is_multiple_of(span) { x.len() } else { cols };
        let per_stride = if cols.is_multiple_of(span) { low.len() } else { groups };
        let mut finite = true;
        for ((x, low), high) in
            x.chunks(stride).zip(low.chunks_mut(per_stride)).zip(high.chunks_mut(per_stride))
        {
            finite &= if symmetric {
                (self.encoders.peaks)(x, span, high)
            } else {
                (self.encoders.extremes)(x, span, low, high)
            };
        }
        if !finite {
            return Err(Failure::NotFinite);
        }
        if !(self.encoders.grids)(&self.spread, low, high, scales, zeros) {
            return self.one_by_one(first, x, scales, zeros);
        }
        match self.job.fit.hunt(self.job.scheme) {
            None => Ok(()),
            Some(hunt) => self.search(hunt, first, x, (low, high), scales, zeros),
        }
    }

    /// The values of a group and their weights.
    fn group<'x>(&'x self, x: &'x [f32], index: usize) -> (&'x [f32], Option<&'x [f32]>) {
        let (row, start) = (index / self.groups, index % self.groups * self.span());
        let end = (start + self.span()).min(self.job.cols);
        let at = row * self.job.cols;
        (&x[at + start..at + end], self.weights.map(|w| &w[start..end]))
    }

    /// As [`Work::grids`], by the rules for a single group: where some scale does not fit, these say which.
    fn one_by_one(
        &self,
        first: usize,
        x: &[f32],
        scales: &mut [f32],
        zeros: &mut [f32],
    ) -> Result<(), Failure> {
        for (index, (scale, zero)) in scales.iter_mut().zip(zeros).enumerate() {
            let (x, weights) = self.group(x, index);
            let grid = self.job.fit.grid(Sample::weighted(x, weights), self.job.scheme);
            let row = first + index / self.groups;
            let grid = grid.map_err(|scale| Failure::Overflow { row, scale })?;
            (*scale, *zero) = (grid.scale, grid.zero as f32);
        }
        Ok(())
    }

    /// Replaces spanning grids by searched ones.
    fn search(
        &self,
        (number, method): (Number, Method),
        first: usize,
        x: &[f32],
        (low, high): (&[f32], &[f32]),
        scales: &mut [f32],
        zeros: &mut [f32],
    ) -> Result<(), Failure> {
        let depth = self.span().min(self.job.cols);
        if depth > search::LONGEST {
            return self.one_by_one(first, x, scales, zeros);
        }
        let mut tiles = Tiles::new(self.encoders, number, method, depth, self.weights.is_some());
        let mut unheld: Option<Found> = None;
        let mut keep = |found: Found| {
            (scales[found.place], zeros[found.place]) = (found.scale, found.zero);
            // Groups are not found in their order.
            let earlier = unheld.is_none_or(|known| found.place < known.place);
            if earlier && !self.spread.holds(found.scale, found.zero) {
                unheld = Some(found);
            }
        };
        for index in 0..low.len() {
            if search::searchable(low[index], high[index]) {
                let (x, weights) = self.group(x, index);
                tiles.put(index, x, weights, low[index], high[index]);
            }
            if tiles.full() {
                tiles.run().for_each(&mut keep);
            }
        }
        tiles.finish().for_each(&mut keep);
        unheld.map_or(Ok(()), |found| {
            Err(Failure::Overflow { row: first + found.place / self.groups, scale: found.scale })
        })
    }

    /// The packed codes of some rows.
    fn codes(&self, x: &[f32], scales: &[f32], zeros: &[f32], codes: &mut [u8], out: &mut [u8]) {
        let (cols, span, groups) = (self.job.cols, self.span(), self.groups);
        let seamless = cols.is_multiple_of(span);
        let (stride, per_stride) = if seamless { (x.len(), scales.len()) } else { (cols, groups) };
        let bits = self.job.scheme.bits;
        let signed = self.job.form == Form::Signed;
        // Bytes are codes as they are.
        let (codes, packed) = if signed || (bits == Bits::EIGHT && self.row_bytes == cols) {
            (out, None)
        } else {
            (codes, Some(out))
        };
        let symmetric = self.job.scheme.is_symmetric();
        let rows = x.chunks(stride).zip(codes.chunks_mut(stride));
        for ((x, codes), (scales, zeros)) in rows.zip(scales.chunks(per_stride).zip(zeros.chunks(per_stride)))
        {
            let job = Codes {
                span,
                scales,
                zeros: (!symmetric).then_some(zeros),
                lowest: self.spread.lowest,
                highest: self.spread.highest,
                offset: if signed { 0.0 } else { -bits.lowest() as f32 },
            };
            (self.encoders.codes)(&job, x, codes);
        }
        let Some(out) = packed else { return };
        // The same of bits: whole bytes per row follow each other.
        if self.row_bytes * 8 == cols * bits.get() {
            (self.encoders.pack)(codes, bits, out);
        } else {
            for (codes, out) in codes.chunks(cols).zip(out.chunks_mut(self.row_bytes)) {
                (self.encoders.pack)(codes, bits, out);
            }
        }
    }
}
