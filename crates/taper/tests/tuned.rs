//! Rounding learned block by block, on the bundled model.

mod bundle;

use bundle::{Bundle, Tested, bytes, values};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use taper::{
    Calibration, Needs,
    core::Error,
    models::calibration,
    prelude::*,
    quant::{Bits, Granularity, PackedInt, Schedule, Scheme, Tuned},
    store::output::Resume,
};

fn windows(checkpoint: &Checkpoint) -> Tested<Windows> {
    Ok(Windows::of_text(&Tokenizer::of(checkpoint)?, taper::bundled::TEXT, 64)?)
}

/// All windows but the last two.
fn calibration(checkpoint: &Checkpoint) -> Tested<Calibration> {
    let windows = windows(checkpoint)?;
    let count = windows.len() - 2;
    Ok(calibration::on_windows(&windows.first(count))?)
}

fn int(bits: u64, group: usize) -> Tested<Scheme> {
    Ok(Scheme::new(Bits::new(bits)?, Granularity::group(group)?))
}

/// A few steps.
fn pass(scheme: Scheme, steps: usize) -> Tested<Tuned> {
    let schedule = Schedule { steps, sequences: 2, judge: 4, ..Schedule::default() };
    Ok(Tuned::new(scheme)?.with_schedule(schedule)?)
}

/// KL to the original on the last two windows, which no pass has seen.
fn distance(original: &Checkpoint, compressed: &Checkpoint) -> Tested<f64> {
    let windows = windows(original)?;
    let tokens = windows.iter().skip(windows.len() - 2).flatten().copied().collect();
    let (p, q) = (taper::build(original)?.language()?, taper::build(compressed)?.language()?);
    Ok(divergence(&p, &q, &Windows::new(tokens, 64)?, &Silent)?.mean_kl)
}

#[test]
fn learned_rounding_is_closer_to_the_original_on_text_it_has_not_seen() -> Tested {
    let bundle = Bundle::new()?;
    let original = bundle.open()?;
    let linears = Select::any(["*_proj.weight"])?;
    let plain = RoundNearest::int(2, Granularity::group(64)?)?.on(linears.clone());
    let (plain, _) = Pipeline::new().then(plain).run(original.clone(), &Run::new())?;
    let tuned = pass(int(2, 64)?, 30)?.on(linears);
    let calibration = calibration(&original)?;
    let run = Run::new().with_calibration(&calibration);
    let (tuned, _) = Pipeline::new().then(tuned).run(original.clone(), &run)?;
    let (plain, tuned) = (distance(&original, &plain)?, distance(&original, &tuned)?);
    assert!(tuned < 0.75 * plain, "{tuned} against {plain} of the search alone");
    Ok(())
}

#[test]
fn what_is_outside_the_blocks_stays_and_the_report_says_so() -> Tested {
    let bundle = Bundle::new()?;
    let original = bundle.open()?;
    let calibration = calibration(&original)?;
    let run = Run::new().with_calibration(&calibration);
    let (tuned, report) = Pipeline::new().then(pass(int(4, 32)?, 1)?).run(original.clone(), &run)?;
    let left: Vec<_> = report.left().collect();
    assert!(
        matches!(left[..], [("model.embed_tokens.weight", why)] if why.contains("in no block")),
        "{left:?}"
    );
    for name in tuned.names().iter().filter(|n| n.ends_with("_proj.weight")) {
        assert_eq!(tuned.info(name)?.encoding.codec, "pack-quantized", "{name}");
        assert!((tuned.info(name)?.bits_per_weight() - 4.5).abs() < 0.02, "{name}");
    }
    Ok(())
}

#[test]
fn one_and_two_threads_learn_the_same_bytes() -> Tested {
    let bundle = Bundle::new()?;
    let original = bundle.open()?;
    let calibration = calibration(&original)?;
    let learn = |threads: usize| -> Tested<Checkpoint> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let pass = pass(int(3, 32)?.asymmetric(), 3)?;
        Ok(pool
            .install(|| {
                Pipeline::new().then(pass).run(original.clone(), &Run::new().with_calibration(&calibration))
            })?
            .0)
    };
    let (one, two) = (learn(1)?, learn(2)?);
    for name in one.names() {
        assert_eq!(values(&one, &name)?, values(&two, &name)?, "{name}");
    }
    Ok(())
}

#[test]
fn learning_can_be_cancelled_and_counts_its_steps() -> Tested {
    let bundle = Bundle::new()?;
    let original = bundle.open()?;
    let stop = |event: &Event<'_>| match event {
        Event::Step { what: "steps of learned rounding", done: 3, total } => {
            assert_eq!(*total, 4 * 5, "four blocks of five steps");
            Flow::Cancel
        }
        _ => Flow::Continue,
    };
    let calibration = calibration(&original)?;
    let run = Run::new().with_calibration(&calibration).with_progress(&stop);
    let error = Pipeline::new().then(pass(int(4, 32)?, 5)?).run(original.clone(), &run);
    let error = error.map(|_| ()).expect_err("somebody asked to stop");
    assert!(error.to_string().contains("cancel") || matches!(error, Error::Cancelled), "{error}");
    Ok(())
}

#[test]
fn meaningless_options_are_refused_with_what_would_be_right() -> Tested {
    let bundle = Bundle::new()?;
    let original = bundle.open()?;
    let whole = int(4, 32)?.with_granularity(Granularity::Tensor);
    assert!(Tuned::new(whole).unwrap_err().to_string().contains("one scale per channel"));
    let tuned = Tuned::new(int(4, 32)?)?;
    for schedule in [
        Schedule { steps: 0, ..Schedule::default() },
        Schedule { travel: 0.0, ..Schedule::default() },
        Schedule { judge: 1, ..Schedule::default() },
    ] {
        assert!(tuned.clone().with_schedule(schedule).is_err(), "{schedule:?}");
    }
    let calibration = calibration(&original)?;
    let run = Run::new().with_calibration(&calibration);
    let nowhere = tuned.on(Select::glob("nothing.*")?);
    let error = Pipeline::new().then(nowhere).run(original, &run).map(|_| ()).expect_err("no weight");
    assert!(error.to_string().contains("selects no weight"), "{error}");
    Ok(())
}

#[test]
fn without_calibration_it_is_refused_before_any_work() -> Tested {
    let bundle = Bundle::new()?;
    let original = bundle.open()?;
    let stats = calibration(&original)?.stats(&original, Needs::InputNorms, &Silent)?;
    for run in [Run::new(), Run::new().with_stats(&stats)] {
        let error = Pipeline::new().then(pass(int(4, 32)?, 1)?).run(original.clone(), &run);
        let error = error.map(|_| ()).expect_err("no batches");
        assert!(matches!(&error, Error::NeedsStats { needs: Needs::Batches, .. }), "{error}");
    }
    Ok(())
}

#[test]
fn a_dry_run_tells_every_byte_and_learns_nothing() -> Tested {
    let bundle = Bundle::new()?;
    let calibration = calibration(&bundle.open()?)?;
    let pipeline = Pipeline::new().then(pass(int(3, 32)?, 2)?.on(Select::any(["*_proj.weight"])?));
    let none = |event: &Event<'_>| {
        assert!(!matches!(event, Event::Step { what: "steps of learned rounding", .. }), "it learns");
        Flow::Continue
    };
    let run = Run::new().with_calibration(&calibration);
    let told = pipeline.predict(bundle.open()?, &run.with_progress(&none))?;
    pipeline.run_to(bundle.open()?, bundle.at("out"), &Run::new().with_calibration(&calibration))?;
    for (file, size) in told.files {
        assert_eq!(std::fs::metadata(bundle.at("out").join(&file))?.len(), size, "{file}");
    }
    Ok(())
}

#[test]
fn encoded_weights_are_left_alone() -> Tested {
    let bundle = Bundle::new()?;
    let mut original = bundle.open()?;
    let name = "model.layers.0.mlp.down_proj.weight";
    let shape = original.info(name)?.shape;
    let packed = PackedInt::encode(
        &values(&original, name)?,
        &shape,
        &Scheme::int8(),
        &taper::quant::Fit::default(),
        None,
        taper::quant::IntLayout::PackQuantized,
    )?;
    original.insert(name, Arc::new(packed));
    let calibration = calibration(&original)?;
    let run = Run::new().with_calibration(&calibration);
    let pass = pass(int(4, 32)?, 1)?.on(Select::glob("model.layers.0.mlp.*")?);
    let (_, report) = Pipeline::new().then(pass).run(original, &run)?;
    assert!(report.left().any(|(weight, why)| weight == name && why.contains("encoded already")));
    Ok(())
}

/// Stops after so many steps, and counts those that learned.
struct StopAt {
    step: usize,
    seen: AtomicUsize,
}

impl Progress for StopAt {
    fn on(&self, event: &Event<'_>) -> Flow {
        let Event::Step { what: "steps of learned rounding", done, .. } = event else {
            return Flow::Continue;
        };
        self.seen.fetch_max(*done, Ordering::SeqCst);
        if *done == self.step { Flow::Cancel } else { Flow::Continue }
    }
}

#[test]
fn a_cancelled_run_goes_on_after_the_last_whole_block_to_the_same_bytes() -> Tested {
    let bundle = Bundle::new()?;
    let calibration = calibration(&bundle.open()?)?;
    let run = || Run::new().with_calibration(&calibration);
    let pipeline = Pipeline::new().then(pass(int(3, 32)?, 4)?.on(Select::any(["*_proj.weight"])?));
    pipeline.run_to(bundle.open()?, bundle.at("whole"), &run())?;
    // In the third of four blocks, and behind the last.
    for (name, step) in [("half", 10), ("late", 15)] {
        let (out, stop) = (bundle.at(name), StopAt { step, seen: AtomicUsize::new(0) });
        let error = pipeline.run_to(bundle.open()?, &out, &run().with_progress(&stop)).unwrap_err();
        assert!(error.is_cancelled() && !out.exists(), "{error}");
        let kept = bundle.at(&format!("{name}.partial")).join("calibrated/pass-0");
        assert!(kept.join("block-1").is_dir() && !kept.join("block-3").exists());
        let before = std::fs::metadata(kept.join("block-1/model.safetensors"))?.modified()?;
        let look = |event: &Event<'_>| {
            if let Event::Weight { .. } = event {
                let now = std::fs::metadata(kept.join("block-1/model.safetensors"));
                assert_eq!(now.unwrap().modified().unwrap(), before, "not learned again");
            }
            Flow::Continue
        };
        let again = run().with_resume(Resume::Continue).with_progress(&look);
        pipeline.run_to(bundle.open()?, &out, &again)?;
        assert!(bytes(&out)? == bytes(&bundle.at("whole"))?, "{name}");
        assert!(!bundle.at(&format!("{name}.partial")).exists());
    }
    Ok(())
}
