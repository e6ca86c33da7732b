//! Watching the inputs of layers while a model runs.
//!
//! An [`Observer`] is shown every input of every layer that was built with it. [`Recorder`] turns inputs into
//! [`Stats`]. Layers that read the same tensor (q, k and v; gate and up) share one accumulator: candle gives a tensor
//! one id however often it is cloned, so an input is counted once, whoever shows it.
//!
//! One recorder may watch a model that several threads run at once, as an engine does that serves requests: an id names
//! one tensor of one request, and the last [`RECENT`] ids of each group are remembered, so that requests may interleave.
//! Each input is then counted once and whole; counts, minima and maxima do not depend on the order of requests, the last
//! bits of the sums do. Where they must not, each thread has a recorder of its own, and [`Stats::merged`] adds up what they
//! saw in a fixed order.

use candle_core::{DType, Tensor, TensorId};
use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    Architecture, Checkpoint, Error, Needs, Result, WeightBuilder,
    stats::{Accumulator, Stats},
};

/// Is shown the inputs of layers.
pub trait Observer: Send + Sync + fmt::Debug {
    /// The layer that owns `weight` is about to read `x`.
    fn observe(&self, weight: &str, x: &Tensor) -> Result<()>;
}

/// Gathers [`Stats`].
#[derive(Debug)]
pub struct Recorder {
    needs: Needs,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Which group a layer's input belongs to.
    sites: BTreeMap<String, usize>,
    groups: Vec<Group>,
}

/// Inputs of a group that are remembered, and so the most requests that may be between two layers which share an input.
pub const RECENT: usize = 256;

#[derive(Debug)]
struct Group {
    leader: String,
    /// The newest at the end.
    recent: VecDeque<TensorId>,
    accumulator: Accumulator,
}

impl Group {
    fn knows(&self, id: TensorId) -> bool {
        self.recent.iter().rev().any(|&known| known == id)
    }

    fn remember(&mut self, id: TensorId) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(id);
    }
}

impl Recorder {
    /// A recorder of what a pass needs.
    #[must_use]
    pub fn new(needs: Needs) -> Arc<Self> {
        Arc::new(Self { needs, state: Mutex::default() })
    }

    /// What was seen so far. Errors where nothing was.
    pub fn stats(&self) -> Result<Stats> {
        let state = self.lock();
        if state.sites.is_empty() {
            return Err(Error::Stats {
                site: "*".into(),
                message: "no layer was observed; build the model with this recorder and run it".into(),
            });
        }
        let finished = state
            .groups
            .iter()
            .map(|g| g.accumulator.finish(&g.leader).map(Arc::new))
            .collect::<Result<Vec<_>>>()?;
        Ok(state.sites.iter().map(|(site, &group)| (site.clone(), Arc::clone(&finished[group]))).collect())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Recorder {
    fn observe(&self, weight: &str, x: &Tensor) -> Result<()> {
        let id = x.id();
        let mut state = self.lock();
        let group = match state.sites.get(weight) {
            Some(&group) => group,
            None => match state.groups.iter().position(|g| g.knows(id)) {
                Some(shared) => {
                    state.sites.insert(weight.to_owned(), shared);
                    return Ok(());
                }
                None => {
                    let group = state.groups.len();
                    let accumulator = Accumulator::new(x.dims().last().copied().unwrap_or(0), self.needs);
                    let recent = VecDeque::from([id]);
                    state.groups.push(Group { leader: weight.to_owned(), recent, accumulator });
                    state.sites.insert(weight.to_owned(), group);
                    let rows = rows_of(x)?;
                    return state.groups[group].accumulator.add(weight, &rows);
                }
            },
        };
        let group = &mut state.groups[group];
        if group.knows(id) {
            return Ok(()); // another layer has shown it already
        }
        if group.leader != weight {
            return Err(Error::Stats {
                site: weight.to_owned(),
                message: format!(
                    "it shared its input with `{}` at first and does not now; record it with a recorder of its own",
                    group.leader
                ),
            });
        }
        let rows = rows_of(x)?;
        group.accumulator.add(weight, &rows)?;
        group.remember(id);
        Ok(())
    }
}

/// The inputs as rows of f32, off the graph: an observer must not keep a training graph alive.
fn rows_of(x: &Tensor) -> Result<Vec<f32>> {
    Ok(x.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?)
}

/// Statistics of a checkpoint's model under whatever `feed` runs through it.
///
/// Builds the model with a recorder attached and hands it to `feed` once.
pub fn calibrate<A: Architecture>(
    architecture: &A,
    weights: &WeightBuilder,
    needs: Needs,
    feed: impl FnOnce(&A::Model) -> Result<()>,
) -> Result<Stats> {
    let recorder = Recorder::new(needs);
    let model = architecture.build(&weights.clone().with_observer(recorder.clone()))?;
    feed(&model)?;
    recorder.stats()
}

/// [`calibrate`] at the root of a checkpoint, in f32 on the CPU.
pub fn calibrate_checkpoint<A: Architecture>(
    architecture: &A,
    checkpoint: &Checkpoint,
    needs: Needs,
    feed: impl FnOnce(&A::Model) -> Result<()>,
) -> Result<Stats> {
    let weights = WeightBuilder::new(checkpoint, DType::F32, &candle_core::Device::Cpu);
    calibrate(architecture, &weights, needs, feed)
}
