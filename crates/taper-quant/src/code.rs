//! From values to codes and back.
//!
//! One file per kind of code: [`int`] for integers of 2 to 8 bits, [`nf4`] for the sixteen quantiles of
//! bitsandbytes, and [`nested`] for their scales as bytes; [`nearest`] is what rounding with feedback sees of them.
//! [`trellis`] is for codes that depend on their neighbours, and [`trellis_feedback`] for matrices of them.

pub(crate) mod blocks;
pub mod int;
pub mod nearest;
pub mod nested;
pub mod nf4;
pub(crate) mod rows;
pub mod trellis;
pub mod trellis_feedback;

use crate::{Error, Result};

/// Values that one task takes at least: 64 KiB of f32, which the second-level cache holds between the steps.
pub(crate) const STRETCH: usize = 1 << 14;

/// Checks importances and scales them to a mean of 1; `None` where they say nothing (all zero).
pub(crate) fn normalized(importance: Option<&[f32]>, cols: usize) -> Result<Option<Vec<f32>>> {
    let Some(importance) = importance else { return Ok(None) };
    if importance.len() != cols {
        return Err(Error::Length { what: "importance", found: importance.len(), expected: cols });
    }
    if let Some(column) = importance.iter().position(|w| !(w.is_finite() && *w >= 0.0)) {
        return Err(Error::Importance { column, value: importance[column] });
    }
    let mean = importance.iter().map(|&w| f64::from(w)).sum::<f64>() / cols.max(1) as f64;
    if mean <= 0.0 {
        return Ok(None);
    }
    Ok(Some(importance.iter().map(|&w| (f64::from(w) / mean) as f32).collect()))
}
