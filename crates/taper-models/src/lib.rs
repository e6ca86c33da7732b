//! Reference architectures for Taper, and how to judge them; also the example that an engine author copies.
//!
//! A model reads a stock `config.json`, is built over a checkpoint's weights however they are stored, and is built again
//! when passes have replaced them:
//!
//! ```
//! use taper_core::{Checkpoint, Silent};
//! use taper_models::{eval::{Windows, perplexity}, llama::Llama, tokenizer::Tokenizer};
//!
//! # fn main() -> taper_models::Result<()> {
//! # let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models/novels-1m");
//! # if !dir.exists() { return Ok(()) }
//! let checkpoint = Checkpoint::open(&dir)?;
//! let model = Llama::open(&checkpoint)?;
//! let tokenizer = Tokenizer::open(&dir)?;
//! let windows = Windows::of_text(&tokenizer, "It was a bright day, and the road was long.", 8)?;
//! println!("{:.2}", perplexity(&model, &windows, &Silent)?.perplexity);
//! # Ok(())
//! # }
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`llama`] | Llama 1 to 3, Mistral, Qwen2, Qwen3, SmolLM: grouped queries, tied heads, windows, rope scaling |
//! | [`bert`] | BERT encoders with pooling: all-MiniLM-L6-v2 and its like |
//! | [`ds_cnn`] | MLPerf Tiny's keyword spotting network |
//! | [`families`] | whichever of them a checkpoint holds, and its couplings for structured pruning |
//! | [`calibration`] | texts and sentences to gather statistics on |
//! | [`tokenizer`], [`generate`](mod@generate) | texts to tokens and back, sampling |
//! | [`eval`] | perplexity, KL and agreement with the original, layer influence, sentence similarity, accuracy |
//!
//! Not here: mixtures of experts, encoders with relative positions, training loops.

mod activation;
mod attention;
mod config;
mod kernel;

pub mod bert;
pub mod calibration;
pub mod ds_cnn;
pub mod error;
pub mod eval;
pub mod families;
pub mod generate;
pub mod llama;
pub mod tokenizer;

pub use activation::Activation;
pub use bert::{Bert, BertConfig, SentenceEncoder};
pub use ds_cnn::{DsCnn, DsCnnConfig};
pub use error::{Error, Result};
pub use families::{AnyModel, Families, Family};
pub use generate::{Generation, Sampling, generate, generate_in};
pub use llama::{Llama, LlamaConfig};
pub use tokenizer::Tokenizer;
