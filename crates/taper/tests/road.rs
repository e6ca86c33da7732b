//! The one road, for every bundled recipe: model directory, recipe, model directory, judgement.

mod bundle;

use bundle::{Bundle, Tested, bytes, judged, values};
use taper::{bundled::RECIPES, prelude::*};

/// The most that a recipe may multiply the perplexity by.
fn allowed(recipe: &str) -> f64 {
    match recipe {
        "int8" => 1.005,
        "int4" | "nf4" => 1.10,
        // Without retraining, these cost a small model a great deal; the bound only catches a broken road.
        _ => 6.0,
    }
}

#[test]
fn every_recipe_gives_a_model_that_reopens_and_still_reads() -> Tested {
    let bundle = Bundle::new()?;
    let original = judged(&bundle.at("model"))?;
    assert!((20.0..90.0).contains(&original), "{original}");
    for (name, recipe) in RECIPES {
        let report =
            Recipe::parse(recipe)?.pipeline().run_to(bundle.open()?, bundle.at(name), &Run::new())?;
        assert!(report.output.bytes < report.input.bytes, "{name}: {report}");
        let after = judged(&bundle.at(name))?;
        let most = original * allowed(name);
        assert!(after.is_finite() && after < most, "{name}: {after} from {original}");
        assert!(after > original * 0.98, "{name} cannot be better than what it came from: {after}");
    }
    Ok(())
}

#[test]
fn predictions_are_the_written_bytes() -> Tested {
    let bundle = Bundle::new()?;
    for shard_bytes in [u64::MAX, 300_000] {
        for (name, recipe) in RECIPES {
            let (run, out) =
                (Run::new().with_shard_bytes(shard_bytes), bundle.at(&format!("{name}-{shard_bytes}")));
            let pipeline = Recipe::parse(recipe)?.pipeline();
            let predicted = pipeline.predict(bundle.open()?, &run)?;
            let report = pipeline.run_to(bundle.open()?, &out, &run)?;
            let written: Vec<(String, u64)> =
                bytes(&out)?.into_iter().map(|(name, bytes)| (name, bytes.len() as u64)).collect();
            assert_eq!(predicted.files, written, "{name}");
            assert_eq!(predicted.array_bytes, report.output.bytes, "{name}");
            let sharded = written.iter().filter(|(name, _)| name.ends_with(".safetensors")).count() > 1;
            assert_eq!(sharded, shard_bytes == 300_000, "{name}");
        }
    }
    Ok(())
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads() -> Tested {
    let bundle = Bundle::new()?;
    for (name, recipe) in RECIPES {
        let pipeline = Recipe::parse(recipe)?.pipeline();
        let mut written = Vec::new();
        for threads in [1, 2, 5] {
            let out = bundle.at(&format!("{name}-{threads}"));
            let pool = taper_pool(threads)?;
            let checkpoint = bundle.open()?;
            pool.install(|| pipeline.run_to(checkpoint, &out, &Run::new()))?;
            written.push(bytes(&out)?);
        }
        assert!(written.windows(2).all(|pair| pair[0] == pair[1]), "{name}");
    }
    Ok(())
}

fn taper_pool(threads: usize) -> Tested<rayon::ThreadPool> {
    Ok(rayon::ThreadPoolBuilder::new().num_threads(threads).build()?)
}

#[test]
fn what_is_saved_again_has_the_same_bytes() -> Tested {
    let bundle = Bundle::new()?;
    for (name, recipe) in RECIPES {
        let (once, twice) = (bundle.at(name), bundle.at(&format!("{name}-again")));
        Recipe::parse(recipe)?.pipeline().run_to(bundle.open()?, &once, &Run::new())?;
        taper::open(&once)?.save(&twice)?;
        assert!(bytes(&once)? == bytes(&twice)?, "{name}");
    }
    Ok(())
}

#[test]
fn what_runs_in_memory_is_what_is_stored() -> Tested {
    let bundle = Bundle::new()?;
    for (name, recipe) in RECIPES {
        let pipeline = Recipe::parse(recipe)?.pipeline();
        let (memory, _) = pipeline.run(bundle.open()?, &Run::new())?;
        pipeline.run_to(bundle.open()?, bundle.at(name), &Run::new())?;
        let stored = taper::open(bundle.at(name))?;
        assert_eq!(memory.names(), stored.names(), "{name}");
        for weight in memory.names() {
            let (a, b) = (values(&memory, &weight)?, values(&stored, &weight)?);
            assert!(a.iter().zip(&b).all(|(x, y)| x.to_bits() == y.to_bits()), "{name}: {weight}");
        }
    }
    Ok(())
}

#[test]
fn a_coverage_floor_that_is_not_reached_is_an_error_and_leaves_nothing() -> Tested {
    let bundle = Bundle::new()?;
    let recipe =
        "coverage-floor = 0.9\n[[pass]]\nname = 'round-nearest'\nbits = 4\ngroup = 32\nselect = '*.k_proj.*'";
    let error = Recipe::parse(recipe)?
        .pipeline()
        .run_to(bundle.open()?, bundle.at("out"), &Run::new())
        .unwrap_err()
        .to_string();
    assert!(error.contains("less than the floor of 90.0 %"), "{error}");
    let left: Vec<_> = std::fs::read_dir(bundle.at("."))?.collect::<Result<Vec<_>, _>>()?;
    assert_eq!(left.len(), 1, "only the model is there: {left:?}");
    Ok(())
}
