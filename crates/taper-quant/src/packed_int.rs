//! A weight of packed integers.
//!
//! ```text
//! row o, column i:   ŵ = scale[o, i / group] · (q[o, i] − zero[o, i / group])
//! ```
//!
//! Codes stay as the file has them (shared, never copied on clone); a product or a row lookup decodes one row at a time.
//! A convolution weight `[out, in / groups, kh, kw]` is a matrix `[out, rest]` here.
//!
//! Neighbours: [`crate::layout`] says what is stored, [`crate::codec`] reads and writes it, [`crate::code::int`] has the
//! arithmetic.

use candle_core::Tensor;
use std::sync::Arc;
use taper_core::{
    Encoding, Parts, Rows, Weight,
    weight::{checked_elements, rows},
};

use crate::{
    Error, Result,
    code::int::{self, Form},
    codec,
    fit::{Fit, Grid, ScaleSign},
    kernel::{
        self, Arithmetic, Levels, Stream,
        matrix::{Grids, Matrix, ScaleSource},
    },
    layout::{self, IntLayout},
    pack,
    scales::Scales,
    scheme::{Granularity, ScaleType, Scheme},
};

/// A weight of packed integers; cheap to clone.
#[derive(Debug, Clone)]
pub struct PackedInt(Arc<Stored>, Arithmetic);

/// What [`PackedInt`] shares. Built by the codecs, which have checked that all of it fits together.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) shape: Vec<usize>,
    pub(crate) scheme: Scheme,
    pub(crate) layout: IntLayout,
    /// `rows · row_bytes`.
    pub(crate) codes: Arc<[u8]>,
    pub(crate) row_bytes: usize,
    /// Scales per row.
    pub(crate) groups: usize,
    pub(crate) scales: Scales,
    pub(crate) zeros: Option<Vec<i8>>,
    /// The group of each column, where columns were reordered before grouping.
    pub(crate) column_groups: Option<Vec<u32>>,
}

impl PackedInt {
    /// Quantizes a row-major weight of `shape`; `importance` has one value per column.
    ///
    /// # Errors
    /// Everything that [`int::encode`] refuses, and a layout that cannot hold the scheme
    /// ([`IntLayout::holds`]; the name is not known here and not asked for).
    pub fn encode(
        values: &[f32],
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
        let cols = columns(shape);
        let fit = fit_for(layout, fit);
        let mut encoded = int::encode(values, cols, scheme, &fit, importance, layout.align())?;
        if layout == IntLayout::BitsAndBytes {
            row_maxima(values, cols, &fit, &mut encoded.scales);
        }
        Ok(Self::assemble(encoded, shape, scheme, layout))
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
        let encoded = int::EncodedInt {
            codes: packed,
            row_bytes,
            scales: grids.iter().map(|grid| grid.scale * factor).collect(),
            zeros: (!scheme.is_symmetric()).then(|| grids.iter().map(|grid| grid.zero as i8).collect()),
        };
        Ok(Self::assemble(encoded, shape, scheme, layout))
    }

    /// Codes and scales in the words of a layout that can hold them.
    fn assemble(mut encoded: int::EncodedInt, shape: &[usize], scheme: &Scheme, layout: IntLayout) -> Self {
        let cols = columns(shape);
        if layout.form(scheme.bits) == Form::Signed {
            // Offset codes of eight bits are signed codes with the top bit turned over.
            encoded.codes.iter_mut().for_each(|code| *code ^= 0x80);
        }
        Self::from_stored(Stored {
            shape: shape.to_vec(),
            scheme: *scheme,
            layout,
            codes: encoded.codes.into(),
            row_bytes: encoded.row_bytes,
            groups: cols.div_ceil(scheme.granularity.span(cols)),
            scales: Scales::new(&encoded.scales, scheme.scales),
            zeros: encoded.zeros,
            column_groups: None,
        })
    }

    pub(crate) fn from_stored(stored: Stored) -> Self {
        Self(Arc::new(stored), Arithmetic::default())
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

    /// The stored bytes of a row of codes, in the form that [`IntLayout::form`] states.
    #[must_use]
    pub fn row_codes(&self, row: usize) -> &[u8] {
        let start = row * self.0.row_bytes;
        self.0.codes.get(start..start + self.0.row_bytes).unwrap_or_default()
    }

    /// Scale and zero point of a group of a row.
    #[inline]
    #[must_use]
    pub fn grid(&self, row: usize, group: usize) -> Grid {
        let stored = &*self.0;
        let index = match stored.scheme.granularity {
            Granularity::Tensor => 0,
            Granularity::Channel => row,
            Granularity::Group(_) => row * stored.groups + group,
        };
        let scale = match stored.layout {
            IntLayout::BitsAndBytes => stored.scales.get(index) / 127.0,
            _ => stored.scales.get(index),
        };
        let zero = stored.zeros.as_ref().and_then(|z| z.get(index)).map_or(0, |&z| i32::from(z));
        Grid { scale, zero }
    }

    /// What the kernels see.
    fn with_matrix<T>(&self, work: impl FnOnce(&Matrix<'_>) -> T) -> T {
        let stored = &*self.0;
        let each = |row: usize, scales: &mut [f32]| {
            scales.iter_mut().enumerate().for_each(|(g, scale)| *scale = self.grid(row, g).scale);
        };
        let grids = Grids {
            scales: match (&stored.scales, stored.layout) {
                (_, IntLayout::BitsAndBytes) => ScaleSource::Each(&each),
                (Scales::F16(scales), _) => ScaleSource::F16(scales),
                (Scales::BF16(scales), _) => ScaleSource::BF16(scales),
                (Scales::F32(scales), _) => ScaleSource::F32(scales),
            },
            shared: stored.scheme.granularity == Granularity::Tensor,
            offset: 1 << (stored.scheme.bits.get() - 1),
            zeros: stored.zeros.as_deref(),
        };
        work(&Matrix {
            rows: self.rows(),
            cols: self.cols(),
            codes: &stored.codes,
            row_bytes: stored.row_bytes,
            stream: match stored.layout.form(stored.scheme.bits) {
                Form::Packed(bits) => Stream::Low(bits.get()),
                Form::Signed => Stream::Signed,
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

/// Turns scales into what bitsandbytes stores: 127 scales, which under absmax is the maximum itself, exactly.
fn row_maxima(values: &[f32], cols: usize, fit: &Fit, scales: &mut [f32]) {
    for (scale, row) in scales.iter_mut().zip(values.chunks(cols.max(1))) {
        *scale = match fit {
            Fit::AbsMax => row.iter().fold(0f32, |m, x| m.max(x.abs())),
            _ => (*scale * 127.0).min(f32::MAX),
        };
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
        self.with_matrix(|w| w.decode_row(kernel::active(), row, out));
    }

    fn product(&self, x: &[f32], batch: usize) -> Vec<f32> {
        let reordered = self.0.column_groups.is_some();
        self.with_matrix(|w| match self.1 {
            Arithmetic::Int8 if !reordered => kernel::int8::product(kernel::active(), w, x, batch),
            _ => kernel::exact::product(kernel::active(), w, x, batch),
        })
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
        Ok(codec::int_parts(self))
    }
}

/// What people read: `int4 g128`; scales other than f16 are named, because they count.
pub(crate) fn format(scheme: &Scheme) -> String {
    match scheme.scales {
        ScaleType::F16 => scheme.to_string(),
        other => format!("{scheme} {other}"),
    }
}
