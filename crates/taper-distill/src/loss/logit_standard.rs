//! Logit standardization: Sun et al. 2024, "Logit Standardization in Knowledge Distillation", arXiv 2403.01427.
//!
//! ```text
//! T² · KL(softmax(Z(t)/T) ‖ softmax(Z(z)/T)),     Z(x) = (x − mean x) / (std x + 1e-7)
//! ```
//!
//! Mean and standard deviation (unbiased) are each row's own, so a small student need not reach the teacher's range of logits.

use super::LogitLoss;
use crate::{
    Logits, Result, RowLoss, Temperature, Unit,
    geometry::{TINY, centred, sqrt_at_least},
    log_space::{fill_where, floor_where, kl, log_softmax},
    logits::support,
};
use candle_core::{D, Tensor};

/// T² · KL between standardized logits per row. Needs a teacher. Rows labelled -100 do not count.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogitStandard {
    temperature: Temperature,
}

impl LogitStandard {
    /// With the base temperature applied after standardizing; the paper uses 2.
    #[must_use]
    pub fn new(temperature: Temperature) -> Self {
        Self { temperature }
    }

    fn log_probs(&self, x: &Tensor, excluded: Option<&Tensor>) -> Result<Tensor> {
        let Some(excluded) = excluded else {
            let classes = x.dim(D::Minus1)?;
            let standard = standardized(&centred(x, None)?, classes as f64 - 1.0, None)?;
            return log_softmax(&(standard / self.temperature.value())?);
        };
        let weight = support(excluded, x.dtype())?;
        let count = weight.sum_keepdim(D::Minus1)?;
        let deviations = centred(&fill_where(excluded, x, 0.0)?, Some(&weight))?;
        let standard = standardized(&deviations, -1.0, Some(&count))?;
        log_softmax(&floor_where(excluded, &(standard / self.temperature.value())?)?)
    }
}

/// Deviations from the mean over (their unbiased standard deviation + 1e-7); the divisor is `count` + `offset`, at least 1.
fn standardized(deviations: &Tensor, offset: f64, count: Option<&Tensor>) -> Result<Tensor> {
    let sum = deviations.sqr()?.sum_keepdim(D::Minus1)?;
    let variance = match count {
        None => (sum / offset.max(1.0))?,
        Some(count) => {
            let divisor = (count + offset)?;
            sum.div(&divisor.maximum(&divisor.ones_like()?)?)?
        }
    };
    Ok(deviations.broadcast_div(&(sqrt_at_least(&variance, TINY)? + 1e-7)?)?)
}

impl LogitLoss for LogitStandard {
    fn counted_rows(&self, logits: &Logits) -> Result<RowLoss> {
        let log_q = self.log_probs(logits.student(), logits.excluded())?;
        let log_p = self.log_probs(logits.teacher()?, logits.excluded())?;
        RowLoss::each((kl(&log_p, &log_q)? * self.temperature.squared())?, Unit::Token)
    }
}
