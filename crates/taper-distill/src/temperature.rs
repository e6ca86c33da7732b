//! The temperature T that logits are divided by before the softmax: softmax(z / T).
//!
//! T > 1 flattens both distributions and so shows the student what the teacher thinks of the wrong
//! classes (Hinton et al. 2015, section 2). Whether a loss multiplies by T² afterwards is a property of
//! the loss and stated in its documentation.

use crate::{Error, Result};

/// A finite temperature above zero.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Temperature(f64);

impl Temperature {
    /// Plain softmax.
    pub const ONE: Self = Self(1.0);

    /// A temperature.
    ///
    /// # Errors
    /// `value` must be finite and in 1e-6..=1e6: outside that range z / T leaves what f32 can hold.
    pub fn new(value: f64) -> Result<Self> {
        if (1e-6..=1e6).contains(&value) {
            return Ok(Self(value));
        }
        Err(Error::bad_option("temperature", value, "a number in 1e-6..=1e6, usually 1 to 10"))
    }

    /// T.
    #[must_use]
    pub fn value(self) -> f64 {
        self.0
    }

    /// T², the factor that keeps gradients of one size while T changes.
    #[must_use]
    pub fn squared(self) -> f64 {
        self.0 * self.0
    }
}

impl Default for Temperature {
    fn default() -> Self {
        Self::ONE
    }
}

impl std::fmt::Display for Temperature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
