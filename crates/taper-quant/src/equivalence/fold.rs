//! What happens to one weight: a list of exact changes, computed in f64 when the weight is asked for.
//!
//! ```text
//! scale   value[.., i, ..] · s_i          rotate   each run of n along the axis: v ← v Q
//! ones    1                               clip     into ± limit of its row and group
//! ```
//!
//! A pass gathers [`Folds`] and replaces weights by derived ones, so that folding a large checkpoint does not hold it.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use std::{collections::BTreeMap, sync::Arc};
use taper_core::{Checkpoint, Error, Result, SharedWeight};

use super::RandomHadamard;

/// Columns that are rotated at a time: a stripe of so many stays in the cache.
const STRIPE: usize = 64;

/// One exact change of a weight.
#[derive(Debug, Clone)]
pub enum Fold {
    /// Multiplies index i of the axis by factor i.
    Scale {
        /// The axis.
        axis: usize,
        /// One factor per index.
        factors: Arc<[f64]>,
    },
    /// Every value becomes 1: a gain that stands elsewhere now.
    Ones,
    /// Turns each run of the rotation's width along the axis.
    Rotate {
        /// The axis.
        axis: usize,
        /// Q.
        by: Arc<RandomHadamard>,
    },
    /// Clamps groups of columns of each row to ± a limit.
    Clip {
        /// Columns per group; the last group of a row may be short.
        span: usize,
        /// One limit per row and group, row by row.
        limits: Arc<[f32]>,
    },
}

/// Changes by weight, in the order in which they were added.
#[derive(Debug, Clone, Default)]
pub struct Folds(BTreeMap<String, Vec<Fold>>);

impl Folds {
    /// No changes yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a change to a weight.
    pub fn add(&mut self, weight: &str, fold: Fold) {
        self.0.entry(weight.to_owned()).or_default().push(fold);
    }

    /// The weights that change.
    pub fn weights(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The values of a weight after the changes added so far.
    ///
    /// # Errors
    /// A weight that is missing, encoded already, or of another size than its changes.
    pub fn values(&self, checkpoint: &Checkpoint, weight: &str) -> Result<Vec<f64>> {
        let (dense, shape) = dense(checkpoint, weight)?;
        let mut values = dense.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        for fold in self.0.get(weight).into_iter().flatten() {
            apply(fold, &mut values, &shape).map_err(|message| unsupported(weight, &shape, message))?;
        }
        Ok(values)
    }

    /// The checkpoint with every changed weight replaced by one that is computed when asked for, of the type it had.
    ///
    /// # Errors
    /// A weight that is missing or encoded already; wrong sizes are found when the weight is computed.
    pub fn apply(&self, checkpoint: Checkpoint) -> Result<Checkpoint> {
        let before = checkpoint.clone();
        let mut after = checkpoint;
        for (weight, folds) in &self.0 {
            let info = before.info(weight)?;
            dense_only(weight, &info)?;
            let (before, weight_name) = (before.clone(), weight.clone());
            let one = Self(BTreeMap::from([(weight.clone(), folds.clone())]));
            after.derive(weight.clone(), info, move || {
                let (dense, shape) = dense(&before, &weight_name)?;
                let values = one.values(&before, &weight_name)?;
                let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dense.dtype())?;
                Ok(Arc::new(tensor) as SharedWeight)
            });
        }
        Ok(after)
    }
}

/// A weight as a tensor, and its shape.
fn dense(checkpoint: &Checkpoint, weight: &str) -> Result<(Tensor, Vec<usize>)> {
    let info = checkpoint.info(weight)?;
    dense_only(weight, &info)?;
    Ok((checkpoint.get(weight)?.dense()?, info.shape))
}

fn dense_only(weight: &str, info: &taper_core::WeightInfo) -> Result<()> {
    if info.encoding.is_dense() && taper_core::verify::is_float(info) {
        return Ok(());
    }
    let message = format!("`{weight}` is {}; fold into dense floats, before encoding", info.encoding);
    Err(unsupported(weight, &info.shape, message))
}

fn unsupported(weight: &str, shape: &[usize], message: String) -> Error {
    let format = format!("`{weight}`");
    Error::Unsupported { operation: "folding", shape: shape.to_vec(), format, message }
}

/// Runs along an axis: before it, on it, after it.
fn around(shape: &[usize], axis: usize) -> Result<(usize, usize), String> {
    let size = *shape.get(axis).ok_or_else(|| format!("it has no axis {axis}"))?;
    Ok((size, shape[axis + 1..].iter().product()))
}

fn apply(fold: &Fold, values: &mut [f64], shape: &[usize]) -> Result<(), String> {
    match fold {
        Fold::Scale { axis, factors } => {
            let (size, inner) = around(shape, *axis)?;
            if factors.len() != size {
                return Err(format!("axis {axis} takes {size} factors, not {}", factors.len()));
            }
            values.par_chunks_mut(inner.max(1)).enumerate().for_each(|(i, run)| {
                let factor = factors[i % size];
                run.iter_mut().for_each(|x| *x *= factor);
            });
        }
        Fold::Ones => values.fill(1.0),
        Fold::Rotate { axis, by } => {
            let (size, inner) = around(shape, *axis)?;
            if !size.is_multiple_of(by.width()) {
                return Err(format!("axis {axis} has {size} indices, no multiple of {}", by.width()));
            }
            rotate(values, inner, by);
        }
        Fold::Clip { span, limits } => {
            let (rows, cols) = around(shape, 0)?;
            if limits.len() != rows * cols.div_ceil(*span) {
                return Err(format!("{} limits for {rows} rows of {cols} in groups of {span}", limits.len()));
            }
            let groups = cols.div_ceil(*span);
            for (row, limits) in values.chunks_mut(cols.max(1)).zip(limits.chunks(groups.max(1))) {
                for (group, &limit) in row.chunks_mut(*span).zip(limits) {
                    let limit = f64::from(limit);
                    group.iter_mut().for_each(|x| *x = x.clamp(-limit, limit));
                }
            }
        }
    }
    Ok(())
}

/// Turns every run of the width along an axis with `inner` values after it.
fn rotate(values: &mut [f64], inner: usize, by: &RandomHadamard) {
    if inner == 1 {
        values.par_chunks_mut(by.width()).for_each(|v| by.apply(v, 1));
        return;
    }
    for block in values.chunks_mut((by.width() * inner).max(1)) {
        let starts: Vec<usize> = (0..inner).step_by(STRIPE).collect();
        let stripes: Vec<Vec<f64>> = starts
            .par_iter()
            .map(|&start| {
                let lanes = STRIPE.min(inner - start);
                let mut stripe: Vec<f64> =
                    block.chunks(inner).flat_map(|row| &row[start..start + lanes]).copied().collect();
                by.apply(&mut stripe, lanes);
                stripe
            })
            .collect();
        for (start, stripe) in starts.into_iter().zip(stripes) {
            let lanes = STRIPE.min(inner - start);
            for (row, turned) in block.chunks_mut(inner).zip(stripe.chunks(lanes)) {
                row[start..start + lanes].copy_from_slice(turned);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(shape: &[usize]) -> (Checkpoint, Vec<f64>) {
        let n: usize = shape.iter().product();
        let values: Vec<f64> = (0..n).map(|i| ((i * 31) % 23) as f64 - 11.0).collect();
        let mut checkpoint = Checkpoint::default();
        let tensor = Tensor::from_vec(values.clone(), shape, &Device::Cpu).unwrap();
        checkpoint.insert("w", Arc::new(tensor.to_dtype(DType::F32).unwrap()));
        (checkpoint, values)
    }

    #[test]
    fn scales_reach_the_axis_they_are_for() {
        let (checkpoint, values) = checkpoint(&[2, 3]);
        let mut folds = Folds::new();
        folds.add("w", Fold::Scale { axis: 0, factors: Arc::from([2.0, 3.0]) });
        folds.add("w", Fold::Scale { axis: 1, factors: Arc::from([1.0, 10.0, 100.0]) });
        let expected: Vec<f64> =
            values.iter().zip([2., 20., 200., 3., 30., 300.]).map(|(a, b)| a * b).collect();
        assert_eq!(folds.values(&checkpoint, "w").unwrap(), expected);
        folds.add("w", Fold::Scale { axis: 1, factors: Arc::from([1.0]) });
        let error = folds.values(&checkpoint, "w").unwrap_err().to_string();
        assert!(error.contains("takes 3 factors, not 1"), "{error}");
    }

    #[test]
    fn rotating_rows_of_the_transpose_is_rotating_columns() {
        let (rows, cols) = (12, 130);
        let (checkpoint, values) = checkpoint(&[rows, cols]);
        let by = Arc::new(RandomHadamard::new(6, 4));
        let mut folds = Folds::new();
        folds.add("w", Fold::Rotate { axis: 0, by: by.clone() });
        let turned = folds.values(&checkpoint, "w").unwrap();
        for c in 0..cols {
            let mut column: Vec<f64> = (0..rows).map(|r| values[r * cols + c]).collect();
            column.chunks_mut(6).for_each(|v| by.apply(v, 1));
            assert!((0..rows).all(|r| (turned[r * cols + c] - column[r]).abs() < 1e-12));
        }
    }

    #[test]
    fn clipping_keeps_to_the_limits_of_each_group() {
        let (checkpoint, values) = checkpoint(&[2, 5]);
        let mut folds = Folds::new();
        folds.add("w", Fold::Clip { span: 3, limits: Arc::from([1.0f32, 2.0, 3.0, 100.0]) });
        let clipped = folds.values(&checkpoint, "w").unwrap();
        let limits = [1., 1., 1., 2., 2., 3., 3., 3., 100., 100.];
        for i in 0..10 {
            assert_eq!(clipped[i], values[i].clamp(-limits[i], limits[i]));
        }
    }
}
