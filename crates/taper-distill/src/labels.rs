//! Labels as a host-side list: which rows count, and which class each of them has.
//!
//! Rows labelled [`IGNORE_INDEX`] are removed before anything is computed. They cannot add to a value, and their
//! gradient is exactly zero whatever their logits hold.

use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};

/// The label of a row that does not count.
pub const IGNORE_INDEX: i64 = -100;

/// Reads integer labels of shape `expected` (the leading dimensions of `of`), flattened.
pub(crate) fn read_labels(labels: &Tensor, of: &'static str, expected: &[usize]) -> Result<Vec<i64>> {
    if labels.dims() != expected {
        return Err(Error::shapes(
            ("labels", labels.dims()),
            (of, expected),
            "there must be one label per row",
        ));
    }
    match labels.dtype() {
        DType::U8 | DType::U32 | DType::I16 | DType::I32 | DType::I64 => {}
        dtype => return Err(Error::DType { what: "labels", dtype, expected: "an integer type" }),
    }
    Ok(labels.flatten_all()?.to_dtype(DType::I64)?.to_vec1()?)
}

/// The indices of the rows that count, [n] of u32.
pub(crate) fn counted(labels: &[i64]) -> Vec<u32> {
    let rows = labels.iter().enumerate().filter(|(_, label)| **label != IGNORE_INDEX);
    rows.map(|(row, _)| row as u32).collect()
}

/// The classes of the rows that count.
pub(crate) fn classes_of(labels: &[i64], classes: usize) -> Result<Vec<u32>> {
    let counted = labels.iter().enumerate().filter(|(_, label)| **label != IGNORE_INDEX);
    counted
        .map(|(row, &label)| match u32::try_from(label) {
            Ok(class) if (class as usize) < classes => Ok(class),
            _ => Err(Error::LabelOutOfRange { row, label, classes }),
        })
        .collect()
}

/// The `rows` of `x` [m, k]; the same tensor where that is all of them.
pub(crate) fn select_rows(x: &Tensor, rows: &[u32], device: &Device) -> Result<Tensor> {
    if rows.len() == x.dim(0)? {
        return Ok(x.clone());
    }
    Ok(x.index_select(&Tensor::new(rows, device)?, 0)?)
}
