//! y = x · Wᵀ + b, for `x` of shape `[.., in]` and W of any encoding.

use candle_core::Tensor;
use std::sync::Arc;

use crate::{Observer, Result, SharedWeight, WeightBuilder};

/// A linear layer.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: SharedWeight,
    bias: Option<Tensor>,
    observed: Option<(Arc<dyn Observer>, Arc<str>)>,
}

impl Linear {
    /// A layer from a weight `[out, in]` and a bias `[out]`; nobody observes it.
    #[must_use]
    pub fn from_weight(weight: SharedWeight, bias: Option<Tensor>) -> Self {
        Self { weight, bias, observed: None }
    }

    /// The layer, showing its inputs to `observer` under the name of its weight.
    #[must_use]
    pub fn observed_by(mut self, observer: Arc<dyn Observer>, weight: &str) -> Self {
        self.observed = Some((observer, Arc::from(weight)));
        self
    }

    /// The weight.
    #[must_use]
    pub fn weight(&self) -> &SharedWeight {
        &self.weight
    }

    /// The bias.
    #[must_use]
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// y = x · Wᵀ + b; `[.., in]` to `[.., out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if let Some((observer, name)) = &self.observed {
            observer.observe(name, x)?;
        }
        let y = self.weight.matmul(x)?;
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }
}

/// A linear layer with a bias.
pub fn linear(in_dim: usize, out_dim: usize, weights: &WeightBuilder) -> Result<Linear> {
    linear_b(in_dim, out_dim, true, weights)
}

/// A linear layer without a bias.
pub fn linear_no_bias(in_dim: usize, out_dim: usize, weights: &WeightBuilder) -> Result<Linear> {
    linear_b(in_dim, out_dim, false, weights)
}

/// A linear layer, with a bias if `bias`; the signature is candle_nn's.
pub fn linear_b(in_dim: usize, out_dim: usize, bias: bool, weights: &WeightBuilder) -> Result<Linear> {
    let weight = weights.weight(&[out_dim, in_dim], "weight")?;
    let bias = if bias { Some(weights.tensor(&[out_dim], "bias")?) } else { None };
    let layer = Linear::from_weight(weight, bias);
    Ok(match weights.observer() {
        Some(observer) => layer.observed_by(Arc::clone(observer), &weights.full_name("weight")),
        None => layer,
    })
}
