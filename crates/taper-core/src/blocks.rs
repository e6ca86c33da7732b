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
//! A block may bring its own way back ([`Block::trace`]): a forward run in plain code that keeps what the gradients of its
//! matrices need. Learning takes it where it is there, and candle's gradients where it is not.
//!
//! An [`Architecture`] that is a chain implements [`Blocks`] too. The trait names no model type, so
//! that passes can hold any architecture as `Arc<dyn Blocks>` without knowing it.

use candle_core::Tensor;
use std::{collections::BTreeMap, sync::Arc};

use crate::{Architecture, Checkpoint, Error, Result, WeightBuilder, kernel::Arithmetic};

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
    /// What stands beside it between two stages of a block ([`Block::stage`]): none between blocks.
    pub inner: Option<Tensor>,
    /// The batch's mask, which no block changes.
    pub mask: Option<Tensor>,
}

impl Hidden {
    /// A state between blocks, with the mask of its batch.
    #[must_use]
    pub fn new(x: Tensor, mask: Option<Tensor>) -> Self {
        Self { x, inner: None, mask }
    }

    /// The same mask beside another state; nothing inside.
    #[must_use]
    pub fn with(&self, x: Tensor) -> Self {
        Self::new(x, self.mask.clone())
    }

    /// The same state and mask with this inside.
    #[must_use]
    pub fn holding(&self, inner: Tensor) -> Self {
        Self { inner: Some(inner), ..self.clone() }
    }

    /// What is inside. Errors where the stage before left nothing.
    pub fn held(&self) -> Result<&Tensor> {
        self.inner.as_ref().ok_or_else(|| {
            Error::bad_option("hidden", "without anything inside", "what the stage before this one left")
        })
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

    /// In how many stages it can be run. Calibration that follows every change goes through a block once per group of layers;
    /// behind a stage whose layers are finished it need not begin anew.
    fn stages(&self) -> usize {
        1
    }

    /// Runs a stage: the first on what stands before the block, each other on what the one before it left. Together they
    /// compute what [`Block::forward`] does, to the bit, and read weights through layers of the builder alone.
    ///
    /// Between two stages calibration keeps the states of the batches with what is inside, as far as 256 MiB hold it.
    fn stage(&self, index: usize, hidden: &Hidden) -> Result<Hidden> {
        if index > 0 { Err(no_such_stage(index, 1)) } else { self.forward(hidden) }
    }

    /// Runs forward and keeps what is needed to go back; none where the block has no such code, or none for these weights or
    /// this state. `arithmetic` is that of its products.
    fn trace(&self, _hidden: &Hidden, _arithmetic: Arithmetic) -> Result<Option<Box<dyn Trace + '_>>> {
        Ok(None)
    }
}

/// Gradients of matrices by name, row-major.
pub type Gradients = BTreeMap<String, Vec<f32>>;

/// A forward run that can be taken back.
pub trait Trace {
    /// The hidden state after the block, row-major.
    fn output(&self) -> &[f32];

    /// Adds the gradients of those matrices that `sums` has, of a loss whose gradient at the output is `gradient`.
    ///
    /// Errors where lengths do not fit.
    fn back(self: Box<Self>, gradient: &[f32], sums: &mut Gradients) -> Result<()>;
}

/// What comes after the last block.
pub trait Exit: Send + Sync {
    /// The model's output: f32 logits `[batch, len, vocabulary]` of a language model, token vectors of an encoder.
    fn forward(&self, hidden: &Hidden) -> Result<Tensor>;

    /// What the output is.
    fn output(&self) -> Output {
        Output::Vectors
    }
}

/// What a model's output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Logits of a distribution, along the last dimension.
    Logits,
    /// Numbers that mean themselves.
    Vectors,
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

/// The error of asking for a stage that is not there.
#[must_use]
pub fn no_such_stage(index: usize, stages: usize) -> Error {
    Error::bad_option("stage", index, format!("the block has {stages} stages, counted from 0"))
}

/// A model without blocks as a chain of one: itself.
///
/// Everything that walks blocks works on it, within the memory of the whole model. Sequential calibration runs the
/// model anew for each group of layers, up to that group.
#[derive(Debug, Clone)]
pub struct AsOne<A, F> {
    architecture: A,
    forward: Arc<F>,
}

impl<A, F> AsOne<A, F> {
    /// The model of an architecture, and how it is run on a batch.
    pub fn new(architecture: A, forward: F) -> Self {
        Self { architecture, forward: Arc::new(forward) }
    }
}

impl<A, F> Blocks for AsOne<A, F>
where
    A: Architecture,
    A::Model: Send + Sync + 'static,
    F: Fn(&A::Model, &Batch) -> Result<Tensor> + Send + Sync + 'static,
{
    fn prefixes(&self, _: &Checkpoint) -> Result<Vec<String>> {
        Ok(vec![String::new()])
    }

    fn entrance(&self, _: &WeightBuilder) -> Result<Box<dyn Entrance>> {
        Ok(Box::new(Through))
    }

    fn block(&self, weights: &WeightBuilder, index: usize) -> Result<Box<dyn Block>> {
        if index > 0 {
            return Err(no_such_block(index, 1));
        }
        let (model, forward) = (self.architecture.build(weights)?, Arc::clone(&self.forward));
        Ok(Box::new(All(move |batch: &Batch| forward(&model, batch))))
    }

    fn exit(&self, _: &WeightBuilder) -> Result<Box<dyn Exit>> {
        Ok(Box::new(Through))
    }

    fn weights(&self, checkpoint: &Checkpoint, index: usize) -> Result<Vec<String>> {
        if index == 0 { Ok(checkpoint.names()) } else { Err(no_such_block(index, 1)) }
    }
}

/// What stands before and after a model that is one block.
struct Through;

impl Entrance for Through {
    fn forward(&self, batch: &Batch) -> Result<Hidden> {
        Ok(Hidden::new(batch.input.clone(), batch.mask.clone()))
    }
}

impl Exit for Through {
    fn forward(&self, hidden: &Hidden) -> Result<Tensor> {
        Ok(hidden.x.clone())
    }
}

/// A whole model, which reads the batch itself.
struct All<F>(F);

impl<F: Fn(&Batch) -> Result<Tensor> + Send + Sync> Block for All<F> {
    fn forward(&self, hidden: &Hidden) -> Result<Hidden> {
        let batch = Batch { input: hidden.x.clone(), mask: hidden.mask.clone() };
        Ok(hidden.with((self.0)(&batch)?))
    }
}
