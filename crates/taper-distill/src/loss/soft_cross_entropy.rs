//! Cross entropy with the teacher's distribution as target, as TinyBERT's prediction layer uses it:
//! Jiao et al. 2019, "TinyBERT: Distilling BERT for Natural Language Understanding", arXiv 1909.10351, equation 10.
//!
//! ```text
//! −Σ_j p_j log q_j        = KL(p‖q) + H(p): the same gradient as KL, without its T²
//! ```

use super::LogitLoss;
use crate::{Logits, Result, RowLoss, Temperature, Unit};
use candle_core::D;

/// How the classes of a row become one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClassReduction {
    /// −Σ p log q, the cross entropy.
    #[default]
    Sum,
    /// −Σ p log q / V, as TinyBERT's published code computes it; harmless for a handful of classes only.
    Mean,
}

/// −Σ p log q per row. Includes the teacher's entropy, so it is not zero where student and teacher agree.
#[derive(Debug, Clone, Copy, Default)]
pub struct SoftCrossEntropy {
    temperature: Temperature,
    classes: ClassReduction,
}

impl SoftCrossEntropy {
    /// The cross entropy at a temperature, without T².
    #[must_use]
    pub fn new(temperature: Temperature) -> Self {
        Self { temperature, classes: ClassReduction::Sum }
    }

    /// As TinyBERT's published code: the mean over classes.
    #[must_use]
    pub fn tinybert(temperature: Temperature) -> Self {
        Self { temperature, classes: ClassReduction::Mean }
    }
}

impl LogitLoss for SoftCrossEntropy {
    fn counted_rows(&self, logits: &Logits) -> Result<RowLoss> {
        let (log_q, log_p) = logits.log_probs(self.temperature)?;
        let divisor = match self.classes {
            ClassReduction::Sum => 1.0,
            ClassReduction::Mean => log_q.dim(D::Minus1)? as f64,
        };
        let rows = (log_p.exp()? * log_q)?.sum(D::Minus1)?;
        RowLoss::each((rows / -divisor)?, Unit::Token)
    }
}
