//! Block by block and as a whole, a model computes the same bits, and gradients pass through every block.

use candle_core::{DType, Device, Tensor, Var};
use serde_json::json;
use std::sync::Arc;
use taper_core::{
    Batch, Block, Blocks, Checkpoint, Gradients, Hidden, SharedWeight, WeightBuilder, kernel::Arithmetic,
};
use taper_models::{
    DsCnn,
    bert::Bert,
    families::Families,
    llama::{Llama, LlamaConfig},
};

use crate::tiny;

/// The output of a model whose parts are built, run and dropped one after the other; each block in stages too.
fn walk(checkpoint: &Checkpoint, batch: &Batch) -> Tensor {
    let weights = WeightBuilder::new(checkpoint, DType::F32, &Device::Cpu);
    let mut hidden = Families.entrance(&weights).unwrap().forward(batch).unwrap();
    for index in 0..Families.prefixes(checkpoint).unwrap().len() {
        let block = Families.block(&weights, index).unwrap();
        let mut inside = hidden.clone();
        for stage in 0..block.stages() {
            inside = block.stage(stage, &inside).unwrap();
        }
        assert!(inside.inner.is_none() && block.stage(block.stages(), &inside).is_err());
        hidden = block.forward(&hidden).unwrap();
        assert_eq!(values(&inside.x), values(&hidden.x), "block {index} in stages");
    }
    Families.exit(&weights).unwrap().forward(&hidden).unwrap()
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_llama_block_by_block_gives_the_same_bits() {
    for changes in [
        json!({}),
        json!({"tie_word_embeddings": true}),
        json!({"model_type": "mistral", "sliding_window": 4}),
        json!({"model_type": "qwen3", "head_dim": 16, "attention_bias": true}),
        json!({"model_type": "smollm3", "no_rope_layers": [1, 0, 1], "tie_word_embeddings": false}),
    ] {
        let checkpoint = tiny::llama(&tiny::llama_config(changes.clone()));
        let ids = tiny::ids(2, 9, 61);
        let whole = Llama::open(&checkpoint).unwrap().forward(&ids).unwrap();
        assert_eq!(values(&walk(&checkpoint, &Batch::new(ids))), values(&whole), "{changes}");
    }
}

#[test]
fn a_bert_block_by_block_gives_the_same_bits() {
    for prefix in ["", "bert."] {
        let checkpoint = tiny::bert(prefix);
        let model = Bert::open(&checkpoint).unwrap();
        let (ids, mask) = model.pad(&[&[3, 7, 9, 12], &[8, 2]]).unwrap();
        let whole = model.forward(&ids, &mask).unwrap();
        assert_eq!(values(&walk(&checkpoint, &Batch::padded(ids, mask))), values(&whole));
        let (ids, mask) = model.pad(&[&[3, 7, 9], &[8, 2, 5]]).unwrap();
        let whole = model.forward(&ids, &mask).unwrap();
        assert_eq!(values(&walk(&checkpoint, &Batch::new(ids))), values(&whole), "nothing is padded");
    }
}

#[test]
fn a_part_asks_for_its_own_weights_only() {
    let checkpoint = tiny::llama(&tiny::llama_config(json!({})));
    let mut alone = Checkpoint::new(checkpoint.config().clone());
    for name in Families.weights(&checkpoint, 1).unwrap() {
        assert!(name.starts_with("model.layers.1."), "{name}");
        alone.insert(name.clone(), checkpoint.get(&name).unwrap());
    }
    assert_eq!(alone.len(), 9);
    let weights = WeightBuilder::new(&alone, DType::F32, &Device::Cpu);
    Families.block(&weights, 1).unwrap();
    assert!(Families.block(&weights, 0).is_err());
    let error = Families.block(&weights, 3).err().unwrap().to_string();
    assert!(error.contains("3 blocks"), "{error}");
}

#[test]
fn a_network_without_blocks_is_one_block() {
    let checkpoint = tiny::ds_cnn();
    let features: Vec<f32> = (0..3 * 13 * 6).map(|i| (i as f32 * 0.7).sin()).collect();
    let features = Tensor::from_vec(features, (3, 13, 6), &Device::Cpu).unwrap();
    let whole = DsCnn::open(&checkpoint).unwrap().forward(&features).unwrap();
    assert_eq!(values(&walk(&checkpoint, &Batch::new(features))), values(&whole));
    assert_eq!(Families.weights(&checkpoint, 0).unwrap(), checkpoint.names());
    assert!(Families.weights(&checkpoint, 1).is_err());
}

/// The checkpoint with the weights of a block as variables.
fn trainable(checkpoint: &Checkpoint, block: usize) -> (Checkpoint, Vec<(String, Var)>) {
    let (mut training, mut vars) = (checkpoint.clone(), Vec::new());
    for name in Families.weights(checkpoint, block).unwrap() {
        let var = Var::from_tensor(&checkpoint.get(&name).unwrap().dense().unwrap()).unwrap();
        let weight: SharedWeight = Arc::new(var.as_tensor().clone());
        training.insert(name.clone(), weight);
        vars.push((name, var));
    }
    (training, vars)
}

fn loss(block: &dyn Block, hidden: &Hidden) -> Tensor {
    block.forward(hidden).unwrap().x.sqr().unwrap().mean_all().unwrap()
}

/// The gradient of each weight of block 1 along itself (which no cancellation hides) against a finite difference.
fn gradients_agree(checkpoint: &Checkpoint, batch: &Batch) {
    let weights = WeightBuilder::new(checkpoint, DType::F32, &Device::Cpu);
    let hidden = Families.entrance(&weights).unwrap().forward(batch).unwrap();
    let (training, vars) = trainable(checkpoint, 1);
    let build = |c: &Checkpoint| Families.block(&WeightBuilder::new(c, DType::F32, &Device::Cpu), 1).unwrap();
    let grads = loss(build(&training).as_ref(), &hidden).backward().unwrap();
    for (name, var) in vars {
        let grad = grads.get(&var).unwrap_or_else(|| panic!("{name} has no gradient"));
        let slope = (grad * grad).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let direction = (grad / f64::from(slope)).unwrap();
        let at = |step: f64| {
            let mut moved = checkpoint.clone();
            moved.insert(
                name.clone(),
                Arc::new((var.as_tensor() + (&direction * step).unwrap()).unwrap().detach()),
            );
            f64::from(loss(build(&moved).as_ref(), &hidden).to_scalar::<f32>().unwrap())
        };
        let measured = (at(1e-2) - at(-1e-2)) / 2e-2;
        let slope = f64::from(slope);
        // Along a key's bias nothing changes, because a softmax does not see what all its scores share.
        let tolerance = 0.02 * slope + 2e-4;
        assert!((measured - slope).abs() < tolerance, "{name}: {measured} {slope}");
    }
}

#[test]
fn gradients_pass_through_a_block_and_agree_with_finite_differences() {
    let llama = tiny::llama(&tiny::llama_config(json!({"model_type": "qwen3", "attention_bias": true})));
    gradients_agree(&llama, &Batch::new(tiny::ids(2, 6, 61)));
    let bert = tiny::bert("");
    let (ids, mask) = Bert::open(&bert).unwrap().pad(&[&[3, 7, 9, 12], &[8, 2]]).unwrap();
    gradients_agree(&bert, &Batch::padded(ids, mask));
}

#[test]
fn a_config_walks_like_the_families() {
    let checkpoint = tiny::llama(&tiny::llama_config(json!({})));
    let config = LlamaConfig::of(&checkpoint).unwrap();
    assert_eq!(config.prefixes(&checkpoint).unwrap(), Families.prefixes(&checkpoint).unwrap());
}

#[test]
fn a_llama_layers_own_way_back_gives_candles_gradients() {
    for changes in [
        json!({}),
        json!({"model_type": "mistral", "sliding_window": 4}),
        json!({"attention_bias": true, "mlp_bias": true, "num_key_value_heads": 1}),
        json!({"model_type": "smollm3", "no_rope_layers": [1, 0, 1], "tie_word_embeddings": false}),
    ] {
        let checkpoint = tiny::llama(&tiny::llama_config(changes.clone()));
        let (training, vars) = trainable(&checkpoint, 1);
        let plain = WeightBuilder::new(&checkpoint, DType::F32, &Device::Cpu);
        let tracked = WeightBuilder::new(&training, DType::F32, &Device::Cpu);
        let hidden = Families.entrance(&plain).unwrap().forward(&Batch::new(tiny::ids(3, 11, 61))).unwrap();
        let (block, theirs) = (Families.block(&plain, 1).unwrap(), Families.block(&tracked, 1).unwrap());
        let y = theirs.forward(&hidden).unwrap().x;
        let g: Vec<f32> = (0..y.elem_count()).map(|i| (i as f32 * 0.37).sin()).collect();
        let grads = (&y * Tensor::from_slice(&g, y.shape(), &Device::Cpu).unwrap()).unwrap();
        let grads = grads.sum_all().unwrap().backward().unwrap();
        for (arithmetic, bound) in [(Arithmetic::F32, 1e-5), (Arithmetic::BF16, 2e-2)] {
            let trace = block.trace(&hidden, arithmetic).unwrap().expect("a layer of this kind");
            let ours = Tensor::from_slice(trace.output(), y.shape(), &Device::Cpu).unwrap();
            assert!(tiny::distance(&ours, &y) < bound, "{changes} {arithmetic:?}");
            let matrices = vars.iter().filter(|(_, var)| var.rank() == 2);
            let zeros = |(name, var): &(String, Var)| (name.clone(), vec![0f32; var.elem_count()]);
            let mut sums: Gradients = matrices.clone().map(zeros).collect();
            trace.back(&g, &mut sums).unwrap();
            for (name, var) in matrices {
                let ours = Tensor::from_slice(&sums[name], var.shape(), &Device::Cpu).unwrap();
                let off = tiny::distance(&ours, grads.get(var).unwrap());
                assert!(off < bound, "{changes} {arithmetic:?} {name}: {off}");
            }
        }
    }
}

#[test]
fn layers_of_other_kinds_leave_the_way_back_to_candle() {
    for changes in [json!({"model_type": "qwen3", "head_dim": 16}), json!({"hidden_act": "gelu"})] {
        let checkpoint = tiny::llama(&tiny::llama_config(changes.clone()));
        let plain = WeightBuilder::new(&checkpoint, DType::F32, &Device::Cpu);
        let hidden = Families.entrance(&plain).unwrap().forward(&Batch::new(tiny::ids(1, 5, 61))).unwrap();
        let block = Families.block(&plain, 0).unwrap();
        assert!(block.trace(&hidden, Arithmetic::F32).unwrap().is_none(), "{changes}");
    }
}
