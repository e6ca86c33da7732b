//! A weight of packed integers.
//!
//! ```text
//! row o, column i:   ŵ = scale[o, i / group] · (q[o, i] − zero[o, i / group])
//! ```
//!
//! Codes stay as the file has them (shared, never copied on clone) until the first product, which repacks them for the
//! kernels; then only that form is held. A row lookup decodes one row at a time from either.
//! A convolution weight `[out, in / groups, kh, kw]` is a matrix `[out, rest]` here.
//!
//! Neighbours: [`crate::layout`] says what is stored, [`crate::codec`] reads and writes it, [`crate::code::int`] has the
//! arithmetic.

use candle_core::Tensor;
use half::{bf16, f16};
use rayon::prelude::*;
use std::{mem::MaybeUninit, sync::Arc};
use taper_core::{
    Encoding, Parts, Rows, Weight,
    weight::{checked_elements, rows},
};

use crate::{
    Error, Result,
    code::rows::{Filled, Form as CodeForm, Job, Keep, StoredScale},
    codec,
    fit::{Fit, Grid, ScaleSign},
    kernel::{
        self, ActivationScale, Arithmetic, Levels, Stream,
        encode::Encoders,
        matrix::{FillScales, Grids, Matrix, ScaleSource},
        store::{Form, Store},
        tiles::{TileScales, Tiles, along},
    },
    layout::{self, IntLayout},
    pack,
    scales::Scales,
    scheme::{Activations, Granularity, ScaleType, Scheme},
    values::Values,
};

/// A weight of packed integers; cheap to clone.
#[derive(Debug, Clone)]
pub struct PackedInt(Arc<Stored>, Arithmetic, ActivationScale);

/// What [`PackedInt`] shares. Built by the codecs, which have checked that all of it fits together.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) shape: Vec<usize>,
    pub(crate) scheme: Scheme,
    pub(crate) layout: IntLayout,
    pub(crate) row_bytes: usize,
    /// Scales per row.
    pub(crate) groups: usize,
    /// The group of each column, where columns were reordered before grouping.
    pub(crate) column_groups: Option<Vec<u32>>,
    pub(crate) store: Store<IntRows>,
}

/// The arrays of a weight, as a file has them.
#[derive(Debug)]
pub(crate) struct IntRows {
    /// `rows · row_bytes`.
    pub(crate) codes: Arc<[u8]>,
    pub(crate) scales: Scales,
    pub(crate) zeros: Option<Vec<i8>>,
}

impl PackedInt {
    /// Quantizes a row-major weight of `shape`; `importance` has one value per column.
    ///
    /// # Errors
    /// Everything that [`crate::code::int::encode`] refuses, and a layout that cannot hold the scheme
    /// ([`IntLayout::holds`]; the name is not known here and not asked for).
    pub fn encode(
        values: &[f32],
        shape: &[usize],
        scheme: &Scheme,
        fit: &Fit,
        importance: Option<&[f32]>,
        layout: IntLayout,
    ) -> Result<Self> {
        Self::encode_values(Values::F32(values), shape, scheme, fit, importance, layout)
    }

    /// As [`PackedInt::encode`], from values of any type; halves are widened a few rows at a time.
    ///
    /// # Errors
    /// As [`PackedInt::encode`].
    pub fn encode_values(
        values: Values<'_>,
        shape: &[usize],
        scheme: &Scheme,
        fit: &Fit,
        importance: Option<&[f32]>,
        layout: IntLayout,
    ) -> Result<Self> {
        if !layout.holds(".weight", shape, scheme) {
            return Err(Error::Conflict {
                option: "layout",
                conflict: format!("{} cannot hold {scheme} of shape {shape:?}", layout.codec()),
                expected: "choose `IntLayout::Taper`, which holds everything".into(),
            });
        }
        let elements = checked_elements(shape).unwrap_or(usize::MAX);
        if values.len() != elements {
            return Err(Error::Length { what: "values", found: values.len(), expected: elements });
        }
        if elements == 0 {
            return Err(Error::Empty { shape: shape.to_vec() });
        }
        let fit = fit_for(layout, fit);
        let job = Job {
            encoders: Encoders::active(),
            cols: columns(shape),
            scheme,
            fit: &fit,
            form: layout.form(scheme.bits),
            align: layout.align(),
            keep: if layout == IntLayout::BitsAndBytes { Keep::Maximum } else { Keep::Scale },
        };
        match scheme.scales {
            ScaleType::F16 => Self::of_job::<f16>(&job, values, importance, shape, layout, Scales::F16),
            ScaleType::BF16 => Self::of_job::<bf16>(&job, values, importance, shape, layout, Scales::BF16),
            ScaleType::F32 => Self::of_job::<f32>(&job, values, importance, shape, layout, Scales::F32),
        }
    }

    /// A weight of codes that were chosen elsewhere: one byte per code, row-major, offset by 2^(b−1), with the grids of
    /// its groups in the order of [`Granularity::scale_shape`]. Scales are as stored (see [`crate::fit::stored`]).
    ///
    /// # Errors
    /// A layout that cannot hold the scheme, and slices that do not fit together.
    pub fn from_codes(
        codes: &[u8],
        grids: &[Grid],
        shape: &[usize],
        scheme: &Scheme,
        layout: IntLayout,
    ) -> Result<Self> {
        if !layout.holds(".weight", shape, scheme) {
            return Err(Error::Conflict {
                option: "layout",
                conflict: format!("{} cannot hold {scheme} of shape {shape:?}", layout.codec()),
                expected: "choose `IntLayout::Taper`, which holds everything".into(),
            });
        }
        let (elements, cols) = (checked_elements(shape).unwrap_or(usize::MAX), columns(shape));
        let rows = shape.first().copied().unwrap_or(1);
        let groups: usize = scheme.granularity.scale_shape(rows, cols).iter().product();
        for (what, found, expected) in [("codes", codes.len(), elements), ("grids", grids.len(), groups)] {
            if found != expected {
                return Err(Error::Length { what, found, expected });
            }
        }
        if elements == 0 {
            return Err(Error::Empty { shape: shape.to_vec() });
        }
        let overflow = Error::Length { what: "codes", found: elements, expected: 0 };
        let row_bytes = layout.align().row_bytes(cols, scheme.bits).ok_or(overflow)?;
        let mut packed = vec![0u8; rows * row_bytes];
        for (packed, codes) in packed.chunks_exact_mut(row_bytes).zip(codes.chunks_exact(cols)) {
            pack::pack(codes, scheme.bits, packed);
        }
        let factor = if layout == IntLayout::BitsAndBytes { 127.0 } else { 1.0 };
        if layout.form(scheme.bits) == CodeForm::Signed {
            // Offset codes of eight bits are signed codes with the top bit turned over.
            packed.iter_mut().for_each(|code| *code ^= 0x80);
        }
        let scales: Vec<f32> = grids.iter().map(|grid| grid.scale * factor).collect();
        Ok(Self::from_stored(Stored {
            shape: shape.to_vec(),
            scheme: *scheme,
            layout,
            row_bytes,
            groups: cols.div_ceil(scheme.granularity.span(cols)),
            column_groups: None,
            store: Store::new(IntRows {
                codes: packed.into(),
                scales: Scales::new(&scales, scheme.scales),
                zeros: (!scheme.is_symmetric()).then(|| grids.iter().map(|grid| grid.zero as i8).collect()),
            }),
        }))
    }

    fn of_job<S: StoredScale>(
        job: &Job<'_>,
        values: Values<'_>,
        importance: Option<&[f32]>,
        shape: &[usize],
        layout: IntLayout,
        scales: impl FnOnce(Vec<S>) -> Scales,
    ) -> Result<Self> {
        let filled: Filled<Arc<[u8]>, S> = job.run::<Arc<[MaybeUninit<u8>]>, S>(values, importance)?;
        Ok(Self::from_stored(Stored {
            shape: shape.to_vec(),
            scheme: *job.scheme,
            layout,
            row_bytes: filled.row_bytes,
            groups: job.cols.div_ceil(job.scheme.granularity.span(job.cols)),
            column_groups: None,
            store: Store::new(IntRows {
                codes: filled.codes,
                scales: scales(filled.scales),
                zeros: filled.zeros,
            }),
        }))
    }

    pub(crate) fn from_stored(stored: Stored) -> Self {
        // A file that says how inputs are rounded means its products to be computed so.
        let arithmetic = match stored.scheme.activations {
            Activations::Float => Arithmetic::default(),
            Activations::Dynamic | Activations::Static => Arithmetic::Int8,
        };
        Self(Arc::new(stored), arithmetic, ActivationScale::default())
    }

    pub(crate) fn stored(&self) -> &Stored {
        &self.0
    }

    /// The same weight (its bytes are shared), whose products use `arithmetic`.
    #[must_use]
    pub fn with_arithmetic(mut self, arithmetic: Arithmetic) -> Self {
        self.1 = arithmetic;
        self
    }

    /// The same weight, whose products under [`Arithmetic::Int8`] round activations by `scale`.
    #[must_use]
    pub fn with_activation_scale(mut self, scale: ActivationScale) -> Self {
        self.2 = scale;
        self
    }

    /// By what scale products under [`Arithmetic::Int8`] round activations.
    #[must_use]
    pub fn activation_scale(&self) -> ActivationScale {
        self.2
    }

    /// With what numbers products are computed.
    #[must_use]
    pub fn arithmetic(&self) -> Arithmetic {
        self.1
    }

    /// Bits, symmetry, granularity and type of scales.
    #[must_use]
    pub fn scheme(&self) -> &Scheme {
        &self.0.scheme
    }

    /// How a file stores it.
    #[must_use]
    pub fn layout(&self) -> IntLayout {
        self.0.layout
    }

    /// Scale and zero point of a group of a row.
    #[must_use]
    pub fn grid(&self, row: usize, group: usize) -> Grid {
        let stored = &*self.0;
        let index = match stored.scheme.granularity {
            Granularity::Tensor => 0,
            Granularity::Channel => row,
            Granularity::Group(_) => row * stored.groups + group,
        };
        match stored.store.form() {
            Form::Rows(rows) => Grid {
                scale: rows.scale(stored.layout, index),
                zero: rows.zeros.as_ref().and_then(|z| z.get(index)).map_or(0, |&z| i32::from(z)),
            },
            Form::Tiles(tiles, _) => {
                Grid { scale: tiles.scale(row, group), zero: tiles.zero(row, group).into() }
            }
        }
    }

    /// The arrays as a file has them; made again where only tiles are held.
    pub(crate) fn rows_form(&self) -> Arc<IntRows> {
        match self.0.store.form() {
            Form::Rows(rows) => rows,
            Form::Tiles(tiles, kept) => Arc::new(self.untile(&tiles, &kept)),
        }
    }

    fn untile(&self, tiles: &Tiles, kept: &IntRows) -> IntRows {
        let stored = &*self.0;
        let (groups, shared) = (stored.groups, stored.scheme.granularity == Granularity::Tensor);
        let mut codes = vec![0u8; tiles.rows * stored.row_bytes];
        let row = |codes: &mut Vec<u8>, (row, out): (usize, &mut [u8])| {
            tiles.codes_of_row(row, codes);
            match stored.layout.form(stored.scheme.bits) {
                CodeForm::Packed(bits) => pack::pack(codes, bits, out),
                CodeForm::Signed => out.iter_mut().zip(&*codes).for_each(|(out, code)| *out = code ^ 0x80),
            }
        };
        let chunks = codes.par_chunks_exact_mut(stored.row_bytes.max(1)).enumerate();
        chunks.for_each_init(|| vec![0u8; tiles.cols], row);
        let scales = match &tiles.scales {
            TileScales::F16(s) => Scales::F16(along(s, tiles.rows, groups, shared)),
            TileScales::BF16(s) => Scales::BF16(along(s, tiles.rows, groups, shared)),
            TileScales::F32(s) => Scales::F32(along(s, tiles.rows, groups, shared)),
            TileScales::Each(_) => kept.scales.clone(),
        };
        let zeros = tiles.zeros.as_ref().map(|zeros| along(zeros, tiles.rows, groups, shared));
        IntRows { codes: codes.into(), scales, zeros }
    }

    /// The tiles that products read; the rows are let go of.
    fn tiles(&self) -> Arc<Tiles> {
        self.0.store.tiles(|rows| {
            let tiles = self.with_matrix(rows, |w| Tiles::new(kernel::active(), w));
            // Scales that are computed from what the file has need that.
            let scales = match self.0.layout {
                IntLayout::BitsAndBytes => rows.scales.clone(),
                _ => Scales::F32(vec![]),
            };
            (tiles, IntRows { codes: Arc::from([]), scales, zeros: None })
        })
    }

    /// What the kernels see of rows.
    fn with_matrix<T>(&self, arrays: &IntRows, work: impl FnOnce(&Matrix<'_>) -> T) -> T {
        let stored = &*self.0;
        let each: FillScales = match (&arrays.scales, stored.layout) {
            (Scales::F32(maxima), IntLayout::BitsAndBytes) => {
                let maxima = maxima.clone();
                Arc::new(move |row, out| out.fill(maxima.get(row).map_or(0.0, |m| m / 127.0)))
            }
            _ => Arc::new(|_, _| {}),
        };
        let grids = Grids {
            scales: match (&arrays.scales, stored.layout) {
                (_, IntLayout::BitsAndBytes) => ScaleSource::Each(&each),
                (Scales::F16(scales), _) => ScaleSource::F16(scales),
                (Scales::BF16(scales), _) => ScaleSource::BF16(scales),
                (Scales::F32(scales), _) => ScaleSource::F32(scales),
            },
            shared: stored.scheme.granularity == Granularity::Tensor,
            offset: 1 << (stored.scheme.bits.get() - 1),
            zeros: arrays.zeros.as_deref(),
        };
        work(&Matrix {
            rows: self.rows(),
            cols: self.cols(),
            codes: &arrays.codes,
            row_bytes: stored.row_bytes,
            stream: match stored.layout.form(stored.scheme.bits) {
                CodeForm::Packed(bits) => Stream::Low(bits.get()),
                CodeForm::Signed => Stream::Signed,
            },
            levels: Levels::Integers,
            span: stored.scheme.granularity.span(self.cols()),
            column_groups: stored.column_groups.as_deref(),
            groups: stored.groups,
            grids,
        })
    }

    /// The group of each column, where columns were reordered before grouping (GPTQ's activation order).
    #[must_use]
    pub fn column_groups(&self) -> Option<&[u32]> {
        self.0.column_groups.as_deref()
    }
}

impl IntRows {
    /// The scale at an index, as it multiplies.
    fn scale(&self, layout: IntLayout, index: usize) -> f32 {
        match layout {
            IntLayout::BitsAndBytes => self.scales.get(index) / 127.0,
            _ => self.scales.get(index),
        }
    }
}

/// bitsandbytes multiplies by what it takes for a row's maximum: its scales are positive.
pub(crate) fn fit_for(layout: IntLayout, fit: &Fit) -> Fit {
    match (layout, fit) {
        (IntLayout::BitsAndBytes, Fit::Search(search)) => {
            let mut search = *search;
            search.sign = ScaleSign::Positive;
            Fit::Search(search)
        }
        _ => *fit,
    }
}

/// Everything after the first dimension.
pub(crate) fn columns(shape: &[usize]) -> usize {
    shape.iter().skip(1).product()
}

impl Rows for PackedInt {
    fn rows(&self) -> usize {
        self.0.shape.first().copied().unwrap_or(1)
    }

    fn cols(&self) -> usize {
        columns(&self.0.shape)
    }

    fn decode_row(&self, row: usize, out: &mut [f32]) {
        self.decode_rows(row, out);
    }

    fn decode_rows(&self, first: usize, out: &mut [f32]) {
        match self.0.store.form() {
            Form::Rows(rows) => self.with_matrix(&rows, |w| w.decode_rows(kernel::active(), first, out)),
            Form::Tiles(tiles, _) => tiles.decode_rows(kernel::active(), first, out),
        }
    }

    fn product(&self, x: &[f32], batch: usize) -> Vec<f32> {
        self.1.product(self.2, (kernel::active(), &self.tiles()), x, batch)
    }
}

impl Weight for PackedInt {
    fn encoding(&self) -> Encoding {
        Encoding::new(self.0.layout.codec(), format(&self.0.scheme))
    }

    fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    fn nbytes(&self) -> usize {
        let reordered = self.0.column_groups.is_some();
        let arrays = self.0.layout.arrays(self.rows(), self.cols(), &self.0.scheme, reordered);
        arrays.map_or(0, |arrays| layout::nbytes(&arrays))
    }

    fn dense(&self) -> taper_core::Result<Tensor> {
        rows::dense(self)
    }

    fn matmul(&self, x: &Tensor) -> taper_core::Result<Tensor> {
        rows::matmul(self, x)
    }

    fn gather(&self, ids: &Tensor) -> taper_core::Result<Tensor> {
        rows::gather(self, ids)
    }

    fn to_parts(&self) -> taper_core::Result<Parts> {
        codec::int_parts(self)
    }
}

/// What people read: `int4 g128`; scales other than f16 are named, because they count.
pub(crate) fn format(scheme: &Scheme) -> String {
    match scheme.scales {
        ScaleType::F16 => scheme.to_string(),
        other => format!("{scheme} {other}"),
    }
}
