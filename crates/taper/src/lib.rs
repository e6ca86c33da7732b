//! Model compression on candle: quantization, pruning and distillation as passes in one pipeline.
//!
//! From any model directory to any other, in process, without Python, in bounded memory:
//!
//! ```
//! use taper::prelude::*;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let scratch = tempfile::tempdir()?;
//! let model = scratch.path().join("model");
//! taper::bundled::write_to(&model)?; // or any Hugging Face model directory
//!
//! let small = scratch.path().join("small");
//! let report = Pipeline::new()
//!     .then(NOfM::new(2, 4)?.on(Select::glob("model.layers.*.mlp.*")?))
//!     .then(RoundNearest::int4(32)?.on_matrices())
//!     .run_to(taper::open(&model)?, &small, &Run::new())?;
//! assert!(report.output.bits_per_weight() < 4.6);
//! println!("{report}");
//!
//! // What was written runs as it is stored, packed.
//! let checkpoint = taper::open(&small)?;
//! let tokenizer = Tokenizer::of(&checkpoint)?;
//! let windows = Windows::of_text(&tokenizer, taper::bundled::TEXT, 64)?.first(2);
//! let llama = taper::build(&checkpoint)?.language()?;
//! assert!(perplexity(&llama, &windows, &Silent)?.perplexity < 200.0);
//! # Ok(())
//! # }
//! ```
//!
//! # Where things are
//!
//! | module | what |
//! |---|---|
//! | [`core`] | [`Weight`], [`Checkpoint`], [`Pass`], [`Pipeline`], [`Report`]; everything that the others stand on |
//! | [`quant`] | integers of 2 to 8 bits, NF4, ways to fit scales, the formats of other programs |
//! | [`prune`] | magnitude, N:M, structured cuts along couplings, sparse storage |
//! | [`distill`] | losses against a teacher, added up in an objective |
//! | [`models`] | Llama, BERT and DS-CNN to run and judge what was compressed |
//! | [`recipe`] | passes written down in TOML |
//! | [`plan`] | a format for each weight within a budget, written as a recipe |
//! | [`bundled`] | a small model and a text to try everything on |
//!
//! A pass of your own is a [`WeightPass`] (one weight at a time) or a [`Pass`] (the whole checkpoint); a storage of your
//! own is a [`Weight`] and a [`Codec`]. `examples/` has a pass and a weight.

pub mod bundled;
pub mod plan;
pub mod recipe;

pub use candle_core as candle;
pub use taper_core as core;
pub use taper_distill as distill;
pub use taper_models as models;
pub use taper_prune as prune;
pub use taper_quant as quant;

pub use plan::Plan;
pub use recipe::{Recipe, RecipeError};
pub use taper_core::*;

use candle_core::{DType, Device};
use std::path::Path;
use taper_models::{AnyModel, Families};

/// What most programs need, flat.
pub mod prelude {
    pub use crate::{Recipe, RecipeError};
    pub use taper_core::{
        Architecture, Batch, Blocks, Calibration, Checkpoint, Codec, Codecs, Context, Couplings, Encoding,
        Event, Flow, Outcome, Pass, Pipeline, Progress, Report, Rewrite, Run, Select, SharedWeight, Silent,
        Stage, Stats, Weight, WeightBuilder, WeightPass,
    };
    pub use taper_models::{
        AnyModel, Families, Llama, Sampling, SentenceEncoder, Tokenizer,
        eval::{Windows, divergence, perplexity},
        generate,
    };
    pub use taper_prune::{DropLayers, Magnitude, NOfM, SparseBitmask, Structured};
    pub use taper_quant::{Awq, Gptq, Rotate, RoundNearest, SmoothQuant, Trellis, Tuned};
}

/// Every encoding that this build reads and writes.
#[must_use]
pub fn codecs() -> Codecs {
    taper_quant::codecs().and(&taper_prune::codecs())
}

/// [`codecs`], with integer and NF4 weights that are multiplied with this arithmetic, whatever their files say.
#[must_use]
pub fn codecs_with(arithmetic: quant::Arithmetic) -> Codecs {
    taper_quant::codecs_with(arithmetic).and(&taper_prune::codecs())
}

/// Opens a model directory whose weights may be in any of [`codecs`].
///
/// Only headers are read now. Errors as [`Checkpoint::open_with`].
pub fn open(dir: impl AsRef<Path>) -> Result<Checkpoint> {
    Checkpoint::open_with(dir, &codecs())
}

/// The runnable model of a checkpoint of any known family, in f32 on the CPU.
///
/// Errors where the family is unknown or a weight is missing or of a wrong shape.
pub fn build(checkpoint: &Checkpoint) -> Result<AnyModel> {
    Families.build(&WeightBuilder::new(checkpoint, DType::F32, &Device::Cpu))
}
