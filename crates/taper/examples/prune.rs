//! Prunes the bundled model three ways: zeros in a pattern, zeros anywhere stored sparsely, and whole neurons.

use std::sync::Arc;
use taper::{bundled, core::coupling::Family, prelude::*, weight::to_f32_vec};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let scratch = tempfile::tempdir()?;
    let dir = scratch.path().join("model");
    bundled::write_to(&dir)?;
    let original = taper::open(&dir)?;
    let windows = Windows::of_text(&Tokenizer::of(&original)?, bundled::TEXT, 128)?.first(10);
    let layers = Select::glob("model.layers.*.{mlp,self_attn}.*")?;

    let pipelines = [
        ("2:4 in the layers", Pipeline::new().then(NOfM::new(2, 4)?.on(layers.clone()))),
        (
            "30 % anywhere, as a bitmask",
            Pipeline::new()
                .then(Magnitude::new(0.3)?.on(layers.clone()))
                .then(SparseBitmask::new().on(layers)),
        ),
        (
            "a quarter of the neurons",
            Pipeline::new().then(Structured::new(Arc::new(Families), Family::FeedForward, 0.25)?),
        ),
    ];
    println!("{:30} {:>9} {:>11} {:>11}", "", "zeros", "bytes", "perplexity");
    for (name, pipeline) in pipelines {
        let (pruned, report) = pipeline.run(original.clone(), &Run::new())?;
        let (mut zeros, mut all) = (0, 0);
        for weight in pruned.names().iter().filter(|n| n.contains(".mlp.")) {
            let values = to_f32_vec(pruned.get(weight)?.as_ref())?;
            zeros += values.iter().filter(|v| **v == 0.0).count();
            all += values.len();
        }
        let judged = perplexity(&taper::build(&pruned)?.language()?, &windows, &Silent)?.perplexity;
        let share = 100.0 * zeros as f64 / all as f64;
        println!("{name:30} {share:>7.1} % {:>11} {judged:>11.2}", report.output.bytes);
        if name.starts_with("2:4") {
            assert!(2 * zeros >= all, "exactly half of every four");
        } else {
            assert!(report.output.bytes < report.input.bytes, "these two are smaller as they are");
        }
    }
    Ok(())
}
