//! Distances between the two next-token distributions, none of them multiplied by T².
//!
//! ```text
//! forward KL    KL(p‖q)                                             covers every mode of the teacher
//! reverse KL    KL(q‖p)                                             seeks one mode
//! JS(β)         β KL(p‖M) + (1−β) KL(q‖M),   M = β p + (1−β) q      β = 0: KL(p‖q); β = 1: KL(q‖p)
//! skew fwd(λ)   KL(p ‖ λ p + (1−λ) q)
//! skew rev(λ)   KL(q ‖ (1−λ) p + λ q)
//! TV            ½ Σ |p − q|
//! ```
//!
//! JS is Agarwal et al. 2023, "On-Policy Distillation of Language Models" (GKD), arXiv 2306.13649, with β as TRL counts it; note that it
//! is not continuous at its ends: JS(β) tends to 0 as β tends to 0 or 1, where the KL takes over. Reverse KL is Gu et al. 2023 (MiniLLM), arXiv 2306.08543; skew KL is
//! Ko et al. 2024 (DistiLLM), arXiv 2402.03898; total variation is Wen et al. 2023 (f-distillation), arXiv 2307.15190.
//! Code that returns −Σ p log q or −Σ p log M under these names includes the teacher's entropy; these are the true divergences, zero at p = q.

use super::LogitLoss;
use crate::{
    Error, Logits, Result, RowLoss, Temperature, Unit,
    log_space::{kl, log_mixture},
};
use candle_core::{D, Tensor};

/// Which distance.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Measure {
    /// KL(p‖q).
    ForwardKl,
    /// KL(q‖p).
    ReverseKl,
    /// β KL(p‖M) + (1−β) KL(q‖M) with 0 < β < 1.
    JensenShannon {
        /// The teacher's share β of the mixture.
        beta: f64,
    },
    /// KL(p ‖ λ p + (1−λ) q) with 0 ≤ λ < 1.
    SkewForwardKl {
        /// The teacher's share λ of the mixture.
        skew: f64,
    },
    /// KL(q ‖ (1−λ) p + λ q) with 0 ≤ λ < 1.
    SkewReverseKl {
        /// The student's share λ of the mixture.
        skew: f64,
    },
    /// ½ Σ |p − q|.
    TotalVariation,
}

/// A distance between the teacher's and the student's distribution per row, without T².
///
/// Needs a teacher. With labels, rows labelled -100 do not count; the labels are not used otherwise.
#[derive(Debug, Clone, Copy)]
pub struct Divergence {
    measure: Measure,
    temperature: Temperature,
}

impl Divergence {
    const fn of(measure: Measure) -> Self {
        Self { measure, temperature: Temperature::ONE }
    }

    /// KL(p‖q).
    #[must_use]
    pub const fn forward_kl() -> Self {
        Self::of(Measure::ForwardKl)
    }

    /// KL(q‖p).
    #[must_use]
    pub const fn reverse_kl() -> Self {
        Self::of(Measure::ReverseKl)
    }

    /// The generalised Jensen–Shannon divergence; `beta` 0 is the forward and 1 the reverse KL, ½ the symmetric one.
    ///
    /// # Errors
    /// `beta` must lie in 0..=1.
    pub fn jensen_shannon(beta: f64) -> Result<Self> {
        match beta {
            0.0 => Ok(Self::forward_kl()),
            1.0 => Ok(Self::reverse_kl()),
            _ if (0.0..1.0).contains(&beta) => Ok(Self::of(Measure::JensenShannon { beta })),
            _ => Err(Error::bad_option("beta", beta, "a number in 0..=1")),
        }
    }

    /// KL(p ‖ λ p + (1−λ) q); `skew` λ = 0 is the forward KL, 0.1 usual.
    ///
    /// # Errors
    /// `skew` must lie in 0..1.
    pub fn skew_forward_kl(skew: f64) -> Result<Self> {
        let skew = checked_skew(skew)?;
        Ok(Self::of(if skew == 0.0 { Measure::ForwardKl } else { Measure::SkewForwardKl { skew } }))
    }

    /// KL(q ‖ (1−λ) p + λ q); `skew` λ = 0 is the reverse KL, 0.1 usual.
    ///
    /// # Errors
    /// `skew` must lie in 0..1.
    pub fn skew_reverse_kl(skew: f64) -> Result<Self> {
        let skew = checked_skew(skew)?;
        Ok(Self::of(if skew == 0.0 { Measure::ReverseKl } else { Measure::SkewReverseKl { skew } }))
    }

    /// ½ Σ |p − q|, between 0 and 1.
    #[must_use]
    pub const fn total_variation() -> Self {
        Self::of(Measure::TotalVariation)
    }

    /// Takes both distributions at a temperature (default 1). The value is not multiplied by T².
    #[must_use]
    pub const fn temperature(mut self, temperature: Temperature) -> Self {
        self.temperature = temperature;
        self
    }

    /// Which distance.
    #[must_use]
    pub const fn measure(&self) -> Measure {
        self.measure
    }

    /// The distance between rows of logarithms of probabilities, student `log_q` and teacher `log_p`.
    fn between(&self, log_q: &Tensor, log_p: &Tensor) -> Result<Tensor> {
        match self.measure {
            Measure::ForwardKl => kl(log_p, log_q),
            Measure::ReverseKl => kl(log_q, log_p),
            Measure::JensenShannon { beta } => {
                let log_m = log_mixture(log_q, log_p, beta)?;
                Ok(((kl(log_p, &log_m)? * beta)? + (kl(log_q, &log_m)? * (1.0 - beta))?)?)
            }
            Measure::SkewForwardKl { skew } => kl(log_p, &log_mixture(log_q, log_p, skew)?),
            Measure::SkewReverseKl { skew } => kl(log_q, &log_mixture(log_p, log_q, skew)?),
            Measure::TotalVariation => Ok(((log_p.exp()? - log_q.exp()?)?.abs()?.sum(D::Minus1)? * 0.5)?),
        }
    }
}

fn checked_skew(skew: f64) -> Result<f64> {
    if (0.0..1.0).contains(&skew) {
        return Ok(skew);
    }
    Err(Error::bad_option("skew", skew, "a number in 0..1"))
}

impl LogitLoss for Divergence {
    fn counted_rows(&self, logits: &Logits) -> Result<RowLoss> {
        let (log_q, log_p) = logits.log_probs(self.temperature)?;
        RowLoss::each(self.between(&log_q, &log_p)?, Unit::Token)
    }
}
