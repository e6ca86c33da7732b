//! Decoupled knowledge distillation: Zhao et al. 2022, arXiv 2203.08679.
//!
//! ```text
//! T² · [ α · KL([p_y, 1−p_y] ‖ [q_y, 1−q_y])  +  β · KL(p̂ ‖ q̂) ]
//!        target or not                           which of the others
//! ```
//!
//! p̂, q̂: softmax over the classes other than y. log(1−q_y) is computed as the log-sum-exp of the others, which keeps all
//! its digits when q_y is 1 − 1e-30, where 1 − q_y would be 0. Hinton's loss is α = 1, β = 1 − p_y: DKD frees β from the teacher's confidence.

use super::LogitLoss;
use crate::{
    Error, Logits, Result, RowLoss, Temperature, Unit,
    log_space::{floor_where, kl, log_softmax, log_sum_exp},
};
use candle_core::{D, Tensor};

/// DKD per row, T² included. Needs a teacher, labels, and at least two classes.
#[derive(Debug, Clone, Copy)]
pub struct Dkd {
    alpha: f64,
    beta: f64,
    temperature: Temperature,
}

impl Dkd {
    /// α weighs the target class, β the others; the paper's values for CIFAR-100 are α = 1, β = 8 (2..=8), T = 4.
    ///
    /// # Errors
    /// Weights must be finite, not negative, and not both 0.
    pub fn new(alpha: f64, beta: f64, temperature: Temperature) -> Result<Self> {
        for (option, value) in [("alpha", alpha), ("beta", beta)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::bad_option(option, value, "a finite number of at least 0"));
            }
        }
        if alpha + beta == 0.0 {
            return Err(Error::bad_option("beta", beta, "more than 0 where `alpha` is 0"));
        }
        Ok(Self { alpha, beta, temperature })
    }
}

/// The distribution of one model: [n, 1] log of the target, [n, 1] log of the rest, [n, V] log of the rest alone.
struct Decoupled {
    log_target: Tensor,
    log_rest: Tensor,
    log_others: Tensor,
}

impl Decoupled {
    fn new(log_probs: &Tensor, targets: &Tensor, is_target: &Tensor) -> Result<Self> {
        let others = floor_where(is_target, log_probs)?;
        Ok(Self {
            log_target: log_probs.gather(targets, 1)?,
            log_rest: log_sum_exp(&others)?,
            log_others: log_softmax(&others)?,
        })
    }

    /// [n, 2]: the logarithms of [q_y, 1 − q_y].
    fn log_binary(&self) -> Result<Tensor> {
        Ok(Tensor::cat(&[&self.log_target, &self.log_rest], 1)?)
    }
}

impl LogitLoss for Dkd {
    fn counted_rows(&self, logits: &Logits) -> Result<RowLoss> {
        let targets = logits.targets()?.unsqueeze(1)?;
        let (log_q, log_p) = logits.log_probs(self.temperature)?;
        let classes = log_q.dim(D::Minus1)?;
        if classes < 2 {
            return Err(Error::rank("student logits", log_q.dims(), "[rows, at least two classes]"));
        }
        let ids = Tensor::arange(0u32, classes as u32, log_q.device())?.unsqueeze(0)?;
        let is_target = targets.broadcast_eq(&ids)?;
        let q = Decoupled::new(&log_q, &targets, &is_target)?;
        let p = Decoupled::new(&log_p, &targets, &is_target)?;

        let target = (kl(&p.log_binary()?, &q.log_binary()?)? * self.alpha)?;
        let others = (kl(&p.log_others, &q.log_others)? * self.beta)?;
        RowLoss::each(((target + others)? * self.temperature.squared())?, Unit::Token)
    }
}
