//! The hidden states of all batches between two blocks, or between two stages of one.

use candle_core::{DType, Device, Tensor};
use std::ops::Range;

use super::Calibration;
use crate::{Checkpoint, Hidden, Result, WeightBuilder};

/// Where a batch stands.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) hidden: Hidden,
    /// The stage of the block that comes next.
    pub(crate) stage: usize,
}

impl Standing {
    /// Before a block.
    pub(crate) fn before(hidden: Hidden) -> Self {
        Self { hidden, stage: 0 }
    }
}

/// Bytes that may stand inside a block, of all batches together; what is beyond is computed again.
const INSIDE: usize = 256 << 20;

/// One hidden state per batch, kept in the type that the calibration asks for.
#[derive(Debug, Clone)]
pub(crate) struct States {
    standing: Vec<Standing>,
    kept: DType,
    /// Bytes that stand inside the block.
    inside: usize,
}

impl States {
    /// The states before the first block.
    pub(crate) fn enter(calibration: &Calibration, checkpoint: &Checkpoint) -> Result<Self> {
        let weights = WeightBuilder::new(checkpoint, DType::F32, &Device::Cpu);
        let entrance = calibration.blocks().entrance(&weights)?;
        let kept = calibration.kept.dtype();
        let standing = calibration
            .batches()
            .iter()
            .map(|batch| Ok(Standing::before(stored(&entrance.forward(batch)?, kept)?)))
            .collect::<Result<_>>()?;
        Ok(Self { standing, kept, inside: 0 })
    }

    /// The state of the first batch before the first block.
    pub(crate) fn first(calibration: &Calibration, checkpoint: &Checkpoint) -> Result<Standing> {
        let weights = WeightBuilder::new(checkpoint, DType::F32, &Device::Cpu);
        calibration.blocks().entrance(&weights)?.forward(&calibration.batches()[0]).map(Standing::before)
    }

    pub(crate) fn len(&self) -> usize {
        self.standing.len()
    }

    /// Where a batch stands, ready to compute with.
    pub(crate) fn get(&self, batch: usize) -> Result<Standing> {
        let Standing { hidden, stage } = &self.standing[batch];
        let hidden = if self.kept == DType::F32 { hidden.clone() } else { converted(hidden, DType::F32)? };
        Ok(Standing { hidden, stage: *stage })
    }

    /// Where some batches stand, ready to compute with.
    pub(crate) fn some(&self, batches: Range<usize>) -> Result<Vec<Standing>> {
        batches.map(|batch| self.get(batch)).collect()
    }

    /// The mask of a batch.
    pub(crate) fn mask(&self, batch: usize) -> Option<&Tensor> {
        self.standing[batch].hidden.mask.as_ref()
    }

    /// Moves a batch behind the block that it stands before or in.
    pub(crate) fn pass(&mut self, batch: usize, hidden: &Hidden) -> Result<()> {
        self.set(batch, &Standing::before(hidden.clone()))
    }

    /// Moves a batch to where it can go on from, if there is room for what stands there.
    pub(crate) fn set(&mut self, batch: usize, standing: &Standing) -> Result<()> {
        let hidden = stored(&standing.hidden, self.kept)?;
        let others = self.inside - inside(&self.standing[batch].hidden);
        let all = others + inside(&hidden);
        if all == others || all <= INSIDE {
            self.standing[batch] = Standing { hidden, stage: standing.stage };
            self.inside = all;
        }
        Ok(())
    }
}

/// Bytes that stand inside a block.
fn inside(hidden: &Hidden) -> usize {
    hidden.inner.as_ref().map_or(0, |x| x.elem_count() * x.dtype().size_in_bytes())
}

/// Off the graph and in the type to keep.
fn stored(hidden: &Hidden, kept: DType) -> Result<Hidden> {
    let (x, inner) = (hidden.x.detach(), hidden.inner.as_ref().map(Tensor::detach));
    converted(&Hidden { x, inner, mask: hidden.mask.clone() }, kept)
}

/// In another type; what is no number (a network's ids before its first block) stays as it is.
fn converted(hidden: &Hidden, dtype: DType) -> Result<Hidden> {
    let convert = |x: &Tensor| if x.dtype().is_float() { x.to_dtype(dtype) } else { Ok(x.clone()) };
    let inner = hidden.inner.as_ref().map(convert).transpose()?;
    Ok(Hidden { x: convert(&hidden.x)?, inner, mask: hidden.mask.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands inside, without the memory of it.
    fn inside_of(bytes: usize) -> Standing {
        let one = Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap();
        let hidden = Hidden::new(one.clone(), None).holding(one.broadcast_as(bytes / 4).unwrap());
        Standing { hidden, stage: 1 }
    }

    #[test]
    fn what_finds_no_room_inside_a_block_stays_where_it_stood() {
        let before = Standing::before(before_hidden());
        let mut states = States { standing: vec![before; 3], kept: DType::F32, inside: 0 };
        let stages = |states: &States| states.standing.iter().map(|s| s.stage).collect::<Vec<_>>();
        for batch in 0..3 {
            states.set(batch, &inside_of(INSIDE / 2)).unwrap();
        }
        assert_eq!((stages(&states), states.inside), (vec![1, 1, 0], INSIDE));
        // Behind the block nothing stands inside any more, and another finds room.
        states.pass(0, &before_hidden()).unwrap();
        states.set(2, &inside_of(INSIDE / 2)).unwrap();
        assert_eq!((stages(&states), states.inside), (vec![0, 1, 1], INSIDE));
        states.set(1, &inside_of(INSIDE / 2 + 4)).unwrap();
        assert_eq!(states.inside, INSIDE, "no room for more in its place");
    }

    fn before_hidden() -> Hidden {
        Hidden::new(Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap(), None)
    }
}
