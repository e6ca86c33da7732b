//! What scaling, turning and trellis codes are worth on a language model, beside plain rounding.
//!
//! ```text
//! cargo run --release -p taper-benches --bin couplings -- SHARED/models/novels-7m SHARED/data/novels-calibration.txt SHARED/data/novels-eval.txt
//! ```
//!
//! As the peers' table has it: linear layers of the blocks only, calibrated on 128 windows of 256 tokens, KL on the first 64
//! windows of the text. `--only NAME` keeps the methods whose name contains NAME, `--quick` leaves perplexity out; `--layer 4096`
//! times one layer instead.

mod methods;
mod timing;

use clap::Parser;
use std::{
    error::Error,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};
use taper::{
    Needs,
    candle::Tensor,
    core::observe::calibrate_checkpoint,
    models::eval::{Windows, divergence, perplexity},
    prelude::*,
};

use methods::{Step, all};

/// What scaling, turning and trellis codes are worth on a language model.
#[derive(Debug, Parser)]
struct Args {
    /// The model directory.
    model: PathBuf,
    /// The text to calibrate on.
    calibration: PathBuf,
    /// The text to judge on.
    text: PathBuf,
    /// Tokens per window.
    #[arg(long, default_value_t = 256)]
    window: usize,
    /// Windows to calibrate on.
    #[arg(long, default_value_t = 128)]
    windows: usize,
    /// Windows that KL and agreement look at.
    #[arg(long, default_value_t = 64)]
    kl_windows: usize,
    /// Only methods whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Instead, the seconds of one layer of this size.
    #[arg(long)]
    layer: Option<usize>,
    /// Without perplexity, which looks at the whole text.
    #[arg(long)]
    quick: bool,
}

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

/// Gram matrices of every layer.
fn calibrate(checkpoint: &Checkpoint, windows: &Windows) -> Fallible<Stats> {
    let batches = windows.batches().collect::<Result<Vec<Tensor>, _>>()?;
    let feed = |model: &AnyModel| match model {
        AnyModel::Language(model) => batches.iter().try_for_each(|ids| model.forward(ids).map(drop)),
        _ => Ok(()),
    };
    Ok(calibrate_checkpoint(&Families, checkpoint, Needs::Gram, feed)?)
}

/// Runs a method's steps, calibrating anew before each that needs it but the first, for which `seen` is; bits per weight of
/// the last.
fn compress(
    original: &Checkpoint,
    steps: &[Step],
    seen: &Stats,
    windows: &Windows,
) -> Fallible<(Checkpoint, f64)> {
    let (mut checkpoint, mut bits) = (original.clone(), 0.0);
    for (number, step) in steps.iter().enumerate() {
        let stats = match (step.pass.needs(), number) {
            (Needs::Nothing, _) => Stats::default(),
            (_, 0) => seen.clone(),
            _ => calibrate(&checkpoint, windows)?,
        };
        let pipeline = Pipeline::new().then_shared(step.pass.clone());
        let (after, report) = pipeline.run(checkpoint, &Run::new().with_stats(&stats))?;
        checkpoint = after;
        let rows = report.passes[0]
            .rows
            .iter()
            .filter_map(|r| r.after.as_ref().filter(|_| r.outcome == Outcome::Done));
        let (bytes, elements) = rows.fold((0, 0), |(bytes, elements), after| {
            (bytes + after.bytes, elements + after.shape.iter().product::<usize>())
        });
        bits = bytes as f64 * 8.0 / elements.max(1) as f64;
    }
    for name in checkpoint.names() {
        let weight = checkpoint.get(&name)?;
        if !weight.encoding().is_dense() {
            checkpoint.insert(name, Arc::new(weight.dense()?));
        }
    }
    Ok((checkpoint, bits))
}

fn run(args: &Args) -> Fallible {
    if let Some(size) = args.layer {
        return timing::run(size);
    }
    let original = taper::open(&args.model)?;
    let tokenizer = Tokenizer::of(&original)?;
    let windows = |path: &PathBuf| -> Fallible<Windows> {
        Ok(Windows::of_text(&tokenizer, &std::fs::read_to_string(path)?, args.window)?)
    };
    let (calibration, text) = (windows(&args.calibration)?.first(args.windows), windows(&args.text)?);
    let first = text.clone().first(args.kl_windows);
    let reference = taper::build(&original)?.language()?;
    let kept = first.batches().map(|ids| Ok(reference.forward(&ids?)?)).collect::<Fallible<Vec<Tensor>>>()?;
    println!(
        "| method | bits per weight | perplexity | KL (nats) | top-1 (%) | compress (s) |\n|---|---|---|---|---|---|"
    );
    let clock = Instant::now();
    let seen = calibrate(&original, &calibration)?;
    eprintln!(
        "calibrated in {:.2} s, which the seconds of methods do not contain",
        clock.elapsed().as_secs_f64()
    );
    for method in all()?.into_iter().filter(|m| m.name.contains(&args.only)) {
        let clock = Instant::now();
        let (checkpoint, bits) = compress(&original, &method.steps, &seen, &calibration)?;
        let seconds = clock.elapsed().as_secs_f64();
        let model = taper::build(&checkpoint)?.language()?;
        let next = AtomicUsize::new(0);
        let remembered = |_: &Tensor| Ok(kept[next.fetch_add(1, Ordering::Relaxed) % kept.len()].clone());
        let gap = divergence(&remembered, &model, &first, &Silent)?;
        let judged = if args.quick { f64::NAN } else { perplexity(&model, &text, &Silent)?.perplexity };
        println!(
            "| {} | {bits:.3} | {judged:.3} | {:.5} | {:.2} | {seconds:.2} |",
            method.name,
            gap.mean_kl,
            100.0 * gap.top1_agreement
        );
    }
    Ok(())
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
