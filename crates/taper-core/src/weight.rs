//! One parameter, however it is stored.
//!
//! [`Weight`] is the shared tensor trait of the workspace. It has seven methods and never more. A candle
//! [`Tensor`] is the dense weight; packed integers, NF4, sparse weights and a user's own types are weights too.
//!
//! Most encodings can decode one row at a time. Such a type implements [`Rows`] and gets its product, its
//! row lookup and its dense form from [`rows`]: none of them ever holds the whole decoded matrix unless asked to.

pub mod dense;
pub mod parts;
pub mod rows;

pub use parts::{Part, Parts};
pub use rows::Rows;

use candle_core::{D, DType, Tensor};
use std::{borrow::Cow, fmt, sync::Arc};

use crate::{Error, Result};

/// How a weight is stored: the codec that reads it and a short description for people.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Encoding {
    /// The codec's id, such as `dense` or `pack-quantized`; what the file says.
    pub codec: Cow<'static, str>,
    /// For people, such as `f32`.
    pub format: String,
}

impl Encoding {
    /// The encoding of a plain tensor.
    #[must_use]
    pub fn dense(dtype: DType) -> Self {
        Self { codec: Cow::Borrowed("dense"), format: dtype.as_str().to_owned() }
    }

    /// An encoding of a codec.
    pub fn new(codec: impl Into<Cow<'static, str>>, format: impl Into<String>) -> Self {
        Self { codec: codec.into(), format: format.into() }
    }

    /// True for plain tensors.
    #[must_use]
    pub fn is_dense(&self) -> bool {
        self.codec == "dense"
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.format)
    }
}

/// One parameter of a model.
///
/// Shapes are logical: a matrix is `[out, in]` whatever its bytes look like. `matmul` and `gather` take and return
/// candle tensors; [`Weight::dense`] is the decoded tensor (f32 for encoded weights, its own type for a dense one).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a weight",
    note = "implement the seven methods of `Weight`, or implement `Rows` and forward to `weight::rows`"
)]
pub trait Weight: Send + Sync + fmt::Debug {
    /// How the weight is stored.
    fn encoding(&self) -> Encoding;

    /// The logical shape, `[out, in]` for a matrix, `[out, in / groups, kh, kw]` for a convolution.
    fn shape(&self) -> &[usize];

    /// Bytes that the weight takes in a file: codes, scales, zero points and metadata tensors.
    fn nbytes(&self) -> usize;

    /// The decoded tensor, of the logical shape.
    fn dense(&self) -> Result<Tensor>;

    /// x · Wᵀ for `x` of shape `[.., in]`; the result is `[.., out]` in the type of `x`.
    ///
    /// A convolution is multiplied as the matrix `[out, in / groups · kh · kw]`.
    fn matmul(&self, x: &Tensor) -> Result<Tensor>;

    /// The rows that `ids` (any shape, u32 or i64) names, as `[ids.., in]`.
    fn gather(&self, ids: &Tensor) -> Result<Tensor>;

    /// What a file holds.
    fn to_parts(&self) -> Result<Parts>;
}

/// A weight that is shared.
pub type SharedWeight = Arc<dyn Weight>;

/// Bits per weight of something that takes `nbytes` and has `elements` elements; 0 where it has none.
#[must_use]
pub fn bits_per_weight(nbytes: usize, elements: usize) -> f64 {
    if elements == 0 { 0.0 } else { nbytes as f64 * 8.0 / elements as f64 }
}

impl Weight for Tensor {
    fn encoding(&self) -> Encoding {
        Encoding::dense(self.dtype())
    }

    fn shape(&self) -> &[usize] {
        self.dims()
    }

    fn nbytes(&self) -> usize {
        self.elem_count() * self.dtype().size_in_bytes()
    }

    fn dense(&self) -> Result<Tensor> {
        Ok(self.clone())
    }

    fn matmul(&self, x: &Tensor) -> Result<Tensor> {
        dense::matmul(self, x)
    }

    fn gather(&self, ids: &Tensor) -> Result<Tensor> {
        let (_, inner) = rows::matrix_shape(self, "row lookup")?;
        let flat = ids.flatten_all()?;
        let rows = self.index_select(&flat, 0)?;
        Ok(rows.reshape([ids.dims(), &[inner]].concat())?)
    }

    fn to_parts(&self) -> Result<Parts> {
        Parts::dense(self)
    }
}

/// The number of elements of a shape, or an error where it does not fit in memory's address space.
pub fn checked_elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= isize::MAX as usize)
}

/// Softly checks that a tensor's last dimension is `inner`.
pub(crate) fn last_dim_is(x: &Tensor, inner: usize) -> bool {
    x.dim(D::Minus1).is_ok_and(|d| d == inner)
}

/// Values converted at a time: 256 KiB of f32.
const STRETCH: usize = 1 << 16;

/// The values of a weight as f32, row-major.
pub fn to_f32_vec(weight: &dyn Weight) -> Result<Vec<f32>> {
    let dense = weight.dense()?;
    if !dense.dtype().is_float() {
        return Err(Error::Unsupported {
            operation: "reading the values",
            shape: weight.shape().to_vec(),
            format: weight.encoding().format,
            message: "passes work on f32, f16 and bf16 weights".into(),
        });
    }
    // A stretch at a time: converting the whole tensor first would hold its f32 values twice.
    let (flat, mut values) = (dense.flatten_all()?, Vec::with_capacity(dense.elem_count()));
    for start in (0..dense.elem_count()).step_by(STRETCH) {
        let stretch = flat.narrow(0, start, STRETCH.min(dense.elem_count() - start))?;
        values.extend(stretch.to_dtype(DType::F32)?.to_vec1::<f32>()?);
    }
    Ok(values)
}
