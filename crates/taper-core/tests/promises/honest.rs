//! Promise 9: honest sizes; and the dry run that predicts them to the byte.

use crate::toy::{Halve, Scale, files, on_disk};
use std::collections::BTreeMap;
use taper_core::{Pipeline, Run, Stage, WeightPass};

fn written(dir: &std::path::Path) -> BTreeMap<String, u64> {
    files(dir).into_iter().map(|(name, bytes)| (name, bytes.len() as u64)).collect()
}

#[test]
fn a_dry_run_predicts_every_file_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let input = on_disk(&dir.path().join("in"), 4);
    for (i, shard_bytes) in [100, 1500, 1 << 30].into_iter().enumerate() {
        let pipeline = Pipeline::new().then(Halve.on_matrices());
        let run = Run::new().with_shard_bytes(shard_bytes);
        let prediction = pipeline.predict(input.clone(), &run).unwrap();
        assert_eq!(prediction.computed, 0, "shapes alone decide");
        let out = dir.path().join(format!("out-{i}"));
        let report = pipeline.run_to(input.clone(), &out, &run).unwrap();
        assert_eq!(prediction.files.iter().cloned().collect::<BTreeMap<_, _>>(), written(&out));
        assert_eq!(prediction.array_bytes, report.output.bytes);
    }
}

#[test]
fn a_pass_without_an_outline_is_computed_and_still_predicted_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let input = on_disk(&dir.path().join("in"), 2);
    let pipeline = Pipeline::new().then(Scale { factor: 0.5, stage: Stage::Value }.on_matrices());
    let prediction = pipeline.predict(input.clone(), &Run::new()).unwrap();
    assert_eq!(prediction.computed, 3);
    let out = dir.path().join("out");
    pipeline.run_to(input, &out, &Run::new()).unwrap();
    assert_eq!(prediction.files.into_iter().collect::<BTreeMap<_, _>>(), written(&out));
}

#[test]
fn bits_per_weight_count_every_stored_byte() {
    let dir = tempfile::tempdir().unwrap();
    let input = on_disk(&dir.path().join("in"), 1);
    let report =
        Pipeline::new().then(Halve.on_matrices()).run_to(input, dir.path().join("out"), &Run::new()).unwrap();
    let row = report.passes[0].rows.iter().find(|r| r.weight == "layers.0.weight").unwrap();
    assert_eq!(row.before.bits_per_weight, 32.0);
    assert_eq!(row.after.as_ref().unwrap().bits_per_weight, 16.0);
    // 24·16 and 8·16 halves, 16 f32 norms, 5 i64 positions.
    assert_eq!(report.output.bytes, 24 * 16 * 2 + 8 * 16 * 2 + 16 * 4 + 5 * 8);
}
