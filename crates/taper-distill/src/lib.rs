//! Distillation losses on candle tensors: each with an exactly stated temperature, reduction and mask, each
//! differentiable in the student, each checked against reference values and finite differences.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use taper_distill::{Hinton, LogitLoss, Logits, Reduction, Temperature, Vocabulary};
//!
//! // Student logits padded to 4 classes, teacher logits to 5; the true vocabulary has 3. The last row does not count.
//! let student = Var::new(&[[1f32, 2., 0., 0.], [0., 1., 3., 0.], [9., 9., 9., 9.]], &Device::Cpu)?;
//! let teacher = Tensor::new(&[[2f32, 2., 0., 0., 0.], [0., 0., 4., 0., 0.], [0f32; 5]], &Device::Cpu)?;
//! let labels = Tensor::new(&[1i64, 2, -100], &Device::Cpu)?;
//!
//! let logits = Logits::of(&student)
//!     .teacher(&teacher)
//!     .labels(&labels)
//!     .vocabulary(Vocabulary::Truncate(3))
//!     .prepare()?;
//! let loss = Hinton::new(Temperature::new(2.0)?).loss(&logits, Reduction::TokenMean)?;
//! let grads = loss.backward()?;
//! assert_eq!(grads.get(&student).unwrap().to_vec2::<f32>()?[2], [0.0; 4]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | what | where |
//! |---|---|
//! | logits, checked once: labels, ignore index, vocabulary, −∞ | [`Logits`] |
//! | pairs of hidden states, attentions, feature maps | [`Features`] |
//! | the losses | [`loss`] |
//! | rows to one number | [`RowLoss`], [`Reduction`] |
//! | several losses at once, each reported | [`Objective`], [`Inputs`], [`Term`] |
//! | did every variable get a gradient? | [`grad_coverage`] |
//!
//! Not here: a trainer, sampled or cached teacher logits, losses across tokenizers, contrastive losses with memory.

mod coverage;
mod error;
mod features;
mod geometry;
mod labels;
mod log_space;
mod logits;
pub mod loss;
mod objective;
mod precision;
mod reduction;
mod temperature;

pub use coverage::{Coverage, grad_coverage};
pub use error::{Error, Result};
pub use features::{Features, Sequences};
pub use labels::IGNORE_INDEX;
pub use logits::{Alignment, Logits, LogitsBuilder, Vocabulary};
pub use loss::{
    AttentionTransfer, ClassReduction, Cosine, CrossEntropy, Dist, Divergence, Dkd, FeatureLoss, FitNets,
    HiddenMse, Hinton, LogitLoss, LogitStandard, Measure, MiniLm, Projection, RelationalAngle,
    RelationalDistance, SoftCrossEntropy, TinyBertAttention,
};
pub use objective::{At, Evaluation, Inputs, Objective, ObjectiveReport, Term, TermReport};
pub use reduction::{Reduction, RowLoss, Unit};
pub use temperature::Temperature;
