//! Dropping whole layers.

use candle_core::DType;
use serde_json::json;
use std::sync::Arc;
use taper_core::{Checkpoint, Pass, Pipeline, Run};
use taper_prune::{DropLayers, DropLayersSettings, Ends, Layers};

use crate::{
    llama::{Llama, forward, model},
    run, shared, tensor, values,
};

fn drop_these(layers: &[usize]) -> DropLayers {
    DropLayers::new(Arc::new(Llama), Layers::These(layers.to_vec()))
}

/// A model of those layers, put together by hand.
fn of_layers(full: &Checkpoint, kept: &[usize]) -> Checkpoint {
    let mut small = Checkpoint::new(full.config().clone());
    for (new, old) in kept.iter().enumerate() {
        let prefix = format!("model.layers.{old}.");
        for name in full.names().iter().filter(|n| n.starts_with(&prefix)) {
            small.insert(name.replace(&prefix, &format!("model.layers.{new}.")), full.get(name).unwrap());
        }
    }
    small.config_mut().insert("num_hidden_layers".into(), kept.len().into());
    small
}

#[test]
fn the_rest_is_renumbered_and_computes_what_it_should() {
    // Twelve layers: names of two digits sort before names of one.
    let mut full = model(12, DType::F64);
    full.insert("model.norm.weight", Arc::new(tensor(vec![1.0; 12], &[12])));
    let small = run(&drop_these(&[9, 2, 10]), full.clone()).unwrap();
    let kept = [0, 1, 3, 4, 5, 6, 7, 8, 11];
    assert_eq!(forward(&small), forward(&of_layers(&full, &kept)));
    assert_eq!(small.len(), 9 * 7 + 1);
    assert_eq!(small.config()["num_hidden_layers"], 9);
    let kinds: Vec<String> = kept.iter().map(|l| format!("kind-{l}")).collect();
    assert_eq!(small.config()["layer_types"], json!(kinds));
}

/// Scales what a layer writes.
fn weaken(full: &mut Checkpoint, layer: usize, by: f32) {
    for rest in ["self_attn.o_proj", "mlp.down_proj"] {
        let name = format!("model.layers.{layer}.{rest}.weight");
        let shape = full.info(&name).unwrap().shape;
        let weak = values(full, &name).into_iter().map(|v| v * by).collect();
        full.insert(name, Arc::new(tensor(weak, &shape)));
    }
}

#[test]
fn the_layers_that_write_least_go_but_not_the_ends() {
    let mut full = model(6, DType::F32);
    for (layer, by) in [(0, 0.001), (5, 0.001), (3, 0.01), (1, 0.1)] {
        weaken(&mut full, layer, by);
    }
    let least = |count, ends| {
        let pass = DropLayers::new(Arc::new(Llama), Layers::Least(count)).with_ends(ends);
        run(&pass, full.clone())
    };
    let kinds = |small: Checkpoint| small.config()["layer_types"].clone();
    assert_eq!(
        kinds(least(1, Ends::Kept).unwrap()),
        json!(["kind-0", "kind-1", "kind-2", "kind-4", "kind-5"])
    );
    assert_eq!(kinds(least(2, Ends::Kept).unwrap()), json!(["kind-0", "kind-2", "kind-4", "kind-5"]));
    assert_eq!(kinds(least(2, Ends::Droppable).unwrap()), json!(["kind-1", "kind-2", "kind-3", "kind-4"]));
    assert!(least(4, Ends::Kept).is_ok());
    assert!(least(5, Ends::Kept).unwrap_err().to_string().contains("at most 4 can go here"));
    assert!(least(6, Ends::Droppable).unwrap_err().to_string().contains("at most 5 can go here"));
}

#[test]
fn layers_that_do_not_fit_are_clear_errors() {
    for (layers, message) in [
        (&[][..], "name at least one"),
        (&[1, 1], "names a layer twice"),
        (&[4], "layer 4 does not exist; there are 4"),
        (&[0, 1, 2, 3], "at most 3 can go here"),
    ] {
        let error = run(&drop_these(layers), model(4, DType::F32)).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
    let no_stack = |c: &Checkpoint| taper_core::Couplings::couplings(&Llama, c);
    let pass = DropLayers::new(Arc::new(no_stack), Layers::Least(1));
    assert!(run(&pass, model(4, DType::F32)).unwrap_err().to_string().contains("declares no stack"));
}

#[test]
fn settings_read_from_a_recipe_and_refuse_nonsense() {
    let build = |text: &str| {
        let settings = serde_json::from_str::<DropLayersSettings>(text).map_err(|e| e.to_string())?;
        DropLayers::from_settings(Arc::new(Llama), settings).map_err(|e| e.to_string())
    };
    assert_eq!(
        build(r#"{"layers": [3, 5]}"#).unwrap().settings(),
        json!({ "layers": { "these": [3, 5] }, "ends": "kept" })
    );
    let least = build(r#"{"least": 2, "ends": "droppable"}"#).unwrap().settings();
    assert_eq!(least, json!({ "layers": { "least": 2 }, "ends": "droppable" }));
    assert!(build("{}").unwrap_err().contains("say which layers, or how many"));
    assert!(build(r#"{"layers": [1], "least": 2}"#).unwrap_err().contains("both"));
    assert!(build(r#"{"layer": [1]}"#).unwrap_err().contains("layer"));
}

#[test]
fn a_real_model_loses_layers_and_stays_a_stock_model() {
    let Some(dir) = shared("models/stories260k") else { return };
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("short");
    let pipeline = Pipeline::new().then(DropLayers::new(Arc::new(Llama), Layers::Least(2)));
    let before = Checkpoint::open(&dir).unwrap();
    pipeline.run_to(before.clone(), &target, &Run::new()).unwrap();
    let small = Checkpoint::open(&target).unwrap();
    assert_eq!(small.config()["num_hidden_layers"], 3);
    let layer = |c: &Checkpoint, l: usize| values(c, &format!("model.layers.{l}.mlp.up_proj.weight"));
    assert_eq!((layer(&small, 0), layer(&small, 2)), (layer(&before, 0), layer(&before, 4)));
    assert!(!small.names().iter().any(|n| n.starts_with("model.layers.3.")));
}
