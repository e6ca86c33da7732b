//! Cross entropy with hard labels: −log softmax(z)_y.

use super::LogitLoss;
use crate::{Logits, Result, RowLoss, Temperature, Unit};

/// −log softmax(z)_y per row, with labels of -100 ignored.
///
/// Needs labels, no teacher. Classes with a student logit of −∞ are left out of the softmax; a label that
/// is left out is an error, since its loss is infinite. No temperature, no label smoothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct CrossEntropy;

impl LogitLoss for CrossEntropy {
    fn counted_rows(&self, logits: &Logits) -> Result<RowLoss> {
        let targets = logits.student_targets()?.unsqueeze(1)?;
        let log_q = logits.student_log_probs(Temperature::ONE)?;
        RowLoss::each(log_q.gather(&targets, 1)?.squeeze(1)?.neg()?, Unit::Token)
    }
}
