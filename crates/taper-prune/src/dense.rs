//! Dense float weights: what pruning reads and writes.
//!
//! Pruning changes values or shapes of plain tensors and leaves their type as it is: bf16 stays bf16. Everything that
//! touches a candle tensor is here; the arithmetic is in the slice modules.

use candle_core::{DType, Shape, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use taper_core::{
    Error, Result, Weight, WeightInfo, verify,
    weight::{checked_elements, to_f32_vec},
};

/// Why a weight cannot be pruned by its values; `None` where it can.
pub(crate) fn reason_to_leave(info: &WeightInfo) -> Option<String> {
    let WeightInfo { shape, encoding, .. } = info;
    if !encoding.is_dense() {
        return Some(format!("already encoded as {encoding}; prune before encoding"));
    }
    if !verify::is_float(info) {
        return Some(format!("holds {encoding}; floats are pruned"));
    }
    if shape.len() < 2 {
        return Some(format!("has {} dimensions; matrices and convolutions are pruned", shape.len()));
    }
    if shape.contains(&0) {
        return Some("has no elements".into());
    }
    None
}

/// Rows and columns of a weight flattened to a matrix: the first dimension, and the product of the others.
pub(crate) fn as_matrix(shape: &[usize]) -> Option<(usize, usize)> {
    let (&rows, rest) = shape.split_first()?;
    checked_elements(shape)?;
    Some((rows, checked_elements(rest)?))
}

/// The values as f32, row-major, all finite.
pub(crate) fn finite_values(name: &str, weight: &dyn Weight) -> Result<Vec<f32>> {
    let values = to_f32_vec(weight)?;
    if !values.par_iter().all(|v| v.is_finite()) {
        // Counts them and names the first.
        verify::finite(name, weight)?;
    }
    Ok(values)
}

/// A change of values that is the same for every element type.
pub(crate) trait Edit {
    /// The values after the change.
    fn apply<T: Copy + Default>(&self, values: Vec<T>) -> Vec<T>;
}

/// Applies a change to a float tensor; the result has the same type and the shape given.
pub(crate) fn edit(tensor: &Tensor, shape: &[usize], change: &impl Edit) -> Result<Tensor> {
    fn run<T: candle_core::WithDType + Default>(
        t: &Tensor,
        shape: &[usize],
        change: &impl Edit,
    ) -> Result<Tensor> {
        let values = change.apply(t.flatten_all()?.to_vec1::<T>()?);
        Ok(Tensor::from_vec(values, Shape::from(shape), t.device())?)
    }
    match tensor.dtype() {
        DType::F32 => run::<f32>(tensor, shape, change),
        DType::F16 => run::<f16>(tensor, shape, change),
        DType::BF16 => run::<bf16>(tensor, shape, change),
        DType::F64 => run::<f64>(tensor, shape, change),
        other => Err(Error::Unsupported {
            operation: "pruning",
            shape: tensor.dims().to_vec(),
            format: other.as_str().to_owned(),
            message: "floats are pruned: f64, f32, f16 and bf16".into(),
        }),
    }
}

/// Zeroes what a mask does not keep.
pub(crate) struct Zero<'a>(pub(crate) &'a [bool]);

impl Edit for Zero<'_> {
    fn apply<T: Copy + Default>(&self, mut values: Vec<T>) -> Vec<T> {
        crate::mask::zero_pruned(&mut values, self.0);
        values
    }
}
