//! From one value per row to one number, and what a "row" is.
//!
//! ```text
//! TokenMean   Σ rows / max(number of rows that count, 1)
//! Sum         Σ rows
//! SumOver(n)  Σ rows / n        n = rows of the whole batch: micro-batches then add up to it exactly
//! ```
//!
//! There is no mean over classes and no mean over padded positions: those make a loss depend on the vocabulary
//! and on the padding. A loss that couples its rows (RKD, DIST) has one value for the batch; every row
//! is counted with that value, so TokenMean is the value itself and SumOver(n) its share.

use crate::{Error, Result};
use candle_core::{DType, Tensor};
use serde::Serialize;

/// How the rows of a loss become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reduction {
    /// The mean over the rows that count; 0 where none does.
    #[default]
    TokenMean,
    /// The sum over the rows that count.
    Sum,
    /// The sum divided by a number that the caller states, such as the rows of all micro-batches of a step.
    SumOver(usize),
}

/// What one row of a loss is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// A position of a sequence; for a classifier, whose logits are [batch, classes], a sample.
    Token,
    /// A sample of the batch.
    Sample,
}

impl std::fmt::Display for Unit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Token => "token",
            Self::Sample => "sample",
        })
    }
}

#[derive(Debug, Clone)]
enum Values {
    /// `[rows]`
    Each(Tensor),
    /// One value of all `rows`, a scalar.
    Coupled(Tensor),
    /// No row counts; the tensor that must nevertheless get a (zero) gradient.
    None(Tensor),
}

/// A loss before it is reduced: the values of its rows, in the student's graph.
#[derive(Debug, Clone)]
pub struct RowLoss {
    values: Values,
    rows: usize,
    unit: Unit,
}

impl RowLoss {
    /// One value per row.
    ///
    /// # Errors
    /// `values` must have one dimension.
    pub fn each(values: Tensor, unit: Unit) -> Result<Self> {
        let [rows] = *values.dims() else {
            return Err(Error::rank("values of a loss", values.dims(), "[rows]"));
        };
        Ok(Self { values: Values::Each(values), rows, unit })
    }

    /// One scalar that belongs to `rows` rows together.
    ///
    /// # Errors
    /// `value` must be a scalar.
    pub fn coupled(value: Tensor, rows: usize, unit: Unit) -> Result<Self> {
        if value.rank() != 0 {
            return Err(Error::rank("value of a loss", value.dims(), "a scalar"));
        }
        Ok(Self { values: Values::Coupled(value), rows, unit })
    }

    /// No row counts: the loss is 0, and `student` gets a gradient of exactly 0 (also where it holds NaN).
    #[must_use]
    pub fn none(student: &Tensor, unit: Unit) -> Self {
        Self { values: Values::None(student.clone()), rows: 0, unit }
    }

    /// How many rows count.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// What a row is.
    #[must_use]
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// The value of each row `[rows]`; `None` for a loss that couples its rows, or where no row counts.
    #[must_use]
    pub fn values(&self) -> Option<&Tensor> {
        match &self.values {
            Values::Each(values) => Some(values),
            Values::Coupled(_) | Values::None(_) => None,
        }
    }

    /// One number, a scalar tensor in the student's graph.
    ///
    /// # Errors
    /// `SumOver(0)` is refused.
    pub fn reduce(&self, reduction: Reduction) -> Result<Tensor> {
        let denominator = match reduction {
            Reduction::TokenMean => self.rows.max(1),
            Reduction::Sum => 1,
            Reduction::SumOver(0) => {
                return Err(Error::bad_option("Reduction::SumOver", 0, "at least 1 row"));
            }
            Reduction::SumOver(n) => n,
        } as f64;
        Ok(match &self.values {
            Values::Each(values) => (values.sum_all()? / denominator)?,
            Values::Coupled(value) => (value * (self.rows as f64 / denominator))?,
            Values::None(student) => nothing(student)?,
        })
    }
}

/// A zero that hangs on `student`.
fn nothing(student: &Tensor) -> Result<Tensor> {
    if student.elem_count() == 0 {
        return Ok(Tensor::zeros((), student.dtype(), student.device())?);
    }
    let never = Tensor::zeros(student.shape(), DType::U8, student.device())?;
    Ok(never.where_cond(student, &student.zeros_like()?)?.sum_all()?)
}
