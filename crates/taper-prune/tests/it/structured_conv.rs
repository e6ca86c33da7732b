//! Channels between convolutions: batch norm, depthwise convolution and the next consumer shrink together.

use candle_core::{DType, Tensor};
use candle_nn::{BatchNorm, ModuleT};
use serde_json::json;
use std::sync::Arc;
use taper_core::{
    Checkpoint, Context, Result, Silent,
    coupling::{Coupling, Family, Member},
};
use taper_prune::{Structured, UnitScore};

use crate::{run, tensor, uniform, values};

/// conv a → bn → relu → depthwise b → bn → relu → pointwise c → bn → relu → linear head over 2 × 2 positions.
fn couplings(checkpoint: &Checkpoint) -> Result<Vec<Coupling>> {
    let units = |name: &str| checkpoint.info(name).unwrap().shape[0];
    let norm = |name: &str| {
        ["weight", "bias", "running_mean", "running_var"]
            .map(|p| Member::accompanies(format!("{name}.{p}"), 0, 1))
    };
    let mut first = vec![Member::produces("a.weight", 0, 1), Member::accompanies("a.bias", 0, 1)];
    first.extend(norm("a_bn"));
    first.push(Member::accompanies("b.weight", 0, 1));
    first.extend(norm("b_bn"));
    first.push(Member::consumes("c.weight", 1, 1));
    let mut second = vec![Member::produces("c.weight", 0, 1)];
    second.extend(norm("c_bn"));
    // Flattened 2 × 2 maps: a block of four columns per channel.
    second.push(Member::consumes("head.weight", 1, 4));
    let coupling = |name: &str, units, members, key: &str| Coupling {
        name: name.into(),
        family: Family::Channels,
        units,
        members,
        config: vec![(key.into(), 1)],
    };
    Ok(vec![
        coupling("first", units("a.weight"), first, "stem"),
        coupling("second", units("c.weight"), second, "width"),
    ])
}

fn model() -> Checkpoint {
    let serde_json::Value::Object(config) = json!({ "stem": 8, "width": 12 }) else { unreachable!() };
    let mut checkpoint = Checkpoint::new(config);
    let mut add = |name: &str, shape: &[usize], seed| {
        checkpoint.insert(name, Arc::new(tensor(uniform(seed, shape.iter().product()), shape)));
    };
    add("a.weight", &[8, 3, 3, 3], 1);
    add("a.bias", &[8], 2);
    add("b.weight", &[8, 1, 3, 3], 3);
    add("c.weight", &[12, 8, 1, 1], 4);
    add("head.weight", &[5, 48], 5);
    for (name, n, seed) in [("a_bn", 8, 10), ("b_bn", 8, 20), ("c_bn", 12, 30)] {
        add(&format!("{name}.weight"), &[n], seed);
        add(&format!("{name}.bias"), &[n], seed + 1);
        add(&format!("{name}.running_mean"), &[n], seed + 2);
    }
    for (name, n, seed) in [("a_bn", 8, 13), ("b_bn", 8, 23), ("c_bn", 12, 33)] {
        let variance = uniform(seed, n).into_iter().map(|v| 0.5 + v.abs()).collect();
        checkpoint.insert(format!("{name}.running_var"), Arc::new(tensor(variance, &[n])));
    }
    checkpoint
}

fn forward(checkpoint: &Checkpoint) -> Vec<f32> {
    let get = |name: &str| checkpoint.get(name).unwrap().dense().unwrap();
    let normed = |x: Tensor, name: &str| {
        let part = |p: &str| get(&format!("{name}.{p}"));
        let n = part("weight").dim(0).unwrap();
        let norm =
            BatchNorm::new(n, part("running_mean"), part("running_var"), part("weight"), part("bias"), 1e-5)
                .unwrap();
        norm.forward_t(&x, false).unwrap().relu().unwrap()
    };
    let x = tensor(uniform(99, 2 * 3 * 16), &[2, 3, 4, 4]);
    let a = x.conv2d(&get("a.weight"), 1, 1, 1, 1).unwrap();
    let a = a.broadcast_add(&get("a.bias").reshape((1, (), 1, 1)).unwrap()).unwrap();
    let a = normed(a, "a_bn");
    let b = a.conv2d(&get("b.weight"), 1, 2, 1, a.dim(1).unwrap()).unwrap();
    let c = normed(normed(b, "b_bn").conv2d(&get("c.weight"), 0, 1, 1, 1).unwrap(), "c_bn");
    let y = c.flatten_from(1).unwrap().matmul(&get("head.weight").t().unwrap()).unwrap();
    y.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn sliced_equals_masked_through_convolutions_and_batch_norms() {
    let full = model();
    for score in [UnitScore::Product, UnitScore::Consumers, UnitScore::Sum] {
        let pass = Structured::new(Arc::new(couplings), Family::Channels, 0.5).unwrap().with_score(score);
        let sliced = run(&pass, full.clone()).unwrap();
        let (plan, _) = pass.plan(&full, &Context::new(None, 0, &Silent)).unwrap();
        let masked = plan.masked(&full).unwrap();
        let (a, b, original) = (forward(&sliced), forward(&masked), forward(&full));
        let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let scale = original.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(distance(&a, &b) < 1e-6 * scale.max(1.0), "{}", distance(&a, &b));
        assert!(distance(&a, &original) > 1e-2 * scale, "something was cut");
        // c is cut along both axes, by two couplings.
        assert_eq!(sliced.info("c.weight").unwrap().shape, [6, 4, 1, 1]);
        assert_eq!(sliced.info("b.weight").unwrap().shape, [4, 1, 3, 3]);
        assert_eq!(sliced.info("head.weight").unwrap().shape, [5, 24]);
        assert_eq!(sliced.info("b_bn.running_var").unwrap().shape, [4]);
        assert_eq!((&sliced.config()["stem"], &sliced.config()["width"]), (&json!(4), &json!(6)));
    }
}

#[test]
fn a_rescaling_that_batch_norm_undoes_changes_no_choice() {
    let full = model();
    let mut scaled = full.clone();
    // Channel 2 of conv a × 50: mean × 50, variance × 2500, same function up to ε.
    let scale = |name: &str, by: f32| {
        let mut v = values(&full, name);
        let per_unit = v.len() / 8;
        v[2 * per_unit..3 * per_unit].iter_mut().for_each(|v| *v *= by);
        tensor(v, full.get(name).unwrap().shape())
    };
    for (name, by) in
        [("a.weight", 50.0), ("a.bias", 50.0), ("a_bn.running_mean", 50.0), ("a_bn.running_var", 2500.0)]
    {
        scaled.insert(name, Arc::new(scale(name, by)));
    }
    let pass =
        Structured::new(Arc::new(couplings), Family::Channels, 0.5).unwrap().with_score(UnitScore::Product);
    let (a, b) = (run(&pass, full).unwrap(), run(&pass, scaled).unwrap());
    assert_eq!(values(&a, "b.weight"), values(&b, "b.weight"), "the same channels stay");
    assert_eq!(a.get("b.weight").unwrap().dense().unwrap().dtype(), DType::F32);
}
