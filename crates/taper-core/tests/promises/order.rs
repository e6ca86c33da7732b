//! Promise 2: order is checked before work starts.

use crate::toy::{Halve, Scale, checkpoint, error_of};
use taper_core::{
    Checkpoint, Context, Coordinates, Needs, Pass, Pipeline, Result, Run, Stage, Stats, WeightPass,
};

/// Changes nothing, and says what it is told to say.
#[derive(Debug)]
struct Says(&'static str, Needs, Coordinates);

impl Pass for Says {
    fn name(&self) -> &str {
        self.0
    }
    fn stage(&self) -> Stage {
        Stage::Value
    }
    fn needs(&self) -> Needs {
        self.1
    }
    fn settings(&self) -> serde_json::Value {
        serde_json::json!({})
    }
    fn coordinates(&self) -> Coordinates {
        self.2
    }
    fn run(&self, checkpoint: Checkpoint, _: &Context<'_>) -> Result<Checkpoint> {
        Ok(checkpoint)
    }
}

#[test]
fn statistics_from_before_a_change_of_coordinates_are_refused_after_it() {
    let stats = Stats::default();
    let run = Run::new().with_stats(&stats);
    let turn = || Says("turn", Needs::Nothing, Coordinates::Changed);
    let read = || Says("read", Needs::Gram, Coordinates::Kept);
    let message = error_of(Pipeline::new().then(turn()).then(read()).run(checkpoint(1), &run));
    assert!(message.contains("`read` needs input gram matrices, but `turn` before it"), "{message}");
    assert!(Pipeline::new().then(read()).then(turn()).run(checkpoint(1), &run).is_ok());
}

#[test]
fn a_value_pass_after_an_encoding_pass_is_refused_before_any_work() {
    let scale = Scale { factor: 0.5, stage: Stage::Value };
    let pipeline = Pipeline::new().then(Halve.on_matrices()).then(scale.on_matrices());
    let message = error_of(pipeline.run(checkpoint(1), &Run::new()));
    assert!(message.contains("put `scale` before `halve`"), "{message}");
}

#[test]
fn a_pipeline_without_passes_is_refused() {
    assert!(error_of(Pipeline::new().run(checkpoint(1), &Run::new())).contains("no passes"));
}

#[test]
fn a_pass_that_needs_statistics_is_refused_without_them() {
    #[derive(Debug)]
    struct Needy;
    impl WeightPass for Needy {
        fn name(&self) -> &str {
            "needy"
        }
        fn stage(&self) -> Stage {
            Stage::Value
        }
        fn needs(&self) -> taper_core::Needs {
            taper_core::Needs::Gram
        }
        fn settings(&self) -> serde_json::Value {
            serde_json::json!({})
        }
        fn rewrite(
            &self,
            _: &str,
            w: &taper_core::SharedWeight,
            _: &taper_core::Context<'_>,
        ) -> taper_core::Result<taper_core::Rewrite> {
            Ok(taper_core::Rewrite::Done(w.clone()))
        }
    }
    let message = error_of(Pipeline::new().then(Needy.on_matrices()).run(checkpoint(1), &Run::new()));
    assert!(message.contains("needs input gram matrices"), "{message}");
}
