//! What every format does to every weight, measured.
//!
//! ```text
//! for each candidate    the pipeline with this one format ─▶ rows: bytes, error     (and the judge: divergence of the whole)
//! for each probe        the original with one weight of that run ─▶ judge           how much an error there matters
//! ```
//!
//! The runs are the ones that compression walks, calibrated as the caller says, so an error here is the error of stored
//! bytes. Where calibration has the Gram matrix of a layer it is the error of the layer's output, otherwise that of the
//! weight; one weight is never compared by both. Memory holds one compressed model at a time beside the original.
//!
//! Neighbours: [`super::plan`] chooses from a survey.

use std::{collections::BTreeMap, fmt, sync::Arc};
use taper_core::{
    Checkpoint, Error as CoreError, Event, Flow, Outcome, Pipeline, Progress, Result, Run, Select,
    WeightPass,
    report::{Damage, Row},
};

use super::curve::Curve;
use crate::Error;

/// A format that weights may get: a pass, and what plans call it.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// What people call it: `gptq int3 g128`.
    pub label: String,
    /// What makes it.
    pub pass: Arc<dyn WeightPass>,
}

/// Weights whose format is settled.
#[derive(Debug, Clone)]
pub struct Pin {
    /// Which.
    pub select: Select,
    /// What they become.
    pub candidate: Candidate,
}

/// Says how far a model has moved from its original.
pub trait Judge {
    /// The divergence of this checkpoint's model from the original: 0 for the original, finite, and nearly additive for
    /// small changes (a mean KL is).
    fn divergence(&self, checkpoint: &Checkpoint) -> Result<f64>;
}

impl<F: Fn(&Checkpoint) -> Result<f64>> Judge for F {
    fn divergence(&self, checkpoint: &Checkpoint) -> Result<f64> {
        self(checkpoint)
    }
}

/// What may be chosen from.
#[derive(Debug, Clone)]
pub struct Menu {
    /// The weights that the budget is for.
    pub select: Select,
    /// The formats, from the coarsest to the finest.
    pub candidates: Vec<Candidate>,
    /// Weights among the selected whose format is settled; the first that selects a weight counts.
    pub pins: Vec<Pin>,
    /// At how many of the formats it is measured what an error in a weight costs the model, one weight at a time: that
    /// many from the coarsest on, evenly spread. One says what an error costs; more see that it is not quite a proportion.
    pub probes: usize,
}

/// What a format does to a weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Bytes in a file.
    pub bytes: u64,
    /// The normalised error of the output, or of the weight.
    pub error: f64,
}

/// One weight of a survey.
#[derive(Debug, Clone)]
pub struct Surveyed {
    /// Its name.
    pub weight: String,
    /// Its elements.
    pub elements: u64,
    /// By format, in the order of [`Survey::labels`]; `None` where a format left it as it was. A pinned weight has one.
    pub costs: Vec<Option<Cost>>,
    /// From error to divergence; `None` where no error of it moved the model.
    pub sensitivity: Option<Curve>,
}

/// A model with one format throughout.
#[derive(Debug, Clone, PartialEq)]
pub struct Uniform {
    /// The format.
    pub label: String,
    /// Bytes of the selected weights.
    pub bytes: u64,
    /// Elements of the selected weights.
    pub elements: u64,
    /// Divergence of the whole model, measured.
    pub divergence: f64,
}

/// Everything that was measured.
#[derive(Debug, Clone)]
pub struct Survey {
    /// The formats: candidates, then pins.
    pub labels: Vec<String>,
    /// The selected weights by name; those that every format left are not among them.
    pub weights: Vec<Surveyed>,
    /// The models with one format throughout, in the order of candidates.
    pub uniform: Vec<Uniform>,
    /// Selected weights that every format left, and why.
    pub left: BTreeMap<String, String>,
    /// Bytes of all other weights.
    pub other_bytes: u64,
}

impl Menu {
    /// Measures.
    ///
    /// # Errors
    /// [`Error::Menu`] where there is nothing to choose from or two formats share a label, and everything that running the
    /// passes or the judge may end with.
    pub fn survey(
        &self,
        checkpoint: &Checkpoint,
        run: &Run<'_>,
        judge: &dyn Judge,
        progress: &dyn Progress,
    ) -> Result<Survey> {
        let work = Work::new(self, checkpoint)?;
        let probes = self.probed();
        let steps = self.candidates.len() + probes.len() * work.free.len();
        let mut done = 0;
        let mut step = || {
            done += 1;
            match progress.on(&Event::Step { what: "surveying", done, total: steps.max(done) }) {
                Flow::Continue => Ok(()),
                Flow::Cancel => Err(CoreError::Cancelled),
            }
        };
        let mut tables = Vec::new();
        let mut divergences = Vec::new();
        let mut points: BTreeMap<String, Vec<(usize, f64)>> = BTreeMap::new();
        for (at, candidate) in self.candidates.iter().enumerate() {
            let (compressed, rows) = work.run(candidate, run)?;
            divergences.push(checked(judge.divergence(&compressed)?)?);
            step()?;
            for name in work.free.iter().filter(|n| is_done(&rows, n)) {
                // A weight that the first probe left is measured at the first format that does not.
                if !probes.contains(&at) && points.contains_key(name) {
                    continue;
                }
                let mut one = checkpoint.clone();
                one.insert(name.clone(), Arc::new(compressed.get(name)?.dense()?));
                points.entry(name.clone()).or_default().push((at, checked(judge.divergence(&one)?)?));
                step()?;
            }
            tables.push(rows);
        }
        work.finish(&tables, &divergences, &points)
    }

    /// The candidates at which single weights are measured.
    fn probed(&self) -> Vec<usize> {
        let (count, all) = (self.probes.clamp(1, self.candidates.len().max(1)), self.candidates.len());
        (0..count).map(|i| i * all / count).collect()
    }
}

fn checked(divergence: f64) -> Result<f64> {
    if divergence.is_finite() {
        return Ok(divergence.max(0.0));
    }
    Err(Error::Menu { message: format!("a divergence is {divergence}; judges give finite numbers") }.into())
}

type Rows = BTreeMap<String, Row>;

fn is_done(rows: &Rows, name: &str) -> bool {
    rows.get(name).is_some_and(|row| row.outcome == Outcome::Done)
}

/// What a survey works on.
struct Work<'a> {
    menu: &'a Menu,
    checkpoint: &'a Checkpoint,
    /// Selected weights that are not pinned.
    free: Vec<String>,
    /// Pinned ones, by pin.
    pinned: Vec<Vec<String>>,
}

impl<'a> Work<'a> {
    fn new(menu: &'a Menu, checkpoint: &'a Checkpoint) -> Result<Self> {
        let wrong = |message: String| Err(Error::Menu { message }.into());
        let mut free = Vec::new();
        let mut pinned = vec![Vec::new(); menu.pins.len()];
        for name in checkpoint.names() {
            let shape = checkpoint.info(&name)?.shape;
            if name.contains(['*', '?', '{']) || name.starts_with("re:") {
                return wrong(format!("`{name}` reads as a pattern, and a plan names weights by patterns"));
            }
            // Only matrices have formats to choose from, whatever the pattern says.
            if shape.len() < 2 || !menu.select.matches(&name, &shape) {
                continue;
            }
            match menu.pins.iter().position(|pin| pin.select.matches(&name, &shape)) {
                Some(pin) => pinned[pin].push(name),
                None => free.push(name),
            }
        }
        if menu.candidates.is_empty() {
            return wrong("there are no formats to choose from; name at least one".into());
        }
        if free.is_empty() {
            return wrong(format!("{} selects no matrix that is not pinned", menu.select));
        }
        if let Some(at) = pinned.iter().position(Vec::is_empty) {
            return wrong(format!("pin {} is for no selected matrix", menu.pins[at].select));
        }
        let labels: Vec<&str> = menu.candidates.iter().map(|c| c.label.as_str()).collect();
        if let Some(twice) = labels.iter().enumerate().find(|(i, l)| labels[..*i].contains(l)) {
            return wrong(format!("two formats are called `{}`", twice.1));
        }
        Ok(Self { menu, checkpoint, free, pinned })
    }

    /// All free weights in one format, the pinned ones in theirs.
    fn run(&self, candidate: &Candidate, run: &Run<'_>) -> Result<(Checkpoint, Rows)> {
        let exact = |names: &[String]| exactly(names);
        let mut pipeline = Pipeline::new().then(Arc::clone(&candidate.pass).on(exact(&self.free)?));
        for (pin, names) in self.menu.pins.iter().zip(&self.pinned) {
            pipeline = pipeline.then(Arc::clone(&pin.candidate.pass).on(exact(names)?));
        }
        let (compressed, report) = pipeline.run(self.checkpoint.clone(), run)?;
        let rows = report.passes.into_iter().flat_map(|p| p.rows);
        Ok((compressed, rows.map(|row| (row.weight.clone(), row)).collect()))
    }

    fn finish(
        &self,
        tables: &[Rows],
        divergences: &[f64],
        points: &BTreeMap<String, Vec<(usize, f64)>>,
    ) -> Result<Survey> {
        let formats = self.menu.candidates.len();
        let mut survey = Survey {
            labels: self.menu.candidates.iter().map(|c| c.label.clone()).collect(),
            weights: Vec::new(),
            uniform: Vec::new(),
            left: BTreeMap::new(),
            other_bytes: 0,
        };
        survey.labels.extend(self.menu.pins.iter().map(|p| p.candidate.label.clone()));
        let pins =
            self.pinned.iter().enumerate().flat_map(|(i, names)| names.iter().map(move |n| (n, Some(i))));
        let mut inside = 0;
        for (name, pin) in self.free.iter().map(|n| (n, None)).chain(pins) {
            let info = self.checkpoint.info(name)?;
            let mut rows: Vec<Option<&Row>> = vec![None; survey.labels.len()];
            match pin {
                Some(pin) => rows[formats + pin] = tables[0].get(name),
                None => tables.iter().zip(&mut rows).for_each(|(table, row)| *row = table.get(name)),
            }
            let costs = costs(&rows);
            if costs.iter().all(Option::is_none) {
                let why = rows.iter().flatten().find_map(|row| match &row.outcome {
                    Outcome::Left { why } => Some(why.clone()),
                    _ => None,
                });
                survey.left.insert(name.clone(), why.unwrap_or_else(|| "no format changed it".into()));
                continue;
            }
            inside += info.nbytes as u64;
            let seen = points.get(name).into_iter().flatten();
            let seen = seen.filter_map(|&(at, divergence)| Some((costs[at]?.error, divergence)));
            let sensitivity = Curve::through(seen.collect());
            survey.weights.push(Surveyed {
                weight: name.clone(),
                elements: info.elements() as u64,
                costs,
                sensitivity,
            });
        }
        survey.weights.sort_by(|a, b| a.weight.cmp(&b.weight));
        survey.other_bytes = self.checkpoint.totals()?.bytes - inside;
        survey.uniform = survey.uniforms(divergences, formats);
        Ok(survey)
    }
}

/// A selection of these names and no others.
fn exactly(names: &[String]) -> Result<Select> {
    Select::any(names.iter().map(String::as_str))
}

/// What each format does to one weight; errors of one kind.
fn costs(rows: &[Option<&Row>]) -> Vec<Option<Cost>> {
    let damage = |row: &Row| row.damage.filter(|_| row.outcome == Outcome::Done);
    let all: Vec<Damage> = rows.iter().flatten().filter_map(|row| damage(row)).collect();
    let by_output = all.iter().all(|d| d.output_error.is_some());
    let cost = |row: &Row| -> Option<Cost> {
        let damage = damage(row)?;
        let error = if by_output { damage.output_error? } else { damage.normalised_mse };
        Some(Cost { bytes: row.after.as_ref()?.bytes, error })
    };
    rows.iter().map(|row| row.and_then(cost)).collect()
}

impl Surveyed {
    /// What a format of this error costs the model, in units of its divergence, as far as this weight alone goes.
    #[must_use]
    pub fn damage(&self, cost: Cost) -> f64 {
        self.sensitivity.as_ref().map_or(0.0, |curve| curve.at(cost.error))
    }

    /// The cost in a format, or the only one where it is pinned or this format left it.
    pub(super) fn cost_in(&self, format: usize) -> Option<Cost> {
        self.costs.get(format).copied().flatten().or_else(|| self.costs.iter().copied().flatten().next())
    }
}

impl Survey {
    fn uniforms(&self, divergences: &[f64], formats: usize) -> Vec<Uniform> {
        let uniform = |(format, divergence): (usize, &f64)| Uniform {
            label: self.labels[format].clone(),
            bytes: self.weights.iter().filter_map(|w| w.cost_in(format)).map(|c| c.bytes).sum(),
            elements: self.weights.iter().map(|w| w.elements).sum(),
            divergence: *divergence,
        };
        divergences.iter().take(formats).enumerate().map(uniform).collect()
    }

    /// From the sum of damages to the divergence of the whole: through the models with one format throughout.
    ///
    /// `None` where nothing moved the model.
    #[must_use]
    pub fn whole(&self) -> Option<Curve> {
        let sum = |format: usize| -> f64 {
            self.weights.iter().filter_map(|w| Some(w.damage(w.cost_in(format)?))).sum()
        };
        let points = self.uniform.iter().enumerate().map(|(format, u)| (sum(format), u.divergence));
        Curve::through(points.collect())
    }
}

impl Uniform {
    /// Bits per weight of the selected weights.
    #[must_use]
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.bytes as f64 / self.elements.max(1) as f64
    }
}

impl fmt::Display for Uniform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {:.3} bits per weight, divergence {:.5}",
            self.label,
            self.bits_per_weight(),
            self.divergence
        )
    }
}
