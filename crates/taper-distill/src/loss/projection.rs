//! A learned map from the student's features to the teacher's width.

use crate::Result;
use candle_core::{Module, Tensor};
use std::sync::Arc;

/// A layer that is trained together with the student and thrown away afterwards; the identity by default.
///
/// Any [`Module`] serves: a linear layer for hidden states, a 1×1 convolution for feature maps, a closure.
/// Its variables belong in the optimizer: they get their gradient from the loss.
#[derive(Clone, Default)]
pub struct Projection(Option<Arc<dyn Module + Send + Sync>>);

impl Projection {
    /// Projects with a layer.
    pub fn new(layer: impl Module + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(layer)))
    }

    /// The student's features, projected, in the student's type.
    pub(crate) fn apply(&self, student: &Tensor) -> Result<Tensor> {
        Ok(match &self.0 {
            Some(layer) => layer.forward(student)?,
            None => student.clone(),
        })
    }
}

impl std::fmt::Debug for Projection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Projection(layer)" } else { "Projection(identity)" })
    }
}
