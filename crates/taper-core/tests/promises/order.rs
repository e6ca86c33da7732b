//! Promise 2: order is checked before work starts.

use crate::toy::{Halve, Scale, checkpoint, error_of};
use taper_core::{Pipeline, Run, Stage, WeightPass};

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
