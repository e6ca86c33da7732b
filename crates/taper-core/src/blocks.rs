//! A model as a chain of blocks, so that it can be run one block at a time.
//!
//! ```text
//! batch ─entrance─▶ hidden ─block 0─▶ hidden ─block 1─▶ … ─exit─▶ output
//!                   (x, mask)
//! ```
//!
//! Running all batches through one block before the next is built costs what the whole model costs and holds one block's
//! weights at a time. Calibration walks a model so, and so do passes that learn a block's weights: every part is
//! differentiable as soon as its weights or its input are tracked. Block by block and as a whole, a model computes the same
//! bits.
//!
//! An [`Architecture`](crate::Architecture) that is a chain implements [`Blocks`] too. The trait names no model type, so
//! that passes can hold any architecture as `Arc<dyn Blocks>` without knowing it.

use candle_core::Tensor;

use crate::{Checkpoint, Error, Result, WeightBuilder};

/// What a model reads at once.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Token ids `[batch, len]`, or whatever else the model reads.
    pub input: Tensor,
    /// 1 for tokens and 0 for padding, u32 `[batch, len]`; absent where nothing is padded.
    pub mask: Option<Tensor>,
}

impl Batch {
    /// Inputs of equal length, nothing padded.
    #[must_use]
    pub fn new(input: Tensor) -> Self {
        Self { input, mask: None }
    }

    /// Inputs of which some are padded: `mask` is 1 for tokens and 0 for padding, u32 `[batch, len]`.
    #[must_use]
    pub fn padded(input: Tensor, mask: Tensor) -> Self {
        Self { input, mask: Some(mask) }
    }
}

/// What goes from block to block.
#[derive(Debug, Clone)]
pub struct Hidden {
    /// The hidden state, for a transformer the residual stream `[batch, len, hidden]`.
    pub x: Tensor,
    /// The batch's mask, which no block changes.
    pub mask: Option<Tensor>,
}

impl Hidden {
    /// The same mask beside another state.
    #[must_use]
    pub fn with(&self, x: Tensor) -> Self {
        Self { x, mask: self.mask.clone() }
    }
}

/// What comes before the first block.
pub trait Entrance: Send + Sync {
    /// The hidden state before block 0.
    fn forward(&self, batch: &Batch) -> Result<Hidden>;
}

/// One block.
pub trait Block: Send + Sync {
    /// The hidden state after it.
    fn forward(&self, hidden: &Hidden) -> Result<Hidden>;
}

/// What comes after the last block.
pub trait Exit: Send + Sync {
    /// The model's output: f32 logits `[batch, len, vocabulary]` of a language model, token vectors of an encoder.
    fn forward(&self, hidden: &Hidden) -> Result<Tensor>;
}

/// A model as a chain of blocks, whose parts are built one at a time over a checkpoint's weights.
///
/// Every builder stands at the checkpoint's root. A part asks it for its own weights only.
pub trait Blocks: Send + Sync {
    /// Where the blocks are, in the order in which they run: the weights of a block are named `{prefix}.…`.
    ///
    /// Asked anew after each pass, because a pass may have dropped blocks. Errors where the checkpoint's model is not a
    /// chain.
    fn prefixes(&self, checkpoint: &Checkpoint) -> Result<Vec<String>>;

    /// Builds what comes before the first block.
    fn entrance(&self, weights: &WeightBuilder) -> Result<Box<dyn Entrance>>;

    /// Builds block `index`. Errors where there is no such block.
    fn block(&self, weights: &WeightBuilder, index: usize) -> Result<Box<dyn Block>>;

    /// Builds what comes after the last block.
    fn exit(&self, weights: &WeightBuilder) -> Result<Box<dyn Exit>>;

    /// The names of the weights of block `index`, sorted.
    fn weights(&self, checkpoint: &Checkpoint, index: usize) -> Result<Vec<String>> {
        let prefixes = self.prefixes(checkpoint)?;
        let prefix = prefixes.get(index).ok_or_else(|| no_such_block(index, prefixes.len()))?;
        let start = format!("{prefix}.");
        Ok(checkpoint.names().into_iter().filter(|name| name.starts_with(&start)).collect())
    }
}

/// The error of asking for a block that is not there.
#[must_use]
pub fn no_such_block(index: usize, blocks: usize) -> Error {
    Error::bad_option("block", index, format!("the model has {blocks} blocks, counted from 0"))
}
