//! Running passes in memory: single-weight passes in parallel over weights, whole passes by their own `run`.

use rayon::prelude::*;
use std::{collections::BTreeSet, sync::Arc, time::Instant};

use super::{
    Run,
    calibrated::Prepared,
    selected,
    shelf::{Rows, Shelf},
    stream::{self, Steps},
};
use crate::{
    Checkpoint, Context, Event, Outcome, Pass, Result, Rewrite, SharedWeight, Stage, WeightInfo,
    pass::{Reading, Weightwise},
    report::{Calibrated, Origin, PassReport, Row, Stored},
    verify,
};

/// What came of running passes in memory.
pub(super) struct Ran {
    pub(super) checkpoint: Checkpoint,
    pub(super) reports: Vec<PassReport>,
    pub(super) seen: Option<Calibrated>,
}

/// Runs passes one after the other; reports each.
///
/// Statistics are gathered per leg: for a pass that sees the whole checkpoint, and for a row of single-weight passes, which
/// share them. What a pass that goes block by block has finished waits on the `shelf`.
pub(super) fn run(
    passes: &[Arc<dyn Pass>],
    checkpoint: Checkpoint,
    run: &Run<'_>,
    shelf: &Shelf,
) -> Result<Ran> {
    let mut ran = Ran { checkpoint, reports: Vec::new(), seen: run.given(passes) };
    let mut rest = passes;
    while let Some(first) = rest.first() {
        let row = rest.iter().take_while(|p| p.weightwise().is_some()).count();
        let (leg, later) = rest.split_at(row.max(1));
        rest = later;
        if first.weightwise().is_some() && run.must_gather(leg).is_some() {
            let clock = Instant::now();
            let (seen, rows) = leg_by_blocks(leg, &mut ran.checkpoint, run)?;
            Calibrated::join(&mut ran.seen, seen);
            for (pass, rows) in leg.iter().zip(rows) {
                let seconds = rows.iter().map(|r| r.seconds).sum();
                ran.reports.push(PassReport { seconds, ..report(pass.as_ref(), rows, clock) });
            }
            continue;
        }
        for pass in leg {
            let place = ran.reports.len();
            one(pass, &mut ran, run, shelf.of_pass(place))?;
        }
    }
    Ok(ran)
}

/// A pass by itself.
fn one(pass: &Arc<dyn Pass>, ran: &mut Ran, run: &Run<'_>, shelf: Shelf) -> Result<()> {
    let clock = Instant::now();
    run.context(None).progress(&Event::PassStarted { pass: pass.name() })?;
    let must = run.must_gather(std::slice::from_ref(pass));
    let (at_once, by_block) = match (pass.reading(), must) {
        (Reading::AtOnce, Some((calibration, needs))) => {
            (Some(calibration.stats(&ran.checkpoint, needs, run.progress)?), None)
        }
        (Reading::ByBlock, Some((_, needs))) => (None, Some(needs)),
        (_, None) => (None, None),
    };
    let seen = at_once.as_ref().map(|stats| Calibrated::of(Origin::Once, stats));
    Calibrated::join(&mut ran.seen, seen);
    let context = run.context(at_once.as_ref().or(run.stats)).gathering(by_block).with_shelf(shelf);
    let checkpoint = std::mem::take(&mut ran.checkpoint);
    let (after, rows) = match pass.weightwise() {
        Some(step) => each(step, checkpoint, &context)?,
        None => whole(pass.as_ref(), checkpoint, &context)?,
    };
    ran.checkpoint = after;
    ran.reports.push(report(pass.as_ref(), rows, clock));
    let seen = context.take_gathered().map(|layers| Calibrated { origin: Origin::Once, layers });
    Calibrated::join(&mut ran.seen, seen);
    Ok(())
}

/// Single-weight passes that need statistics, block by block; the rows of each.
fn leg_by_blocks(
    leg: &[Arc<dyn Pass>],
    checkpoint: &mut Checkpoint,
    run: &Run<'_>,
) -> Result<(Option<Calibrated>, Vec<Vec<Row>>)> {
    let prepared = Prepared::new(leg, std::mem::take(checkpoint), run, Shelf::Memory)?;
    let steps = Steps::new(leg, &prepared.checkpoint)?;
    let context = run.context(prepared.stats.as_ref());
    let mut rows = vec![Vec::new(); leg.len()];
    *checkpoint = prepared.checkpoint.clone();
    let waiting: Vec<String> =
        prepared.checkpoint.names().into_iter().filter(|n| steps.of(n).next().is_some()).collect();
    let done: Vec<Result<(SharedWeight, Rows)>> = waiting
        .par_iter()
        .map(|name| match prepared.ready.get(name) {
            Some(rows) => Ok((prepared.checkpoint.get(name)?, rows.clone())),
            None => stream::through(&steps, name, &prepared.checkpoint, &context),
        })
        .collect();
    for (name, done) in waiting.into_iter().zip(done) {
        let (weight, done) = done?;
        checkpoint.insert(name, weight);
        done.into_iter().for_each(|(step, row)| rows[step].push(row));
    }
    Ok((prepared.seen, rows))
}

/// The report of a pass that began at `clock`.
pub(super) fn report(pass: &dyn Pass, rows: Vec<Row>, clock: Instant) -> PassReport {
    PassReport {
        name: pass.name().to_owned(),
        stage: pass.stage(),
        settings: pass.settings(),
        rows,
        seconds: clock.elapsed().as_secs_f64(),
    }
}

fn each(
    step: Weightwise<'_>,
    mut checkpoint: Checkpoint,
    context: &Context<'_>,
) -> Result<(Checkpoint, Vec<Row>)> {
    let names: Vec<String> = selected(step.pass.name(), step.select, &checkpoint)?.into_iter().collect();
    let bytes = |name: &str| checkpoint.info(name).map_or(0, |i| i.nbytes as u64);
    context
        .progress(&Event::Started { weights: names.len(), bytes: names.iter().map(|n| bytes(n)).sum() })?;
    let results: Vec<Result<(SharedWeight, Row)>> = names
        .par_iter()
        .map(|name| {
            let done = rewrite(step, name, &checkpoint.get(name)?, context, &checkpoint)?;
            context.progress(&Event::Weight { name, bytes: bytes(name), resumed: false })?;
            Ok(done)
        })
        .collect();
    let mut rows = Vec::new();
    for (name, result) in names.into_iter().zip(results) {
        let (weight, row) = result?;
        checkpoint.insert(name, weight);
        rows.push(row);
    }
    Ok((checkpoint, rows))
}

/// One single-weight pass on one weight: rewritten, verified, measured.
pub(super) fn rewrite(
    step: Weightwise<'_>,
    name: &str,
    weight: &SharedWeight,
    context: &Context<'_>,
    checkpoint: &Checkpoint,
) -> Result<(SharedWeight, Row)> {
    let clock = Instant::now();
    let pass = step.pass.name();
    let info = WeightInfo::of(weight.as_ref());
    if verify::is_float(&info) {
        verify::finite(name, weight.as_ref())?;
    }
    let outcome = step.pass.rewrite(name, weight, context).map_err(|e| e.in_pass(pass, name))?;
    let mut row = Row {
        weight: name.to_owned(),
        outcome: Outcome::Done,
        before: Stored::from(&info),
        after: None,
        damage: None,
        measures: Vec::new(),
        seconds: 0.0,
    };
    let after = match outcome {
        Rewrite::Done(after) => {
            let stage = step.pass.stage();
            let gram = context.stats(name).and_then(|seen| seen.gram.as_ref());
            row.damage =
                verify::rewritten(pass, stage, name, weight.as_ref(), &after, checkpoint.codecs(), gram)
                    .map_err(|e| e.in_pass(pass, name))?;
            after
        }
        Rewrite::Left { why } => {
            row.outcome = Outcome::Left { why };
            Arc::clone(weight)
        }
    };
    row.after = Some(Stored::from(&WeightInfo::of(after.as_ref())));
    row.measures = context.take_measures(pass, name)?;
    row.seconds = clock.elapsed().as_secs_f64();
    Ok((after, row))
}

/// A pass that sees the whole checkpoint; what it changed is found by comparing, and verified.
fn whole(pass: &dyn Pass, before: Checkpoint, context: &Context<'_>) -> Result<(Checkpoint, Vec<Row>)> {
    let after = pass.run(before.clone(), context).map_err(|e| e.in_pass(pass.name(), "*"))?;
    let mut outcomes = context.take_outcomes();
    let mut names: BTreeSet<String> = before.names().into_iter().collect();
    names.extend(after.names());
    let places = after.addresses();
    let mut rows = Vec::new();
    for name in names {
        let said = outcomes.remove(&name);
        if said.is_none() && before.shares(&after, &name) {
            continue;
        }
        if let Some(place) = before.moved_to(&name, &places).filter(|place| *place != name) {
            rows.push(moved(pass, &name, place, &before, &after)?);
            continue;
        }
        let measures = context.take_measures(pass.name(), &name)?;
        rows.push(Row { measures, ..compare(pass, &name, &before, &after, said)? });
    }
    Ok((after, rows))
}

/// The row of a weight that a cutting pass gave another name: nothing of it changed.
fn moved(pass: &dyn Pass, name: &str, place: &str, before: &Checkpoint, after: &Checkpoint) -> Result<Row> {
    if pass.stage() != Stage::Shape {
        let rule = format!("it was renamed to `{place}`; only a pass of stage `shape` may rename weights");
        return Err(crate::Error::RuleBroken { pass: pass.name().into(), weight: name.into(), rule });
    }
    Ok(Row {
        weight: name.to_owned(),
        outcome: Outcome::Done,
        before: Stored::from(&before.info(name)?),
        after: Some(Stored::from(&after.info(place)?)),
        damage: None,
        measures: Vec::new(),
        seconds: 0.0,
    })
}

fn compare(
    pass: &dyn Pass,
    name: &str,
    before: &Checkpoint,
    after: &Checkpoint,
    said: Option<Outcome>,
) -> Result<Row> {
    let clock = Instant::now();
    let broken = |rule: &str| crate::Error::RuleBroken {
        pass: pass.name().to_owned(),
        weight: name.to_owned(),
        rule: rule.to_owned(),
    };
    if !before.contains(name) {
        return match said {
            Some(Outcome::Added) => added(pass, name, after),
            _ => Err(broken(
                "it is new; a pass may cut and rename downwards, and must say so where it adds a weight",
            )),
        };
    }
    let info = before.info(name)?;
    let mut row = Row {
        weight: name.to_owned(),
        outcome: said.unwrap_or(Outcome::Done),
        before: Stored::from(&info),
        after: None,
        damage: None,
        measures: Vec::new(),
        seconds: 0.0,
    };
    let replaced_by_another = after.moved_to(name, &before.addresses()).is_some_and(|origin| origin != name);
    if !after.contains(name) || replaced_by_another {
        if pass.stage() != Stage::Shape {
            return Err(broken("it is gone; only a pass of stage `shape` may remove weights"));
        }
        row.outcome = Outcome::Removed;
        return Ok(row);
    }
    row.after = Some(Stored::from(&after.info(name)?));
    if !before.shares(after, name) {
        let (old, new) = (before.get(name)?, after.get(name)?);
        row.damage =
            verify::rewritten(pass.name(), pass.stage(), name, old.as_ref(), &new, after.codecs(), None)
                .map_err(|e| e.in_pass(pass.name(), name))?;
    }
    row.seconds = clock.elapsed().as_secs_f64();
    Ok(row)
}

/// The row of a weight that a pass added and said so: finite, and nothing before.
fn added(pass: &dyn Pass, name: &str, after: &Checkpoint) -> Result<Row> {
    let clock = Instant::now();
    verify::finite(name, after.get(name)?.as_ref()).map_err(|e| e.in_pass(pass.name(), name))?;
    let stored = Stored::from(&after.info(name)?);
    Ok(Row {
        weight: name.to_owned(),
        outcome: Outcome::Added,
        before: Stored { bytes: 0, bits_per_weight: 0.0, ..stored.clone() },
        after: Some(stored),
        damage: None,
        measures: Vec::new(),
        seconds: clock.elapsed().as_secs_f64(),
    })
}
