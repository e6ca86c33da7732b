//! Quantizes a model directory in three formats, and judges each: `cargo run --release --example quantize [DIR]`.

use taper::{bundled, prelude::*};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let scratch = tempfile::tempdir()?;
    let dir = match std::env::args().nth(1) {
        Some(dir) => dir.into(),
        None => {
            bundled::write_to(scratch.path().join("model"))?;
            scratch.path().join("model")
        }
    };
    let original = taper::open(&dir)?;
    let windows = Windows::of_text(&Tokenizer::of(&original)?, bundled::TEXT, 128)?;
    let before = perplexity(&taper::build(&original)?.language()?, &windows, &Silent)?.perplexity;
    println!("{:12} {:>11} {:>8} {:>12} {:>8}", "", "bytes", "bits/w", "perplexity", "KL");
    let bytes = original.totals()?.bytes;
    println!("{:12} {bytes:>11} {:>8.3} {before:>12.3}", "original", original.totals()?.bits_per_weight());

    let pipelines = [
        ("int8", taper::recipe::int8(None)?),
        ("int4 g32", taper::recipe::int4(32)?),
        ("nf4 b64", taper::recipe::nf4(64)?),
    ];
    for (name, pipeline) in pipelines {
        let out = scratch.path().join(name);
        let report = pipeline.run_to(original.clone(), &out, &Run::new())?;
        // Read back what was written: it runs as it is stored, packed.
        let small = taper::build(&taper::open(&out)?)?.language()?;
        let after = perplexity(&small, &windows, &Silent)?.perplexity;
        let teacher = taper::build(&original)?.language()?;
        let kl = divergence(&teacher, &small, &windows.clone().first(4), &Silent)?.mean_kl;
        let bits = report.output.bits_per_weight();
        println!("{name:12} {:>11} {bits:>8.3} {after:>12.3} {kl:>8.4}", report.output.bytes);
        assert!(after < 1.1 * before, "four bits cost less than a tenth");
    }
    Ok(())
}
