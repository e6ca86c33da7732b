//! Whole checkpoints: saved, opened again, and opened as a foreign program's file, by config and names alone.

use candle_core::{Device, Tensor};
use safetensors::{SafeTensors, tensor::TensorView};
use serde_json::{Map, Value, json};
use std::{path::Path, sync::Arc};
use taper_core::{Checkpoint, Pipeline, Run, Select, WeightPass, weight::to_f32_vec};
use taper_quant::{FileFormat, Fit, Granularity, RoundNearest, ScaleType, codecs};

fn weights(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| (((i + seed) * 7919 % 2003) as f32 / 1001.0 - 1.0) * 0.3).collect()
}

/// Three layers with two matrices each, an embedding, and a norm.
fn model() -> Checkpoint {
    let mut model =
        Checkpoint::new(Map::from_iter([("model_type".to_owned(), json!("toy"))])).with_codecs(&codecs());
    let mut add = |name: &str, shape: &[usize], seed| {
        let values = weights(shape.iter().product(), seed);
        model.insert(name, Arc::new(Tensor::from_vec(values, shape, &Device::Cpu).unwrap()));
    };
    for layer in 0..3 {
        add(&format!("layers.{layer}.up.weight"), &[24, 64], layer);
        add(&format!("layers.{layer}.down.weight"), &[64, 32], layer + 9);
    }
    add("embed.weight", &[40, 64], 77);
    add("norm.weight", &[64], 5);
    model
}

/// The arrays and the config without our metadata: what another program would have written.
fn as_foreign(from: &Path, to: &Path, edit: impl FnOnce(&mut Value)) {
    std::fs::create_dir_all(to).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let views: Vec<(String, TensorView<'_>)> = tensors.tensors();
    safetensors::serialize_to_file(views, None, &to.join("model.safetensors")).unwrap();
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
}

fn same(a: &Checkpoint, b: &Checkpoint) {
    assert_eq!(a.names(), b.names());
    for name in a.names() {
        let (x, y) = (a.get(&name).unwrap(), b.get(&name).unwrap());
        assert_eq!((x.encoding(), x.shape()), (y.encoding(), y.shape()), "{name}");
        assert_eq!(to_f32_vec(x.as_ref()).unwrap(), to_f32_vec(y.as_ref()).unwrap(), "{name}");
        assert_eq!(a.info(&name).unwrap().nbytes, b.info(&name).unwrap().nbytes, "{name}");
    }
}

fn run(passes: Vec<(RoundNearest, &str)>) -> Checkpoint {
    let mut pipeline = Pipeline::new();
    for (pass, select) in passes {
        pipeline = pipeline.then(pass.on(Select::glob(select).unwrap()));
    }
    pipeline.run(model(), &Run::new()).unwrap().0
}

fn round_trip(compressed: &Checkpoint) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let (ours, foreign) = (dir.path().join("ours"), dir.path().join("foreign"));
    compressed.save(&ours).unwrap();
    same(compressed, &Checkpoint::open_with(&ours, &codecs()).unwrap());
    let mut quantization = Value::Null;
    as_foreign(&ours, &foreign, |config| quantization = config["quantization_config"].clone());
    same(compressed, &Checkpoint::open_with(&foreign, &codecs()).unwrap());
    quantization
}

#[test]
fn compressed_tensors_is_recognised_by_config_and_names() {
    let int4 = RoundNearest::int4(32).unwrap();
    let config = round_trip(&run(vec![(int4, "layers.*")]));
    assert_eq!(
        (&config["quant_method"], &config["format"]),
        (&json!("compressed-tensors"), &json!("pack-quantized"))
    );
    let group = &config["config_groups"]["group_0"];
    let targets = json!([r"re:^layers\.[0-9]+\.down$", r"re:^layers\.[0-9]+\.up$"]);
    assert_eq!(group["targets"], targets);
    assert_eq!(config["ignore"], json!(["embed"]));
    assert_eq!(group["weights"]["num_bits"], 4);
    assert_eq!(
        (&group["weights"]["strategy"], &group["weights"]["group_size"]),
        (&json!("group"), &json!(32))
    );
    assert_eq!((&group["weights"]["symmetric"], &group["weights"]["type"]), (&json!(true), &json!("int")));
}

#[test]
fn several_schemes_become_several_groups() {
    let three = RoundNearest::int(3, Granularity::group(16).unwrap()).unwrap().asymmetric();
    let tensor = RoundNearest::int(5, Granularity::Tensor).unwrap().asymmetric().with_scales(ScaleType::BF16);
    let int8 = RoundNearest::int8().stored_as(FileFormat::IntQuantized).with_scales(ScaleType::F32);
    let config = round_trip(&run(vec![
        (three, "layers.*.up.weight"),
        (tensor, "layers.{0,2}.down.weight"),
        (int8, "{embed,layers.1.down}.weight"),
    ]));
    assert_eq!(config["format"], "mixed-precision");
    let groups = config["config_groups"].as_object().unwrap();
    assert_eq!(groups.len(), 3);
    let targets: Vec<&Value> = groups.values().map(|g| &g["targets"]).collect();
    assert!(targets.contains(&&json!([r"re:^layers\.[0-9]+\.up$"])), "{targets:?}");
    assert!(targets.contains(&&json!(["layers.0.down", "layers.2.down"])), "{targets:?}");
    assert!(targets.contains(&&json!(["embed", "layers.1.down"])), "{targets:?}");
}

#[test]
fn class_names_and_expressions_of_other_programs_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let compressed = run(vec![(RoundNearest::int4(32).unwrap(), "layers.*")]);
    compressed.save(dir.path().join("ours")).unwrap();
    for targets in [json!(["Linear"]), json!(["re:.*layers.*(up|down)"]), json!(["re:layers"])] {
        let foreign = dir.path().join(targets.to_string().replace(['/', '*', '"', '.'], "_"));
        as_foreign(&dir.path().join("ours"), &foreign, |config| {
            config["quantization_config"]["config_groups"]["group_0"]["targets"] = targets.clone();
            config["quantization_config"]["config_groups"]["group_0"]["format"] = Value::Null;
        });
        same(&compressed, &Checkpoint::open_with(&foreign, &codecs()).unwrap());
    }
    let attempt = |name: &str, edit: &dyn Fn(&mut Value)| {
        let foreign = dir.path().join(name);
        as_foreign(&dir.path().join("ours"), &foreign, |config| edit(&mut config["quantization_config"]));
        Checkpoint::open_with(&foreign, &codecs()).unwrap_err().to_string()
    };
    let message = attempt("a", &|q| q["config_groups"]["group_0"]["targets"] = json!(["other.module"]));
    assert!(message.contains("no group") && message.contains("layers.0.down"), "{message}");
    let message = attempt("b", &|q| q["config_groups"]["group_0"]["format"] = json!("float-quantized"));
    assert!(message.contains("`float-quantized` is not read"), "{message}");
    let message = attempt("c", &|q| q["config_groups"]["group_0"]["weights"]["strategy"] = json!("block"));
    assert!(message.contains("`block` is not read"), "{message}");
    let message = attempt("d", &|q| q["config_groups"]["group_0"]["weights"]["num_bits"] = json!(16));
    assert!(message.contains("2 to 8 bits"), "{message}");
    let message = attempt("e", &|q| q["transform_config"] = json!({ "config_groups": { "R1": {} } }));
    assert!(message.contains("transform_config"), "{message}");
    let message = attempt("f", &|q| q["config_groups"]["group_0"]["targets"] = json!(["re:(?!x)"]));
    assert!(message.contains("(?!x)"), "{message}");
}

#[test]
fn a_wrong_scheme_in_the_config_is_an_error_when_read() {
    let dir = tempfile::tempdir().unwrap();
    let compressed = run(vec![(RoundNearest::int4(32).unwrap(), "layers.*")]);
    compressed.save(dir.path().join("ours")).unwrap();
    let foreign = dir.path().join("foreign");
    as_foreign(&dir.path().join("ours"), &foreign, |config| {
        config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] = json!(8);
    });
    let opened = Checkpoint::open_with(&foreign, &codecs()).unwrap();
    let message = opened.get("layers.0.up.weight").map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("`codes` is I32") && message.contains("layers.0.up.weight"), "{message}");
}

#[test]
fn bitsandbytes_is_recognised_by_names() {
    for double in [false, true] {
        let nf4 = RoundNearest::nf4(48).unwrap().with_fit(Fit::AbsMax);
        let nf4 = if double { nf4.double_quant() } else { nf4 };
        let config = round_trip(&run(vec![(nf4, "layers.*")]));
        assert_eq!(
            (&config["quant_method"], &config["load_in_4bit"]),
            (&json!("bitsandbytes"), &json!(true))
        );
        assert_eq!(config["bnb_4bit_use_double_quant"], json!(double));
        assert_eq!(config["llm_int8_skip_modules"], json!(["embed", "lm_head"]));
    }
    let int8 = RoundNearest::int8().stored_as(FileFormat::BitsAndBytes).with_fit(Fit::AbsMax);
    let config = round_trip(&run(vec![(int8, "layers.*")]));
    assert_eq!((&config["load_in_8bit"], &config["load_in_4bit"]), (&json!(true), &json!(false)));
}

#[test]
fn taper_int_reloads_by_metadata() {
    let dir = tempfile::tempdir().unwrap();
    let groups = RoundNearest::int(3, Granularity::group(20).unwrap()).unwrap().asymmetric();
    let (compressed, report) = Pipeline::new().then(groups.on_matrices()).run(model(), &Run::new()).unwrap();
    assert!(report.to_string().contains("int3 g20 asym"), "{report}");
    compressed.save(dir.path().join("out")).unwrap();
    let opened = Checkpoint::open_with(dir.path().join("out"), &codecs()).unwrap();
    same(&compressed, &opened);
    assert_eq!(opened.info("embed.weight").unwrap().encoding.codec, "taper-int");
}
