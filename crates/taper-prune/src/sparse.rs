//! A sparse weight: one bit per element says whether it is there, and the values that are there follow each other.
//!
//! ```text
//! row  0  .5  0  0  −1  0  0  2      mask  0b1001_0010 (bit c%8 of byte c/8 is column c)      values  .5 −1 2
//! ```
//!
//! It is smaller than dense where more than 1/16 of 16-bit weights (1/32 of 32-bit ones) are zero, and smaller than
//! index lists up to some 94 % zeros. The product walks the set bits and never touches a zero. Where a row's values
//! begin follows from the bits before it, so that is computed once and not stored.
//!
//! Written and read by [`crate::codec::bitmask`]; made by [`crate::SparseBitmask`].

use candle_core::{DType, Tensor};
use half::{bf16, f16};
use safetensors::Dtype;
use std::sync::Arc;
use taper_core::{
    Encoding, Error, Part, Parts, Result, Rows, Weight,
    weight::{checked_elements, rows},
};

use crate::{codec::bitmask, dense};

/// A matrix (or a convolution flattened to one) that stores its nonzero values and a bit per element.
///
/// Cheap to clone: the arrays are shared. A negative zero counts as zero.
#[derive(Debug, Clone)]
pub struct Bitmask(Arc<Arrays>);

#[derive(Debug)]
struct Arrays {
    shape: Vec<usize>,
    cols: usize,
    values: Values,
    /// `[rows, ⌈cols/8⌉]`.
    mask: Vec<u8>,
    /// Where each row's values begin, and the end: rows + 1 entries.
    offsets: Vec<usize>,
}

/// The values that are there, in the type that the dense weight had.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// IEEE half precision.
    F16(Vec<f16>),
    /// bfloat16.
    Bf16(Vec<bf16>),
}

impl Values {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F16(v) => v.len(),
            Self::Bf16(v) => v.len(),
        }
    }

    /// True where there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of one value.
    #[must_use]
    pub fn width(&self) -> usize {
        if matches!(self, Self::F32(_)) { 4 } else { 2 }
    }

    fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F16(_) => DType::F16,
            Self::Bf16(_) => DType::BF16,
        }
    }

    /// The values as a file's array.
    fn part(&self) -> Part {
        let shape = vec![self.len()];
        match self {
            Self::F32(v) => Part::from_values(Dtype::F32, shape, v),
            Self::F16(v) => Part::from_values(Dtype::F16, shape, v),
            Self::Bf16(v) => Part::from_values(Dtype::BF16, shape, v),
        }
    }
}

/// A bit per element of a row-major matrix, set where `keep` says so: little bit order, every row starts a new byte.
#[must_use]
pub fn pack_mask(keep: impl IntoIterator<Item = bool>, cols: usize) -> Vec<u8> {
    let mut mask = Vec::new();
    for (i, keep) in keep.into_iter().enumerate() {
        let column = i % cols.max(1);
        if column.is_multiple_of(8) {
            mask.push(0);
        }
        if let Some(byte) = mask.last_mut() {
            *byte |= u8::from(keep) << (column % 8);
        }
    }
    mask
}

/// Set bits.
#[must_use]
pub fn popcount(mask: &[u8]) -> usize {
    mask.iter().map(|b| b.count_ones() as usize).sum()
}

/// Where each row's values begin, and the end: rows + 1 entries for a mask of `row_bytes` per row.
#[must_use]
pub fn row_offsets(mask: &[u8], row_bytes: usize) -> Vec<usize> {
    let mut offsets = vec![0];
    let mut end = 0;
    for row in mask.chunks(row_bytes.max(1)) {
        end += popcount(row);
        offsets.push(end);
    }
    offsets
}

/// Calls `visit` with the column of every set bit of a row's mask, in order.
fn walk(mask: &[u8], mut visit: impl FnMut(usize)) {
    for (word, bytes) in mask.chunks(8).enumerate() {
        let mut wide = [0u8; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let mut bits = u64::from_le_bytes(wide);
        while bits != 0 {
            visit(word * 64 + bits.trailing_zeros() as usize);
            bits &= bits - 1;
        }
    }
}

/// Gives the values of a range as something that iterates over f32, whatever their type.
macro_rules! each_value {
    ($values:expr, $range:expr, |$iter:ident| $body:expr) => {
        match $values {
            Values::F32(v) => {
                let $iter = v[$range].iter().copied();
                $body
            }
            Values::F16(v) => {
                let $iter = v[$range].iter().map(|v| v.to_f32());
                $body
            }
            Values::Bf16(v) => {
                let $iter = v[$range].iter().map(|v| v.to_f32());
                $body
            }
        }
    };
}

/// Why arrays do not make a bitmask weight.
fn contradiction(shape: &[usize], mask: &[u8], values: &Values) -> Result<usize, String> {
    let (rows, cols) = dense::as_matrix(shape).ok_or_else(|| format!("shape {shape:?} overflows"))?;
    if shape.len() < 2 || rows == 0 || cols == 0 {
        return Err(format!("shape {shape:?}, expected two or more dimensions, none of them 0"));
    }
    let row_bytes = cols.div_ceil(8);
    if rows.checked_mul(row_bytes) != Some(mask.len()) {
        return Err(format!("a mask of {} bytes, expected {rows} rows of {row_bytes}", mask.len()));
    }
    let padding = if cols.is_multiple_of(8) { 0 } else { 0xffu8 << (cols % 8) };
    if mask.chunks_exact(row_bytes).any(|row| row[row_bytes - 1] & padding != 0) {
        return Err(format!("bits set after the last of {cols} columns, expected none"));
    }
    match popcount(mask) {
        bits if bits == values.len() => Ok(cols),
        bits => Err(format!("{} values for {bits} set bits, expected as many", values.len())),
    }
}

impl Bitmask {
    /// A weight of shape `[out, ..]` from its mask (`[out, ⌈in/8⌉]`, little bit order) and values; a sentence says
    /// what contradicts itself.
    pub fn new(shape: Vec<usize>, mask: Vec<u8>, values: Values) -> Result<Self, String> {
        let cols = contradiction(&shape, &mask, &values)?;
        let offsets = row_offsets(&mask, cols.div_ceil(8));
        Ok(Self(Arc::new(Arrays { shape, cols, values, mask, offsets })))
    }

    /// Stores the nonzero values of a dense f32, f16 or bf16 tensor of two or more dimensions.
    pub fn from_dense(tensor: &Tensor) -> Result<Self> {
        fn split<T: candle_core::WithDType>(tensor: &Tensor, cols: usize) -> Result<(Vec<u8>, Vec<T>)> {
            let mut values = tensor.flatten_all()?.to_vec1::<T>()?;
            let zero = T::from_f64(0.0);
            let mask = pack_mask(values.iter().map(|&v| v != zero), cols);
            values.retain(|&v| v != zero);
            Ok((mask, values))
        }
        let refuse = |message: String| Error::Unsupported {
            operation: "sparse storage",
            shape: tensor.dims().to_vec(),
            format: tensor.dtype().as_str().to_owned(),
            message,
        };
        let cols = tensor.dims().iter().skip(1).product();
        let (mask, values) = match tensor.dtype() {
            DType::F32 => split(tensor, cols).map(|(m, v)| (m, Values::F32(v)))?,
            DType::F16 => split(tensor, cols).map(|(m, v)| (m, Values::F16(v)))?,
            DType::BF16 => split(tensor, cols).map(|(m, v)| (m, Values::Bf16(v)))?,
            _ => return Err(refuse("f32, f16 and bf16 weights can be stored so".into())),
        };
        Self::new(tensor.dims().to_vec(), mask, values).map_err(refuse)
    }

    /// Bytes that a weight of `nonzero` values of `width` bytes takes; `None` where that overflows.
    #[must_use]
    pub fn size(shape: &[usize], nonzero: usize, width: usize) -> Option<usize> {
        let (rows, cols) = dense::as_matrix(shape)?;
        rows.checked_mul(cols.div_ceil(8))?.checked_add(nonzero.checked_mul(width)?)
    }

    /// The mask, `[out, ⌈in/8⌉]`, little bit order.
    #[must_use]
    pub fn mask(&self) -> &[u8] {
        &self.0.mask
    }

    /// The values that are there, row by row.
    #[must_use]
    pub fn values(&self) -> &Values {
        &self.0.values
    }

    /// The fraction of elements that are zero.
    #[must_use]
    pub fn sparsity(&self) -> f64 {
        let elements = checked_elements(&self.0.shape).unwrap_or(usize::MAX);
        1.0 - self.0.values.len() as f64 / elements as f64
    }

    fn row_mask(&self, row: usize) -> &[u8] {
        let bytes = self.0.cols.div_ceil(8);
        &self.0.mask[row * bytes..(row + 1) * bytes]
    }

    fn row_values(&self, row: usize) -> std::ops::Range<usize> {
        self.0.offsets[row]..self.0.offsets[row + 1]
    }
}

impl Rows for Bitmask {
    fn rows(&self) -> usize {
        self.0.shape[0]
    }

    fn cols(&self) -> usize {
        self.0.cols
    }

    fn decode_row(&self, row: usize, out: &mut [f32]) {
        out.fill(0.0);
        each_value!(&self.0.values, self.row_values(row), |values| {
            let mut values = values;
            walk(self.row_mask(row), |column| out[column] = values.next().unwrap_or_default());
        });
    }

    /// Skips zeros; sums in the sixteen lanes of [`rows::dot`], so that it gives the very bits that decoding first
    /// would (adding a zero changes nothing).
    fn dot_row(&self, row: usize, x: &[f32], _: &mut [f32]) -> f32 {
        let mut lanes = [0f32; 16];
        each_value!(&self.0.values, self.row_values(row), |values| {
            let mut values = values;
            walk(self.row_mask(row), |column| {
                lanes[column % 16] += values.next().unwrap_or_default() * x[column];
            });
        });
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
        }
        lanes[0]
    }
}

impl Weight for Bitmask {
    fn encoding(&self) -> Encoding {
        bitmask::encoding(self.0.values.dtype())
    }

    fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    fn nbytes(&self) -> usize {
        self.0.values.len() * self.0.values.width() + self.0.mask.len()
    }

    fn dense(&self) -> Result<Tensor> {
        rows::dense(self)
    }

    fn matmul(&self, x: &Tensor) -> Result<Tensor> {
        rows::matmul(self, x)
    }

    fn gather(&self, ids: &Tensor) -> Result<Tensor> {
        rows::gather(self, ids)
    }

    fn to_parts(&self) -> Result<Parts> {
        let row_bytes = self.0.cols.div_ceil(8);
        let mask = Part::from_values(Dtype::U8, vec![self.rows(), row_bytes], &self.0.mask);
        Ok(bitmask::parts(self.encoding(), self.0.shape.clone(), self.0.values.part(), mask))
    }
}
