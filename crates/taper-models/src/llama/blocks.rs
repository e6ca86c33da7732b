//! A Llama layer by layer: what [`Blocks`] asks of it.
//!
//! Positions and masks follow from the length of the residual stream, so that a layer makes its own. Padding goes behind
//! the tokens, where no token sees it.

use candle_core::{DType, Device, Tensor};
use taper_core::{
    Batch, Block, Blocks, Checkpoint, Entrance, Exit, Hidden, Result, Trace, WeightBuilder,
    blocks::{Output, no_such_block, no_such_stage},
    kernel::Arithmetic,
    nn::{Embedding, Linear, RmsNorm, embedding, rms_norm},
};

use super::{LlamaConfig, Positions, head, layer::Layer, lookup, trace::LayerTrace};

impl Blocks for LlamaConfig {
    fn prefixes(&self, _: &Checkpoint) -> Result<Vec<String>> {
        Ok((0..self.layers.len()).map(|i| format!("model.layers.{i}")).collect())
    }

    fn entrance(&self, weights: &WeightBuilder) -> Result<Box<dyn Entrance>> {
        Ok(Box::new(Table {
            rows: embedding(self.vocab_size, self.hidden_size, &weights.pp("model").pp("embed_tokens"))?,
            device: weights.device().clone(),
        }))
    }

    fn block(&self, weights: &WeightBuilder, index: usize) -> Result<Box<dyn Block>> {
        let kind = *self.layers.get(index).ok_or_else(|| no_such_block(index, self.layers.len()))?;
        let inside = weights.pp("model").pp("layers").pp(index);
        Ok(Box::new(OneLayer {
            layer: Layer::new(self, kind, &inside)?,
            positions: Positions::new(self, weights.device()),
            prefix: inside.full_name(""),
        }))
    }

    fn exit(&self, weights: &WeightBuilder) -> Result<Box<dyn Exit>> {
        let body = weights.pp("model");
        Ok(Box::new(NormAndHead {
            norm: rms_norm(self.hidden_size, self.rms_norm_eps, &body.pp("norm"))?,
            head: head(self, None, weights)?,
        }))
    }
}

/// The embedding.
struct Table {
    rows: Embedding,
    device: Device,
}

impl Entrance for Table {
    fn forward(&self, batch: &Batch) -> Result<Hidden> {
        let x = lookup(&self.rows, &batch.input, &self.device)?;
        Ok(Hidden::new(x, batch.mask.clone()))
    }
}

/// A layer with what it needs to know of positions.
struct OneLayer {
    layer: Layer,
    positions: Positions,
    /// What the names of its weights begin with, the dot included.
    prefix: String,
}

impl Block for OneLayer {
    fn forward(&self, hidden: &Hidden) -> Result<Hidden> {
        Ok(hidden.with(self.layer.forward(&hidden.x, &self.positions.stretch(&hidden.x, 0)?, None)?))
    }

    fn stages(&self) -> usize {
        4
    }

    fn stage(&self, index: usize, hidden: &Hidden) -> Result<Hidden> {
        let (layer, x) = (&self.layer, &hidden.x);
        Ok(match index {
            0 => hidden.holding(layer.attend(x, &self.positions.stretch(x, 0)?, None)?),
            1 => hidden.with(layer.after_attention(x, hidden.held()?)?),
            2 => hidden.holding(layer.gate(x)?),
            3 => hidden.with(layer.after_mlp(x, hidden.held()?)?),
            _ => return Err(no_such_stage(index, self.stages())),
        })
    }

    fn trace(&self, hidden: &Hidden, arithmetic: Arithmetic) -> Result<Option<Box<dyn Trace + '_>>> {
        let stretch = self.positions.stretch(&hidden.x, 0)?;
        let trace = LayerTrace::forward(&self.layer, &self.prefix, &hidden.x, stretch, arithmetic)?;
        Ok(trace.map(|trace| Box::new(trace) as _))
    }
}

/// The last norm and the head.
struct NormAndHead {
    norm: RmsNorm,
    head: Linear,
}

impl Exit for NormAndHead {
    fn forward(&self, hidden: &Hidden) -> Result<Tensor> {
        Ok(self.head.forward(&self.norm.forward(&hidden.x)?)?.to_dtype(DType::F32)?)
    }

    fn output(&self) -> Output {
        Output::Logits
    }
}
