//! Which trainable variables the backward pass reached.
//!
//! Candle's fused operations (softmax over the last dimension, layer norm, RMS norm, rope, quantized products) and
//! its rounding end the gradient without a word: training then runs, and part of the model learns nothing.
//! Check after the first backward pass:
//!
//! ```
//! use candle_core::{Device, Var};
//! use taper_distill::{Error, grad_coverage};
//!
//! let used = Var::new(&[1f32, 2.], &Device::Cpu)?;
//! let rounded_away = Var::new(&[3f32, 4.], &Device::Cpu)?;
//! let loss = (used.as_tensor() * rounded_away.round()?)?.sum_all()?;
//! let grads = loss.backward()?;
//!
//! let vars = [("layer.weight", &used), ("layer.bias", &rounded_away)];
//! let error = grad_coverage(vars, &grads).unwrap_err();
//! assert!(error.to_string().contains("`layer.bias`"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::{Error, Result};
use candle_core::{Var, backprop::GradStore};
use serde::Serialize;

/// Which variables got a gradient.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Coverage {
    /// Names of the variables with a gradient, in the order given.
    pub covered: Vec<String>,
    /// Names of the variables without one, in the order given.
    pub missing: Vec<String>,
}

impl Coverage {
    /// Looks every variable up in the gradients; a gradient that is zero counts as one.
    pub fn of<'a, N: Into<String>>(vars: impl IntoIterator<Item = (N, &'a Var)>, grads: &GradStore) -> Self {
        let mut coverage = Self::default();
        for (name, var) in vars {
            let list = match grads.get(var.as_tensor()) {
                Some(_) => &mut coverage.covered,
                None => &mut coverage.missing,
            };
            list.push(name.into());
        }
        coverage
    }

    /// How many variables were looked up.
    #[must_use]
    pub fn total(&self) -> usize {
        self.covered.len() + self.missing.len()
    }
}

impl std::fmt::Display for Coverage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} variables have a gradient", self.covered.len(), self.total())?;
        if self.missing.is_empty() {
            return Ok(());
        }
        write!(f, "; without: {}", self.missing.join(", "))
    }
}

/// Requires that every trainable variable got a gradient.
///
/// Pass only what is meant to be trained; frozen weights should be plain tensors, not variables.
///
/// # Errors
/// Names every variable without a gradient. No variables at all is an error too: nothing would be trained.
pub fn grad_coverage<'a, N: Into<String>>(
    vars: impl IntoIterator<Item = (N, &'a Var)>,
    grads: &GradStore,
) -> Result<Coverage> {
    let coverage = Coverage::of(vars, grads);
    let total = coverage.total();
    if total == 0 {
        return Err(Error::missing("trainable variables", "give at least one name and variable"));
    }
    if !coverage.missing.is_empty() {
        return Err(Error::NoGradient { missing: coverage.missing, total });
    }
    Ok(coverage)
}
