//! A weight of NF4 codes.
//!
//! Codes run over the flattened row-major weight in blocks, as in bitsandbytes; a row decodes without its neighbours
//! even where a block or a byte is shared with them.
//!
//! Neighbours: [`crate::code::nf4`] has the arithmetic, [`crate::codec`] reads and writes the arrays.

use candle_core::Tensor;
use rayon::prelude::*;
use std::{mem::MaybeUninit, sync::Arc};
use taper_core::{
    Encoding, Parts, Rows, Weight,
    weight::{checked_elements, rows},
};

use crate::{
    Error, Result,
    code::{
        blocks,
        nf4::{self, Absmax, Nf4Scheme},
    },
    codec::{self, bitsandbytes_nf4::ValueType},
    fit::Fit,
    kernel::{
        self, ActivationScale, Arithmetic, Levels, Stream,
        encode::Encoders,
        matrix::{FillScales, Grids, Matrix, ScaleSource},
        store::{Form, Store},
        tiles::{TileScales, Tiles, along},
    },
    layout,
    packed_int::columns,
    values::Values,
};

/// A weight of NF4 codes; cheap to clone.
#[derive(Debug, Clone)]
pub struct PackedNf4(Arc<Stored>, Arithmetic, ActivationScale);

/// What [`PackedNf4`] shares. Built by the codec, which has checked that all of it fits together.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) shape: Vec<usize>,
    pub(crate) scheme: Nf4Scheme,
    /// The type of the values that were encoded; bitsandbytes decodes to it.
    pub(crate) decoded: ValueType,
    pub(crate) table: [f32; 16],
    /// Bytes that share a nested scale; [`nf4::NESTED_BLOCK`] where scales are not nested.
    pub(crate) nested_block: usize,
    pub(crate) store: Store<Nf4Rows>,
}

/// The arrays of a weight, as a file has them.
#[derive(Debug)]
pub(crate) struct Nf4Rows {
    /// ⌈elements / 2⌉ bytes.
    pub(crate) codes: Arc<[u8]>,
    pub(crate) absmax: Arc<Absmax>,
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
        Self::encode_values(Values::F32(values), shape, scheme, fit, importance, decoded)
    }

    /// As [`PackedNf4::encode`], from values of any type; halves are widened some blocks at a time.
    ///
    /// # Errors
    /// As [`PackedNf4::encode`].
    pub fn encode_values(
        values: Values<'_>,
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
        let (encoders, cols) = (Encoders::active(), columns(shape));
        let (codes, absmax) =
            blocks::encode::<Arc<[MaybeUninit<u8>]>>(encoders, values, cols, scheme, fit, importance)?;
        Ok(Self::from_stored(Stored {
            shape: shape.to_vec(),
            scheme,
            decoded,
            table: nf4::TABLE,
            nested_block: nested_block(&absmax),
            store: Store::new(Nf4Rows { codes, absmax: Arc::new(absmax) }),
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
            table: nf4::TABLE,
            nested_block: nested_block(&absmax),
            store: Store::new(Nf4Rows { codes, absmax: Arc::new(absmax) }),
        }))
    }

    pub(crate) fn from_stored(stored: Stored) -> Self {
        Self(Arc::new(stored), Arithmetic::default(), ActivationScale::default())
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

    /// With what numbers products are computed.
    #[must_use]
    pub fn arithmetic(&self) -> Arithmetic {
        self.1
    }

    pub(crate) fn stored(&self) -> &Stored {
        &self.0
    }

    /// Block size and kind of scales.
    #[must_use]
    pub fn scheme(&self) -> Nf4Scheme {
        self.0.scheme
    }

    /// The arrays as a file has them; made again where only tiles are held.
    pub(crate) fn rows_form(&self) -> Arc<Nf4Rows> {
        match self.0.store.form() {
            Form::Rows(rows) => rows,
            Form::Tiles(tiles, kept) => Arc::new(untile(&tiles, &kept)),
        }
    }

    /// The tiles that products read, for which the rows are let go of; `None` where blocks or bytes are shared between
    /// rows.
    fn tiles(&self) -> Option<Arc<Tiles>> {
        let (cols, block) = (self.cols(), self.0.scheme.block.get());
        (cols.is_multiple_of(block) && cols.is_multiple_of(2)).then(|| {
            self.0.store.tiles(|rows| {
                let tiles = self.with_matrix(rows, |w| Tiles::new(kernel::active(), w));
                let absmax = match &*rows.absmax {
                    Absmax::Plain(_) => Arc::new(Absmax::Plain(vec![])),
                    Absmax::Nested(_) => Arc::clone(&rows.absmax),
                };
                (tiles, Nf4Rows { codes: Arc::from([]), absmax })
            })
        })
    }

    /// What the kernels see of rows that share neither blocks nor bytes.
    fn with_matrix<T>(&self, arrays: &Nf4Rows, work: impl FnOnce(&Matrix<'_>) -> T) -> T {
        let stored = &*self.0;
        let (cols, block) = (self.cols(), stored.scheme.block.get());
        let groups = cols / block;
        let absmax = Arc::clone(&arrays.absmax);
        let each: FillScales = Arc::new(move |row, scales| {
            scales.iter_mut().enumerate().for_each(|(g, s)| *s = absmax.get(row * groups + g));
        });
        let scales = match &*arrays.absmax {
            Absmax::Plain(scales) => ScaleSource::F32(scales),
            Absmax::Nested(_) => ScaleSource::Each(&each),
        };
        work(&Matrix {
            rows: self.rows(),
            cols,
            codes: &arrays.codes,
            row_bytes: cols / 2,
            stream: Stream::High,
            levels: Levels::Table(&stored.table),
            span: block,
            column_groups: None,
            groups,
            grids: Grids { scales, shared: false, offset: 0, zeros: None },
        })
    }
}

/// Rows as a file has them.
fn untile(tiles: &Tiles, kept: &Nf4Rows) -> Nf4Rows {
    let row_bytes = tiles.cols / 2;
    let mut packed = vec![0u8; tiles.rows * row_bytes];
    packed.par_chunks_exact_mut(row_bytes.max(1)).enumerate().for_each_init(
        || vec![0u8; tiles.cols],
        |codes, (row, out)| {
            tiles.codes_of_row(row, codes);
            let pairs = codes.as_chunks::<2>().0;
            out.iter_mut().zip(pairs).for_each(|(out, [high, low])| *out = high << 4 | low);
        },
    );
    let absmax = match &tiles.scales {
        TileScales::F32(s) => Arc::new(Absmax::Plain(along(s, tiles.rows, tiles.groups, false))),
        _ => Arc::clone(&kept.absmax),
    };
    Nf4Rows { codes: packed.into(), absmax }
}

impl Rows for PackedNf4 {
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
        let stored = &*self.0;
        let (cols, block) = (self.cols(), stored.scheme.block.get());
        match stored.store.form() {
            Form::Tiles(tiles, _) => tiles.decode_rows(kernel::active(), first, out),
            Form::Rows(rows) if cols.is_multiple_of(block) && cols.is_multiple_of(2) => {
                self.with_matrix(&rows, |w| w.decode_rows(kernel::active(), first, out));
            }
            Form::Rows(rows) => {
                let start = first * cols;
                nf4::decode(&rows.codes, &stored.table, &rows.absmax, block, start, out);
            }
        }
    }

    fn product(&self, x: &[f32], batch: usize) -> Vec<f32> {
        match self.tiles() {
            Some(tiles) => self.1.product(self.2, (kernel::active(), &tiles), x, batch),
            None => rows::matmul_slice(self, x, batch),
        }
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
        let nested = stored.nested_block;
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
pub(crate) fn nested_block(absmax: &Absmax) -> usize {
    match absmax {
        Absmax::Plain(_) => nf4::NESTED_BLOCK,
        Absmax::Nested(nested) => nested.block,
    }
}
