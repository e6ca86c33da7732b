//! Rounding learned block by block: what it costs and what it gives, on a language model.
//!
//! ```text
//! cargo run --release -p taper-benches --bin tuned -- SHARED/models/novels-7m \
//!     SHARED/data/novels-calibration.txt SHARED/data/novels-eval.txt --bits 3 --group 128
//! ```
//!
//! The first `--windows` windows of the first text calibrate; perplexity, KL and top-1 agreement are on the second. With
//! `--held-out` they are on the next 32 windows of the calibration text instead: for choosing numbers without looking at the
//! evaluation text.

use clap::Parser;
use std::{error::Error, path::PathBuf, sync::Arc, time::Instant};
use taper::{
    core::kernel::Arithmetic,
    models::{
        calibration,
        eval::{Windows, divergence, perplexity},
    },
    prelude::*,
    quant::{Bits, Granularity, Schedule, Scheme, Tuned},
};

/// Rounding learned block by block, judged.
#[derive(Debug, Parser)]
struct Args {
    /// The model directory.
    model: PathBuf,
    /// The calibration text.
    calibration: PathBuf,
    /// The evaluation text.
    text: PathBuf,
    /// Bits per code.
    #[arg(long, default_value_t = 4)]
    bits: u64,
    /// Weights per scale.
    #[arg(long, default_value_t = 128)]
    group: usize,
    /// With zero points.
    #[arg(long)]
    asymmetric: bool,
    /// Steps per block.
    #[arg(long, default_value_t = Schedule::default().steps)]
    steps: usize,
    /// Windows per step.
    #[arg(long, default_value_t = Schedule::default().sequences)]
    sequences: usize,
    /// How far offsets travel.
    #[arg(long, default_value_t = Schedule::default().travel)]
    travel: f32,
    /// How far ranges stretch.
    #[arg(long, default_value_t = Schedule::default().stretch)]
    stretch: f32,
    /// How much of the running gradient is kept.
    #[arg(long, default_value_t = Schedule::default().momentum)]
    momentum: f32,
    /// How much of the loss is weighed by the Fisher information.
    #[arg(long, default_value_t = Schedule::default().fisher)]
    fisher: f32,
    /// Products of a step in f32.
    #[arg(long)]
    f32: bool,
    /// What batches are drawn with.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Calibration windows of 256 tokens.
    #[arg(long, default_value_t = 128)]
    windows: usize,
    /// Judge on the calibration text behind those windows.
    #[arg(long)]
    held_out: bool,
}

impl Args {
    fn pass(&self) -> Result<Tuned, Box<dyn Error>> {
        let mut scheme = Scheme::new(Bits::new(self.bits)?, Granularity::group(self.group)?);
        if self.asymmetric {
            scheme = scheme.asymmetric();
        }
        let (steps, travel, stretch) = (self.steps, self.travel, self.stretch);
        let arithmetic = if self.f32 { Arithmetic::F32 } else { Arithmetic::BF16 };
        let (sequences, fisher, momentum) = (self.sequences, self.fisher, self.momentum);
        let schedule = Schedule {
            steps,
            sequences,
            travel,
            stretch,
            momentum,
            fisher,
            arithmetic,
            ..Schedule::default()
        };
        Ok(Tuned::new(scheme)?.with_schedule(schedule)?.on(Select::any(["*_proj.weight"])?))
    }

    fn judge_on(&self, tokenizer: &Tokenizer, calibration: &Windows) -> Result<Windows, Box<dyn Error>> {
        if !self.held_out {
            return Ok(Windows::of_text(tokenizer, &std::fs::read_to_string(&self.text)?, 256)?);
        }
        let tokens = calibration.iter().skip(self.windows).take(32).flatten().copied().collect();
        Ok(Windows::new(tokens, 256)?)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let original = taper::open(&args.model)?;
    let tokenizer = Tokenizer::of(&original)?;
    let text = Windows::of_text(&tokenizer, &std::fs::read_to_string(&args.calibration)?, 256)?;
    let pass = args.pass()?;
    let calibration = calibration::on_windows(&text.clone().first(args.windows))?;
    let clock = Instant::now();
    let (mut checkpoint, report) = Pipeline::new()
        .then(pass)
        .run(original.clone(), &Run::new().with_calibration(&calibration).with_seed(args.seed))?;
    let seconds = clock.elapsed().as_secs_f64();
    for name in checkpoint.names() {
        let dense = checkpoint.get(&name)?.dense()?;
        checkpoint.insert(name, Arc::new(dense));
    }
    let (before, after) = (taper::build(&original)?.language()?, taper::build(&checkpoint)?.language()?);
    let windows = args.judge_on(&tokenizer, &text)?;
    let judged = perplexity(&after, &windows, &Silent)?.perplexity;
    let gap = divergence(&before, &after, &windows.first(64), &Silent)?;
    let rows = &report.passes[0].rows;
    let bits = rows.iter().filter_map(|r| r.after.as_ref()).map(|a| a.bits_per_weight).sum::<f64>()
        / rows.len() as f64;
    println!(
        "| bits per weight | perplexity | KL (nats) | top-1 (%) | compress (s) |\n|---|---|---|---|---|"
    );
    let agreement = 100.0 * gap.top1_agreement;
    println!("| {bits:.3} | {judged:.3} | {:.5} | {agreement:.2} | {seconds:.1} |", gap.mean_kl);
    Ok(())
}
