//! What can stand in an objective.

use crate::{FeatureLoss, Inputs, LogitLoss, Result, RowLoss};

/// One term: takes what it needs from the inputs and gives its rows. Every [`LogitLoss`] is one; a
/// [`FeatureLoss`] becomes one with [`at`](FeatureLoss::at).
pub trait Term: std::fmt::Debug + Send + Sync {
    /// The term before it is weighted and reduced.
    ///
    /// # Errors
    /// Inputs that are missing or do not fit.
    fn compute(&self, inputs: &Inputs) -> Result<RowLoss>;
}

impl<L: LogitLoss> Term for L {
    fn compute(&self, inputs: &Inputs) -> Result<RowLoss> {
        LogitLoss::rows(self, inputs.given_logits()?)
    }
}

/// A loss over features, bound to the name of the features it looks at.
#[derive(Debug, Clone)]
pub struct At<F> {
    loss: F,
    name: String,
}

impl<F> At<F> {
    pub(crate) fn new(loss: F, name: String) -> Self {
        Self { loss, name }
    }
}

impl<F: FeatureLoss> Term for At<F> {
    fn compute(&self, inputs: &Inputs) -> Result<RowLoss> {
        self.loss.rows(inputs.given_features(&self.name)?)
    }
}
