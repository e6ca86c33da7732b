//! What each way of compressing costs, on real models: the tables of `docs/results.md`.
//!
//! ```text
//! cargo run --release -p taper-benches --bin quality -- language SHARED/models/novels-7m SHARED/data/novels-eval.txt
//! cargo run --release -p taper-benches --bin quality -- methods SHARED/models/novels-7m SHARED/data/novels-calibration.txt SHARED/data/novels-eval.txt
//! cargo run --release -p taper-benches --bin quality -- encoder MINILM SHARED/data/sts14-*.tsv
//! cargo run --release -p taper-benches --bin quality -- sentences MINILM SHARED/data/sentences-calibration.txt SHARED/data/sts14-*.tsv
//! cargo run --release -p taper-benches --bin quality -- classifier SHARED/models/ds-cnn-kws SHARED/data/kws01.safetensors
//! cargo run --release -p taper-benches --bin quality -- budget SHARED/models/novels-7m SHARED/data/novels-calibration.txt SHARED/data/novels-eval.txt
//! ```
//!
//! `--json` prints one object a row instead of a Markdown table.

mod budget;
mod chart;
mod classifier;
mod encoder;
mod grid;
mod language;
mod methods;
mod peer;
mod sentences;
mod table;

use clap::{Parser, Subcommand};
use std::{error::Error, path::PathBuf, process::ExitCode};

/// What each way of compressing costs, on a real model.
#[derive(Debug, Parser)]
struct Args {
    /// One JSON object a row.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Perplexity, KL and top-1 agreement of a language model.
    Language {
        /// The model directory.
        model: PathBuf,
        /// The evaluation text.
        text: PathBuf,
        /// Tokens per window.
        #[arg(long, default_value_t = 256)]
        window: usize,
        /// Which methods to compare.
        #[arg(long, value_enum, default_value_t = language::Only::Quantizers)]
        only: language::Only,
        /// Windows that KL and agreement look at.
        #[arg(long, default_value_t = 64)]
        kl_windows: usize,
    },
    /// Spearman of a sentence encoder on files of scored pairs; the embedding table is quantized too.
    Encoder {
        /// The model directory.
        model: PathBuf,
        /// Files of tab-separated score, sentence, sentence.
        pairs: Vec<PathBuf>,
    },
    /// Every method at every width on a language model, calibrated, beside published tools.
    Methods(Box<grid::Grid>),
    /// Every method at every width on a sentence encoder, calibrated on sentences.
    Sentences(Box<sentences::Sentences>),
    /// Perplexity and KL of a language model against bits per weight, a format for each weight.
    Budget(Box<budget::Curve>),
    /// Top-1 of the keyword spotter.
    Classifier {
        /// The model directory.
        model: PathBuf,
        /// Features and labels.
        features: PathBuf,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    match &args.task {
        Task::Language { model, text, window, only, kl_windows } => {
            language::run(model, text, *window, *kl_windows, *only, args.json)
        }
        Task::Methods(grid) => grid::run(grid, args.json),
        Task::Sentences(sentences) => sentences::run(sentences, args.json),
        Task::Budget(curve) => budget::run(curve, args.json),
        Task::Encoder { model, pairs } => encoder::run(model, pairs, args.json),
        Task::Classifier { model, features } => classifier::run(model, features, args.json),
    }
}
