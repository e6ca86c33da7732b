//! The hidden states that blocks are taught on: of the original model, and of what it has become so far.
//!
//! ```text
//! batches     ┌ sequence 0 ┐┌ sequence 2 ┐ …      as calibration has them, each of some sequences of one length
//!             └ sequence 1 ┘└ sequence 3 ┘
//! a step      sequences 3, 0, 5, 2 ─by length─▶ one or a few batches of their own
//! ```
//!
//! How calibration bundles its sequences changes nothing: they are picked one by one.

use candle_core::{DType, Device, Tensor};
use taper_core::{Block, Calibration, Checkpoint, Hidden, Result, WeightBuilder, kernel::Arithmetic};

/// Tokens whose inputs of the block's matrices are summed: E\[x²\] needs no more.
const WATCHED: usize = 1 << 12;

/// Both streams, batch by batch.
pub(super) struct Streams {
    dense: Vec<Hidden>,
    seen: Vec<Hidden>,
    /// The batch of each sequence, and its place in it.
    sequences: Vec<(usize, usize)>,
}

/// Some sequences of one length: what the block gets, and what it should make of them.
pub(super) struct Task {
    pub(super) input: Hidden,
    pub(super) target: Hidden,
}

impl Streams {
    /// The states before the first block; the streams are one so far.
    pub(super) fn enter(calibration: &Calibration, checkpoint: &Checkpoint) -> Result<Self> {
        let entrance = calibration.blocks().entrance(&builder(checkpoint))?;
        let dense: Vec<Hidden> =
            calibration.batches().iter().map(|b| entrance.forward(b)).collect::<Result<_>>()?;
        let mut sequences = Vec::new();
        for (batch, hidden) in dense.iter().enumerate() {
            sequences.extend((0..hidden.x.dim(0)?).map(|row| (batch, row)));
        }
        Ok(Self { seen: dense.clone(), dense, sequences })
    }

    /// How many sequences there are.
    pub(super) fn len(&self) -> usize {
        self.sequences.len()
    }

    /// The original's stream through a block; `tick` after each batch.
    pub(super) fn advance_dense(&mut self, block: &dyn Block, tick: impl Fn() -> Result<()>) -> Result<()> {
        for hidden in &mut self.dense {
            hidden.x = through(block, hidden, Arithmetic::F32)?;
            tick()?;
        }
        Ok(())
    }

    /// Shows a block that somebody watches some of the original's states.
    pub(super) fn show(&self, watched: &dyn Block) -> Result<()> {
        let mut seen = 0;
        for hidden in &self.dense {
            if seen < WATCHED {
                watched.forward(hidden)?;
            }
            seen += hidden.x.dim(0)? * hidden.x.dim(1)?;
        }
        Ok(())
    }

    /// The other stream through a block.
    pub(super) fn advance_seen(
        &mut self,
        block: &dyn Block,
        arithmetic: Arithmetic,
        tick: impl Fn() -> Result<()>,
    ) -> Result<()> {
        for hidden in &mut self.seen {
            hidden.x = through(block, hidden, arithmetic)?;
            tick()?;
        }
        Ok(())
    }

    /// Sequences as tasks; those of one length together. The target is what the dense stream has behind the block.
    pub(super) fn tasks(&self, sequences: &[usize]) -> Result<Vec<Task>> {
        let mut groups: Vec<(&[usize], Places)> = Vec::new();
        for &sequence in sequences {
            let place = self.sequences[sequence];
            let shape = &self.seen[place.0].x.dims()[1..];
            match groups.iter_mut().find(|(known, _)| *known == shape) {
                Some((_, places)) => places.push(place),
                None => groups.push((shape, vec![place])),
            }
        }
        let task = |(_, places): (&[usize], Places)| {
            Ok(Task { input: gather(&self.seen, &places)?, target: gather(&self.dense, &places)? })
        };
        groups.into_iter().map(task).collect()
    }
}

/// Batch and row of some sequences.
type Places = Vec<(usize, usize)>;

/// The state behind a block: by its own way forward where it has one, which is quicker on whole texts.
fn through(block: &dyn Block, hidden: &Hidden, arithmetic: Arithmetic) -> Result<Tensor> {
    Ok(match block.trace(hidden, arithmetic)? {
        Some(trace) => Tensor::from_slice(trace.output(), hidden.x.shape(), &Device::Cpu)?,
        None => block.forward(hidden)?.x.detach(),
    })
}

/// Some sequences of equal shape as one batch.
fn gather(states: &[Hidden], places: &[(usize, usize)]) -> Result<Hidden> {
    let rows = |part: &dyn Fn(&Hidden) -> Tensor| -> Result<Tensor> {
        let rows = places.iter().map(|&(batch, row)| part(&states[batch]).narrow(0, row, 1));
        Ok(Tensor::cat(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
    };
    let x = rows(&|hidden| hidden.x.clone())?;
    // Masks say which tokens count: a batch without one has nothing but tokens.
    let masked = places.iter().any(|&(batch, _)| states[batch].mask.is_some());
    if !masked {
        return Ok(Hidden::new(x, None));
    }
    let masks = places.iter().map(|&(batch, row)| match &states[batch].mask {
        Some(mask) => mask.narrow(0, row, 1),
        None => Tensor::ones((1, states[batch].x.dim(1)?), DType::U32, &Device::Cpu),
    });
    let mask = Tensor::cat(&masks.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
    Ok(Hidden::new(x, Some(mask)))
}

pub(super) fn builder(checkpoint: &Checkpoint) -> WeightBuilder {
    WeightBuilder::new(checkpoint, DType::F32, &Device::Cpu)
}
