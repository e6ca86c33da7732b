//! Watching one part of a model (a block, or what comes after the last) and stopping it as soon as enough was seen.

use candle_core::{DType, Device, Tensor};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{Blocks, Checkpoint, Error, Hidden, Observer, Result, WeightBuilder};

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
}

impl Tap {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Tap {
    fn observe(&self, weight: &str, x: &Tensor) -> Result<()> {
        // What is no row of inputs (an image before a convolution) has no statistics of this kind.
        if self.wanted.get(weight).is_none_or(|inputs| x.dims().last() != Some(inputs)) {
            return Ok(());
        }
        let mut state = self.lock();
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

/// A part of a model under a tap.
pub(crate) struct Station {
    forward: Box<Forward>,
    tap: Arc<Tap>,
}

type Forward = dyn Fn(&Hidden) -> Result<Hidden> + Send + Sync;

impl fmt::Debug for Station {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tap.fmt(f)
    }
}

impl Station {
    /// Builds a part over the checkpoint's weights, in f32 on the CPU.
    pub(crate) fn new(
        blocks: &dyn Blocks,
        place: Place,
        checkpoint: &Checkpoint,
        wanted: Wanted,
    ) -> Result<Self> {
        let state = State { aim: Aim::Everything, seen: Vec::new(), stopped: false };
        let tap = Arc::new(Tap { wanted, state: Mutex::new(state) });
        let weights = WeightBuilder::new(checkpoint, DType::F32, &Device::Cpu).with_observer(tap.clone());
        let forward: Box<Forward> = match place {
            Place::Block(index) => {
                let block = blocks.block(&weights, index)?;
                Box::new(move |hidden| block.forward(hidden))
            }
            Place::Exit => {
                let exit = blocks.exit(&weights)?;
                Box::new(move |hidden| Ok(hidden.with(exit.forward(hidden)?)))
            }
        };
        Ok(Self { forward, tap })
    }

    /// Runs one batch: what was seen, and what came out unless the tap stopped it.
    pub(crate) fn run(&self, hidden: &Hidden, aim: &Aim) -> Result<(Seen, Option<Hidden>)> {
        *self.tap.lock() = State { aim: aim.clone(), seen: Vec::new(), stopped: false };
        let result = (self.forward)(hidden);
        let mut state = self.tap.lock();
        let (seen, stopped) = (std::mem::take(&mut state.seen), state.stopped);
        match result {
            Err(_) if stopped => Ok((seen, None)),
            // A part that swallows the stop has computed with what it should not have; its output is no output.
            Ok(output) => Ok((seen, (!stopped).then_some(output))),
            Err(error) => Err(error),
        }
    }
}
