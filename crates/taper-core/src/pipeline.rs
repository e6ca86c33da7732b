//! Passes in order, and the driver that runs them.
//!
//! The driver owns selection, order, traversal, verification, the naming of whoever is guilty, timing, progress and
//! cancellation. [`Pipeline::run`] gives a checkpoint in memory; [`Pipeline::run_to`] writes a model directory, one
//! weight at a time where the passes allow it; [`Pipeline::predict`] tells the size without writing.

mod calibrated;
mod memory;
mod predict;
pub(crate) mod shelf;
mod stream;

pub use predict::Prediction;

use serde_json::{Value, json};
use std::{collections::BTreeSet, fmt, path::Path, sync::Arc, time::Instant};

use crate::{
    Calibration, Checkpoint, Context, Coordinates, Error, InputStats, Needs, Outcome, Pass, Progress, Report,
    Result, Select, Silent, Stats,
    calibrate::Mode,
    report::{Calibrated, PassReport, Totals},
    store::{DEFAULT_SHARD_BYTES, output::Resume},
    verify,
};

use shelf::Shelf;

/// The version that reports and journals carry.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How to run a pipeline, apart from the passes.
pub struct Run<'a> {
    stats: Option<&'a Stats>,
    calibration: Option<&'a Calibration>,
    progress: &'a dyn Progress,
    seed: u64,
    resume: Resume,
    shard_bytes: u64,
}

impl Default for Run<'_> {
    fn default() -> Self {
        Self {
            stats: None,
            calibration: None,
            progress: &Silent,
            seed: 0,
            resume: Resume::Fresh,
            shard_bytes: DEFAULT_SHARD_BYTES,
        }
    }
}

impl fmt::Debug for Run<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run")
            .field("stats", &self.stats.is_some())
            .field("calibration", &self.calibration)
            .field("seed", &self.seed)
            .field("resume", &self.resume)
            .field("shard_bytes", &self.shard_bytes)
            .finish_non_exhaustive()
    }
}

impl<'a> Run<'a> {
    /// No statistics, no progress, seed 0, no resuming, shards of 4 GB.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With what calibration saw.
    #[must_use]
    pub fn with_stats(mut self, stats: &'a Stats) -> Self {
        self.stats = Some(stats);
        self
    }

    /// With a model's blocks and batches to run them on, so that passes get the statistics that they need.
    ///
    /// Statistics are gathered when a pass asks for them, from the model as it is then. Where some are given too
    /// ([`Run::with_stats`]), passes see those.
    #[must_use]
    pub fn with_calibration(mut self, calibration: &'a Calibration) -> Self {
        self.calibration = Some(calibration);
        self
    }

    /// What a pass sees, with these statistics.
    fn context<'s>(&'s self, stats: Option<&'s Stats>) -> Context<'s> {
        Context::new(stats, self.seed, self.progress).with_calibration(self.calibration)
    }

    /// What must be gathered for these passes; none where nothing is needed or statistics are given.
    fn must_gather(&self, passes: &[Arc<dyn Pass>]) -> Option<(&'a Calibration, Needs)> {
        let needs = passes.iter().map(|p| p.needs()).max().filter(|n| *n >= Needs::InputNorms)?;
        Some((self.calibration.filter(|_| self.stats.is_none())?, needs))
    }

    /// What calibration saw, where its statistics are used as given.
    fn given(&self, passes: &[Arc<dyn Pass>]) -> Option<Calibrated> {
        let used = passes.iter().any(|p| p.needs() >= Needs::InputNorms);
        self.stats.filter(|_| used).map(|stats| Calibrated::of(crate::report::Origin::Given, stats))
    }

    /// Everything besides passes and input that decides the output.
    fn recipe(&self, pipeline: &Pipeline) -> Result<Value> {
        let mut recipe = pipeline.recipe();
        if pipeline.passes.iter().all(|p| p.needs() == Needs::Nothing) {
            return Ok(recipe);
        }
        if let Some(calibration) = self.calibration {
            recipe["calibration"] = calibration.identity()?;
        }
        if let Some(stats) = self.stats {
            let mut sum = crc32fast::Hasher::new();
            for (name, seen) in stats.iter() {
                sum.update(name.as_bytes());
                sum.update(&seen.count.to_le_bytes());
                sum.update(bytemuck::cast_slice(&seen.sum_squares));
            }
            recipe["stats"] = sum.finalize().into();
        }
        Ok(recipe)
    }

    /// Reporting to, and cancelled by, `progress`.
    #[must_use]
    pub fn with_progress(mut self, progress: &'a dyn Progress) -> Self {
        self.progress = progress;
        self
    }

    /// With a seed for passes that draw numbers.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Starting afresh or continuing an unfinished run ([`Pipeline::run_to`] only).
    #[must_use]
    pub fn with_resume(mut self, resume: Resume) -> Self {
        self.resume = resume;
        self
    }

    /// With shards of at most this many bytes ([`Pipeline::run_to`] only).
    #[must_use]
    pub fn with_shard_bytes(mut self, bytes: u64) -> Self {
        self.shard_bytes = bytes.max(1);
        self
    }
}

/// Passes in order.
#[derive(Debug, Clone, Default)]
pub struct Pipeline {
    passes: Vec<Arc<dyn Pass>>,
    coverage_floor: f64,
}

impl Pipeline {
    /// No passes yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a pass at the end.
    #[must_use]
    pub fn then(mut self, pass: impl Pass + 'static) -> Self {
        self.passes.push(Arc::new(pass));
        self
    }

    /// Adds a pass that is already shared.
    #[must_use]
    pub fn then_shared(mut self, pass: Arc<dyn Pass>) -> Self {
        self.passes.push(pass);
        self
    }

    /// Makes it an error to compress less than this share (0 to 1) of the matrices' bytes.
    #[must_use]
    pub fn with_coverage_floor(mut self, floor: f64) -> Self {
        self.coverage_floor = floor;
        self
    }

    /// The passes.
    #[must_use]
    pub fn passes(&self) -> &[Arc<dyn Pass>] {
        &self.passes
    }

    /// Passes and options as data; part of a run's identity.
    #[must_use]
    pub fn recipe(&self) -> Value {
        let passes: Vec<Value> =
            self.passes.iter().map(|p| json!({ "pass": p.name(), "settings": p.settings() })).collect();
        json!({ "passes": passes })
    }

    /// Checks what can be checked before any work: that there are passes, their order, and their needs.
    pub fn check(&self, run: &Run<'_>) -> Result<()> {
        self.check_order()?;
        Self::check_needs(&self.passes, run)?;
        // Calibration is repeated where it has to be.
        if run.stats.is_some() { self.check_coordinates() } else { Ok(()) }
    }

    fn check_order(&self) -> Result<()> {
        if self.passes.is_empty() {
            return Err(Error::EmptyPipeline);
        }
        for pair in self.passes.windows(2) {
            if pair[1].stage() < pair[0].stage() {
                return Err(Error::OutOfOrder {
                    first: pair[0].name().to_owned(),
                    first_stage: pair[0].stage(),
                    second: pair[1].name().to_owned(),
                    second_stage: pair[1].stage(),
                });
            }
        }
        Ok(())
    }

    /// Statistics are of the coordinates in which they were gathered.
    fn check_coordinates(&self) -> Result<()> {
        let changer = self.passes.iter().position(|p| p.coordinates() == Coordinates::Changed);
        let Some((changer, rest)) = changer.map(|at| (&self.passes[at], &self.passes[at + 1..])) else {
            return Ok(());
        };
        match rest.iter().find(|p| p.needs() != Needs::Nothing) {
            Some(late) => Err(Error::StaleStats {
                changer: changer.name().to_owned(),
                pass: late.name().to_owned(),
                needs: late.needs(),
            }),
            None => Ok(()),
        }
    }

    /// Errors where a pass needs what the run does not have.
    fn check_needs(passes: &[Arc<dyn Pass>], run: &Run<'_>) -> Result<()> {
        let given = |has: &dyn Fn(&InputStats) -> bool| {
            run.stats.is_some_and(|stats| stats.iter().all(|(_, seen)| has(seen)))
        };
        let fulfilled = |needs| match needs {
            Needs::Nothing => true,
            Needs::Batches => run.calibration.is_some(),
            // Only where layers see what those before them became there is an original beside them.
            Needs::CrossGram if run.stats.is_none() => {
                run.calibration.is_some_and(|calibration| calibration.mode(needs) == Mode::Sequential)
            }
            _ if run.stats.is_none() => run.calibration.is_some(),
            Needs::InputNorms => true,
            Needs::Gram => given(&|seen| seen.gram.is_some()),
            Needs::CrossGram => given(&|seen| seen.gram.is_some() && seen.cross.is_some()),
        };
        match passes.iter().find(|p| !fulfilled(p.needs())) {
            Some(pass) => Err(Error::NeedsStats { pass: pass.name().to_owned(), needs: pass.needs() }),
            None => Ok(()),
        }
    }

    /// Runs all passes in memory.
    pub fn run(&self, checkpoint: Checkpoint, run: &Run<'_>) -> Result<(Checkpoint, Report)> {
        self.check(run)?;
        let clock = Instant::now();
        let input = checkpoint.clone();
        let ran = memory::run(&self.passes, checkpoint, run, &Shelf::Memory)?;
        let (checkpoint, output) = (ran.checkpoint, ran.reports);
        let report = self.report(&input, output, ran.seen, checkpoint.totals()?, clock)?;
        Ok((checkpoint, report))
    }

    /// Runs all passes and writes the result to the directory `out`, which appears whole or not at all.
    ///
    /// Trailing passes over single weights stream: one weight at a time, journaled, with peak memory of the order of
    /// the largest weight. A cancelled or killed run leaves `OUT.partial`, to be continued with
    /// [`Run::with_resume`]; any other error removes it.
    pub fn run_to(&self, checkpoint: Checkpoint, out: impl AsRef<Path>, run: &Run<'_>) -> Result<Report> {
        self.check(run)?;
        stream::run_to(self, checkpoint, out.as_ref(), run)
    }

    /// What [`Pipeline::run_to`] would write: the very bytes of every file, without writing or (where the encoding's
    /// size follows from shapes) reading a value. Errors where it would change nothing or less than the coverage floor.
    pub fn predict(&self, checkpoint: Checkpoint, run: &Run<'_>) -> Result<Prediction> {
        self.check_order()?;
        predict::predict(self, checkpoint, run)
    }

    fn report(
        &self,
        input: &Checkpoint,
        passes: Vec<PassReport>,
        calibration: Option<Calibrated>,
        output: Totals,
        clock: Instant,
    ) -> Result<Report> {
        let rows = || passes.iter().flat_map(|p| &p.rows);
        let changed = rows().filter(|r| !matches!(r.outcome, Outcome::Left { .. }));
        let covered: BTreeSet<&str> = changed.map(|r| r.weight.as_str()).collect();
        let left: Vec<String> = rows().filter_map(left).take(MOST_NAMED).collect();
        let (covered_bytes, eligible_bytes) = self.coverage(input, &covered, &left)?;
        Ok(Report {
            version: VERSION.to_owned(),
            passes,
            input: input.totals()?,
            output,
            calibration,
            covered_bytes,
            eligible_bytes,
            seconds: clock.elapsed().as_secs_f64(),
        })
    }

    /// Errors where all that was selected stays as it is: a directory that repeats its input is nobody's intent.
    fn check_changed(changed: bool, left: &[String]) -> Result<()> {
        if changed || left.is_empty() {
            return Ok(());
        }
        Err(Error::NothingChanged { left: left[..left.len().min(MOST_NAMED)].join("; ") })
    }

    /// Bytes of the matrices that were changed, and of all. Errors where that is less than the floor; `left` says what was
    /// selected and stays.
    fn coverage(&self, input: &Checkpoint, covered: &BTreeSet<&str>, left: &[String]) -> Result<(u64, u64)> {
        let (mut covered_bytes, mut eligible_bytes) = (0, 0);
        for name in input.names() {
            let info = input.info(&name)?;
            if verify::is_eligible(&info) {
                eligible_bytes += info.nbytes as u64;
                if covered.contains(name.as_str()) {
                    covered_bytes += info.nbytes as u64;
                }
            }
        }
        let reached = crate::report::share(covered_bytes, eligible_bytes);
        if reached < self.coverage_floor {
            let others = || "other matrices were not selected".to_owned();
            return Err(Error::CoverageTooLow {
                reached: 100.0 * reached,
                floor: 100.0 * self.coverage_floor,
                left: if left.is_empty() { others() } else { left.join("; ") },
            });
        }
        Ok((covered_bytes, eligible_bytes))
    }
}

/// Weights that an error names, of those that were left.
const MOST_NAMED: usize = 5;

/// A weight that was left, and why.
fn left(row: &crate::report::Row) -> Option<String> {
    match &row.outcome {
        Outcome::Left { why } => Some(format!("`{}`: {why}", row.weight)),
        _ => None,
    }
}

/// The names that a pass selects. Errors where there are none, and where an exclusion matches nothing.
fn selected(pass: &str, select: &Select, checkpoint: &Checkpoint) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for name in checkpoint.names() {
        if select.matches(&name, &checkpoint.info(&name)?.shape) {
            names.insert(name);
        }
    }
    let all = checkpoint.names();
    let examples: Vec<String> = all.iter().take(3).map(|n| format!("`{n}`")).collect();
    if let Some(pattern) = select.idle_exclusions(&all).next() {
        return Err(Error::NothingExcluded {
            pass: pass.to_owned(),
            pattern: pattern.to_owned(),
            weights: all.len(),
            examples: examples.join(", "),
        });
    }
    if names.is_empty() {
        return Err(Error::NothingSelected {
            pass: pass.to_owned(),
            select: select.to_string(),
            weights: all.len(),
            examples: examples.join(", "),
        });
    }
    Ok(names)
}
