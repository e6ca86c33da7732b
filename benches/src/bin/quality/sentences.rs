//! Every method at every width on a sentence encoder, calibrated on sentences: Spearman on files of scored pairs.
//!
//! The matrices of the blocks are compressed, the embedding tables stay. Neighbours: `grid.rs` has the rows; `encoder.rs` compresses
//! everything, without data.

use std::{error::Error, path::PathBuf, time::Instant};
use taper::{
    models::{
        calibration,
        eval::{read_pairs, similarity},
    },
    plan::OnText,
    prelude::*,
};

use crate::{
    grid::{Entry, decoded, pipeline},
    table::Table,
};

/// Every method at every width on a sentence encoder.
#[derive(Debug, clap::Args)]
pub(crate) struct Sentences {
    /// The model directory.
    model: PathBuf,
    /// Sentences to calibrate on, one a line.
    calibration: PathBuf,
    /// Files of tab-separated score, sentence, sentence.
    pairs: Vec<PathBuf>,
    /// How many sentences statistics see; the divergence is over the others.
    #[arg(long, default_value_t = 512)]
    sentences: usize,
    /// Only rows whose name contains one of these.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// These recipes (files, or names of shipped ones) in place of the table's rows.
    #[arg(long, value_delimiter = ',')]
    recipe: Vec<PathBuf>,
}

pub(crate) fn run(args: &Sentences, json: bool) -> Result<(), Box<dyn Error>> {
    let original = taper::open(&args.model)?;
    let text = std::fs::read_to_string(&args.calibration)?;
    // The width of a window is for language models.
    let calibration = calibration::on_text(&original, &text, 1, args.sentences)?;
    let judge = OnText::after(&original, &text, 1, args.sentences, Some(usize::MAX))?
        .ok_or("no sentences are left to judge on")?;
    let mut columns = vec!["method".to_owned(), "bits per weight".into(), "1 - cos".into()];
    columns
        .extend(args.pairs.iter().map(|p| p.file_stem().unwrap_or_default().to_string_lossy().into_owned()));
    columns.push("compress (s)".into());
    let table = Table::new(&columns.iter().map(String::as_str).collect::<Vec<_>>(), json);
    let sets = args.pairs.iter().map(read_pairs).collect::<Result<Vec<_>, _>>()?;
    let row = |name: &str, bits, moved, seconds, checkpoint: &Checkpoint| -> Result<(), Box<dyn Error>> {
        let encoder = SentenceEncoder::open(checkpoint)?;
        let mut numbers = vec![(bits, 3), (moved, 5)];
        for set in &sets {
            numbers.push((similarity(&encoder, set, &Silent)?.spearman, 4));
        }
        numbers.push((seconds, 1));
        table.row(name, &numbers);
        Ok(())
    };
    row("original", 32.0, 0.0, 0.0, &original)?;
    for entry in Entry::asked(&args.recipe, &args.only)? {
        let clock = Instant::now();
        let run = Run::new().with_calibration(&calibration);
        // A method that knows no such model says why, and the table goes on.
        let compressed = || -> Result<Checkpoint, Box<dyn Error>> {
            let judge = |count| {
                OnText::after(&original, &text, 1, args.sentences, count)?
                    .ok_or_else(|| "no sentences are left to judge on".into())
            };
            let pipeline = pipeline(&entry.recipe, &original, &run, judge)?;
            Ok(pipeline.run(original.clone(), &run)?.0)
        };
        let mut compressed = match compressed() {
            Ok(compressed) => compressed,
            Err(error) => {
                eprintln!("{}: {error}", entry.name);
                continue;
            }
        };
        let seconds = clock.elapsed().as_secs_f64();
        let bits = decoded(&mut compressed)?;
        let moved = judge.judge(&compressed)?.divergence;
        row(&entry.name, bits, moved, seconds, &compressed)?;
    }
    Ok(())
}
