//! Inputs rounded to eight bits (W8A8): products against a plain oracle, files as compressed-tensors has them, scales from
//! calibration.

use candle_core::{Device, Tensor};
use half::bf16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, path::Path, sync::Arc};
use taper_core::{
    Checkpoint, Needs, Outcome, Pipeline, Rows, Run, Stats, WeightPass, stats::Accumulator,
    weight::to_f32_vec,
};
use taper_quant::{
    ActivationScale, Activations, Arithmetic, FileFormat, Fit, Gptq, IntLayout, PackedInt, RoundNearest,
    Scheme, codecs, codecs_with,
};

fn noise(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i + 31 * seed) * 7919 % 2003) as f32 / 1001.0 - 1.0).collect()
}

/// x̂ Wᵀ in f64, for inputs rounded by `step(token, column)`.
fn oracle(w: &[f32], x: &[f32], cols: usize, step: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    let mut y = Vec::new();
    for (t, x) in x.chunks(cols).enumerate() {
        let rounded: Vec<f64> = x
            .iter()
            .enumerate()
            .map(|(j, &x)| (f64::from(x) / step(t, j)).round_ties_even().clamp(-127.0, 127.0) * step(t, j))
            .collect();
        y.extend(w.chunks(cols).map(|w| w.iter().zip(&rounded).map(|(w, x)| f64::from(*w) * x).sum::<f64>()));
    }
    y
}

fn close(found: &[f32], expected: &[f64]) {
    let size = (expected.iter().map(|y| y * y).sum::<f64>() / expected.len() as f64).sqrt();
    for (a, b) in found.iter().zip(expected) {
        assert!((f64::from(*a) - b).abs() < 1e-4 * size, "{a} instead of {b}");
    }
}

#[test]
fn products_are_those_of_inputs_rounded_by_the_stated_scale_or_by_each_token() {
    for (rows, cols, tokens) in [(48, 64, 1), (33, 96, 7), (16, 300, 40)] {
        let values = noise(rows * cols, 1);
        let scheme = Scheme::int8().with_activations(Activations::Static);
        let packed =
            PackedInt::encode(&values, &[rows, cols], &scheme, &Fit::MinMax, None, IntLayout::IntQuantized);
        let packed = packed.unwrap();
        assert_eq!(packed.arithmetic(), Arithmetic::Int8);
        let w = to_f32_vec(&packed).unwrap();
        let x = noise(tokens * cols, 2);
        // Some inputs lie beyond what the scale can say, and are clipped.
        let scale = 0.8f32 / 127.0;
        let fixed = packed.clone().with_activation_scale(ActivationScale::Static(scale));
        close(&fixed.product(&x, tokens), &oracle(&w, &x, cols, |_, _| scale.into()));
        let largest = |t: usize| x[t * cols..(t + 1) * cols].iter().fold(0f32, |m, x| m.max(x.abs()));
        close(&packed.product(&x, tokens), &oracle(&w, &x, cols, |t, _| f64::from(largest(t)) / 127.0));
        let exact = packed.with_arithmetic(Arithmetic::Exact);
        close(&exact.product(&x, tokens), &plain(&w, &x, cols));
    }
}

fn plain(w: &[f32], x: &[f32], cols: usize) -> Vec<f64> {
    let dot = |w: &[f32], x: &[f32]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
    x.chunks(cols).flat_map(|x| w.chunks(cols).map(move |w| dot(w, x))).collect()
}

const WEIGHT: &str = "layers.0.up.weight";

fn model() -> Checkpoint {
    let mut model =
        Checkpoint::new(Map::from_iter([("model_type".to_owned(), json!("toy"))])).with_codecs(&codecs());
    for (name, seed) in [(WEIGHT, 1), ("layers.1.up.weight", 2)] {
        let weight = Tensor::from_vec(noise(24 * 64, seed), (24, 64), &Device::Cpu).unwrap();
        model.insert(name, Arc::new(weight));
    }
    model
}

/// What calibration saw: the first layer only.
fn seen() -> (Stats, f32) {
    let tokens = noise(200 * 64, 3);
    let mut sums = Accumulator::new(64, Needs::Gram);
    sums.add(WEIGHT, &tokens).unwrap();
    let stats = Stats::from_iter([(WEIGHT.to_owned(), Arc::new(sums.finish(WEIGHT).unwrap()))]);
    (stats, tokens.iter().fold(0f32, |m, x| m.max(x.abs())))
}

fn eight_bits(activations: Activations) -> RoundNearest {
    RoundNearest::int8().stored_as(FileFormat::IntQuantized).with_activations(activations)
}

fn run(pass: impl WeightPass + 'static) -> (Checkpoint, Vec<Outcome>) {
    let (stats, _) = seen();
    let run = Run::new().with_stats(&stats);
    let (compressed, report) = Pipeline::new().then(pass.on_matrices()).run(model(), &run).unwrap();
    (compressed, report.passes[0].rows.iter().map(|row| row.outcome.clone()).collect())
}

#[test]
fn a_static_scale_is_the_largest_input_of_calibration_and_a_layer_without_one_is_left() {
    let (stats, largest) = seen();
    assert_eq!(stats.len(), 1);
    let gptq = Gptq::new(eight_bits(Activations::Static));
    for (compressed, outcomes) in [run(eight_bits(Activations::Static)), run(gptq)] {
        assert_eq!(outcomes[0], Outcome::Done);
        assert!(
            matches!(&outcomes[1], Outcome::Left { why } if why.contains("no input of it")),
            "{outcomes:?}"
        );
        let parts = compressed.get(WEIGHT).unwrap().to_parts().unwrap();
        let stated = parts.tensors["input-scale"].values::<f32>();
        assert_eq!(stated, [largest / 127.0]);
    }
    let unsaid = Scheme::int8().with_activations(Activations::Static);
    let values = noise(64, 1);
    let layout = IntLayout::IntQuantized;
    let packed = PackedInt::encode(&values, &[1, 64], &unsaid, &Fit::MinMax, None, layout).unwrap();
    let message = taper_core::Weight::to_parts(&packed).unwrap_err().to_string();
    assert!(message.contains("no activation scale"), "{message}");
}

/// Arrays by name: type, shape, bytes.
type Arrays = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// The arrays of a directory without our metadata, changed, as another program would have written them.
fn as_foreign(from: &Path, to: &Path, edit: impl FnOnce(&mut Value, &mut Arrays)) {
    std::fs::create_dir_all(to).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let mut arrays: BTreeMap<_, _> = stored
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect();
    let config = std::fs::read(from.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    edit(&mut config["quantization_config"], &mut arrays);
    let views = arrays.iter().map(|(name, (dtype, shape, data))| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    safetensors::serialize_to_file(views, None, &to.join("model.safetensors")).unwrap();
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn files_are_those_of_compressed_tensors_and_what_they_say_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let x = Tensor::from_vec(noise(3 * 64, 9), (3, 64), &Device::Cpu).unwrap();
    let product = |checkpoint: &Checkpoint| -> Vec<Vec<f32>> {
        checkpoint.get(WEIGHT).unwrap().matmul(&x).unwrap().to_vec2().unwrap()
    };
    for (name, activations, strategy, dynamic) in
        [("static", Activations::Static, "tensor", false), ("dynamic", Activations::Dynamic, "token", true)]
    {
        let (compressed, _) = run(eight_bits(activations));
        compressed.save(at(name)).unwrap();
        let ours = Checkpoint::open_with(at(name), &codecs()).unwrap();
        assert_eq!(product(&ours), product(&compressed));
        let foreign = at(&format!("{name}-foreign"));
        as_foreign(&at(name), &foreign, |config, arrays| {
            assert_eq!(config["format"], "int-quantized");
            let inputs = &config["config_groups"]["group_0"]["input_activations"];
            assert_eq!((&inputs["num_bits"], &inputs["type"]), (&json!(8), &json!("int")));
            assert_eq!((&inputs["strategy"], &inputs["dynamic"]), (&json!(strategy), &json!(dynamic)));
            let scale = arrays.get("layers.0.up.input_scale");
            assert_eq!(
                scale.map(|(dtype, shape, _)| (*dtype, shape.clone())),
                (!dynamic).then(|| (Dtype::F32, vec![1]))
            );
        });
        let foreign = Checkpoint::open_with(&foreign, &codecs()).unwrap();
        assert_eq!(product(&foreign), product(&compressed));
        assert!(!foreign.names().iter().any(|n| n.ends_with("input_scale")), "{:?}", foreign.names());
        // Whoever wants other numbers gets them.
        let exact = Checkpoint::open_with(at(name), &codecs_with(Arithmetic::Exact)).unwrap();
        assert_ne!(product(&exact), product(&ours));
        let w = to_f32_vec(exact.get(WEIGHT).unwrap().as_ref()).unwrap();
        close(&product(&exact).concat(), &plain(&w, &noise(3 * 64, 9), 64));
    }
}

#[test]
fn scales_of_other_types_are_read_and_what_cannot_be_honoured_is_not_pretended() {
    let dir = tempfile::tempdir().unwrap();
    let ours = dir.path().join("ours");
    run(eight_bits(Activations::Static)).0.save(&ours).unwrap();
    let scale = "layers.0.up.input_scale";
    let open = |name: &str, edit: &dyn Fn(&mut Value, &mut Arrays)| {
        let foreign = dir.path().join(name);
        as_foreign(&ours, &foreign, edit);
        Checkpoint::open_with(foreign, &codecs())
    };
    let half = bf16::from_f32(0.0078125);
    let read = open("half", &|_, arrays| {
        arrays.insert(scale.into(), (Dtype::BF16, vec![], half.to_le_bytes().to_vec()));
    });
    let parts = read.unwrap().get(WEIGHT).unwrap().to_parts().unwrap();
    assert_eq!(parts.tensors["input-scale"].values::<f32>(), [0.0078125]);
    for (name, bytes) in [("zero", 0f32), ("negative", -1.0), ("nan", f32::NAN)] {
        let read = open(name, &|_, arrays| {
            arrays.insert(scale.into(), (Dtype::F32, vec![1], bytes.to_le_bytes().to_vec()));
        });
        let message = read.and_then(|c| c.get(WEIGHT)).unwrap_err().to_string();
        assert!(message.contains("one finite number above 0"), "{message}");
    }
    let read = open("missing", &|_, arrays| drop(arrays.remove(scale)));
    let message = read.and_then(|c| c.get(WEIGHT)).unwrap_err().to_string();
    assert!(message.contains("input-scale"), "{message}");
    // Asymmetric inputs: the weights are read, and products take inputs as they are.
    let read = open("asymmetric", &|config, _| {
        config["config_groups"]["group_0"]["input_activations"]["symmetric"] = false.into();
    });
    let read = read.unwrap();
    assert_eq!(read.info(WEIGHT).unwrap().encoding.format, "int8 channel");
    assert!(read.names().contains(&scale.to_owned()));
}
