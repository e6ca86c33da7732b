//! Knowledge distillation: Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.
//!
//! ```text
//! T² · KL(p ‖ q)          ∂/∂z = T · (q − p) / N under TokenMean
//! ```

use super::LogitLoss;
use crate::{Logits, Result, RowLoss, Temperature, Unit, log_space::kl};

/// T² · Σ p (log p − log q) per row: the true KL, zero where student and teacher agree.
///
/// T² is always included; for KL without it see [`Divergence::forward_kl`](super::Divergence::forward_kl). With labels,
/// rows labelled -100 do not count; the labels are not used otherwise. Needs a teacher.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hinton {
    temperature: Temperature,
}

impl Hinton {
    /// With the temperature that both distributions are taken at; 4 is usual for images, 2 for BERT, 1 for language models.
    #[must_use]
    pub fn new(temperature: Temperature) -> Self {
        Self { temperature }
    }
}

impl LogitLoss for Hinton {
    fn counted_rows(&self, logits: &Logits) -> Result<RowLoss> {
        let (log_q, log_p) = logits.log_probs(self.temperature)?;
        RowLoss::each((kl(&log_p, &log_q)? * self.temperature.squared())?, Unit::Token)
    }
}
