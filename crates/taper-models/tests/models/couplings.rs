//! Couplings are complete: cutting units everywhere they are declared gives the function of zeroing them.

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};
use taper_core::{
    Checkpoint, Coupling, Couplings,
    coupling::{Family, Role},
};
use taper_models::{bert::Bert, ds_cnn::DsCnn, families::Families, llama::Llama};

use crate::tiny;

/// What happens to the units that do not stay.
#[derive(Clone, Copy, PartialEq)]
enum How {
    Cut,
    Zero,
}

/// The units that stay: every other one, in any case not the first.
fn kept(coupling: &Coupling) -> Vec<usize> {
    (0..coupling.units).filter(|u| u % 2 == 1).collect()
}

/// Cuts or zeroes the other units of all couplings of a family.
fn without(checkpoint: &Checkpoint, family: Family, how: How) -> Checkpoint {
    let mut out = checkpoint.clone();
    let mut touched = 0;
    for coupling in Families.couplings(checkpoint).unwrap().iter().filter(|c| c.family == family) {
        let units = kept(coupling);
        for member in &coupling.members {
            let tensor = out.get(&member.weight).unwrap().dense().unwrap();
            assert_eq!(tensor.dims()[member.axis], coupling.units * member.block, "{}", member.weight);
            let index: Vec<u32> = units
                .iter()
                .flat_map(|u| u * member.block..(u + 1) * member.block)
                .map(|i| i as u32)
                .collect();
            let changed = match how {
                How::Cut => {
                    tensor.index_select(&Tensor::new(index, &Device::Cpu).unwrap(), member.axis).unwrap()
                }
                How::Zero => {
                    let mut mask = vec![0f32; tensor.dims()[member.axis]];
                    index.iter().for_each(|&i| mask[i as usize] = 1.0);
                    let mut shape = vec![1; tensor.rank()];
                    shape[member.axis] = mask.len();
                    tensor.broadcast_mul(&Tensor::from_vec(mask, shape, &Device::Cpu).unwrap()).unwrap()
                }
            };
            out.insert(member.weight.clone(), Arc::new(changed));
        }
        if how == How::Cut {
            for (key, multiple) in &coupling.config {
                out.config_mut().insert(key.clone(), (units.len() * multiple).into());
            }
        }
        touched += 1;
    }
    assert!(touched > 0);
    out
}

fn same_function(checkpoint: &Checkpoint, family: Family, run: impl Fn(&Checkpoint) -> Tensor) {
    let (cut, zeroed) = (without(checkpoint, family, How::Cut), without(checkpoint, family, How::Zero));
    let (cut, zeroed) = (run(&cut), run(&zeroed));
    assert!(tiny::distance(&cut, &zeroed) < 1e-5);
    assert!(tiny::distance(&cut, &run(checkpoint)) > 1e-3, "the cut changed nothing");
}

#[test]
fn config_keys_follow_the_units() {
    let changes = json!({"head_dim": 8});
    for checkpoint in [tiny::llama(&tiny::llama_config(changes)), tiny::bert("bert."), tiny::ds_cnn()] {
        let mut by_key: BTreeMap<String, usize> = BTreeMap::new();
        for coupling in Families.couplings(&checkpoint).unwrap() {
            assert!(coupling.members.iter().any(|m| m.role == Role::Produces), "{}", coupling.name);
            assert!(coupling.members.iter().any(|m| m.role == Role::Consumes), "{}", coupling.name);
            for (key, multiple) in &coupling.config {
                let stated = checkpoint.config().get(key).and_then(Value::as_u64).unwrap() as usize;
                assert_eq!(stated, coupling.units * multiple, "{key}");
                let shared = by_key.entry(key.clone()).or_insert(coupling.units);
                assert_eq!(*shared, coupling.units);
            }
        }
    }
}

#[test]
fn cut_neurons_of_a_llama_equal_zeroed_ones() {
    let run = |c: &Checkpoint| Llama::open(c).unwrap().forward(&tiny::ids(1, 6, 61)).unwrap();
    for bias in [false, true] {
        same_function(&tiny::llama(&tiny::llama_config(json!({"mlp_bias": bias}))), Family::FeedForward, run);
    }
}

#[test]
fn cut_attention_groups_equal_zeroed_ones() {
    let run = |c: &Checkpoint| Llama::open(c).unwrap().forward(&tiny::ids(1, 6, 61)).unwrap();
    for kind in ["llama", "qwen2", "qwen3"] {
        let config = tiny::llama_config(json!({"model_type": kind, "head_dim": 8, "attention_bias": true}));
        same_function(&tiny::llama(&config), Family::AttentionGroups, run);
    }
}

#[test]
fn cut_neurons_of_a_bert_equal_zeroed_ones() {
    for prefix in ["", "bert."] {
        same_function(&tiny::bert(prefix), Family::FeedForward, |c| {
            let model = Bert::open(c).unwrap();
            let (ids, mask) = model.pad(&[&[3, 7, 9], &[8]]).unwrap();
            model.forward(&ids, &mask).unwrap()
        });
    }
}

#[test]
fn cut_channels_equal_zeroed_ones() {
    let values: Vec<f32> = (0..2 * 13 * 6).map(|i| (i as f32 * 0.37).sin() * 2.0).collect();
    let features = Tensor::from_vec(values, (2, 13, 6), &Device::Cpu).unwrap();
    same_function(&tiny::ds_cnn(), Family::Channels, |c| DsCnn::open(c).unwrap().forward(&features).unwrap());
}

#[test]
fn every_batch_norm_and_bias_along_a_channel_is_coupled() {
    let checkpoint = tiny::ds_cnn();
    let couplings = Families.couplings(&checkpoint).unwrap();
    let declared: Vec<&str> = couplings.iter().flat_map(|c| &c.members).map(|m| m.weight.as_str()).collect();
    for name in checkpoint.names() {
        // The classes themselves are no channels.
        assert!(declared.contains(&name.as_str()) || name == "classifier.bias", "{name}");
    }
}

#[test]
fn a_dropped_layer_is_a_layer_not_walked() {
    let checkpoint = tiny::llama(&tiny::llama_config(json!({})));
    let stack = Families.stack(&checkpoint).unwrap().unwrap();
    assert_eq!(
        (stack.prefix.as_str(), stack.layers, stack.config.as_str()),
        ("model.layers", 3, "num_hidden_layers")
    );
    let mut smaller = checkpoint.clone();
    for name in checkpoint.names() {
        if name.starts_with("model.layers.1.") {
            smaller.remove(&name);
        } else if let Some(rest) = name.strip_prefix("model.layers.2.") {
            smaller.rename(&name, format!("model.layers.1.{rest}")).unwrap();
        }
    }
    smaller.config_mut().insert(stack.config, 2.into());
    let (whole, small) = (Llama::open(&checkpoint).unwrap(), Llama::open(&smaller).unwrap());
    let ids = tiny::ids(1, 6, 61);
    let x = whole.layer(2, &whole.layer(0, &whole.embed(&ids).unwrap()).unwrap()).unwrap();
    assert_eq!(tiny::distance(&small.forward(&ids).unwrap(), &whole.logits(&x).unwrap()), 0.0);
    assert_eq!(small.forward(&ids).unwrap().dtype(), DType::F32);
}

#[test]
fn layers_that_differ_by_their_place_are_not_dropped_blindly() {
    let upper = json!({"model_type": "qwen2", "sliding_window": 4, "use_sliding_window": true, "max_window_layers": 2});
    let error = Families.stack(&tiny::llama(&tiny::llama_config(upper))).unwrap_err().to_string();
    assert!(error.contains("`layer_types`: is missing"), "{error}");
    let listed = json!({"model_type": "smollm3", "no_rope_layers": [1, 0, 1]});
    assert!(Families.stack(&tiny::llama(&tiny::llama_config(listed))).unwrap().is_some());
    let unlisted = json!({"model_type": "smollm3", "num_hidden_layers": 4});
    assert!(Families.stack(&tiny::llama(&tiny::llama_config(unlisted))).is_err());
    let stack = Families.stack(&tiny::bert("bert.")).unwrap().unwrap();
    assert_eq!((stack.prefix.as_str(), stack.layers), ("bert.encoder.layer", 2));
}

/// Divides and multiplies along every declared scaling by factors between a half and two.
fn scaled(checkpoint: &Checkpoint) -> Checkpoint {
    let mut out = checkpoint.clone();
    let scalings = Families.scalings(checkpoint).unwrap();
    assert!(!scalings.is_empty());
    for (k, scaling) in scalings.iter().enumerate() {
        let factor = |c: usize| 2f32.powf((((c + k) * 7) % 11) as f32 / 5.0 - 1.0);
        let ends = scaling.producers.iter().map(|c| (c, -1)).chain(scaling.consumers.iter().map(|c| (c, 1)));
        for (carrier, power) in ends {
            let tensor = out.get(&carrier.weight).unwrap().dense().unwrap();
            let n = tensor.dims()[carrier.axis];
            let channels: Vec<usize> = (0..n).map(|i| carrier.spread.channel(i)).collect();
            assert!(channels.iter().all(|&c| c < scaling.channels), "{}", carrier.weight);
            let factors: Vec<f32> = channels.iter().map(|&c| factor(c).powi(power)).collect();
            let mut shape = vec![1; tensor.rank()];
            shape[carrier.axis] = n;
            let by = Tensor::from_vec(factors, shape, &Device::Cpu).unwrap();
            out.insert(carrier.weight.clone(), Arc::new(tensor.broadcast_mul(&by).unwrap()));
        }
    }
    out
}

#[test]
fn scaling_along_declared_channels_changes_nothing() {
    let llama = |c: &Checkpoint| Llama::open(c).unwrap().forward(&tiny::ids(1, 6, 61)).unwrap();
    for changes in [
        json!({}),
        json!({"attention_bias": true, "mlp_bias": true}),
        json!({"model_type": "qwen3", "head_dim": 8}),
        json!({"model_type": "qwen2", "num_key_value_heads": 1}),
    ] {
        let checkpoint = tiny::llama(&tiny::llama_config(changes.clone()));
        let moved = tiny::distance(&llama(&scaled(&checkpoint)), &llama(&checkpoint));
        assert!(moved < 1e-5, "{changes}: {moved}");
    }
    let checkpoint = tiny::bert("");
    let bert = |c: &Checkpoint| {
        let mask = Tensor::ones((1, 6), DType::U32, &Device::Cpu).unwrap();
        Bert::open(c).unwrap().forward(&tiny::ids(1, 6, 50), &mask).unwrap()
    };
    assert!(tiny::distance(&bert(&scaled(&checkpoint)), &bert(&checkpoint)) < 1e-5);
}

#[test]
fn every_side_of_a_rotation_is_there_and_as_wide_as_it_says() {
    for (checkpoint, tied) in [
        (tiny::llama(&tiny::llama_config(json!({"attention_bias": true, "mlp_bias": true}))), false),
        (tiny::llama(&tiny::llama_config(json!({"tie_word_embeddings": true}))), true),
        (tiny::bert("bert."), false),
    ] {
        let rotations = Families.rotations(&checkpoint).unwrap();
        assert_eq!(rotations.iter().any(|r| r.tied.is_some()), tied);
        for rotation in rotations {
            let head = rotation.tied.as_ref().map(|t| t.head.clone());
            for side in rotation.writers.iter().chain(&rotation.readers) {
                if Some(&side.weight) == head.as_ref() {
                    continue;
                }
                let shape = checkpoint.info(&side.weight).unwrap().shape;
                assert!(shape[side.axis].is_multiple_of(rotation.width), "{}", side.weight);
            }
            for gain in &rotation.gains {
                assert_eq!(checkpoint.info(&gain.weight).unwrap().shape, [rotation.width]);
            }
        }
    }
}
