//! Single-weight passes that need to know the inputs of layers: gathering statistics and rewriting, block by block.
//!
//! ```text
//! entrance   what is outside the blocks and read before them is rewritten first
//! block i    sweep ▶ statistics of one group of layers ▶ rewrite that group ▶ sweep … ▶ states after the block
//! exit       the same for what is read after the last block: the head, and an embedding tied to it
//! ```
//!
//! A *sweep* runs all batches through one block under a tap. Where statistics are of the original model (once), one sweep
//! serves the whole block. Light statistics gathered once need no walk: they are taken at one go and the run streams as
//! ever. Neighbours: [`crate::calibrate`], `shelf.rs` for where finished weights wait.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use super::{
    Run,
    shelf::{Finished, Rows, Shelf},
    stream::{self, Steps},
};
use crate::{
    Calibration, Checkpoint, Needs, Pass, Result, SharedWeight, Stats,
    calibrate::{self, Aim, Grain, Mode, Place, Seen, States, Station, Sums, Wanted},
    report::{Calibrated, Origin},
};

/// A leg of single-weight passes made ready to stream.
pub(super) struct Prepared {
    /// The checkpoint, with what is rewritten already.
    pub(super) checkpoint: Checkpoint,
    /// Weights that are rewritten already, and what was done to them.
    pub(super) ready: BTreeMap<String, Rows>,
    /// Statistics that were gathered for the others.
    pub(super) stats: Option<Stats>,
    /// What calibration saw.
    pub(super) seen: Option<Calibrated>,
}

impl Prepared {
    /// Calibrates for `passes` if they need it and the run can.
    pub(super) fn new(
        passes: &[Arc<dyn Pass>],
        checkpoint: Checkpoint,
        run: &Run<'_>,
        shelf: Shelf,
    ) -> Result<Self> {
        let (ready, stats, seen) = (BTreeMap::new(), None, None);
        let Some((calibration, needs)) = run.must_gather(passes) else {
            return Ok(Self { checkpoint, ready, stats, seen });
        };
        let mode = calibration.mode(needs);
        if mode == Mode::Once && needs < Needs::Gram {
            let stats = calibration.stats(&checkpoint, needs, run.progress)?;
            let seen = Some(Calibrated::of(Origin::Once, &stats));
            return Ok(Self { checkpoint, ready, stats: Some(stats), seen });
        }
        Walk::new(passes, checkpoint, calibration, needs, run, shelf)?.run()
    }
}

/// A walk from block to block.
struct Walk<'a> {
    steps: Steps<'a>,
    calibration: &'a Calibration,
    run: &'a Run<'a>,
    needs: Needs,
    mode: Mode,
    shelf: Shelf,
    /// The matrices whose inputs some pass needs and that are not rewritten yet.
    pending: Wanted,
    original: Checkpoint,
    current: Checkpoint,
    ready: BTreeMap<String, Rows>,
    seen: BTreeMap<String, u64>,
}

/// Weights that are finished together.
struct Unit {
    name: String,
    /// Where they are read; none for what is read before the first block.
    place: Option<Place>,
    weights: Vec<String>,
}

/// The states of all batches: of the model that statistics are of, and of the original beside it where that is asked for.
struct Streams {
    main: States,
    beside: Option<States>,
}

/// Where the next sweep of a block begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stages {
    /// Behind the stages whose layers are all finished.
    Kept,
    /// Before the block.
    Anew,
}

/// What is being done to the weights of a unit.
#[derive(Default)]
struct Work {
    weights: BTreeMap<String, SharedWeight>,
    finished: Finished,
}

impl<'a> Walk<'a> {
    fn new(
        passes: &'a [Arc<dyn Pass>],
        checkpoint: Checkpoint,
        calibration: &'a Calibration,
        needs: Needs,
        run: &'a Run<'a>,
        shelf: Shelf,
    ) -> Result<Self> {
        let steps = Steps::new(passes, &checkpoint)?;
        let asks = |name: &str| steps.of(name).any(|(_, step)| step.pass.needs() >= Needs::InputNorms);
        let pending = calibrate::wanted(&checkpoint, asks)?;
        Ok(Self {
            steps,
            calibration,
            run,
            needs,
            mode: calibration.mode(needs),
            shelf,
            pending,
            original: checkpoint.clone(),
            current: checkpoint,
            ready: BTreeMap::new(),
            seen: BTreeMap::new(),
        })
    }

    fn run(mut self) -> Result<Prepared> {
        let units = self.units()?;
        let mut taken = 0;
        while taken < units.len() && self.take(&units[taken])? {
            taken += 1;
        }
        if taken < units.len() {
            self.walk(&units, taken)?;
        }
        let origin = match self.mode {
            Mode::Once => Origin::Once,
            Mode::Sequential => Origin::Sequential,
        };
        let seen = Some(Calibrated { origin, layers: self.seen });
        Ok(Prepared { checkpoint: self.current, ready: self.ready, stats: None, seen })
    }

    /// What is read before the blocks, each block, what is read after them.
    fn units(&self) -> Result<Vec<Unit>> {
        let blocks = self.calibration.blocks();
        let mut outside: BTreeSet<String> =
            self.original.names().into_iter().filter(|n| self.steps.of(n).next().is_some()).collect();
        let mut units = Vec::new();
        for index in 0..blocks.prefixes(&self.original)?.len() {
            let names = blocks.weights(&self.original, index)?;
            let weights = names.into_iter().filter(|n| outside.remove(n)).collect();
            units.push(Unit { name: format!("block-{index}"), place: Some(Place::Block(index)), weights });
        }
        let after = self.read_by_exit(&outside)?;
        let before = outside.difference(&after).cloned().collect();
        units.insert(0, Unit { name: "entrance".to_owned(), place: None, weights: before });
        let weights = after.into_iter().collect();
        units.push(Unit { name: "exit".to_owned(), place: Some(Place::Exit), weights });
        Ok(units)
    }

    /// Which of these weights the exit reads: found by running it once, on whatever comes out of the entrance.
    fn read_by_exit(&self, outside: &BTreeSet<String>) -> Result<BTreeSet<String>> {
        let wanted = calibrate::wanted(&self.original, |name| outside.contains(name))?;
        if wanted.is_empty() {
            return Ok(BTreeSet::new());
        }
        let blocks = self.calibration.blocks().as_ref();
        let one = States::first(self.calibration, &self.original)?;
        let exit = Station::new(blocks, Place::Exit, &self.original, &wanted)?;
        let seen = exit.run_one(&one, &Aim::Everything)?.seen;
        Ok(seen.into_iter().map(|(site, _)| site).collect())
    }

    /// Takes a unit over from an earlier run; false where it is still to be done.
    fn take(&mut self, unit: &Unit) -> Result<bool> {
        if unit.weights.is_empty() {
            return Ok(true);
        }
        let Some(finished) = self.shelf.take(&unit.name, &mut self.current)? else { return Ok(false) };
        self.note(finished);
        Ok(true)
    }

    fn note(&mut self, finished: Finished) {
        self.pending.retain(|name, _| !finished.rows.contains_key(name));
        self.ready.extend(finished.rows);
        self.seen.extend(finished.seen);
    }

    /// From the entrance to the exit; the first `taken` units are finished and only passed through.
    fn walk(&mut self, units: &[Unit], taken: usize) -> Result<()> {
        let (entrance, rest) = units.split_at(1);
        if taken == 0 {
            let mut work = Work::default();
            self.rewrite(&entrance[0].weights, None, &mut work)?;
            self.keep(&entrance[0], work)?;
        }
        let mut streams = self.enter()?;
        for (at, unit) in rest.iter().enumerate() {
            calibrate::step(self.run.progress, at, rest.len())?;
            let Some(place) = unit.place else { continue };
            if at + 1 < taken {
                self.advance(place, &mut streams, at, rest.len())?;
                continue;
            }
            let progress = (at, rest.len());
            let work = match self.mode {
                Mode::Once => self.once(place, unit, &mut streams, progress)?,
                Mode::Sequential => self.sequential(place, unit, &mut streams, progress)?,
            };
            self.keep(unit, work)?;
            if self.mode == Mode::Sequential {
                self.advance(place, &mut streams, at, rest.len())?;
            }
        }
        calibrate::step(self.run.progress, rest.len(), rest.len())
    }

    /// The model that statistics are of.
    fn watched(&self) -> &Checkpoint {
        if self.mode == Mode::Once { &self.original } else { &self.current }
    }

    fn enter(&self) -> Result<Streams> {
        let main = States::enter(self.calibration, self.watched())?;
        let beside = self.needs >= Needs::CrossGram && self.mode == Mode::Sequential;
        let beside = if beside { Some(States::enter(self.calibration, &self.original)?) } else { None };
        Ok(Streams { main, beside })
    }

    fn station(&self, place: Place, checkpoint: &Checkpoint) -> Result<Station> {
        Station::new(self.calibration.blocks().as_ref(), place, checkpoint, &self.pending)
    }

    /// All states through a block as it is now.
    fn advance(&self, place: Place, streams: &mut Streams, done: usize, total: usize) -> Result<()> {
        if place == Place::Exit {
            return Ok(());
        }
        let nothing = Aim::Whole(BTreeSet::new());
        let lanes = [(self.watched(), Some(&mut streams.main)), (&self.original, streams.beside.as_mut())];
        for (checkpoint, states) in lanes {
            let Some(states) = states else { continue };
            let station = self.station(place, checkpoint)?;
            for turn in station.turns(states.len()) {
                for (batch, ran) in turn.clone().zip(station.run(&states.some(turn)?, &nothing)?) {
                    if let Some(output) = ran.output {
                        states.pass(batch, &output)?;
                    }
                    calibrate::step(self.run.progress, done, total)?;
                }
            }
        }
        Ok(())
    }

    /// One sweep for all layers of a unit, all as they were.
    fn once(
        &mut self,
        place: Place,
        unit: &Unit,
        streams: &mut Streams,
        (done, total): (usize, usize),
    ) -> Result<Work> {
        let (station, mut sums) = (self.station(place, &self.original)?, Sums::new(self.needs));
        let mut step = || calibrate::step(self.run.progress, done, total);
        station.pass(&mut streams.main, place, &mut sums, &mut step)?;
        drop(station);
        let mut work = Work::default();
        let mut rest: BTreeSet<&String> = unit.weights.iter().collect();
        // Each input's statistics are gone when the layers that read it are done.
        for stats in sums.finish(self.calibration.least_tokens())?.by_input() {
            let names: Vec<String> =
                unit.weights.iter().filter(|n| stats.get(n).is_some()).cloned().collect();
            rest.retain(|name| stats.get(name).is_none());
            self.rewrite(&names, Some(&stats), &mut work)?;
        }
        self.rewrite(&rest.into_iter().cloned().collect::<Vec<_>>(), None, &mut work)?;
        Ok(work)
    }

    /// One sweep per group of layers, each seeing what those before it became.
    fn sequential(
        &mut self,
        place: Place,
        unit: &Unit,
        streams: &mut Streams,
        progress: (usize, usize),
    ) -> Result<Work> {
        let mut work = Work::default();
        let (asked, plain): (Vec<String>, Vec<String>) =
            unit.weights.iter().cloned().partition(|n| self.pending.contains_key(n));
        self.rewrite(&plain, None, &mut work)?;
        let groups = self.groups(place, streams)?;
        // A layer that the tap cannot watch is rewritten last, and no stage that might read it is done before.
        let watched = |name: &String| groups.iter().any(|(group, _)| group.contains(name));
        let stages = if asked.iter().all(watched) { Stages::Kept } else { Stages::Anew };
        for (group, repeats) in groups {
            let aim = if repeats { Aim::Whole(group.clone()) } else { Aim::Group(group.clone()) };
            let stats = self.sweep(place, streams, (&aim, stages), progress)?;
            self.rewrite(&Vec::from_iter(group), Some(&stats), &mut work)?;
        }
        // What the first batch did not reach (an expert that it did not choose), one group at a time.
        while asked.iter().any(|n| self.pending.contains_key(n)) {
            let Some(group) = self.late(place, streams)? else { break };
            let stats = self.sweep(place, streams, (&Aim::Whole(group.clone()), Stages::Anew), progress)?;
            self.rewrite(&Vec::from_iter(group), Some(&stats), &mut work)?;
        }
        let left: Vec<String> = asked.into_iter().filter(|n| self.pending.contains_key(n)).collect();
        self.rewrite(&left, None, &mut work)?;
        Ok(work)
    }

    /// The pending layers that the first batch reaches, in order and by shared inputs; true with those that read again.
    fn groups(&self, place: Place, streams: &Streams) -> Result<Vec<(BTreeSet<String>, bool)>> {
        let seen = self.station(place, &self.current)?.run_one(&streams.main.get(0)?, &Aim::Everything)?.seen;
        let mut sums = Sums::new(Needs::InputNorms);
        sums.add(&seen, None, None)?;
        let groups = sums.groups().into_iter().map(BTreeSet::from_iter);
        let times = |site: &str| seen.iter().filter(|(s, _)| s == site).count();
        let groups = groups.map(|g: BTreeSet<String>| {
            let repeats = g.iter().any(|site| times(site) > 1);
            (g, repeats)
        });
        Ok(match self.calibration.grain() {
            Grain::Groups => groups.collect(),
            Grain::Blocks => {
                let all: BTreeSet<String> = groups.flat_map(|(g, _)| g).collect();
                if all.is_empty() { Vec::new() } else { vec![(all, true)] }
            }
        })
    }

    /// The first pending group that any batch reaches.
    fn late(&self, place: Place, streams: &Streams) -> Result<Option<BTreeSet<String>>> {
        let station = self.station(place, &self.current)?;
        for batch in 0..streams.main.len() {
            let seen = station.run_one(&streams.main.get(batch)?, &Aim::First)?.seen;
            if !seen.is_empty() {
                return Ok(Some(seen.into_iter().map(|(site, _)| site).collect()));
            }
        }
        Ok(None)
    }

    /// All batches through a block, for the statistics of what `aim` names.
    fn sweep(
        &self,
        place: Place,
        streams: &mut Streams,
        (aim, stages): (&Aim, Stages),
        (done, total): (usize, usize),
    ) -> Result<Stats> {
        let station = self.station(place, &self.current)?;
        let mut original = match &mut streams.beside {
            Some(states) => Some((self.station(place, &self.original)?, states)),
            None => None,
        };
        let seen = |station: &Station, states: &mut States, turn: Range<usize>| -> Result<Vec<Seen>> {
            let ran = station.run(&states.some(turn.clone())?, aim)?;
            if stages == Stages::Kept {
                turn.zip(&ran).try_for_each(|(batch, ran)| states.set(batch, &ran.reached))?;
            }
            Ok(ran.into_iter().map(|ran| ran.seen).collect())
        };
        let mut sums = Sums::new(self.needs);
        for turn in station.turns(streams.main.len()) {
            let here = seen(&station, &mut streams.main, turn.clone())?;
            let mut beside = match &mut original {
                Some((station, states)) => Some(seen(station, states, turn.clone())?.into_iter()),
                None => None,
            };
            for (batch, here) in turn.zip(here) {
                let beside = beside.as_mut().and_then(Iterator::next);
                sums.add(&here, beside.as_ref(), streams.main.mask(batch))?;
                calibrate::step(self.run.progress, done, total)?;
            }
        }
        sums.finish(self.calibration.least_tokens())
    }

    /// The weights through every step that selects them; the model sees the results from here on.
    fn rewrite(&mut self, names: &[String], stats: Option<&Stats>, work: &mut Work) -> Result<()> {
        let context = self.run.context(stats);
        // One after the other: passes that need statistics share their work among threads themselves, and what they hold is
        // then held once, and shared by layers with one input.
        for name in names {
            let (weight, rows) = stream::through(&self.steps, name, &self.current, &context)?;
            self.pending.remove(name);
            self.current.insert(name.clone(), Arc::clone(&weight));
            if let Some(seen) = stats.and_then(|s| s.get(name)) {
                work.finished.seen.insert(name.clone(), seen.count);
            }
            work.weights.insert(name.clone(), weight);
            work.finished.rows.insert(name.clone(), rows);
        }
        Ok(())
    }

    fn keep(&mut self, unit: &Unit, work: Work) -> Result<()> {
        self.shelf.keep(&unit.name, work.weights, &work.finished, &mut self.current)?;
        self.note(work.finished);
        Ok(())
    }
}
