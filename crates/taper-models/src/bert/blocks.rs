//! A BERT layer by layer: what [`Blocks`] asks of it.
//!
//! A stock encoder has no head; its output is the last residual stream.

use candle_core::{Device, Tensor};
use taper_core::{
    Batch, Block, Blocks, Checkpoint, Entrance, Exit, Hidden, Result, WeightBuilder,
    blocks::{no_such_block, no_such_stage},
};

use super::{
    BertConfig, added_mask, body, check_length,
    layer::{Embeddings, Layer},
    prefix_of,
};

impl Blocks for BertConfig {
    fn prefixes(&self, checkpoint: &Checkpoint) -> Result<Vec<String>> {
        let prefix = prefix_of(|name| checkpoint.contains(name));
        Ok((0..self.num_hidden_layers).map(|i| format!("{prefix}encoder.layer.{i}")).collect())
    }

    fn entrance(&self, weights: &WeightBuilder) -> Result<Box<dyn Entrance>> {
        Ok(Box::new(Tables {
            embeddings: Embeddings::new(self, &body(weights).pp("embeddings"))?,
            most: self.max_position_embeddings,
            device: weights.device().clone(),
        }))
    }

    fn block(&self, weights: &WeightBuilder, index: usize) -> Result<Box<dyn Block>> {
        if index >= self.num_hidden_layers {
            return Err(no_such_block(index, self.num_hidden_layers));
        }
        Ok(Box::new(Layer::new(self, &body(weights).pp("encoder").pp("layer").pp(index))?))
    }

    fn exit(&self, _: &WeightBuilder) -> Result<Box<dyn Exit>> {
        Ok(Box::new(Nothing))
    }
}

/// The embeddings.
struct Tables {
    embeddings: Embeddings,
    most: usize,
    device: Device,
}

impl Entrance for Tables {
    fn forward(&self, batch: &Batch) -> Result<Hidden> {
        check_length(batch.input.dims2()?.1, self.most)?;
        let x = self.embeddings.forward(&batch.input.to_device(&self.device)?)?;
        let mask = batch.mask.as_ref().map(|m| m.to_device(&self.device)).transpose()?;
        Ok(Hidden::new(x, mask))
    }
}

impl Block for Layer {
    fn forward(&self, hidden: &Hidden) -> Result<Hidden> {
        Ok(hidden.with(self.run(&hidden.x, &mask_of(hidden)?)?))
    }

    fn stages(&self) -> usize {
        4
    }

    fn stage(&self, index: usize, hidden: &Hidden) -> Result<Hidden> {
        let x = &hidden.x;
        Ok(match index {
            0 => hidden.holding(self.attend(x, &mask_of(hidden)?)?),
            1 => hidden.with(self.after_attention(x, hidden.held()?)?),
            2 => hidden.holding(self.activate(x)?),
            3 => hidden.with(self.after_mlp(x, hidden.held()?)?),
            _ => return Err(no_such_stage(index, self.stages())),
        })
    }
}

/// What is added to scores.
fn mask_of(hidden: &Hidden) -> Result<Tensor> {
    if let Some(mask) = &hidden.mask {
        return added_mask(mask);
    }
    let (batch, len, _) = hidden.x.dims3()?;
    added_mask(&Tensor::ones((batch, len), candle_core::DType::U32, hidden.x.device())?)
}

/// What stands behind the last layer.
struct Nothing;

impl Exit for Nothing {
    fn forward(&self, hidden: &Hidden) -> Result<Tensor> {
        Ok(hidden.x.clone())
    }
}
