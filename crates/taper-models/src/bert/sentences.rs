//! Sentences in, unit vectors out: tokenizer, BERT, pooling, L2 normalisation.

use candle_core::{D, DType, Tensor};
use taper_core::Checkpoint;

use super::{Bert, Pooling};
use crate::{Result, tokenizer::Tokenizer};

/// Sentences per forward pass.
const BATCH: usize = 32;
/// Keeps the division by the length of a null vector finite.
const SHORTEST: f64 = 1e-12;

/// A BERT with what a sentence encoder needs besides.
#[derive(Debug, Clone)]
pub struct SentenceEncoder {
    model: Bert,
    tokenizer: Tokenizer,
    pooling: Pooling,
}

impl SentenceEncoder {
    /// The encoder of a checkpoint opened from a directory, in f32 on the CPU.
    pub fn open(checkpoint: &Checkpoint) -> Result<Self> {
        Self::new(Bert::open(checkpoint)?, checkpoint)
    }

    /// A built model with the tokenizer and pooling that lie beside a checkpoint's weights.
    ///
    /// Sentences are cut to the length that the tokenizer states, and never longer than the model's positions.
    pub fn new(model: Bert, checkpoint: &Checkpoint) -> Result<Self> {
        let tokenizer = Tokenizer::of(checkpoint)?;
        let pooling = match checkpoint.dir() {
            Some(dir) => Pooling::of_dir(dir)?,
            None => Pooling::Mean,
        };
        let positions = model.config().max_position_embeddings;
        let limit = tokenizer.stated_limit().map_or(positions, |n| n.min(positions));
        Ok(Self { model, tokenizer: tokenizer.with_limit(limit)?, pooling })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Bert {
        &self.model
    }

    /// The pooling.
    #[must_use]
    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// Unit vectors, f32 `[sentences, hidden]`, in the order of the sentences.
    pub fn embed(&self, sentences: &[&str]) -> Result<Tensor> {
        let tokens = self.tokenizer.encode_all(sentences)?;
        // Sentences of like length share a batch, so that little padding is computed.
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        order.sort_by_key(|&i| (tokens[i].len(), i));
        let mut batches = Vec::new();
        for chunk in order.chunks(BATCH) {
            let batch: Vec<&[u32]> = chunk.iter().map(|&i| tokens[i].as_slice()).collect();
            batches.push(self.embed_batch(&batch)?);
        }
        if batches.is_empty() {
            return Ok(Tensor::zeros((0, self.model.config().hidden_size), DType::F32, self.model.device())?);
        }
        let mut place = vec![0u32; order.len()];
        order.iter().zip(0..).for_each(|(&i, row)| place[i] = row);
        let place = Tensor::new(place, self.model.device())?;
        Ok(Tensor::cat(&batches, 0)?.index_select(&place, 0)?)
    }

    fn embed_batch(&self, batch: &[&[u32]]) -> Result<Tensor> {
        let (ids, mask) = self.model.pad(batch)?;
        let pooled = self.pooling.forward(&self.model.forward(&ids, &mask)?, &mask)?.to_dtype(DType::F32)?;
        let length = pooled.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(SHORTEST)?;
        Ok(pooled.broadcast_div(&length)?)
    }
}
