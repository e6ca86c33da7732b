//! Promise 3: verified after every pass. Promise 4: what is reported comes from the stored bytes.

use crate::toy::{Halve, Halved, Scale, checkpoint, codecs, error_of, values};
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use std::sync::Arc;
use taper_core::{Checkpoint, Context, Pass, Pipeline, Result, Run, Stage, Weight, WeightPass};

#[test]
fn a_pass_that_makes_infinities_is_named() {
    let scale = Scale { factor: f64::INFINITY, stage: Stage::Value };
    let message = error_of(Pipeline::new().then(scale.on_matrices()).run(checkpoint(1), &Run::new()));
    assert!(message.contains("`scale` broke a rule at weight `head.weight`"), "{message}");
}

#[test]
fn input_that_is_not_finite_is_an_error_that_names_the_weight() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut broken = values(64, 1);
        broken[17] = bad;
        let mut input = checkpoint(1);
        let tensor = Tensor::from_vec(broken, (4, 16), &Device::Cpu).unwrap();
        input.insert("layers.0.weight", Arc::new(tensor));
        let message = error_of(Pipeline::new().then(Halve.on_matrices()).run(input, &Run::new()));
        assert!(
            message.contains("`layers.0.weight` has 1 values") && message.contains("index 17"),
            "{message}"
        );
    }
}

/// Mischief of whole passes.
#[derive(Debug)]
enum Bad {
    Reshapes,
    Removes,
    Adds,
}

impl Pass for Bad {
    fn name(&self) -> &str {
        "bad"
    }

    fn stage(&self) -> Stage {
        Stage::Value
    }

    fn settings(&self) -> Value {
        json!({})
    }

    fn run(&self, mut checkpoint: Checkpoint, _: &Context<'_>) -> Result<Checkpoint> {
        let first = checkpoint.get("layers.0.weight")?.dense()?;
        match self {
            Self::Reshapes => checkpoint.insert("layers.0.weight", Arc::new(first.reshape((16, 24))?)),
            Self::Removes => drop(checkpoint.remove("layers.0.weight")),
            Self::Adds => checkpoint.insert("extra", Arc::new(first)),
        }
        Ok(checkpoint)
    }
}

#[test]
fn names_and_shapes_are_kept_or_the_pass_is_named() {
    for (bad, rule) in
        [(Bad::Reshapes, "its shape went from"), (Bad::Removes, "it is gone"), (Bad::Adds, "it is new")]
    {
        let message = error_of(Pipeline::new().then(bad).run(checkpoint(1), &Run::new()));
        assert!(message.contains("pass `bad` broke a rule") && message.contains(rule), "{message}");
    }
}

#[test]
fn reported_damage_is_that_of_the_reloaded_weight() {
    let dir = tempfile::tempdir().unwrap();
    let input = checkpoint(2);
    let out = dir.path().join("out");
    let report = Pipeline::new().then(Halve.on_matrices()).run_to(input.clone(), &out, &Run::new()).unwrap();
    let output = Checkpoint::open_with(&out, &codecs()).unwrap();
    for row in &report.passes[0].rows {
        let before: Vec<f32> =
            taper_core::weight::to_f32_vec(input.get(&row.weight).unwrap().as_ref()).unwrap();
        let after = taper_core::weight::to_f32_vec(output.get(&row.weight).unwrap().as_ref()).unwrap();
        // Plain sums, independent of the driver's.
        let noise: f64 = before.iter().zip(&after).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let signal: f64 = before.iter().map(|a| f64::from(*a).powi(2)).sum();
        let damage = row.damage.unwrap();
        assert!((damage.normalised_mse - noise / signal).abs() <= 1e-12 + 1e-9 * noise / signal);
        assert!(row.weight == "head.weight" || damage.normalised_mse > 0.0);
    }
}

#[test]
fn a_weight_that_lies_about_its_size_cannot_be_written() {
    #[derive(Debug, Clone)]
    struct Liar(Halved);
    impl Weight for Liar {
        fn encoding(&self) -> taper_core::Encoding {
            self.0.encoding()
        }
        fn shape(&self) -> &[usize] {
            self.0.shape()
        }
        fn nbytes(&self) -> usize {
            1
        }
        fn dense(&self) -> Result<Tensor> {
            self.0.dense()
        }
        fn matmul(&self, x: &Tensor) -> Result<Tensor> {
            self.0.matmul(x)
        }
        fn gather(&self, ids: &Tensor) -> Result<Tensor> {
            self.0.gather(ids)
        }
        fn to_parts(&self) -> Result<taper_core::Parts> {
            self.0.to_parts()
        }
    }
    let mut input = checkpoint(1);
    let honest = Halved::of(input.get("layers.0.weight").unwrap().as_ref()).unwrap();
    input.insert("layers.0.weight", Arc::new(Liar(honest)));
    let dir = tempfile::tempdir().unwrap();
    let message = error_of(input.save(dir.path().join("out")));
    assert!(message.contains("claims 1 bytes and stores 768"), "{message}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing may be left behind");
}

/// Drops layer 0 and moves the others down, as dropping layers does.
#[derive(Debug)]
struct DropFirst(Stage);

impl Pass for DropFirst {
    fn name(&self) -> &str {
        "drop-first"
    }

    fn stage(&self) -> Stage {
        self.0
    }

    fn settings(&self) -> Value {
        json!({})
    }

    fn run(&self, mut checkpoint: Checkpoint, _: &Context<'_>) -> Result<Checkpoint> {
        for i in 1..3 {
            for part in ["weight", "norm"] {
                checkpoint.rename(&format!("layers.{i}.{part}"), format!("layers.{}.{part}", i - 1))?;
            }
        }
        Ok(checkpoint)
    }
}

#[test]
fn a_renamed_weight_is_followed_and_not_compared_with_the_one_whose_place_it_takes() {
    let (after, report) =
        Pipeline::new().then(DropFirst(Stage::Shape)).run(checkpoint(3), &Run::new()).unwrap();
    assert!(!after.contains("layers.2.weight"));
    let rows = &report.passes[0].rows;
    let outcome = |name: &str| rows.iter().find(|r| r.weight == name).map(|r| r.outcome.clone());
    assert_eq!(outcome("layers.0.weight"), Some(taper_core::Outcome::Removed), "its values are gone");
    assert_eq!(outcome("layers.2.weight"), Some(taper_core::Outcome::Done), "its values moved down");
    assert!(rows.iter().all(|r| r.damage.is_none()));
    let message = error_of(Pipeline::new().then(DropFirst(Stage::Value)).run(checkpoint(3), &Run::new()));
    assert!(message.contains("only a pass of stage `shape` may"), "{message}");
}

/// Adds a weight, with or without saying so.
#[derive(Debug)]
struct Add(f32, bool);

impl Pass for Add {
    fn name(&self) -> &str {
        "add"
    }

    fn stage(&self) -> Stage {
        Stage::Value
    }

    fn settings(&self) -> Value {
        json!({})
    }

    fn run(&self, mut checkpoint: Checkpoint, context: &Context<'_>) -> Result<Checkpoint> {
        let value = candle_core::Tensor::full(self.0, (2, 3), &candle_core::Device::Cpu)?;
        checkpoint.insert("new.weight", std::sync::Arc::new(value));
        if self.1 {
            context.added("new.weight");
        }
        Ok(checkpoint)
    }
}

#[test]
fn a_weight_may_be_added_only_with_a_word_and_only_finite() {
    let run = |pass| Pipeline::new().then(pass).run(checkpoint(1), &Run::new());
    let (after, report) = run(Add(1.0, true)).unwrap();
    assert!(after.contains("new.weight"));
    let row = &report.passes[0].rows[0];
    assert_eq!((row.before.bytes, row.after.as_ref().unwrap().bytes), (0, 24));
    assert_eq!(row.outcome, taper_core::Outcome::Added);
    assert!(error_of(run(Add(1.0, false))).contains("must say so"));
    assert!(error_of(run(Add(f32::NAN, true))).contains("new.weight"));
}
