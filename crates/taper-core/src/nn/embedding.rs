//! Row lookup; rows of a packed table are decoded one by one, the dense table never exists.

use candle_core::Tensor;

use crate::{Result, SharedWeight, WeightBuilder};

/// An embedding table `[vocabulary, dim]`.
#[derive(Debug, Clone)]
pub struct Embedding {
    weight: SharedWeight,
}

impl Embedding {
    /// A table from a weight.
    #[must_use]
    pub fn from_weight(weight: SharedWeight) -> Self {
        Self { weight }
    }

    /// The table.
    #[must_use]
    pub fn weight(&self) -> &SharedWeight {
        &self.weight
    }

    /// The rows of `ids` (any shape), as `[ids.., dim]`.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        self.weight.gather(ids)
    }
}

/// An embedding of `vocabulary` rows of `dim` values.
pub fn embedding(vocabulary: usize, dim: usize, weights: &WeightBuilder) -> Result<Embedding> {
    Ok(Embedding::from_weight(weights.weight(&[vocabulary, dim], "weight")?))
}
