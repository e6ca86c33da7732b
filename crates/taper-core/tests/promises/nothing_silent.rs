//! Promise 1: nothing is silent.

use crate::toy::{Halve, Scale, checkpoint, error_of};
use taper_core::{
    Context, Outcome, Pipeline, Result, Rewrite, Run, Select, SharedWeight, Stage, WeightPass,
    report::{Measure, Unit},
};

#[test]
fn a_selector_that_matches_nothing_is_an_error_with_examples() {
    let pipeline = Pipeline::new().then(Halve.on(Select::glob("model.blocks.*").unwrap()));
    let message = error_of(pipeline.run(checkpoint(2), &Run::new()));
    assert!(message.contains("`model.blocks.*`") && message.contains("`head.weight`"), "{message}");
}

#[test]
fn every_selected_weight_ends_with_an_outcome() {
    let pipeline = Pipeline::new().then(Halve.on(Select::glob("layers.*").unwrap()));
    let (_, report) = pipeline.run(checkpoint(3), &Run::new()).unwrap();
    let rows = &report.passes[0].rows;
    assert_eq!(rows.len(), 6);
    assert_eq!(rows.iter().filter(|r| r.outcome == Outcome::Done).count(), 3);
    assert_eq!(report.left().count(), 3);
    assert!(report.left().all(|(name, why)| name.ends_with("norm") && why == "one-dimensional"));
    let table = report.to_string();
    assert!(table.contains("left 3: one-dimensional"), "{table}");
}

#[test]
fn coverage_counts_bytes_of_matrices_and_a_floor_makes_it_an_error() {
    let pipeline = Pipeline::new().then(Halve.on(Select::glob("layers.0.*").unwrap()));
    let (_, report) = pipeline.run(checkpoint(2), &Run::new()).unwrap();
    // Two f32 matrices of 24·16 and one bf16 matrix of 8·16.
    let eligible = 2.0 * 24.0 * 16.0 * 4.0 + 8.0 * 16.0 * 2.0;
    assert!((report.coverage() - 24.0 * 16.0 * 4.0 / eligible).abs() < 1e-12);
    let message = error_of(pipeline.with_coverage_floor(0.9).run(checkpoint(2), &Run::new()));
    assert!(message.contains("less than the floor of 90.0 %"), "{message}");
}

#[test]
fn the_report_survives_json() {
    let (_, report) = Pipeline::new().then(Halve.on_matrices()).run(checkpoint(1), &Run::new()).unwrap();
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<taper_core::Report>(&text).unwrap(), report);
}

#[test]
fn a_missing_weight_names_its_neighbours() {
    let message = error_of(checkpoint(2).get("layers.1.weights"));
    assert!(message.contains("nearest: `layers.1.weight`"), "{message}");
}

#[test]
fn an_error_in_a_pass_names_the_pass_and_the_weight() {
    // Integers cannot be scaled by a fraction: candle refuses, and the driver says where.
    let scale = Scale { factor: 0.5, stage: Stage::Value };
    let pipeline = Pipeline::new().then(scale.on(Select::glob("positions").unwrap()));
    let result = pipeline.run(checkpoint(1), &Run::new());
    let message = error_of(result);
    assert!(message.contains("`scale`") && message.contains("`positions`"), "{message}");
}

/// Halves, and says how much of the weight that is.
#[derive(Debug, Clone)]
struct Measuring(f64);

impl WeightPass for Measuring {
    fn name(&self) -> &str {
        "measuring"
    }

    fn stage(&self) -> Stage {
        Stage::Value
    }

    fn settings(&self) -> serde_json::Value {
        self.0.into()
    }

    fn rewrite(&self, name: &str, weight: &SharedWeight, context: &Context<'_>) -> Result<Rewrite> {
        context.measured(name, Measure::new("share", self.0, Unit::Share));
        Ok(Rewrite::done((weight.dense()? * 0.5)?))
    }
}

#[test]
fn what_a_pass_measures_is_in_the_row_of_its_weight() {
    let two = || Pipeline::new().then(Measuring(0.5).on_matrices()).then(Measuring(0.25).on_matrices());
    let (_, report) = two().run(checkpoint(2), &Run::new()).unwrap();
    for (pass, value) in report.passes.iter().zip([0.5, 0.25]) {
        assert!(pass.rows.len() > 2);
        assert!(pass.rows.iter().all(|r| r.measures == [Measure::new("share", value, Unit::Share)]));
    }
    assert!(report.to_string().contains("share 25.0 %"));
    let again: taper_core::Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
    assert_eq!(again.passes[0].rows[0].measures, report.passes[0].rows[0].measures);
    // A number that JSON cannot hold would make the report unreadable.
    let wrong = Pipeline::new().then(Measuring(f64::NAN).on_matrices());
    let message = error_of(wrong.run(checkpoint(1), &Run::new()));
    assert!(message.contains("`share`") && message.contains("finite"), "{message}");
}

#[test]
fn tables_begin_with_the_most_damaged_weight() {
    let (_, report) = Pipeline::new().then(Halve.on_matrices()).run(checkpoint(3), &Run::new()).unwrap();
    let sorted: Vec<f64> =
        report.passes[0].by_damage().iter().map(|r| r.damage.unwrap().severity()).collect();
    assert!(sorted.len() > 3 && sorted.is_sorted_by(|a, b| a >= b));
}
