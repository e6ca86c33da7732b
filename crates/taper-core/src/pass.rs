//! One change to a checkpoint, in two sizes.
//!
//! [`WeightPass`] rewrites one weight; it is what most people write, and [`WeightPass::on`] turns it into a [`Pass`] over
//! a selection. [`Pass`] sees the whole checkpoint. The driver ([`crate::Pipeline`]) owns everything else: selection,
//! order, traversal, verification, timing, progress and the naming of whoever is guilty.

use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    Calibration, Checkpoint, Error, Event, Flow, Progress, Result, Select,
    linalg::{Factor, Factors, Shrinkage},
    pipeline::shelf::{Finished, Shelf},
    report::{Measure, Outcome},
    stats::{InputStats, Stats},
    weight::{Encoding, SharedWeight, Weight},
};

/// What a pass changes; passes run in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Cuts: shapes and names may change.
    Shape,
    /// Zeroes, scales, rotates, trains: values change, shapes do not.
    Value,
    /// Packs: the encoding changes.
    Encode,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shape => "shape",
            Self::Value => "value",
            Self::Encode => "encode",
        })
    }
}

/// What a pass needs to know about the inputs of each layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Needs {
    /// Nothing: the pass works without data and can stream.
    Nothing,
    /// The batches and the model's blocks themselves, to run them: [`Context::calibration`].
    Batches,
    /// Counts, mean x, mean |x|, minimum, maximum and Σx² per input.
    InputNorms,
    /// The Gram matrix XXᵀ of the inputs as well.
    Gram,
    /// Also the cross Gram matrix X̃Xᵀ with the inputs that the original model has: for passes that make up for the
    /// errors of the layers before. It differs from the Gram matrix only where calibration is sequential.
    CrossGram,
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing",
            Self::Batches => "calibration batches",
            Self::InputNorms => "input norms",
            Self::Gram => "input gram matrices",
            Self::CrossGram => {
                "input gram matrices beside the original model's, which sequential calibration alone gathers,"
            }
        })
    }
}

/// What a pass does to the coordinates in which layers see their inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Coordinates {
    /// They stay: statistics gathered before the pass still say which input is which.
    #[default]
    Kept,
    /// They are scaled or turned: statistics gathered before the pass are of something else afterwards.
    Changed,
}

/// How a pass that sees the whole checkpoint reads the statistics that it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Reading {
    /// All of them at once, with [`Context::stats`].
    #[default]
    AtOnce,
    /// Block by block, with [`Context::visit_stats`]: the driver holds those of one block at a time.
    ByBlock,
}

/// What became of one weight.
#[derive(Debug, Clone)]
pub enum Rewrite {
    /// The weight that takes its place.
    Done(SharedWeight),
    /// It stays as it is, and why; listed in the report.
    Left {
        /// The reason, for people.
        why: String,
    },
}

impl Rewrite {
    /// A replacement.
    pub fn done(weight: impl Weight + 'static) -> Self {
        Self::Done(Arc::new(weight))
    }

    /// No change, and why.
    pub fn left(why: impl Into<String>) -> Self {
        Self::Left { why: why.into() }
    }
}

/// The size that a rewritten weight will have, where shapes alone decide it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// How the weight will be stored.
    pub encoding: Encoding,
    /// Its logical shape.
    pub shape: Vec<usize>,
    /// The facts that its parts will carry.
    pub attributes: serde_json::Map<String, Value>,
    /// Its arrays by role: element type and shape.
    pub arrays: BTreeMap<String, (safetensors::Dtype, Vec<usize>)>,
}

/// A change to one weight at a time: the size of pass that most people write.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a pass over single weights",
    note = "implement `WeightPass::rewrite` and call `.on(select)` to make it a `Pass`"
)]
pub trait WeightPass: Send + Sync + fmt::Debug {
    /// The pass's name, as recipes spell it: `round-nearest`.
    fn name(&self) -> &str;

    /// What it changes.
    fn stage(&self) -> Stage;

    /// What it needs to know about inputs.
    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    /// Its options, for the report and for the check that a resumed run is the same run.
    fn settings(&self) -> Value;

    /// Rewrites a weight or says why it stays.
    fn rewrite(&self, name: &str, weight: &SharedWeight, context: &Context<'_>) -> Result<Rewrite>;

    /// The outcome's exact form, where the shape and encoding alone decide it; `None` where the values do.
    ///
    /// It lets a dry run predict sizes without reading a value.
    fn outline(&self, name: &str, before: &Outline) -> Option<Outline> {
        let _ = (name, before);
        None
    }

    /// This pass over every weight that `select` names.
    fn on(self, select: Select) -> Each<Self>
    where
        Self: Sized,
    {
        Each { pass: self, select }
    }

    /// This pass over every matrix: [`Select::matrices`].
    fn on_matrices(self) -> Each<Self>
    where
        Self: Sized,
    {
        self.on(Select::matrices())
    }
}

/// A pass that is already shared.
impl<P: WeightPass + ?Sized> WeightPass for Arc<P> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn stage(&self) -> Stage {
        (**self).stage()
    }

    fn needs(&self) -> Needs {
        (**self).needs()
    }

    fn settings(&self) -> Value {
        (**self).settings()
    }

    fn rewrite(&self, name: &str, weight: &SharedWeight, context: &Context<'_>) -> Result<Rewrite> {
        (**self).rewrite(name, weight, context)
    }

    fn outline(&self, name: &str, before: &Outline) -> Option<Outline> {
        (**self).outline(name, before)
    }
}

/// A change to a checkpoint.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a pass",
    note = "implement `WeightPass` and call `.on(select)`, or implement `Pass` where the whole checkpoint matters"
)]
pub trait Pass: Send + Sync + fmt::Debug {
    /// The pass's name, as recipes spell it.
    fn name(&self) -> &str;

    /// What it changes.
    fn stage(&self) -> Stage;

    /// What it needs to know about inputs.
    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    /// Its options, for the report and for the check that a resumed run is the same run.
    fn settings(&self) -> Value;

    /// Changes the checkpoint. Say with [`Context::left`] which selected weights stay, and why; weights that differ
    /// afterwards are reported as done.
    fn run(&self, checkpoint: Checkpoint, context: &Context<'_>) -> Result<Checkpoint>;

    /// The checkpoint for a dry run: weights of the same encodings, shapes and sizes as those that [`Pass::run`] gives, whatever
    /// their values are. For passes that work long; others just run.
    fn rehearse(&self, checkpoint: Checkpoint, context: &Context<'_>) -> Result<Checkpoint> {
        self.run(checkpoint, context)
    }

    /// What it does to the coordinates of inputs. After a pass that changes them, a pass that needs statistics is refused
    /// unless they are gathered anew.
    fn coordinates(&self) -> Coordinates {
        Coordinates::Kept
    }

    /// How it reads statistics. With [`Reading::ByBlock`] there is nothing in [`Context::stats`].
    fn reading(&self) -> Reading {
        Reading::AtOnce
    }

    /// The pass as a change to single weights, where it is no more than that: the driver then traverses, streams and
    /// resumes it, and never calls `run`.
    fn weightwise(&self) -> Option<Weightwise<'_>> {
        None
    }
}

/// A pass over single weights and its selection, as the driver sees it.
#[derive(Debug, Clone, Copy)]
pub struct Weightwise<'a> {
    /// The change.
    pub pass: &'a dyn WeightPass,
    /// The weights it is for.
    pub select: &'a Select,
}

/// A [`WeightPass`] over a selection.
#[derive(Debug, Clone)]
pub struct Each<P> {
    pass: P,
    select: Select,
}

impl<P: WeightPass> Pass for Each<P> {
    fn name(&self) -> &str {
        self.pass.name()
    }

    fn stage(&self) -> Stage {
        self.pass.stage()
    }

    fn needs(&self) -> Needs {
        self.pass.needs()
    }

    fn settings(&self) -> Value {
        let mut settings = self.pass.settings();
        if let Value::Object(map) = &mut settings {
            map.insert("select".into(), self.select.to_string().into());
        }
        settings
    }

    fn run(&self, mut checkpoint: Checkpoint, context: &Context<'_>) -> Result<Checkpoint> {
        for name in checkpoint.names() {
            if !self.select.matches(&name, &checkpoint.info(&name)?.shape) {
                continue;
            }
            match self.pass.rewrite(&name, &checkpoint.get(&name)?, context)? {
                Rewrite::Done(weight) => checkpoint.insert(name, weight),
                Rewrite::Left { why } => context.left(&name, why),
            }
        }
        Ok(checkpoint)
    }

    fn weightwise(&self) -> Option<Weightwise<'_>> {
        Some(Weightwise { pass: &self.pass, select: &self.select })
    }
}

/// Everything that a pass may see besides the weights.
#[derive(Debug)]
pub struct Context<'a> {
    stats: Option<&'a Stats>,
    factors: Factors,
    calibration: Option<&'a Calibration>,
    /// What is gathered for [`Context::visit_stats`], and the tokens that layers saw so far.
    gathered: Option<(Needs, Mutex<BTreeMap<String, u64>>)>,
    shelf: Shelf,
    seed: u64,
    progress: ProgressRef<'a>,
    outcomes: Mutex<BTreeMap<String, Outcome>>,
    measures: Mutex<BTreeMap<String, Vec<Measure>>>,
}

struct ProgressRef<'a>(&'a dyn Progress);

impl fmt::Debug for ProgressRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}

impl<'a> Context<'a> {
    /// A context; the driver makes one per pass, tests make their own.
    #[must_use]
    pub fn new(stats: Option<&'a Stats>, seed: u64, progress: &'a dyn Progress) -> Self {
        let (progress, outcomes, measures) = (ProgressRef(progress), Mutex::default(), Mutex::default());
        let (factors, shelf) = (Factors::default(), Shelf::default());
        Self { stats, factors, calibration: None, gathered: None, shelf, seed, progress, outcomes, measures }
    }

    /// With these statistics gathered when the pass visits them.
    pub(crate) fn gathering(mut self, needs: Option<Needs>) -> Self {
        self.gathered = needs.map(|needs| (needs, Mutex::default()));
        self
    }

    /// The tokens that each layer saw on visits; none where nothing was gathered for any.
    pub(crate) fn take_gathered(&self) -> Option<BTreeMap<String, u64>> {
        let (_, seen) = self.gathered.as_ref()?;
        Some(std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// With the model's blocks and what to run them on.
    #[must_use]
    pub fn with_calibration(mut self, calibration: Option<&'a Calibration>) -> Self {
        self.calibration = calibration;
        self
    }

    /// The model's blocks and what to run them on, for passes that learn from more than statistics.
    #[must_use]
    pub fn calibration(&self) -> Option<&'a Calibration> {
        self.calibration
    }

    /// With a place for what is finished; memory without.
    pub(crate) fn with_shelf(mut self, shelf: Shelf) -> Self {
        self.shelf = shelf;
        self
    }

    /// Puts weights that are finished together, a block's say, in place of those of `checkpoint`. A run that is cancelled or
    /// killed later need not do them again: it asks [`Context::finished`] first. Where the run writes to disk the weights are
    /// written at once and read again when asked for, so that memory holds none of them.
    ///
    /// `unit` names them within the pass, in letters, digits and `-`.
    pub fn finish(
        &self,
        unit: &str,
        weights: BTreeMap<String, SharedWeight>,
        checkpoint: &mut Checkpoint,
    ) -> Result<()> {
        self.shelf.keep(unit, weights, &Finished::default(), checkpoint)
    }

    /// Takes over what an earlier, unfinished run of the same pass gave to [`Context::finish`]; false where it did not.
    pub fn finished(&self, unit: &str, checkpoint: &mut Checkpoint) -> Result<bool> {
        Ok(self.shelf.take(unit, checkpoint)?.is_some())
    }

    /// What calibration saw at the input of the layer that owns `weight`.
    #[must_use]
    pub fn stats(&self, weight: &str) -> Option<&'a InputStats> {
        self.stats.and_then(|s| s.get(weight))
    }

    /// Statistics of the model of `checkpoint`, for a pass over all of it that reads them [`Reading::ByBlock`]: `look` is given
    /// those of one block after another, or all at once where they were there before. They are not kept.
    pub fn visit_stats(
        &self,
        checkpoint: &Checkpoint,
        look: &mut dyn FnMut(&Stats) -> Result<()>,
    ) -> Result<()> {
        match (self.stats, self.calibration, &self.gathered) {
            (None, Some(calibration), Some((needs, seen))) => {
                calibration.visit(checkpoint, *needs, self.progress.0, &mut |stats| {
                    let counts = stats.iter().map(|(name, stats)| (name.to_owned(), stats.count));
                    seen.lock().unwrap_or_else(PoisonError::into_inner).extend(counts);
                    look(stats)
                })
            }
            (stats, ..) => look(stats.unwrap_or(&Stats::default())),
        }
    }

    /// The factor of the Gram matrix of a layer's inputs, made once for layers that read one input and are rewritten one after
    /// the other ([`linalg::Factor::new`](crate::linalg::Factor::new)). `None` without a Gram matrix, and where it cannot be
    /// factored.
    #[must_use]
    pub fn factor(&self, weight: &str, order: &[usize], shrinkage: Shrinkage) -> Option<Arc<Factor>> {
        let stats = self.stats?;
        let seen = stats.shared(weight)?;
        if stats.readers(seen) > 1 {
            return self.factors.get(seen, order, shrinkage);
        }
        // Nobody else wants it: it is not held while what came of it is verified.
        Factor::new(seen.gram.as_ref()?, order, shrinkage).map(Arc::new)
    }

    /// The run's seed, for passes that draw numbers.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Reports an event; an error where somebody asked to stop.
    pub fn progress(&self, event: &Event<'_>) -> Result<()> {
        match self.progress.0.on(event) {
            Flow::Continue => Ok(()),
            Flow::Cancel => Err(Error::Cancelled),
        }
    }

    /// Records that a selected weight stays as it is, and why.
    pub fn left(&self, weight: &str, why: impl Into<String>) {
        self.record(weight, Outcome::Left { why: why.into() });
    }

    /// Records that a weight was changed although its bytes happen to be the same, or was removed.
    pub fn done(&self, weight: &str) {
        self.record(weight, Outcome::Done);
    }

    /// Records that a weight is new. A pass that adds one without a word breaks a rule.
    pub fn added(&self, weight: &str) {
        self.record(weight, Outcome::Added);
    }

    /// Records what the pass found out about a weight; it stands in the weight's row of the report. The value must be
    /// finite.
    pub fn measured(&self, weight: &str, measure: Measure) {
        let mut measures = self.measures.lock().unwrap_or_else(PoisonError::into_inner);
        measures.entry(weight.to_owned()).or_default().push(measure);
    }

    fn record(&self, weight: &str, outcome: Outcome) {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).insert(weight.to_owned(), outcome);
    }

    /// The measures of a weight recorded so far, leaving none behind.
    pub(crate) fn take_measures(&self, pass: &str, weight: &str) -> Result<Vec<Measure>> {
        let mut measures = self.measures.lock().unwrap_or_else(PoisonError::into_inner);
        let measures = measures.remove(weight).unwrap_or_default();
        match measures.iter().find(|m| !m.value.is_finite()) {
            None => Ok(measures),
            Some(m) => Err(Error::RuleBroken {
                pass: pass.to_owned(),
                weight: weight.to_owned(),
                rule: format!("it measured `{}` as {}; measures are finite", m.name, m.value),
            }),
        }
    }

    /// The outcomes recorded so far, leaving none behind.
    pub(crate) fn take_outcomes(&self) -> BTreeMap<String, Outcome> {
        std::mem::take(&mut *self.outcomes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
