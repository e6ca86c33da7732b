//! Promise 6: an output directory appears whole or not at all.

use crate::toy::{Halve, codecs, error_of, files, on_disk};
use std::sync::atomic::{AtomicUsize, Ordering};
use taper_core::{Checkpoint, Event, Flow, Pipeline, Run, Select, WeightPass};

#[test]
fn an_existing_output_is_refused_and_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let input = on_disk(&dir.path().join("in"), 1);
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("precious"), "1").unwrap();
    let pipeline = Pipeline::new().then(Halve.on_matrices());
    assert!(error_of(pipeline.run_to(input.clone(), &out, &Run::new())).contains("exists already"));
    assert!(error_of(input.save(&out)).contains("exists already"));
    assert_eq!(files(&out).keys().collect::<Vec<_>>(), ["precious"]);
}

#[test]
fn an_error_half_way_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut input = on_disk(&dir.path().join("in"), 3);
    let broken = candle_core::Tensor::new(&[[f32::NAN, 1.0]], &candle_core::Device::Cpu).unwrap();
    input.insert("layers.2.weight", std::sync::Arc::new(broken));
    let out = dir.path().join("out");
    let pipeline = Pipeline::new().then(Halve.on(Select::glob("layers.0.*").unwrap()));
    assert!(error_of(pipeline.run_to(input, &out, &Run::new())).contains("not finite"));
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["in"]);
}

#[test]
fn a_cancelled_run_leaves_no_output_but_can_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let input = on_disk(&dir.path().join("in"), 3);
    let out = dir.path().join("out");
    let seen = AtomicUsize::new(0);
    let stop = |event: &Event<'_>| match event {
        Event::Weight { .. } if seen.fetch_add(1, Ordering::Relaxed) == 3 => Flow::Cancel,
        _ => Flow::Continue,
    };
    let pipeline = Pipeline::new().then(Halve.on_matrices());
    let error = pipeline.run_to(input, &out, &Run::new().with_progress(&stop)).unwrap_err();
    assert!(error.is_cancelled());
    assert!(!out.exists());
    assert!(dir.path().join("out.partial").is_dir());
}

#[test]
fn side_files_are_carried_and_weights_of_the_original_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("in");
    let input = on_disk(&source, 1);
    std::fs::create_dir(source.join("1_Pooling")).unwrap();
    std::fs::write(source.join("1_Pooling/config.json"), "{}").unwrap();
    std::fs::write(source.join("pytorch_model.bin"), "weights").unwrap();
    let out = dir.path().join("out");
    Pipeline::new().then(Halve.on_matrices()).run_to(input, &out, &Run::new()).unwrap();
    assert!(out.join("tokenizer.json").is_file());
    assert!(out.join("1_Pooling/config.json").is_file());
    assert!(!out.join("pytorch_model.bin").exists());
}

#[test]
fn what_was_saved_is_what_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let input = on_disk(&dir.path().join("in"), 3);
    let (halved, _) = Pipeline::new().then(Halve.on_matrices()).run(input.clone(), &Run::new()).unwrap();
    let out = dir.path().join("out");
    halved.save(&out).unwrap();
    let opened = Checkpoint::open_with(&out, &codecs()).unwrap();
    assert_eq!(opened.names(), input.names());
    assert_eq!(opened.config(), input.config());
    for name in input.names() {
        let (a, b) = (halved.get(&name).unwrap(), opened.get(&name).unwrap());
        assert_eq!(a.encoding(), b.encoding(), "{name}");
        let bits = |w: &dyn taper_core::Weight| {
            let parts = w.to_parts().unwrap();
            parts.tensors.into_iter().map(|(role, p)| (role, p.data.to_vec())).collect::<Vec<_>>()
        };
        assert_eq!(bits(a.as_ref()), bits(b.as_ref()), "{name}");
    }
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["quantization_config"]["quant_method"], "test-half");
}

#[test]
fn files_are_readable_by_the_safetensors_crate_and_aligned() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let input = on_disk(&dir.path().join("in"), 2);
    Pipeline::new().then(Halve.on_matrices()).run_to(input, &out, &Run::new()).unwrap();
    let bytes = std::fs::read(out.join("model.safetensors")).unwrap();
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!((header + 8) % 8, 0);
    let keys: Vec<_> = metadata.metadata().as_ref().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys.len(), 2, "`format` for other loaders, and one key of ours: {keys:?}");
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    for (name, info) in metadata.tensors() {
        assert_eq!(info.data_offsets.0 * 8 % info.dtype.bitsize(), 0, "{name} is aligned");
    }
}
