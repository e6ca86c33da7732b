//! Running passes from memory-mapped shards to written shards, one weight at a time.
//!
//! Passes that see the whole checkpoint run first, in memory (they derive weights lazily, so this too is bounded); the
//! single-weight passes after the last of them stream.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Instant,
};

use super::{
    Pipeline, Run, VERSION,
    calibrated::Prepared,
    memory::{self, Ran},
    selected,
    shelf::{self, Shelf},
};
use crate::{
    Checkpoint, Context, Error, Event, Pass, Report, Result, SharedWeight, WeightInfo,
    pass::Weightwise,
    report::{Calibrated, PassReport, Row, Totals},
    store::{
        journal::{Entry, Identity},
        output::{Output, partial_path},
        write::parts_of,
    },
    verify,
};

/// How many of the passes must run in memory: all up to the last that sees the whole checkpoint.
pub(super) fn whole_passes(passes: &[Arc<dyn Pass>]) -> usize {
    passes.iter().rposition(|p| p.weightwise().is_none()).map_or(0, |last| last + 1)
}

/// The streaming passes and the names that each selects.
pub(super) struct Steps<'a>(Vec<(Weightwise<'a>, BTreeSet<String>)>);

impl<'a> Steps<'a> {
    pub(super) fn new(passes: &'a [Arc<dyn Pass>], checkpoint: &Checkpoint) -> Result<Self> {
        let mut steps = Vec::new();
        for step in passes.iter().filter_map(|p| p.weightwise()) {
            steps.push((step, selected(step.pass.name(), step.select, checkpoint)?));
        }
        Ok(Self(steps))
    }

    /// The steps that select `name`, with their place.
    pub(super) fn of(&self, name: &str) -> impl Iterator<Item = (usize, Weightwise<'a>)> {
        self.0
            .iter()
            .enumerate()
            .filter(move |(_, (_, names))| names.contains(name))
            .map(|(i, (step, _))| (i, *step))
    }
}

pub(super) fn run_to(pipeline: &Pipeline, input: Checkpoint, out: &Path, run: &Run<'_>) -> Result<Report> {
    let identity = Identity {
        version: VERSION.to_owned(),
        input: input.fingerprint().to_owned(),
        recipe: run.recipe(pipeline)?,
        shard_bytes: run.shard_bytes,
        seed: run.seed,
    };
    let (mut output, finished) = Output::open(out, &identity, run.resume)?;
    believable(&finished, pipeline, &input, out)?;
    let shelf = Shelf::Disk { dir: partial_path(out)?.join(shelf::FOLDER) };
    match compress(pipeline, &input, &mut output, finished, run, &shelf) {
        Ok((report, checkpoint)) => {
            let text = serde_json::to_string_pretty(&report).map_err(Error::other)?;
            output.finish(&checkpoint, Some(&text))?;
            run.progress.on(&Event::Finished);
            Ok(report)
        }
        // A cancelled run can be resumed; after any other error nothing stays.
        Err(error) if error.is_cancelled() => Err(error),
        Err(error) => {
            output.discard()?;
            Err(error)
        }
    }
}

/// Refuses a journal that is not of this run although its first line says so: its weights are the first ones in order of
/// names (of the input, where no pass before the streaming ones changes them), and only streaming passes have rows.
fn believable(finished: &[Entry], pipeline: &Pipeline, input: &Checkpoint, out: &Path) -> Result<()> {
    let whole = whole_passes(&pipeline.passes);
    let streamed = pipeline.passes.len() - whole;
    let rows = finished.iter().flat_map(|e| &e.rows).all(|(step, _)| *step < streamed);
    let names = finished.iter().map(|e| &e.weight.name);
    if rows
        && names.clone().is_sorted_by(|a, b| a < b)
        && (whole > 0 || names.eq(input.names().iter().take(finished.len())))
    {
        return Ok(());
    }
    Err(Error::ResumeMismatch { path: partial_path(out)?, what: "journal".to_owned() })
}

/// All passes; the weights end up in `output`, the checkpoint returned has the final config.
fn compress(
    pipeline: &Pipeline,
    input: &Checkpoint,
    output: &mut Output,
    finished: Vec<Entry>,
    run: &Run<'_>,
    shelf: &Shelf,
) -> Result<(Report, Checkpoint)> {
    let clock = Instant::now();
    let (first, streamed) = pipeline.passes.split_at(whole_passes(&pipeline.passes));
    let Ran { checkpoint, mut reports, mut seen } = memory::run(first, input.clone(), run, shelf)?;
    let prepared = Prepared::new(streamed, checkpoint, run, shelf.clone())?;
    Calibrated::join(&mut seen, run.given(streamed));
    Calibrated::join(&mut seen, prepared.seen.clone());
    let (rows, totals) = stream(streamed, &prepared, output, finished, run)?;
    shelf.clear()?;
    for (pass, rows) in streamed.iter().zip(rows) {
        let seconds = rows.iter().map(|r| r.seconds).sum();
        reports.push(PassReport { seconds, ..memory::report(pass.as_ref(), rows, clock) });
    }
    let left: Vec<String> = reports.iter().flat_map(|r| &r.rows).filter_map(super::left).collect();
    let selected: usize = reports.iter().map(|r| r.rows.len()).sum();
    Pipeline::check_changed(selected > left.len(), &left)?;
    Ok((pipeline.report(input, reports, seen, totals, clock)?, prepared.checkpoint))
}

/// Streams every weight through the passes that select it into `output`; returns the rows of each pass.
fn stream(
    passes: &[Arc<dyn Pass>],
    prepared: &Prepared,
    output: &mut Output,
    finished: Vec<Entry>,
    run: &Run<'_>,
) -> Result<(Vec<Vec<Row>>, Totals)> {
    let checkpoint = &prepared.checkpoint;
    let steps = Steps::new(passes, checkpoint)?;
    let context = run.context(prepared.stats.as_ref().or(run.stats));
    let input = checkpoint.totals()?;
    context.progress(&Event::Started { weights: input.weights, bytes: input.bytes })?;
    let mut finished: BTreeMap<String, Entry> =
        finished.into_iter().map(|e| (e.weight.name.clone(), e)).collect();
    let mut rows = vec![Vec::new(); passes.len()];
    let mut totals = Totals::default();
    for name in checkpoint.names() {
        let before = checkpoint.info(&name)?;
        let resumed = finished.remove(&name);
        let was_resumed = resumed.is_some();
        let done = match resumed {
            Some(entry) => {
                totals.add(&WeightInfo {
                    nbytes: entry.weight.nbytes() as usize,
                    shape: entry.weight.shape,
                    encoding: entry.weight.encoding,
                });
                entry.rows
            }
            None => {
                let (weight, done) = match prepared.ready.get(&name) {
                    Some(rows) => (checkpoint.get(&name)?, rows.clone()),
                    None => through(&steps, &name, checkpoint, &context)?,
                };
                totals.add(&WeightInfo::of(weight.as_ref()));
                output.add(&name, &parts_of(&name, weight.as_ref())?, checkpoint, done.clone())?;
                done
            }
        };
        for (step, row) in done {
            rows[step].push(row);
        }
        let event = Event::Weight { name: &name, bytes: before.nbytes as u64, resumed: was_resumed };
        context.progress(&event)?;
    }
    Ok((rows, totals))
}

/// One weight through every step that selects it.
pub(super) fn through(
    steps: &Steps<'_>,
    name: &str,
    checkpoint: &Checkpoint,
    context: &Context<'_>,
) -> Result<(SharedWeight, Vec<(usize, Row)>)> {
    let mut weight = checkpoint.get(name)?;
    let mut rows = Vec::new();
    for (place, step) in steps.of(name) {
        let (next, row) = memory::rewrite(step, name, &weight, context, checkpoint)?;
        weight = next;
        rows.push((place, row));
    }
    if rows.is_empty() && verify::is_float(&WeightInfo::of(weight.as_ref())) {
        verify::finite(name, weight.as_ref())?;
    }
    Ok((weight, rows))
}
