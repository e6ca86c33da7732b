//! DIST: Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher", arXiv 2205.10536.
//!
//! ```text
//! T² · [ β (1 − mean over rows ρ(q_i·, p_i·))  +  γ (1 − mean over classes ρ(q_·j, p_·j)) ]
//!        relations between classes                relations between samples
//! ```
//!
//! ρ is Pearson's correlation: the student need not match a stronger teacher's probabilities, only their order of preference.

use super::LogitLoss;
use crate::{Error, Logits, Result, RowLoss, Temperature, Unit, geometry::pearson, logits::support};
use candle_core::Tensor;

/// DIST, T² included. Couples the rows: one value for the batch. Needs a teacher.
///
/// The second part needs two samples; in a batch where only one row counts it is 0. A class that is excluded
/// (−∞) in every row does not take part.
#[derive(Debug, Clone, Copy)]
pub struct Dist {
    beta: f64,
    gamma: f64,
    temperature: Temperature,
}

impl Dist {
    /// β weighs relations between classes, γ between samples; the paper has β = γ = 1 and T = 1 for ImageNet.
    ///
    /// # Errors
    /// Weights must be finite, not negative, and not both 0.
    pub fn new(beta: f64, gamma: f64, temperature: Temperature) -> Result<Self> {
        for (option, value) in [("beta", beta), ("gamma", gamma)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::bad_option(option, value, "a finite number of at least 0"));
            }
        }
        if beta + gamma == 0.0 {
            return Err(Error::bad_option("gamma", gamma, "more than 0 where `beta` is 0"));
        }
        Ok(Self { beta, gamma, temperature })
    }
}

impl LogitLoss for Dist {
    fn counted_rows(&self, logits: &Logits) -> Result<RowLoss> {
        if logits.rows() == 1 && self.beta == 0.0 {
            // Candle cuts the gradient at a factor of 0; here it shall be 0 and not missing.
            return Ok(RowLoss::none(logits.given(), Unit::Token));
        }
        let (log_q, log_p) = logits.log_probs(self.temperature)?;
        let (q, p) = (log_q.exp()?, log_p.exp()?);
        let weight = logits.excluded().map(|excluded| support(excluded, q.dtype())).transpose()?;

        let classes = one_minus(&pearson(&q, &p, weight.as_ref())?.mean_all()?)?;
        let mut value = (classes * self.beta)?;
        if logits.rows() > 1 {
            let by_class = weight.map(|weight| weight.t()?.contiguous()).transpose()?;
            let (q, p) = (q.t()?.contiguous()?, p.t()?.contiguous()?);
            let rho = pearson(&q, &p, by_class.as_ref())?;
            value = (value + (one_minus(&mean_existing(&rho, by_class.as_ref())?)? * self.gamma)?)?;
        }
        let value = (value * self.temperature.squared())?;
        RowLoss::coupled(value, logits.rows(), Unit::Token)
    }
}

fn one_minus(x: &Tensor) -> Result<Tensor> {
    Ok(x.affine(-1.0, 1.0)?)
}

/// The mean of `rho` [V] over the classes that any row allows, by `weight` [V, n].
fn mean_existing(rho: &Tensor, weight: Option<&Tensor>) -> Result<Tensor> {
    let Some(weight) = weight else { return Ok(rho.mean_all()?) };
    let exists = weight.max(1)?;
    Ok((rho * &exists)?.sum_all()?.div(&exists.sum_all()?)?)
}
