//! The losses: one idea per file, each with its formula, its paper and what a row of it is.
//!
//! | over logits | file | over features | file |
//! |---|---|---|---|
//! | [`CrossEntropy`] | `cross_entropy` | [`HiddenMse`] | `hidden` |
//! | [`Hinton`] | `hinton` | [`Cosine`] | `cosine` |
//! | [`SoftCrossEntropy`] | `soft_cross_entropy` | [`FitNets`] | `fitnets` |
//! | [`Divergence`] (KL, JS, skew, TV) | `divergence` | [`AttentionTransfer`] | `attention_transfer` |
//! | [`Dkd`] | `dkd` | [`RelationalDistance`], [`RelationalAngle`] | `relation` |
//! | [`Dist`] | `dist` | [`MiniLm`] | `minilm` |
//! | [`LogitStandard`] | `logit_standard` | [`TinyBertAttention`] | `tinybert` |
//!
//! Symbols: z student logits, t teacher logits, q = softmax(z/T), p = softmax(t/T), y label, N rows that count.
//! Gradients flow into the student (and its projections) only.

mod attention_transfer;
mod cosine;
mod cross_entropy;
mod dist;
mod divergence;
mod dkd;
mod fitnets;
mod hidden;
mod hinton;
mod logit_standard;
mod minilm;
mod projection;
mod relation;
mod soft_cross_entropy;
pub mod tinybert;

pub use attention_transfer::AttentionTransfer;
pub use cosine::Cosine;
pub use cross_entropy::CrossEntropy;
pub use dist::Dist;
pub use divergence::{Divergence, Measure};
pub use dkd::Dkd;
pub use fitnets::FitNets;
pub use hidden::HiddenMse;
pub use hinton::Hinton;
pub use logit_standard::LogitStandard;
pub use minilm::MiniLm;
pub use projection::Projection;
pub use relation::{RelationalAngle, RelationalDistance};
pub use soft_cross_entropy::{ClassReduction, SoftCrossEntropy};
pub use tinybert::TinyBertAttention;

use crate::{At, Features, Logits, Reduction, Result, RowLoss, Unit};
use candle_core::Tensor;

/// A loss over logits.
pub trait LogitLoss: std::fmt::Debug + Send + Sync {
    /// The values of at least one row; called by [`rows`](Self::rows), which handles batches where no row counts.
    ///
    /// # Errors
    /// Inputs that the loss needs and `logits` does not have.
    fn counted_rows(&self, logits: &Logits) -> Result<RowLoss>;

    /// The loss before it is reduced.
    ///
    /// # Errors
    /// As [`counted_rows`](Self::counted_rows).
    fn rows(&self, logits: &Logits) -> Result<RowLoss> {
        if logits.rows() == 0 {
            return Ok(RowLoss::none(logits.given(), Unit::Token));
        }
        self.counted_rows(logits)
    }

    /// The loss as one number, a scalar in the student's graph.
    ///
    /// # Errors
    /// As [`counted_rows`](Self::counted_rows), and [`Reduction::SumOver`] zero.
    fn loss(&self, logits: &Logits, reduction: Reduction) -> Result<Tensor> {
        self.rows(logits)?.reduce(reduction)
    }
}

/// A loss over features.
pub trait FeatureLoss: std::fmt::Debug + Send + Sync {
    /// The loss before it is reduced.
    ///
    /// # Errors
    /// Shapes that the loss does not take.
    fn rows(&self, features: &Features) -> Result<RowLoss>;

    /// Binds the loss to features by name, as a term of an [`Objective`](crate::Objective).
    fn at(self, name: impl Into<String>) -> At<Self>
    where
        Self: Sized,
    {
        At::new(self, name.into())
    }

    /// The loss as one number, a scalar in the student's graph.
    ///
    /// # Errors
    /// As [`rows`](Self::rows), and [`Reduction::SumOver`] zero.
    fn loss(&self, features: &Features, reduction: Reduction) -> Result<Tensor> {
        self.rows(features)?.reduce(reduction)
    }
}
