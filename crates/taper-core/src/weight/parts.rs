//! What a file holds of one weight: named byte arrays, and the few facts needed to read them.
//!
//! A *role* (`codes`, `scale`, …) is the codec's own word; [`crate::Codec::part_name`] turns it into the name that the
//! file format prescribes.

use candle_core::{DType, Tensor};
use safetensors::Dtype;
use serde_json::{Map, Value};
use std::{collections::BTreeMap, sync::Arc};

use super::Encoding;
use crate::{Error, Result};

/// One stored array, little-endian and row-major.
#[derive(Debug, Clone)]
pub struct Part {
    /// Element type as the file names it.
    pub dtype: Dtype,
    /// Shape as the file states it.
    pub shape: Vec<usize>,
    /// The bytes; shared, because weights and writers both hold them.
    pub data: Arc<[u8]>,
}

impl Part {
    /// A part from plain values.
    pub fn from_values<T: bytemuck::NoUninit>(dtype: Dtype, shape: Vec<usize>, values: &[T]) -> Self {
        Self { dtype, shape, data: Arc::from(bytemuck::cast_slice::<T, u8>(values)) }
    }

    /// The values as a vector of `T`, whatever the alignment of the bytes.
    #[must_use]
    pub fn values<T: bytemuck::AnyBitPattern>(&self) -> Vec<T> {
        self.data.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }
}

/// Everything a file holds of one weight.
#[derive(Debug, Clone)]
pub struct Parts {
    /// How the weight is stored.
    pub encoding: Encoding,
    /// The logical shape.
    pub shape: Vec<usize>,
    /// Facts that the arrays alone do not tell (bits, group size, …), as the codec writes and reads them.
    pub attributes: Map<String, Value>,
    /// The arrays by role.
    pub tensors: BTreeMap<String, Part>,
}

/// The role of the one array of a dense weight.
pub const DENSE_ROLE: &str = "data";

impl Parts {
    /// The parts of a dense tensor.
    pub fn dense(tensor: &Tensor) -> Result<Self> {
        let (dtype, data) = tensor_bytes(tensor)?;
        let part = Part { dtype, shape: tensor.dims().to_vec(), data: data.into() };
        Ok(Self {
            encoding: Encoding::dense(tensor.dtype()),
            shape: tensor.dims().to_vec(),
            attributes: Map::new(),
            tensors: BTreeMap::from([(DENSE_ROLE.to_owned(), part)]),
        })
    }

    /// Bytes of all arrays.
    #[must_use]
    pub fn nbytes(&self) -> usize {
        self.tensors.values().map(|p| p.data.len()).sum()
    }

    /// The array of a role, or an error that names what is missing.
    pub fn part(&self, weight: &str, role: &str) -> Result<&Part> {
        self.tensors.get(role).ok_or_else(|| self.bad(weight, format!("no `{role}` among its arrays")))
    }

    /// The array of a role, checked against a type and a shape.
    pub fn expect(&self, weight: &str, role: &str, dtype: Dtype, shape: &[usize]) -> Result<&Part> {
        let part = self.part(weight, role)?;
        if part.dtype != dtype || part.shape != shape {
            let message =
                format!("`{role}` is {:?} {:?}, expected {dtype:?} {shape:?}", part.dtype, part.shape);
            return Err(self.bad(weight, message));
        }
        Ok(part)
    }

    /// An unsigned attribute.
    pub fn unsigned(&self, weight: &str, key: &str) -> Result<usize> {
        self.attributes
            .get(key)
            .and_then(Value::as_u64)
            .and_then(|v| usize::try_from(v).ok())
            .ok_or_else(|| self.bad(weight, format!("no whole number `{key}` among its attributes")))
    }

    /// A text attribute.
    pub fn text(&self, weight: &str, key: &str) -> Result<&str> {
        self.attributes
            .get(key)
            .and_then(Value::as_str)
            .ok_or_else(|| self.bad(weight, format!("no text `{key}` among its attributes")))
    }

    /// An error about these parts.
    pub fn bad(&self, weight: &str, message: impl Into<String>) -> Error {
        Error::BadParts {
            weight: weight.to_owned(),
            codec: self.encoding.codec.to_string(),
            message: message.into(),
        }
    }
}

/// Little-endian bytes of a tensor and the file's name for its type.
fn tensor_bytes(tensor: &Tensor) -> Result<(Dtype, Vec<u8>)> {
    fn bytes<T: candle_core::WithDType + bytemuck::NoUninit>(t: &Tensor) -> Result<Vec<u8>> {
        Ok(bytemuck::cast_slice(&t.flatten_all()?.to_vec1::<T>()?).to_vec())
    }
    Ok(match tensor.dtype() {
        DType::F32 => (Dtype::F32, bytes::<f32>(tensor)?),
        DType::F16 => (Dtype::F16, bytes::<half::f16>(tensor)?),
        DType::BF16 => (Dtype::BF16, bytes::<half::bf16>(tensor)?),
        DType::F64 => (Dtype::F64, bytes::<f64>(tensor)?),
        DType::U8 => (Dtype::U8, bytes::<u8>(tensor)?),
        DType::U32 => (Dtype::U32, bytes::<u32>(tensor)?),
        DType::I64 => (Dtype::I64, bytes::<i64>(tensor)?),
        other => {
            return Err(Error::Unsupported {
                operation: "storing",
                shape: tensor.dims().to_vec(),
                format: other.as_str().to_owned(),
                message: "dense tensors are stored as f64, f32, f16, bf16, u8, u32 or i64".into(),
            });
        }
    })
}
