//! From a checkpoint to a runnable model.
//!
//! [`WeightBuilder`] mirrors candle's `VarBuilder`: `pp("layers").pp(3)` walks names, layer constructors take weights by
//! shape. It hands out weights as they are stored, so a model runs on packed weights; dense ones are cast to the
//! builder's type. [`var_builder`] is the other bridge: any unmodified candle model loads any checkpoint, densely.

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use std::sync::Arc;

use crate::{Checkpoint, Error, Observer, Result, SharedWeight};

/// Makes a runnable model over a checkpoint's weights.
///
/// Building is cheap, because weights are shared: when passes have replaced weights, build again.
pub trait Architecture: Send + Sync {
    /// The runnable model.
    type Model;

    /// Builds it.
    fn build(&self, weights: &WeightBuilder) -> Result<Self::Model>;
}

/// Hands out a checkpoint's weights by path.
#[derive(Debug, Clone)]
pub struct WeightBuilder {
    checkpoint: Arc<Checkpoint>,
    path: Vec<String>,
    dtype: DType,
    device: Device,
    observer: Option<Arc<dyn Observer>>,
}

impl WeightBuilder {
    /// A builder at the root of a checkpoint. Dense weights are cast to `dtype` and moved to `device`.
    #[must_use]
    pub fn new(checkpoint: &Checkpoint, dtype: DType, device: &Device) -> Self {
        Self {
            checkpoint: Arc::new(checkpoint.clone()),
            path: Vec::new(),
            dtype,
            device: device.clone(),
            observer: None,
        }
    }

    /// Layers built from here on show their inputs to `observer`.
    #[must_use]
    pub fn with_observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// A builder one step deeper.
    #[must_use]
    pub fn pp(&self, step: impl ToString) -> Self {
        let mut deeper = self.clone();
        deeper.path.push(step.to_string());
        deeper
    }

    /// The path so far, joined by dots.
    #[must_use]
    pub fn prefix(&self) -> String {
        self.path.join(".")
    }

    /// The type of dense weights and activations.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where tensors are.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The observer that layers show their inputs to.
    #[must_use]
    pub fn observer(&self) -> Option<&Arc<dyn Observer>> {
        self.observer.as_ref()
    }

    /// The checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The whole name of `name` here.
    #[must_use]
    pub fn full_name(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix()) }
    }

    /// True where there is a weight `name` here.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.checkpoint.contains(&self.full_name(name))
    }

    /// A weight as it is stored; a dense one is cast to the builder's type and device.
    ///
    /// Errors where it is missing or of another shape.
    pub fn weight(&self, shape: &[usize], name: &str) -> Result<SharedWeight> {
        let full = self.full_name(name);
        let weight = self.checkpoint.get(&full)?;
        check_shape(&full, shape, weight.shape())?;
        let encoding = weight.encoding();
        if !encoding.is_dense() {
            return Ok(weight);
        }
        if encoding == crate::Encoding::dense(self.dtype) && self.device.is_cpu() {
            return Ok(weight);
        }
        Ok(Arc::new(weight.dense()?.to_dtype(self.dtype)?.to_device(&self.device)?))
    }

    /// A weight as a dense tensor of the builder's type and device.
    pub fn tensor(&self, shape: &[usize], name: &str) -> Result<Tensor> {
        let full = self.full_name(name);
        let weight = self.checkpoint.get(&full)?;
        check_shape(&full, shape, weight.shape())?;
        Ok(weight.dense()?.to_dtype(self.dtype)?.to_device(&self.device)?)
    }
}

fn check_shape(name: &str, expected: &[usize], found: &[usize]) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::ShapeMismatch { name: name.to_owned(), expected: expected.to_vec(), found: found.to_vec() })
}

/// A candle `VarBuilder` over a checkpoint: an unmodified candle model loads it, every weight decoded to `dtype`.
#[must_use]
pub fn var_builder(checkpoint: &Checkpoint, dtype: DType, device: &Device) -> VarBuilder<'static> {
    VarBuilder::from_backend(Box::new(Bridge(checkpoint.clone())), dtype, device.clone())
}

struct Bridge(Checkpoint);

impl SimpleBackend for Bridge {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        check_shape(name, shape.dims(), tensor.dims())?;
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let weight = self.0.get(name)?;
        weight.dense()?.to_dtype(dtype)?.to_device(device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}
