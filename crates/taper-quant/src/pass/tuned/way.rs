//! The gradients of a block's matrices: by the block's own way back, or by candle's.
//!
//! ```text
//! r = ŷ − y, 0 at padding         ∂ Σ rᵀ M r / ∂ŵ = 2 · (∂ŷ/∂ŵ)ᵀ M r         signs do not mind the 2
//! ```
//!
//! Neighbours: [`super::block`] takes the steps, [`taper_core::Trace`] is the way back.

use candle_core::{DType, Tensor, Var};
use rayon::prelude::*;
use std::{borrow::Cow, sync::Arc};
use taper_core::{Block, Blocks, Checkpoint, Gradients, Hidden, Result, kernel::Arithmetic};

use super::{
    metric::Metric,
    streams::{Task, builder},
};
use crate::Error;

/// Values that a task has at least.
const TASK: usize = 1 << 14;

/// A block as it is at some step.
pub(super) struct Way<'a> {
    blocks: &'a dyn Blocks,
    index: usize,
    taught: Checkpoint,
    block: Box<dyn Block>,
}

impl<'a> Way<'a> {
    /// Block `index` over the weights of `taught`.
    pub(super) fn new(blocks: &'a dyn Blocks, index: usize, taught: Checkpoint) -> Result<Self> {
        let block = blocks.block(&builder(&taught), index)?;
        Ok(Self { blocks, index, taught, block })
    }

    /// Adds the gradients, from some sequences, of the matrices that `sums` names.
    pub(super) fn add_gradients(
        &self,
        task: &Task,
        metric: Option<&Metric>,
        arithmetic: Arithmetic,
        sums: &mut Gradients,
    ) -> Result<()> {
        match self.block.trace(&task.input, arithmetic)? {
            Some(trace) => {
                let residual = residual(trace.output(), &task.target)?;
                trace.back(&pulled(&residual, metric), sums)
            }
            None => self.by_candle(task, metric, sums),
        }
    }

    fn by_candle(&self, task: &Task, metric: Option<&Metric>, sums: &mut Gradients) -> Result<()> {
        let (mut learner, mut vars) = (self.taught.clone(), Vec::with_capacity(sums.len()));
        for name in sums.keys() {
            let var = Var::from_tensor(&self.taught.get(name)?.dense()?)?;
            learner.insert(name.clone(), Arc::new(var.as_tensor().clone()));
            vars.push(var);
        }
        let y = self.blocks.block(&builder(&learner), self.index)?.forward(&task.input)?.x;
        let residual = residual(&values(&y)?, &task.target)?;
        let pulled = Tensor::from_slice(&pulled(&residual, metric), y.shape(), y.device())?;
        // Σ y · r has the gradient r with respect to y.
        let grads = (y * pulled)?.sum_all()?.backward()?;
        for ((name, sum), var) in sums.iter_mut().zip(vars) {
            let Some(grad) = grads.get(&var) else {
                return Err(Error::NoGradient { weight: name.clone() }.into());
            };
            sum.iter_mut().zip(values(grad)?).for_each(|(sum, grad)| *sum += grad);
        }
        Ok(())
    }
}

/// ŷ − y, row-major, 0 at padding.
pub(super) fn residual(y: &[f32], target: &Hidden) -> Result<Vec<f32>> {
    let mut residual = values(&target.x)?;
    residual.par_iter_mut().with_min_len(TASK).zip(y).for_each(|(t, y)| *t = y - *t);
    if let Some(mask) = &target.mask {
        let mask: Vec<u32> = mask.to_dtype(DType::U32)?.flatten_all()?.to_vec1()?;
        let width = (residual.len() / mask.len().max(1)).max(1);
        let padding = residual.chunks_exact_mut(width).zip(&mask).filter(|(_, mask)| **mask == 0);
        padding.for_each(|(row, _)| row.fill(0.0));
    }
    Ok(residual)
}

/// M r.
pub(super) fn pulled<'a>(residual: &'a [f32], metric: Option<&Metric>) -> Cow<'a, [f32]> {
    metric.map_or(Cow::Borrowed(residual), |metric| Cow::Owned(metric.pull(residual)))
}

/// The values of a tensor, row-major.
pub(super) fn values(x: &Tensor) -> Result<Vec<f32>> {
    Ok(x.flatten_all()?.to_vec1()?)
}
