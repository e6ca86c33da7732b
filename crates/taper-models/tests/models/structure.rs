//! What must hold of any model: caches, ties, packed tables, gradients, errors.

use candle_core::{DType, Device, Tensor, Var};
use serde_json::json;
use std::sync::Arc;
use taper_core::{
    Architecture, Checkpoint, Encoding, Error, Parts, Result, SharedWeight, Weight, WeightBuilder,
};
use taper_models::{
    bert::Bert,
    families::{AnyModel, Families},
    llama::{Cache, Llama, LlamaConfig},
};

use crate::tiny;

#[test]
fn decoding_with_the_cache_equals_the_whole_forward() {
    for changes in [
        json!({}),
        json!({"model_type": "mistral", "sliding_window": 4}),
        json!({"model_type": "qwen3", "head_dim": 16}),
        json!({"model_type": "smollm3", "no_rope_layers": [1, 0, 1], "mlp_bias": true}),
        json!({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}}),
    ] {
        let model = Llama::open(&tiny::llama(&tiny::llama_config(changes.clone()))).unwrap();
        let ids = tiny::ids(2, 12, 61);
        let whole = model.forward(&ids).unwrap();
        let mut cache = Cache::new(model.config());
        // A prompt, single tokens, and a stretch of several after them.
        for (start, len) in [(0, 5), (5, 1), (6, 1), (7, 4), (11, 1)] {
            let part = ids.narrow(1, start, len).unwrap().contiguous().unwrap();
            let last = model.forward_last(&part, &mut cache).unwrap().unsqueeze(1).unwrap();
            let found = tiny::distance(&last, &whole.narrow(1, start + len - 1, 1).unwrap());
            assert!(found < 1e-5, "{changes}: {found} at {start}");
        }
        assert_eq!(cache.len(), 12);
        cache.clear();
        assert!(cache.is_empty());
        let again = model.forward_last(&ids, &mut cache).unwrap().unsqueeze(1).unwrap();
        assert!(tiny::distance(&again, &whole.narrow(1, 11, 1).unwrap()) < 1e-5);
    }
}

#[test]
fn a_cache_grows_past_its_first_allocation() {
    let model =
        Llama::open(&tiny::llama(&tiny::llama_config(json!({"max_position_embeddings": 700})))).unwrap();
    let ids = tiny::ids(1, 600, 61);
    let mut cache = Cache::new(model.config());
    for start in (0..600).step_by(150) {
        let part = ids.narrow(1, start, 150).unwrap().contiguous().unwrap();
        let last = model.forward_last(&part, &mut cache).unwrap();
        let whole = model.forward(&ids.narrow(1, 0, start + 150).unwrap().contiguous().unwrap()).unwrap();
        assert!(tiny::distance(&last, &whole.narrow(1, start + 149, 1).unwrap().squeeze(1).unwrap()) < 1e-5);
    }
}

#[test]
fn more_tokens_than_positions_are_refused() {
    let model =
        Llama::open(&tiny::llama(&tiny::llama_config(json!({"max_position_embeddings": 8})))).unwrap();
    let error = model.forward(&tiny::ids(1, 9, 61)).unwrap_err().to_string();
    assert!(error.contains("`max_position_embeddings`, 8"), "{error}");
    let mut cache = Cache::new(model.config());
    model.forward_last(&tiny::ids(1, 8, 61), &mut cache).unwrap();
    assert!(model.forward_last(&tiny::ids(1, 1, 61), &mut cache).is_err());
}

#[test]
fn walking_layer_by_layer_equals_the_forward() {
    let model = Llama::open(&tiny::llama(&tiny::llama_config(json!({})))).unwrap();
    let ids = tiny::ids(2, 7, 61);
    let states = model.hidden_states(&ids).unwrap();
    assert_eq!(states.len(), 4);
    let mut x = model.embed(&ids).unwrap();
    for (i, state) in states[..3].iter().enumerate() {
        assert_eq!(tiny::distance(&x, state), 0.0);
        x = model.layer(i, &x).unwrap();
    }
    assert_eq!(tiny::distance(&model.logits(&x).unwrap(), &model.forward(&ids).unwrap()), 0.0);
    assert!(model.layer(3, &x).unwrap_err().to_string().contains("3 layers"));
}

/// Multiplies and looks rows up, and refuses to be decoded.
#[derive(Debug)]
struct NeverDense(Tensor);

impl Weight for NeverDense {
    fn encoding(&self) -> Encoding {
        Encoding::new("never-dense", "test")
    }
    fn shape(&self) -> &[usize] {
        self.0.dims()
    }
    fn nbytes(&self) -> usize {
        self.0.nbytes()
    }
    fn dense(&self) -> Result<Tensor> {
        Err(Error::bad_option("dense", "called", "rows and products only"))
    }
    fn matmul(&self, x: &Tensor) -> Result<Tensor> {
        Weight::matmul(&self.0, x)
    }
    fn gather(&self, ids: &Tensor) -> Result<Tensor> {
        Weight::gather(&self.0, ids)
    }
    fn to_parts(&self) -> Result<Parts> {
        self.0.to_parts()
    }
}

/// The checkpoint with every matrix in a form that refuses to be decoded.
fn never_dense(checkpoint: &Checkpoint) -> Checkpoint {
    let mut out = checkpoint.clone();
    for name in checkpoint.names() {
        let tensor = checkpoint.get(&name).unwrap().dense().unwrap();
        if tensor.rank() == 2 {
            out.insert(name, Arc::new(NeverDense(tensor)));
        }
    }
    out
}

#[test]
fn no_table_and_no_matrix_is_ever_decoded_whole() {
    let checkpoint = tiny::llama(&tiny::llama_config(json!({"tie_word_embeddings": true})));
    let ids = tiny::ids(1, 6, 61);
    let packed = Llama::open(&never_dense(&checkpoint)).unwrap().forward(&ids).unwrap();
    assert_eq!(tiny::distance(&packed, &Llama::open(&checkpoint).unwrap().forward(&ids).unwrap()), 0.0);

    let checkpoint = tiny::bert("");
    let (ids, mask) = Bert::open(&checkpoint).unwrap().pad(&[&[3, 7, 9], &[8]]).unwrap();
    let packed = Bert::open(&never_dense(&checkpoint)).unwrap().forward(&ids, &mask).unwrap();
    assert_eq!(tiny::distance(&packed, &Bert::open(&checkpoint).unwrap().forward(&ids, &mask).unwrap()), 0.0);
}

#[test]
fn tied_embeddings_are_one_weight() {
    let checkpoint = tiny::llama(&tiny::llama_config(json!({"tie_word_embeddings": true})));
    let name = "model.embed_tokens.weight";
    let before = Arc::strong_count(&checkpoint.get(name).unwrap());
    let model = Llama::open(&checkpoint).unwrap();
    // The embedding and the head hold it, nobody holds a copy.
    assert_eq!(Arc::strong_count(&checkpoint.get(name).unwrap()), before + 2);
    drop(model);
}

#[test]
fn a_missing_head_is_an_error_unless_it_is_tied() {
    let mut checkpoint = tiny::llama(&tiny::llama_config(json!({})));
    checkpoint.remove("lm_head.weight");
    assert!(
        matches!(Llama::open(&checkpoint), Err(Error::MissingWeight { name, .. }) if name == "lm_head.weight")
    );
    checkpoint.config_mut().remove("tie_word_embeddings");
    Llama::open(&checkpoint).unwrap();
}

#[test]
fn gradients_reach_every_weight_and_forms_agree() {
    let checkpoint = tiny::llama(&tiny::llama_config(json!({"model_type": "qwen3", "attention_bias": true})));
    let mut training = checkpoint.clone();
    let mut vars = Vec::new();
    for name in checkpoint.names() {
        let var = Var::from_tensor(&checkpoint.get(&name).unwrap().dense().unwrap()).unwrap();
        let weight: SharedWeight = Arc::new(var.as_tensor().clone());
        training.insert(name.clone(), weight);
        vars.push((name, var));
    }
    let ids = tiny::ids(2, 6, 61);
    let trained = Llama::open(&training).unwrap().forward(&ids).unwrap();
    let plain = Llama::open(&checkpoint).unwrap().forward(&ids).unwrap();
    assert!(tiny::distance(&trained.detach(), &plain) < 1e-5);
    let grads = trained.sqr().unwrap().mean_all().unwrap().backward().unwrap();
    for (name, var) in vars {
        let grad = grads.get(&var).unwrap_or_else(|| panic!("{name} has no gradient"));
        let size = grad.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(size > 0.0 && size.is_finite(), "{name}: {size}");
    }
}

#[test]
fn half_precision_runs_near_single_precision() {
    let checkpoint = tiny::llama(&tiny::llama_config(json!({})));
    let config = LlamaConfig::of(&checkpoint).unwrap();
    let ids = tiny::ids(1, 6, 61);
    let single = Llama::open(&checkpoint).unwrap().forward(&ids).unwrap();
    let half = config.build(&WeightBuilder::new(&checkpoint, DType::BF16, &Device::Cpu)).unwrap();
    let half = half.forward(&ids).unwrap();
    assert_eq!(half.dtype(), DType::F32);
    let found = tiny::distance(&half, &single);
    assert!(found > 0.0 && found < 0.05, "{found}");
}

#[test]
fn every_family_is_built_by_one_name() {
    let built = |checkpoint: &Checkpoint| {
        Families.build(&WeightBuilder::new(checkpoint, DType::F32, &Device::Cpu)).unwrap()
    };
    assert!(matches!(built(&tiny::llama(&tiny::llama_config(json!({})))), AnyModel::Language(_)));
    assert!(matches!(built(&tiny::bert("bert.")), AnyModel::Encoder(_)));
    let classifier = built(&tiny::ds_cnn());
    let error = classifier.language().unwrap_err().to_string();
    assert_eq!(error, "the checkpoint holds a classifier, the task needs a language model");
}

#[test]
fn features_of_another_shape_are_refused() {
    let model = taper_models::DsCnn::open(&tiny::ds_cnn()).unwrap();
    let wrong = Tensor::zeros((2, 12, 6), DType::F32, &Device::Cpu).unwrap();
    assert!(model.forward(&wrong).unwrap_err().to_string().contains("[n, 13, 6]"));
}
