//! Results against plain ones in f64, before anything is timed.

use taper::candle::{DType, Tensor};
use taper_benches::matrix::{normalised_mse, product};

use crate::Failed;

/// Tokens that are looked at: the first, the last and one between.
fn picked(batch: usize) -> Vec<usize> {
    let mut picked = vec![0, batch / 2, batch - 1];
    picked.dedup();
    picked
}

/// The normalised error of `y` = x · Wᵀ, `[batch, rows]`, over a few tokens and all rows; an error above `bound`.
pub(crate) fn of_product(name: &str, y: &Tensor, x: &Tensor, w: &[f32], bound: f64) -> Result<f64, Failed> {
    let (batch, cols) = x.dims2()?;
    let rows = w.len() / cols;
    if y.dims() != [batch, rows] {
        return Err(format!("{name}: the result has shape {:?}, expected [{batch}, {rows}]", y.dims()).into());
    }
    let flat =
        |t: &Tensor| -> Result<Vec<f32>, Failed> { Ok(t.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?) };
    let (mut some, mut found) = (Vec::new(), Vec::new());
    for token in picked(batch) {
        some.extend(flat(&x.get(token)?)?);
        found.extend(flat(&y.get(token)?)?);
    }
    within(name, normalised_mse(&product(&some, w, cols), &found), bound)
}

/// Passes an error on if it is at most `bound`.
pub(crate) fn within(name: &str, error: f64, bound: f64) -> Result<f64, Failed> {
    if error <= bound {
        return Ok(error);
    }
    Err(format!("{name}: normalised error {error:e}, expected at most {bound:e}").into())
}
