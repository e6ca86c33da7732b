//! A weight of NF4 codes.
//!
//! Codes run over the flattened row-major weight in blocks, as in bitsandbytes; a row decodes without its neighbours
//! even where a block or a byte is shared with them.
//!
//! Neighbours: [`crate::code::nf4`] has the arithmetic, [`crate::codec`] reads and writes the arrays.

use candle_core::Tensor;
use std::sync::Arc;
use taper_core::{
    Encoding, Parts, Rows, Weight,
    weight::{checked_elements, rows},
};

use crate::{
    Error, Result,
    code::nf4::{self, Absmax, Nf4Scheme},
    codec::{self, bitsandbytes_nf4::ValueType},
    fit::Fit,
    kernel::{
        self, Levels, Stream,
        matrix::{Grids, Matrix, ScaleSource},
    },
    layout,
    packed_int::columns,
};

/// A weight of NF4 codes; cheap to clone.
#[derive(Debug, Clone)]
pub struct PackedNf4(Arc<Stored>);

/// What [`PackedNf4`] shares. Built by the codec, which has checked that all of it fits together.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) shape: Vec<usize>,
    pub(crate) scheme: Nf4Scheme,
    /// The type of the values that were encoded; bitsandbytes decodes to it.
    pub(crate) decoded: ValueType,
    /// ⌈elements / 2⌉ bytes.
    pub(crate) codes: Arc<[u8]>,
    pub(crate) table: [f32; 16],
    pub(crate) absmax: Absmax,
}

impl PackedNf4 {
    /// Quantizes a row-major weight of `shape`; `importance` has one value per column.
    ///
    /// `decoded` is the type to which bitsandbytes is told to decode: that of the original weight.
    ///
    /// # Errors
    /// Everything that [`nf4::encode`] refuses.
    pub fn encode(
        values: &[f32],
        shape: &[usize],
        scheme: Nf4Scheme,
        fit: &Fit,
        importance: Option<&[f32]>,
        decoded: ValueType,
    ) -> Result<Self> {
        let elements = checked_elements(shape).unwrap_or(usize::MAX);
        if values.len() != elements {
            return Err(Error::Length { what: "values", found: values.len(), expected: elements });
        }
        if elements == 0 {
            return Err(Error::Empty { shape: shape.to_vec() });
        }
        let encoded = nf4::encode(values, columns(shape), scheme, fit, importance)?;
        Ok(Self::from_stored(Stored {
            shape: shape.to_vec(),
            scheme,
            decoded,
            codes: encoded.codes.into(),
            table: nf4::TABLE,
            absmax: encoded.absmax,
        }))
    }

    /// A weight of codes that were chosen elsewhere: one byte per code, row-major, with the scales of its blocks.
    ///
    /// # Errors
    /// Slices that do not fit together.
    pub fn from_codes(
        codes: &[u8],
        absmax: Absmax,
        shape: &[usize],
        scheme: Nf4Scheme,
        decoded: ValueType,
    ) -> Result<Self> {
        let elements = checked_elements(shape).unwrap_or(usize::MAX);
        for (what, found, expected) in [
            ("codes", codes.len(), elements),
            ("absmax", absmax.len(), elements.div_ceil(scheme.block.get())),
        ] {
            if found != expected {
                return Err(Error::Length { what, found, expected });
            }
        }
        if elements == 0 {
            return Err(Error::Empty { shape: shape.to_vec() });
        }
        let (pairs, last) = codes.as_chunks::<2>();
        let mut packed: Vec<u8> = pairs.iter().map(|[first, second]| first << 4 | second & 15).collect();
        packed.extend(last.iter().map(|first| first << 4 | nf4::ZERO_CODE));
        let codes = packed.into();
        Ok(Self::from_stored(Stored {
            shape: shape.to_vec(),
            scheme,
            decoded,
            codes,
            table: nf4::TABLE,
            absmax,
        }))
    }

    pub(crate) fn from_stored(stored: Stored) -> Self {
        Self(Arc::new(stored))
    }

    pub(crate) fn stored(&self) -> &Stored {
        &self.0
    }

    /// Block size and kind of scales.
    #[must_use]
    pub fn scheme(&self) -> Nf4Scheme {
        self.0.scheme
    }

    /// The codes, two per byte, the first in the high nibble.
    #[must_use]
    pub fn codes(&self) -> &[u8] {
        &self.0.codes
    }

    /// The scales of the blocks.
    #[must_use]
    pub fn absmax(&self) -> &Absmax {
        &self.0.absmax
    }
}

impl Rows for PackedNf4 {
    fn rows(&self) -> usize {
        self.0.shape.first().copied().unwrap_or(1)
    }

    fn cols(&self) -> usize {
        columns(&self.0.shape)
    }

    fn decode_row(&self, row: usize, out: &mut [f32]) {
        let stored = &*self.0;
        let start = row * out.len();
        if self.with_matrix(|w| w.decode_row(kernel::active(), row, out)).is_some() {
            return;
        }
        nf4::decode(&stored.codes, &stored.table, &stored.absmax, stored.scheme.block.get(), start, out);
    }

    fn product(&self, x: &[f32], batch: usize) -> Vec<f32> {
        self.with_matrix(|w| kernel::exact::product(kernel::active(), w, x, batch))
            .unwrap_or_else(|| rows::matmul_slice(self, x, batch))
    }
}

impl PackedNf4 {
    /// What the kernels see; `None` where blocks or bytes are shared between rows.
    fn with_matrix<T>(&self, work: impl FnOnce(&Matrix<'_>) -> T) -> Option<T> {
        let stored = &*self.0;
        let (cols, block) = (self.cols(), stored.scheme.block.get());
        if !cols.is_multiple_of(block) || !cols.is_multiple_of(2) {
            return None;
        }
        let groups = cols / block;
        let each = |row: usize, scales: &mut [f32]| {
            scales.iter_mut().enumerate().for_each(|(g, s)| *s = stored.absmax.get(row * groups + g));
        };
        let scales = match &stored.absmax {
            Absmax::Plain(scales) => ScaleSource::F32(scales),
            Absmax::Nested(_) => ScaleSource::Each(&each),
        };
        Some(work(&Matrix {
            rows: self.rows(),
            cols,
            codes: &stored.codes,
            row_bytes: cols / 2,
            stream: Stream::High,
            levels: Levels::Table(&stored.table),
            span: block,
            column_groups: None,
            groups,
            grids: Grids { scales, shared: false, offset: 0, zeros: None },
        }))
    }
}

impl Weight for PackedNf4 {
    fn encoding(&self) -> Encoding {
        Encoding::new(codec::bitsandbytes_nf4::ID, self.0.scheme.to_string())
    }

    fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    fn nbytes(&self) -> usize {
        let stored = &*self.0;
        let nested = nested_block(stored);
        layout::nbytes(&codec::bitsandbytes_nf4::arrays(&stored.shape, stored.scheme, nested, stored.decoded))
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
        Ok(codec::bitsandbytes_nf4::to_parts(self))
    }
}

/// Bytes that share a nested scale.
pub(crate) fn nested_block(stored: &Stored) -> usize {
    match &stored.absmax {
        Absmax::Plain(_) => nf4::NESTED_BLOCK,
        Absmax::Nested(nested) => nested.block,
    }
}
