//! The hidden states of all batches between two blocks.

use candle_core::{DType, Device};

use super::Calibration;
use crate::{Checkpoint, Hidden, Result, WeightBuilder};

/// One hidden state per batch, kept in the type that the calibration asks for.
#[derive(Debug, Clone)]
pub(crate) struct States {
    hidden: Vec<Hidden>,
    kept: DType,
}

impl States {
    /// The states before the first block.
    pub(crate) fn enter(calibration: &Calibration, checkpoint: &Checkpoint) -> Result<Self> {
        let weights = WeightBuilder::new(checkpoint, DType::F32, &Device::Cpu);
        let entrance = calibration.blocks().entrance(&weights)?;
        let kept = calibration.kept.dtype();
        let hidden = calibration
            .batches()
            .iter()
            .map(|batch| stored(&entrance.forward(batch)?, kept))
            .collect::<Result<_>>()?;
        Ok(Self { hidden, kept })
    }

    /// The state of the first batch before the first block.
    pub(crate) fn first(calibration: &Calibration, checkpoint: &Checkpoint) -> Result<Hidden> {
        let weights = WeightBuilder::new(checkpoint, DType::F32, &Device::Cpu);
        calibration.blocks().entrance(&weights)?.forward(&calibration.batches()[0])
    }

    pub(crate) fn len(&self) -> usize {
        self.hidden.len()
    }

    /// The state of a batch, ready to compute with.
    pub(crate) fn get(&self, batch: usize) -> Result<Hidden> {
        let hidden = &self.hidden[batch];
        let widened = self.kept != DType::F32 && hidden.x.dtype().is_float();
        Ok(if widened { hidden.with(hidden.x.to_dtype(DType::F32)?) } else { hidden.clone() })
    }

    /// Puts the state of a batch in place of the one before.
    pub(crate) fn set(&mut self, batch: usize, hidden: &Hidden) -> Result<()> {
        self.hidden[batch] = stored(hidden, self.kept)?;
        Ok(())
    }
}

/// Off the graph and in the type to keep; what is no number (a network's ids before its first block) stays as it is.
fn stored(hidden: &Hidden, kept: DType) -> Result<Hidden> {
    let x = hidden.x.detach();
    Ok(hidden.with(if x.dtype().is_float() { x.to_dtype(kept)? } else { x }))
}
