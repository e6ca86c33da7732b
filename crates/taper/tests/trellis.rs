//! Trellis codes on the bundled model: calibrated, written, read back, judged.

mod bundle;

use bundle::{Bundle, Tested, judged};
use taper::{Needs, candle::Tensor, core::observe::calibrate_checkpoint, prelude::*};

fn stats(checkpoint: &Checkpoint) -> Tested<Stats> {
    let windows = Windows::of_text(&Tokenizer::of(checkpoint)?, taper::bundled::TEXT, 128)?;
    // The judge looks at the first six windows; calibration at those behind them.
    let batches = windows.batches().skip(6).take(16).collect::<Result<Vec<Tensor>, _>>()?;
    let feed = |model: &AnyModel| match model {
        AnyModel::Language(model) => batches.iter().try_for_each(|ids| model.forward(ids).map(drop)),
        other => panic!("{other:?}"),
    };
    Ok(calibrate_checkpoint(&Families, checkpoint, Needs::Gram, feed)?)
}

/// Bits per weight of the linear layers, and the perplexity of what was written.
fn compressed(bundle: &Bundle, recipe: &str, seen: &Stats) -> Tested<(f64, f64)> {
    let out = bundle.at("out");
    let pipeline = Recipe::parse(recipe)?.pipeline();
    let report = pipeline.run_to(bundle.open()?, &out, &Run::new().with_stats(seen))?;
    let (mut bits, mut elements) = (0.0, 0.0);
    for row in &report.passes[0].rows {
        let after = row.after.as_ref().ok_or("no weight is removed")?;
        bits += after.bytes as f64 * 8.0;
        elements += after.shape.iter().product::<usize>() as f64;
    }
    let perplexity = judged(&out)?;
    std::fs::remove_dir_all(out)?;
    Ok((bits / elements, perplexity))
}

#[test]
fn at_fewer_bits_a_trellis_loses_less_than_half_of_what_scalar_codes_lose() -> Tested {
    let bundle = Bundle::new()?;
    let original = judged(&bundle.at("model"))?;
    let seen = stats(&bundle.open()?)?;
    let recipe = |pass: &str| format!("[[pass]]\n{pass}\nselect = '*_proj.weight'\n");
    let scalar = recipe("name = 'round-nearest'\nbits = 2\ngroup = 64\nweighting = 'input-norms'");
    let (scalar_bits, scalar) = compressed(&bundle, &scalar, &seen)?;
    let (bits, trellis) = compressed(&bundle, &recipe("name = 'trellis'\nbits = 2.0"), &seen)?;
    println!("original {original}, scalar {scalar} at {scalar_bits} bits, trellis {trellis} at {bits}");
    assert!(bits < scalar_bits, "{bits} {scalar_bits}");
    assert!(
        trellis.ln() - original.ln() < 0.5 * (scalar.ln() - original.ln()),
        "{original} {scalar} {trellis}"
    );
    Ok(())
}
