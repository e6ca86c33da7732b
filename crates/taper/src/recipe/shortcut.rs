//! Recipes that need no file: every matrix to one format.

use taper_core::{Pipeline, Result, WeightPass};
use taper_quant::{Granularity, RoundNearest};

/// Every matrix to 8-bit integers: one scale per row, or per `group` of a row. Errors where `group` is 0.
pub fn int8(group: Option<usize>) -> Result<Pipeline> {
    let pass = match group {
        Some(group) => RoundNearest::int(8, Granularity::group(group)?)?,
        None => RoundNearest::int8(),
    };
    Ok(Pipeline::new().then(pass.on_matrices()))
}

/// Every matrix to 4-bit integers, a scale per `group` of a row. Errors where `group` is 0.
pub fn int4(group: usize) -> Result<Pipeline> {
    Ok(Pipeline::new().then(RoundNearest::int4(group)?.on_matrices()))
}

/// Every matrix to NF4, a scale per `block` of values. Errors where `block` is 0.
pub fn nf4(block: usize) -> Result<Pipeline> {
    Ok(Pipeline::new().then(RoundNearest::nf4(block)?.on_matrices()))
}
