//! A training objective: named, weighted terms, added up, each reported.
//!
//! ```text
//! total = Σ weight · term(inputs)
//! ```
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use taper_distill::{CrossEntropy, FeatureLoss, Features, Hinton, HiddenMse, Inputs, Logits, Objective, Temperature};
//!
//! let objective = Objective::new()
//!     .term("ce", 0.1, CrossEntropy)
//!     .term("kd", 0.9, Hinton::new(Temperature::new(2.0)?))
//!     .term("hidden", 0.5, HiddenMse::new().at("block.3"));
//!
//! # let device = Device::Cpu;
//! # let student = Var::new(&[[1f32, 2., 0.], [0., 1., 3.]], &device)?;
//! # let teacher = Tensor::new(&[[2f32, 2., 0.], [0., 0., 4.]], &device)?;
//! # let labels = Tensor::new(&[1i64, -100], &device)?;
//! # let hidden = Var::new(&[[0.5f32, 0.1], [0.3, 0.2]], &device)?;
//! # let hidden_teacher = Tensor::new(&[[0.4f32, 0.1], [0.3, 0.1]], &device)?;
//! // in the training loop
//! let inputs = Inputs::new()
//!     .logits(Logits::of(&student).teacher(&teacher).labels(&labels).prepare()?)
//!     .features("block.3", Features::new(&hidden, &hidden_teacher).labels(&labels));
//! let step = objective.evaluate(&inputs)?;
//! let grads = step.total.backward()?;
//! println!("{}", step.report);
//! # assert_eq!(step.report.terms.len(), 3);
//! # assert!(grads.get(&student).is_some());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod inputs;
mod report;
mod term;

pub use inputs::Inputs;
pub use report::{ObjectiveReport, TermReport};
pub use term::{At, Term};

use crate::{Error, Result};
use candle_core::{DType, Tensor};

/// Named, weighted terms.
#[derive(Debug, Default)]
pub struct Objective {
    terms: Vec<Weighted>,
}

#[derive(Debug)]
struct Weighted {
    name: String,
    weight: f64,
    term: Box<dyn Term>,
}

/// One evaluation of an objective.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// Σ weight · term, a scalar in the student's graph: call `backward` on it.
    pub total: Tensor,
    /// Every term's value, as numbers.
    pub report: ObjectiveReport,
}

impl Objective {
    /// An objective without terms.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a term: a loss over logits, a loss over features bound with [`At`], or one of your own.
    ///
    /// Names must differ and weights be finite ([`evaluate`](Self::evaluate) checks). A term of weight 0 is computed
    /// and reported and takes no part in the total.
    #[must_use]
    pub fn term(mut self, name: impl Into<String>, weight: f64, term: impl Term + 'static) -> Self {
        self.terms.push(Weighted { name: name.into(), weight, term: Box::new(term) });
        self
    }

    /// Changes a term's weight, as warm-up schedules do.
    ///
    /// # Errors
    /// The name must be a term's.
    pub fn set_weight(&mut self, name: &str, weight: f64) -> Result<()> {
        let found = self.terms.iter_mut().find(|term| term.name == name);
        let term = found.ok_or_else(|| Error::Objective {
            message: format!("no term `{name}` whose weight could be set"),
        })?;
        term.weight = weight;
        Ok(())
    }

    /// Computes every term, adds them up, and reports them. Copies one number per term to the host.
    ///
    /// # Errors
    /// No terms, equal names, weights that are not finite or all 0; inputs that a term needs and does not find; a term that is NaN or infinite.
    pub fn evaluate(&self, inputs: &Inputs) -> Result<Evaluation> {
        self.check()?;
        let mut total: Option<Tensor> = None;
        let mut terms = Vec::with_capacity(self.terms.len());
        for Weighted { name, weight, term } in &self.terms {
            let (value, report) =
                evaluate_term(name, *weight, &**term, inputs).map_err(|e| e.in_term(name))?;
            if !report.value.is_finite() {
                return Err(Error::NotFinite { term: name.clone(), value: report.value });
            }
            terms.push(report);
            if *weight != 0.0 {
                total = Some(add(total, (value * *weight)?)?);
            }
        }
        let total = total.ok_or_else(|| Error::Objective {
            message: "every weight is 0, so there is nothing to train; give one term a weight".into(),
        })?;
        let report = ObjectiveReport { total: number(&total)?, terms };
        Ok(Evaluation { total, report })
    }

    fn check(&self) -> Result<()> {
        let fail = |message: String| Err(Error::Objective { message });
        if self.terms.is_empty() {
            return fail("it has no terms; add at least one with `.term(name, weight, loss)`".into());
        }
        for (i, Weighted { name, weight, .. }) in self.terms.iter().enumerate() {
            if !weight.is_finite() {
                return fail(format!("the weight of term `{name}` is {weight}; expected a finite number"));
            }
            if self.terms[..i].iter().any(|earlier| earlier.name == *name) {
                return fail(format!("two terms are called `{name}`; give each a name of its own"));
            }
        }
        Ok(())
    }
}

fn evaluate_term(name: &str, weight: f64, term: &dyn Term, inputs: &Inputs) -> Result<(Tensor, TermReport)> {
    let rows = term.compute(inputs)?;
    let value = rows.reduce(inputs.reduction_of(rows.unit())?)?;
    let report = TermReport {
        name: name.to_owned(),
        weight,
        value: number(&value)?,
        rows: rows.rows(),
        unit: rows.unit(),
    };
    Ok((value, report))
}

fn number(scalar: &Tensor) -> Result<f64> {
    Ok(scalar.detach().to_dtype(DType::F64)?.to_scalar()?)
}

/// Adds in the wider of the two types, so that an f64 term and an f32 term meet in f64.
fn add(total: Option<Tensor>, value: Tensor) -> Result<Tensor> {
    let Some(total) = total else { return Ok(value) };
    let wider = |a: DType, b: DType| match (a, b) {
        (DType::F64, _) | (_, DType::F64) => DType::F64,
        _ => DType::F32,
    };
    let dtype = wider(total.dtype(), value.dtype());
    Ok((total.to_dtype(dtype)? + value.to_dtype(dtype)?)?)
}
