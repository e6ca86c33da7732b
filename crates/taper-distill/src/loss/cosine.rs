//! Cosine distance of hidden states: Sanh et al. 2019 (DistilBERT), arXiv 1910.01108, section 2.
//!
//! ```text
//! 1 − ⟨P(s), t⟩ / √((‖P(s)‖² + ε) (‖t‖² + ε)),   ε = 1e-12
//! ```

use super::{FeatureLoss, Projection, hidden::require_same_width};
use crate::{Features, Result, RowLoss, Unit};
use candle_core::{D, Tensor};

/// 1 − cos(P(s), t) per position that counts, between 0 and 2. Features are [.., width].
#[derive(Debug, Clone, Default)]
pub struct Cosine {
    projection: Projection,
}

impl Cosine {
    /// For a student as wide as the teacher.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With a layer that maps [rows, student width] to [rows, teacher width].
    #[must_use]
    pub fn projected(projection: Projection) -> Self {
        Self { projection }
    }
}

impl FeatureLoss for Cosine {
    fn rows(&self, features: &Features) -> Result<RowLoss> {
        let Some((student, teacher)) = features.token_rows()? else {
            return Ok(RowLoss::none(features.student(), Unit::Token));
        };
        let student = self.projection.apply(&student)?;
        let (student, teacher) = features.working(&student, &teacher)?;
        require_same_width(&student, &teacher)?;
        // Each length by itself: the product of the squares would overflow f32 at lengths of 1e10.
        let lengths = (length(&student)? * length(&teacher)?)?;
        let cosine = (&student * &teacher)?.sum(D::Minus1)?.div(&lengths)?;
        RowLoss::each(cosine.affine(-1.0, 1.0)?, Unit::Token)
    }
}

fn length(x: &Tensor) -> Result<Tensor> {
    Ok((x.sqr()?.sum(D::Minus1)? + 1e-12)?.sqrt()?)
}
