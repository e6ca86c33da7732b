//! Spearman of sentence similarities, running on the packed weights: the embedding table is looked up row by row and never
//! exists densely.

use std::{error::Error, path::Path, path::PathBuf};
use taper::{
    models::eval::{read_pairs, similarity},
    prelude::*,
    quant::fit::Fit,
};

use crate::table::Table;

pub(crate) fn run(model: &Path, pairs: &[PathBuf], json: bool) -> Result<(), Box<dyn Error>> {
    let original = taper::open(model)?;
    let mut columns = vec!["method".to_owned(), "bits per weight".into(), "file (bytes)".into()];
    columns.extend(pairs.iter().map(|p| p.file_stem().unwrap_or_default().to_string_lossy().into_owned()));
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let table = Table::new(&columns, json);
    let sets = pairs.iter().map(read_pairs).collect::<Result<Vec<_>, _>>()?;
    let judge = |name: &str, checkpoint: &Checkpoint| -> Result<(), Box<dyn Error>> {
        let encoder = SentenceEncoder::open(checkpoint)?;
        let totals = checkpoint.totals()?;
        let mut numbers = vec![(totals.bits_per_weight(), 3), (totals.bytes as f64, 0)];
        for set in &sets {
            numbers.push((similarity(&encoder, set, &Silent)?.spearman, 4));
        }
        table.row(name, &numbers);
        Ok(())
    };
    judge("original", &original)?;
    let methods = [
        ("int8 channel, search", RoundNearest::int8()),
        ("int4 g32, search", RoundNearest::int4(32)?),
        ("int4 g64, search", RoundNearest::int4(64)?),
        ("int4 g128, search", RoundNearest::int4(128)?),
        ("int4 g32, minmax", RoundNearest::int4(32)?.with_fit(Fit::MinMax)),
        ("int4 g128, minmax", RoundNearest::int4(128)?.with_fit(Fit::MinMax)),
        ("int4 g32 asym, search", RoundNearest::int4(32)?.asymmetric()),
        ("nf4 b64, absmax", RoundNearest::nf4(64)?.with_fit(Fit::AbsMax)),
        ("nf4 b64, search", RoundNearest::nf4(64)?),
        ("nf4 b64 double, search", RoundNearest::nf4(64)?.double_quant()),
    ];
    for (name, pass) in methods {
        let (checkpoint, _) = Pipeline::new().then(pass.on_matrices()).run(original.clone(), &Run::new())?;
        judge(name, &checkpoint)?;
    }
    Ok(())
}
