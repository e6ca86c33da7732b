//! Perplexity on a text, and KL and top-1 agreement against the original.
//!
//! As the peers' table has it: the linear layers of the blocks are compressed, embedding, head and norms stay; windows do not
//! overlap; KL looks at the first windows only.

use std::{
    error::Error,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};
use taper::{
    candle::Tensor,
    models::eval::{Windows, divergence, perplexity},
    prelude::*,
};

use crate::{
    methods::{Method, pruners, quantizers, scores},
    table::Table,
};

/// Which methods to compare.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Only {
    /// Every format and fit.
    Quantizers,
    /// Magnitude, N:M, structured.
    Pruners,
    /// Structured cuts by every score.
    Scores,
}

pub(crate) fn run(
    model: &Path,
    text: &Path,
    window: usize,
    kl_windows: usize,
    only: Only,
    json: bool,
) -> Result<(), Box<dyn Error>> {
    let original = taper::open(model)?;
    let tokenizer = Tokenizer::of(&original)?;
    let windows = Windows::of_text(&tokenizer, &std::fs::read_to_string(text)?, window)?;
    let first = windows.clone().first(kl_windows);
    let reference = taper::build(&original)?.language()?;
    let columns =
        ["method", "bits per weight", "perplexity", "KL (nats)", "top-1 (%)", "compress (s)", "file (bytes)"];
    let table = Table::new(&columns, json);
    let total = original.totals()?.bytes as f64;
    let before = perplexity(&reference, &windows, &Silent)?;
    let bits = 8.0 * total / original.totals()?.elements as f64;
    table.row("original", &[(bits, 3), (before.perplexity, 3), (0.0, 5), (100.0, 2), (0.0, 2), (total, 0)]);

    // The original's logits are needed once per method: 64 windows of 256 tokens and 4,096 words are 268 MB.
    let kept = first
        .batches()
        .map(|ids| Ok(reference.forward(&ids?)?))
        .collect::<Result<Vec<Tensor>, Box<dyn Error>>>()?;
    let next = AtomicUsize::new(0);
    let remembered = |_: &Tensor| Ok(kept[next.fetch_add(1, Ordering::Relaxed) % kept.len()].clone());

    let linears = Select::any(["*_proj.weight"])?;
    let methods = match only {
        Only::Quantizers => quantizers(&linears)?,
        Only::Pruners => pruners(&linears)?,
        Only::Scores => scores()?,
    };
    for method in methods {
        let clock = Instant::now();
        let (checkpoint, report) = method.apply(&original)?;
        let seconds = clock.elapsed().as_secs_f64();
        let compressed = taper::build(&checkpoint)?.language()?;
        let judged = perplexity(&compressed, &windows, &Silent)?;
        let gap = divergence(&remembered, &compressed, &first, &Silent)?;
        table.row(
            &method.name,
            &[
                (Method::bits_per_weight(&report), 3),
                (judged.perplexity, 3),
                (gap.mean_kl, 5),
                (100.0 * gap.top1_agreement, 2),
                (seconds, 2),
                (report.output.bytes as f64, 0),
            ],
        );
    }
    Ok(())
}
