//! Top-1 of the keyword spotter with compressed weights (activations stay f32).

use std::{error::Error, path::Path};
use taper::{
    models::{
        DsCnnConfig,
        eval::{Labelled, accuracy},
    },
    prelude::*,
    quant::fit::Fit,
};

use crate::table::Table;

pub(crate) fn run(model: &Path, features: &Path, json: bool) -> Result<(), Box<dyn Error>> {
    let original = taper::open(model)?;
    let data = Labelled::open(features, DsCnnConfig::of(&original)?.quantized)?;
    let table = Table::new(&["method", "bits per weight", "file (bytes)", "top-1 (%)"], json);
    let judge = |name: &str, checkpoint: &Checkpoint| -> Result<(), Box<dyn Error>> {
        let classifier = taper::build(checkpoint)?.classifier()?;
        let totals = checkpoint.totals()?;
        let found = accuracy(&classifier, &data, &Silent)?;
        let numbers = [(totals.bits_per_weight(), 3), (totals.bytes as f64, 0), (100.0 * found.top1, 2)];
        table.row(name, &numbers);
        Ok(())
    };
    judge("original", &original)?;
    let methods = [
        ("int8 channel, absmax", RoundNearest::int8().with_fit(Fit::AbsMax)),
        ("int8 channel, search", RoundNearest::int8()),
        ("int4 g32, minmax", RoundNearest::int4(32)?.with_fit(Fit::MinMax)),
        ("int4 g32, search", RoundNearest::int4(32)?),
        ("int4 g32 asym, search", RoundNearest::int4(32)?.asymmetric()),
        ("int4 g64, search", RoundNearest::int4(64)?),
        ("nf4 b64, search", RoundNearest::nf4(64)?),
    ];
    for (name, pass) in methods {
        let (checkpoint, _) = Pipeline::new().then(pass.on_matrices()).run(original.clone(), &Run::new())?;
        judge(name, &checkpoint)?;
    }
    Ok(())
}
