//! The command on real models and data, where they are at hand: `TAPER_SHARED`, or `shared` beside the repository.

mod taper;

use std::path::PathBuf;
use taper::{Scratch, Tested};

/// The shelf, or none with a loud word; in CI its absence is an error.
fn shelf() -> Tested<Option<PathBuf>> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let shelf = std::env::var_os("TAPER_SHARED").map_or_else(beside, PathBuf::from);
    if shelf.join("models").is_dir() {
        return Ok(Some(shelf.canonicalize()?));
    }
    if std::env::var_os("CI").is_some() {
        return Err(format!("`{}` holds no models, and tests never skip in CI", shelf.display()).into());
    }
    eprintln!("SKIPPED: `{}` holds no models; set TAPER_SHARED", shelf.display());
    Ok(None)
}

#[test]
fn a_keyword_spotter_keeps_its_accuracy() -> Tested {
    let Some(shelf) = shelf()? else { return Ok(()) };
    let scratch = Scratch::new()?;
    let (model, data) = (shelf.join("models/ds-cnn-kws"), shelf.join("data/kws01.safetensors"));
    let correct = |dir: &str| -> Tested<f64> {
        let command = format!("eval {dir} --features {} --json", data.display());
        let json = scratch.run(&command)?.done().json()?;
        Ok(json["features"]["top1"].as_f64().ok_or("no accuracy")?)
    };
    // The reference figure of the float model, and MLPerf Tiny's bar.
    assert_eq!(correct(&model.display().to_string())?, 0.915);
    scratch.run(&format!("compress {} -o small --int4", model.display()))?.done();
    assert!(correct("small")? >= 0.900);
    Ok(())
}

#[test]
fn perplexity_is_the_reference_figure() -> Tested {
    let Some(shelf) = shelf()? else { return Ok(()) };
    let scratch = Scratch::new()?;
    let (model, text) = (shelf.join("models/stories260k"), shelf.join("data/tinystories-sample.txt"));
    let command = format!("eval {} --text {} --window 512 --json", model.display(), text.display());
    let json = scratch.run(&command)?.done().json()?;
    assert_eq!(json["text"]["predictions"], 15_330);
    let perplexity = json["text"]["perplexity"].as_f64().ok_or("no perplexity")?;
    assert!((perplexity - 6.588).abs() < 0.001, "{perplexity}");
    Ok(())
}
