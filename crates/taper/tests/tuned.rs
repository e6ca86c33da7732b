//! Rounding learned block by block, on the bundled model.

mod bundle;

use bundle::{Bundle, Tested, values};
use std::sync::Arc;
use taper::{
    core::{Batch, Error},
    prelude::*,
    quant::{Bits, Granularity, PackedInt, Schedule, Scheme, Tuned},
};

fn windows(checkpoint: &Checkpoint) -> Tested<Windows> {
    Ok(Windows::of_text(&Tokenizer::of(checkpoint)?, taper::bundled::TEXT, 64)?)
}

fn int(bits: u64, group: usize) -> Tested<Scheme> {
    Ok(Scheme::new(Bits::new(bits)?, Granularity::group(group)?))
}

/// A few steps on all windows but the last two.
fn pass(checkpoint: &Checkpoint, scheme: Scheme, steps: usize) -> Tested<Tuned> {
    let windows = windows(checkpoint)?;
    let count = windows.len() - 2;
    let batches = windows.first(count).batches().map(|b| Ok(Batch::new(b?))).collect::<Tested<Vec<_>>>()?;
    let schedule = Schedule { steps, batches: 2, judge: 4, ..Schedule::default() };
    Ok(Tuned::new(scheme, Arc::new(Families), Arc::new(batches))?.with_schedule(schedule)?)
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
    let tuned = pass(&original, int(2, 64)?, 30)?.on(linears);
    let (tuned, _) = Pipeline::new().then(tuned).run(original.clone(), &Run::new())?;
    let (plain, tuned) = (distance(&original, &plain)?, distance(&original, &tuned)?);
    assert!(tuned < 0.75 * plain, "{tuned} against {plain} of the search alone");
    Ok(())
}

#[test]
fn what_is_outside_the_blocks_stays_and_the_report_says_so() -> Tested {
    let bundle = Bundle::new()?;
    let original = bundle.open()?;
    let run = Run::new();
    let (tuned, report) =
        Pipeline::new().then(pass(&original, int(4, 32)?, 1)?).run(original.clone(), &run)?;
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
    let learn = |threads: usize| -> Tested<Checkpoint> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let pass = pass(&original, int(3, 32)?.asymmetric(), 3)?;
        Ok(pool.install(|| Pipeline::new().then(pass).run(original.clone(), &Run::new()))?.0)
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
    let run = Run::new().with_progress(&stop);
    let error = Pipeline::new().then(pass(&original, int(4, 32)?, 5)?).run(original.clone(), &run);
    let error = error.map(|_| ()).expect_err("somebody asked to stop");
    assert!(error.to_string().contains("cancel") || matches!(error, Error::Cancelled), "{error}");
    Ok(())
}

#[test]
fn meaningless_options_are_refused_with_what_would_be_right() -> Tested {
    let bundle = Bundle::new()?;
    let original = bundle.open()?;
    let blocks = || Arc::new(Families);
    assert!(Tuned::new(int(4, 32)?, blocks(), Arc::new(vec![])).is_err());
    let whole = int(4, 32)?.with_granularity(Granularity::Tensor);
    let batches = Arc::new(vec![Batch::new(windows(&original)?.batches().next().expect("a window")?)]);
    assert!(Tuned::new(whole, blocks(), Arc::clone(&batches)).is_err());
    let tuned = Tuned::new(int(4, 32)?, blocks(), batches)?;
    for schedule in [
        Schedule { steps: 0, ..Schedule::default() },
        Schedule { travel: 0.0, ..Schedule::default() },
        Schedule { judge: 1, ..Schedule::default() },
    ] {
        assert!(tuned.clone().with_schedule(schedule).is_err(), "{schedule:?}");
    }
    let nowhere = tuned.on(Select::glob("nothing.*")?);
    let error = Pipeline::new().then(nowhere).run(original, &Run::new()).map(|_| ()).expect_err("no weight");
    assert!(error.to_string().contains("selects no weight"), "{error}");
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
    let pass = pass(&original, int(4, 32)?, 1)?.on(Select::glob("model.layers.0.mlp.*")?);
    let (_, report) = Pipeline::new().then(pass).run(original, &Run::new())?;
    assert!(report.left().any(|(weight, why)| weight == name && why.contains("encoded already")));
    Ok(())
}
