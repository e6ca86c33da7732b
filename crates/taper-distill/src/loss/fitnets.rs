//! Hints for feature maps: Romero et al. 2014, "FitNets: Hints for Thin Deep Nets", arXiv 1412.6550, equation 3.
//!
//! ```text
//! mean over channels and places of (R(s) − t)²       R a learned regressor, usually a 1×1 convolution
//! ```

use super::{FeatureLoss, Projection, hidden::require_same_width};
use crate::{Features, Result, RowLoss, Unit};
use candle_core::D;

/// The mean squared error of whole samples [batch, ..] after a regressor; a row is a sample.
///
/// For hidden states with positions that do not count, use [`HiddenMse`](super::HiddenMse). The published recipes weigh it by 100.
#[derive(Debug, Clone, Default)]
pub struct FitNets {
    regressor: Projection,
}

impl FitNets {
    /// With a regressor from the student's feature map [batch, ..] to the teacher's; the identity is `Projection::default()`.
    #[must_use]
    pub fn new(regressor: Projection) -> Self {
        Self { regressor }
    }
}

impl FeatureLoss for FitNets {
    fn rows(&self, features: &Features) -> Result<RowLoss> {
        features.samples()?;
        let regressed = self.regressor.apply(features.student())?;
        let (student, teacher) = features.working(&regressed, features.teacher())?;
        require_same_width(&student, &teacher)?;
        let squares = (student - teacher)?.sqr()?.flatten_from(1)?;
        RowLoss::each(squares.mean(D::Minus1)?, Unit::Sample)
    }
}
