//! Watching one part of a model (a block, or what comes after the last) and stopping it as soon as enough was seen.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    Sums,
    states::{Standing, States},
};
use crate::{Block, Blocks, Checkpoint, Error, Exit, Hidden, Observer, Result, WeightBuilder};

/// The weights whose inputs are wanted, and the length of those inputs.
pub(crate) type Wanted = BTreeMap<String, usize>;

/// Inputs by the name of the weight that read them, in the order in which they were read.
pub(crate) type Seen = Vec<(String, Tensor)>;

/// What to look for in one run.
#[derive(Debug, Clone)]
pub(crate) enum Aim {
    /// The inputs of all wanted layers, to the end.
    Everything,
    /// The first wanted layer and those that share its input; then stop.
    First,
    /// These layers; stop at the last of them.
    Group(BTreeSet<String>),
    /// These layers, to the end: they may read more than once.
    Whole(BTreeSet<String>),
}

/// A part of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Block(usize),
    Exit,
}

#[derive(Debug)]
struct Tap {
    wanted: Wanted,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    aim: Aim,
    seen: Seen,
    stopped: bool,
    /// Whether a wanted layer was read since the stage began.
    touched: bool,
}

impl State {
    fn new(aim: Aim) -> Self {
        Self { aim, seen: Vec::new(), stopped: false, touched: false }
    }
}

impl Tap {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Tap {
    fn observe(&self, weight: &str, x: &Tensor) -> Result<()> {
        let Some(inputs) = self.wanted.get(weight) else { return Ok(()) };
        let mut state = self.lock();
        state.touched = true;
        // What is no row of inputs (an image before a convolution) has no statistics of this kind.
        if x.dims().last() != Some(inputs) {
            return Ok(());
        }
        let (catch, stop) = match &state.aim {
            Aim::Everything => (true, false),
            Aim::First => match state.seen.first() {
                Some((_, first)) if first.id() != x.id() => (false, true),
                _ => (true, false),
            },
            Aim::Whole(members) => (members.contains(weight), false),
            Aim::Group(members) => {
                let others = members.iter().filter(|m| *m != weight);
                let last = others.clone().all(|m| state.seen.iter().any(|(seen, _)| seen == m));
                (members.contains(weight), members.contains(weight) && last)
            }
        };
        if catch {
            let x = x.detach();
            state.seen.push((weight.to_owned(), x));
        }
        state.stopped |= stop;
        if stop { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// Batches that run at the same time, so that what one thread does alone in one of them leaves no other idle.
const LANES: usize = 2;

/// A part of a model under taps, once for each batch that runs at the same time; all of them share its weights.
pub(crate) struct Station {
    lanes: Vec<Lane>,
}

/// The part under one tap.
struct Lane {
    part: Part,
    tap: Arc<Tap>,
}

enum Part {
    Block(Box<dyn Block>),
    Exit(Box<dyn Exit>),
}

impl Part {
    fn stages(&self) -> usize {
        match self {
            Self::Block(block) => block.stages(),
            Self::Exit(_) => 1,
        }
    }

    fn stage(&self, index: usize, hidden: &Hidden) -> Result<Hidden> {
        match self {
            Self::Block(block) => block.stage(index, hidden),
            Self::Exit(exit) => Ok(hidden.with(exit.forward(hidden)?)),
        }
    }
}

/// What one run showed.
pub(crate) struct Ran {
    pub(crate) seen: Seen,
    /// The farthest stage, short of the end, before which no wanted layer is read: where the next run may begin.
    pub(crate) reached: Standing,
    /// What came out, unless the tap stopped it.
    pub(crate) output: Option<Hidden>,
}

impl fmt::Debug for Station {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Station").field("lanes", &self.lanes.len()).finish_non_exhaustive()
    }
}

impl Station {
    /// Builds a part over the checkpoint's weights, in f32 on the CPU.
    pub(crate) fn new(
        blocks: &dyn Blocks,
        place: Place,
        checkpoint: &Checkpoint,
        wanted: &Wanted,
    ) -> Result<Self> {
        let lane = |checkpoint: &Checkpoint| Lane::new(blocks, place, checkpoint, wanted.clone());
        let lanes = match place {
            Place::Block(index) if rayon::current_num_threads() > 1 => {
                let held = held(blocks, index, checkpoint)?;
                (0..LANES).map(|_| lane(&held)).collect::<Result<_>>()?
            }
            _ => vec![lane(checkpoint)?],
        };
        Ok(Self { lanes })
    }

    /// Batches in turn, as many at once as there are lanes.
    pub(crate) fn turns(&self, batches: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let lanes = self.lanes.len();
        (0..batches).step_by(lanes).map(move |first| first..batches.min(first + lanes))
    }

    /// Runs the batches of one turn from where they stand.
    pub(crate) fn run(&self, from: &[Standing], aim: &Aim) -> Result<Vec<Ran>> {
        let ran: Vec<Result<Ran>> =
            from.par_iter().zip(&self.lanes).map(|(from, lane)| lane.run(from, aim)).collect();
        ran.into_iter().collect()
    }

    /// All batches through the part as it is, what they showed added to `sums`; behind a block they stand before the next.
    pub(crate) fn pass(
        &self,
        states: &mut States,
        place: Place,
        sums: &mut Sums,
        step: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        for turn in self.turns(states.len()) {
            for (batch, ran) in turn.clone().zip(self.run(&states.some(turn)?, &Aim::Everything)?) {
                sums.add(&ran.seen, None, states.mask(batch))?;
                if let (Some(output), Place::Block(_)) = (ran.output, place) {
                    states.pass(batch, &output)?;
                }
                step()?;
            }
        }
        Ok(())
    }

    /// Runs one batch from where it stands.
    pub(crate) fn run_one(&self, from: &Standing, aim: &Aim) -> Result<Ran> {
        self.lanes[0].run(from, aim)
    }
}

/// A checkpoint with the dense weights of a block in memory, in the type that they are computed in.
fn held(blocks: &dyn Blocks, index: usize, checkpoint: &Checkpoint) -> Result<Checkpoint> {
    let mut held = checkpoint.clone();
    for name in blocks.weights(checkpoint, index)? {
        let weight = checkpoint.get(&name)?;
        if weight.encoding().is_dense() {
            held.insert(name, Arc::new(weight.dense()?.to_dtype(DType::F32)?));
        }
    }
    Ok(held)
}

impl Lane {
    fn new(blocks: &dyn Blocks, place: Place, checkpoint: &Checkpoint, wanted: Wanted) -> Result<Self> {
        let tap = Arc::new(Tap { wanted, state: Mutex::new(State::new(Aim::Everything)) });
        let weights = WeightBuilder::new(checkpoint, DType::F32, &Device::Cpu).with_observer(tap.clone());
        let part = match place {
            Place::Block(index) => Part::Block(blocks.block(&weights, index)?),
            Place::Exit => Part::Exit(blocks.exit(&weights)?),
        };
        Ok(Self { part, tap })
    }

    /// Runs one batch from where it stands.
    fn run(&self, from: &Standing, aim: &Aim) -> Result<Ran> {
        *self.tap.lock() = State::new(aim.clone());
        let (mut now, mut reached, mut untouched) = (from.hidden.clone(), from.clone(), true);
        let stages = self.part.stages();
        for stage in from.stage..stages {
            self.tap.lock().touched = false;
            let result = self.part.stage(stage, &now);
            let mut state = self.tap.lock();
            // A part that swallows the stop has computed with what it should not have; its output is no output.
            if state.stopped {
                return Ok(Ran { seen: std::mem::take(&mut state.seen), reached, output: None });
            }
            now = result?;
            untouched &= !state.touched;
            if untouched && stage + 1 < stages {
                reached = Standing { hidden: now.clone(), stage: stage + 1 };
            }
        }
        let seen = std::mem::take(&mut self.tap.lock().seen);
        Ok(Ran { seen, reached, output: Some(now) })
    }
}
