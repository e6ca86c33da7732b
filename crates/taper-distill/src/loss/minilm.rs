//! MiniLMv2 self-attention relations: Wang et al. 2020, "MiniLMv2: Multi-Head Self-Attention Relation Distillation", arXiv 2012.15828.
//!
//! ```text
//! A = softmax(X Xᵀ / √d_r) per relation head,   X [length, d_r], d_r = width / heads
//! Σ over heads and positions of KL(A_teacher ‖ A_student) / (heads · length)
//! ```
//!
//! X is the queries, keys or values of one layer. The *relation* heads need not be the model's attention heads: 48 for both models makes any
//! two widths that 48 divides comparable without a projection. The paper adds QQ, KK and VV with weight 1/3 each: three terms of an objective.

use super::FeatureLoss;
use crate::{
    Error, Features, Result, RowLoss, Unit,
    features::Sequences,
    labels::select_rows,
    log_space::{fill_where, floor_where, kl, log_softmax},
};
use candle_core::{Device, Tensor};

/// Relations within sequences [batch, length, width]; a row is a sequence.
///
/// Positions beyond a sequence's length take part in nothing, as query or as key, and get a gradient of exactly zero;
/// sequences of length 0 do not count.
#[derive(Debug, Clone, Copy)]
pub struct MiniLm {
    heads: usize,
}

impl MiniLm {
    /// With the number of relation heads; the paper uses 48 for base and 64 for large teachers. It must divide both widths.
    ///
    /// # Errors
    /// At least one head.
    pub fn new(relation_heads: usize) -> Result<Self> {
        match relation_heads {
            0 => Err(Error::bad_option("relation_heads", 0, "at least one relation head")),
            heads => Ok(Self { heads }),
        }
    }

    /// log A of `x` [batch, length, width] with padded positions already zero: [batch, heads, length, length].
    fn log_relations(&self, x: &Tensor, padded_keys: &Tensor) -> Result<Tensor> {
        let (batch, length, width) = x.dims3()?;
        let per_head = width / self.heads;
        let x = x.reshape((batch, length, self.heads, per_head))?.transpose(1, 2)?.contiguous()?;
        let scores = (x.matmul(&x.transpose(2, 3)?.contiguous()?)? / (per_head as f64).sqrt())?;
        log_softmax(&floor_where(&padded_keys.broadcast_as(scores.shape())?.contiguous()?, &scores)?)
    }

    fn check_widths(&self, sequences: &Sequences) -> Result<()> {
        let (student, teacher) = (sequences.student.dims(), sequences.teacher.dims());
        if [student[2], teacher[2]].iter().all(|width| *width > 0 && width.is_multiple_of(self.heads)) {
            return Ok(());
        }
        let rule = format!("{} relation heads must divide both widths", self.heads);
        Err(Error::shapes(("student features", student), ("teacher features", teacher), rule))
    }
}

impl FeatureLoss for MiniLm {
    fn rows(&self, features: &Features) -> Result<RowLoss> {
        let sequences = features.sequences()?;
        self.check_widths(&sequences)?;
        let Some(Sequences { student, teacher, lengths }) = without_empty(sequences)? else {
            return Ok(RowLoss::none(features.student(), Unit::Sample));
        };
        let (batch, length, _) = student.dims3()?;
        let device = student.device();
        let padded = padding(&lengths, length, device)?;
        let keys = padded.reshape((batch, 1, 1, length))?;

        let log_q = self.log_relations(&cleared(&padded, &student)?, &keys)?;
        let log_p = self.log_relations(&cleared(&padded, &teacher)?, &keys)?;
        let by_query = kl(&log_p, &log_q)?.sum(1)?;
        let sums = fill_where(&padded, &by_query, 0.0)?.sum(1)?;
        let shares: Vec<f64> = lengths.iter().map(|valid| 1.0 / (self.heads * valid) as f64).collect();
        let shares = Tensor::new(shares, device)?.to_dtype(sums.dtype())?;
        RowLoss::each((sums * shares)?, Unit::Sample)
    }
}

/// Only the sequences with at least one position; `None` where there are none.
fn without_empty(sequences: Sequences) -> Result<Option<Sequences>> {
    let Sequences { student, teacher, lengths } = sequences;
    let kept: Vec<u32> = (0u32..).zip(&lengths).filter(|(_, n)| **n > 0).map(|(i, _)| i).collect();
    if kept.is_empty() {
        return Ok(None);
    }
    let device = student.device().clone();
    Ok(Some(Sequences {
        student: select_rows(&student, &kept, &device)?,
        teacher: select_rows(&teacher, &kept, &device)?,
        lengths: lengths.into_iter().filter(|n| *n > 0).collect(),
    }))
}

/// [batch, length] of u8: ones where a position is beyond its sequence's length.
fn padding(lengths: &[usize], length: usize, device: &Device) -> Result<Tensor> {
    let mask = lengths.iter().flat_map(|valid| (0..length).map(move |s| u8::from(s >= *valid)));
    Ok(Tensor::from_vec(mask.collect::<Vec<u8>>(), (lengths.len(), length), device)?)
}

/// Zeros at padded positions, so that garbage there cannot reach the products' gradients.
fn cleared(padded: &Tensor, x: &Tensor) -> Result<Tensor> {
    fill_where(&padded.unsqueeze(2)?.broadcast_as(x.shape())?.contiguous()?, x, 0.0)
}
