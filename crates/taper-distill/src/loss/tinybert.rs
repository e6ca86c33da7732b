//! TinyBERT's attention loss and layer maps: Jiao et al. 2019, arXiv 1909.10351, equation 7.
//!
//! ```text
//! mean over heads and pairs of positions of (S_s − S_t)²     S = Q Kᵀ/√d, before the softmax
//! ```
//!
//! Scores at or below −100 are how BERT masks padding; each model's are set to zero before comparing. Hidden states are
//! [`HiddenMse::projected`](super::HiddenMse::projected), logits [`SoftCrossEntropy::tinybert`](super::SoftCrossEntropy::tinybert).

use super::FeatureLoss;
use crate::{Error, Features, Result, RowLoss, Unit, log_space::fill_where};
use candle_core::{D, Tensor};

/// Scores at or below this are padding.
const MASKED_SCORE: f64 = -1e2;

/// Attention scores before the softmax [batch, heads, length, length], equal shapes; a row is a sample.
#[derive(Debug, Clone, Copy, Default)]
pub struct TinyBertAttention;

impl FeatureLoss for TinyBertAttention {
    fn rows(&self, features: &Features) -> Result<RowLoss> {
        let (student, teacher) = features.samples()?;
        if student.rank() != 4 || student.dims() != teacher.dims() {
            return Err(Error::shapes(
                ("student features", student.dims()),
                ("teacher features", teacher.dims()),
                "attention scores must both be [batch, heads, length, length]",
            ));
        }
        if student.elem_count() == 0 {
            return Ok(RowLoss::none(features.student(), Unit::Sample));
        }
        let difference = (without_masked(&student)? - without_masked(&teacher)?)?;
        RowLoss::each(difference.sqr()?.flatten_from(1)?.mean(D::Minus1)?, Unit::Sample)
    }
}

fn without_masked(scores: &Tensor) -> Result<Tensor> {
    fill_where(&scores.le(MASKED_SCORE)?, scores, 0.0)
}

/// Which teacher layer each student layer's attention follows: i → (i+1)·k − 1 with k = teacher / student layers.
///
/// # Errors
/// The student's number of layers must divide the teacher's.
pub fn attention_layers(student: usize, teacher: usize) -> Result<Vec<usize>> {
    let every = layers_per_student_layer(student, teacher)?;
    Ok((0..student).map(|i| (i + 1) * every - 1).collect())
}

/// Which teacher hidden state each student hidden state follows, embeddings being state 0: i → i·k, for i in 0..=student.
///
/// # Errors
/// The student's number of layers must divide the teacher's.
pub fn hidden_states(student: usize, teacher: usize) -> Result<Vec<usize>> {
    let every = layers_per_student_layer(student, teacher)?;
    Ok((0..=student).map(|i| i * every).collect())
}

fn layers_per_student_layer(student: usize, teacher: usize) -> Result<usize> {
    if student > 0 && teacher > 0 && teacher.is_multiple_of(student) {
        return Ok(teacher / student);
    }
    let value = format!("{student} for a teacher of {teacher}");
    Err(Error::bad_option("student layers", value, "a number that divides the teacher's layers"))
}
