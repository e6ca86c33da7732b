//! Mean squared error of hidden states: Jiao et al. 2019 (TinyBERT), arXiv 1909.10351, equation 8; with a regressor also
//! Romero et al. 2014 (FitNets), arXiv 1412.6550, equation 3.
//!
//! ```text
//! mean_d (P(s)_d − t_d)²        per position; P a learned projection or the identity
//! ```

use super::{FeatureLoss, Projection};
use crate::{Error, Features, Result, RowLoss, Unit};
use candle_core::{D, Tensor};

/// The mean over the width of (P(s) − t)², per position that counts. Features are [.., width].
#[derive(Debug, Clone, Default)]
pub struct HiddenMse {
    projection: Projection,
}

impl HiddenMse {
    /// For a student as wide as the teacher.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With a layer that maps [rows, student width] to [rows, teacher width], such as `candle_nn::Linear`.
    #[must_use]
    pub fn projected(projection: Projection) -> Self {
        Self { projection }
    }
}

impl FeatureLoss for HiddenMse {
    fn rows(&self, features: &Features) -> Result<RowLoss> {
        let Some((student, teacher)) = features.token_rows()? else {
            return Ok(RowLoss::none(features.student(), Unit::Token));
        };
        let student = self.projection.apply(&student)?;
        let (student, teacher) = features.working(&student, &teacher)?;
        require_same_width(&student, &teacher)?;
        RowLoss::each((student - teacher)?.sqr()?.mean(D::Minus1)?, Unit::Token)
    }
}

/// Rows of student and teacher must be of one shape here.
pub(super) fn require_same_width(student: &Tensor, teacher: &Tensor) -> Result<()> {
    if student.dims() == teacher.dims() {
        return Ok(());
    }
    Err(Error::shapes(
        ("student features after the projection", student.dims()),
        ("teacher features", teacher.dims()),
        "they must be equal; a `Projection` to the teacher's width makes them so",
    ))
}
