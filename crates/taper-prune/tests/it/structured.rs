//! Structured pruning of feed-forward blocks and attention groups.

use candle_core::DType;
use serde_json::json;
use std::{collections::BTreeMap, num::NonZeroUsize, sync::Arc};
use taper_core::{
    Checkpoint, Context, Couplings, Error, Outcome, Pass, Pipeline, Run, Silent,
    coupling::{Coupling, Family, Member},
};
use taper_prune::{Bitmask, Error as PruneError, Structured, StructuredSettings, UnitScore};

use crate::{
    llama::{Llama, distance, forward, model},
    magnitude::rayon_pool,
    run, shared, tensor, uniform, values,
};

fn structured(family: Family, ratio: f64) -> Structured {
    Structured::new(Arc::new(Llama), family, ratio).unwrap()
}

/// The pass's own error inside core's.
fn own(error: &Error) -> &PruneError {
    match error {
        Error::Other(inner) => inner.downcast_ref().unwrap(),
        Error::Pass { source, .. } => own(source),
        other => panic!("{other}"),
    }
}

#[test]
fn sliced_equals_masked() {
    let full = model(3, DType::F64);
    for (family, ratio) in [(Family::FeedForward, 0.4), (Family::AttentionGroups, 0.5)] {
        for score in [UnitScore::Product, UnitScore::Consumers, UnitScore::Sum] {
            let pass = structured(family, ratio).with_score(score);
            let (plan, _) = pass.plan(&full, &Context::new(None, 0, &Silent)).unwrap();
            let sliced = run(&pass, full.clone()).unwrap();
            let masked = plan.masked(&full).unwrap();
            let (a, b) = (forward(&sliced), forward(&masked));
            assert!(distance(&a, &b) < 1e-12, "{family} {}", distance(&a, &b));
            assert!(distance(&a, &forward(&full)) > 1e-3, "{family}: something was cut");
            assert_eq!(masked.config(), full.config());
        }
    }
}

#[test]
fn both_families_one_after_the_other_make_a_smaller_stock_model() {
    let pipeline = Pipeline::new()
        .then(structured(Family::FeedForward, 0.4))
        .then(structured(Family::AttentionGroups, 0.5));
    let (small, report) = pipeline.run(model(2, DType::F64), &Run::new()).unwrap();
    let config = small.config();
    assert_eq!(config["intermediate_size"], 6);
    assert_eq!((&config["num_attention_heads"], &config["num_key_value_heads"]), (&json!(3), &json!(1)));
    assert_eq!(config["head_dim"], 2, "12 / 6 from before the cut, now said aloud");
    assert_eq!(config["hidden_size"], 12);
    let shape = |rest: &str| small.info(&format!("model.layers.1.{rest}.weight")).unwrap().shape;
    assert_eq!(
        [shape("mlp.gate_proj"), shape("mlp.up_proj"), shape("mlp.down_proj")],
        [[6, 12], [6, 12], [12, 6]]
    );
    let attention = ["q", "k", "v", "o"].map(|w| shape(&format!("self_attn.{w}_proj")));
    assert_eq!(attention, [[6, 12], [2, 12], [2, 12], [12, 6]]);
    assert!(forward(&small).iter().all(|v| v.is_finite()));
    assert_eq!(report.passes[0].rows.len(), 6);
    assert!(report.passes.iter().flat_map(|p| &p.rows).all(|r| r.outcome == Outcome::Done));
    for name in small.names() {
        let info = small.info(&name).unwrap();
        assert_eq!(info.nbytes, small.get(&name).unwrap().nbytes(), "{name}");
    }
}

#[test]
fn the_units_that_write_least_go_and_the_rest_keep_their_order() {
    let mut full = model(1, DType::F32);
    // Neuron u: |gate|·|up|·|down| = (u+1 shuffled); the sizes are in different members so that no one of them decides.
    let strength = [5f32, 1.0, 9.0, 3.0, 7.0, 2.0, 10.0, 4.0, 8.0, 6.0];
    let fill = |axis: usize, f: &dyn Fn(usize) -> f32| {
        let (out, inner) = if axis == 0 { (10, 12) } else { (12, 10) };
        let unit = |i: usize| if axis == 0 { i / inner } else { i % inner };
        tensor((0..out * inner).map(|i| f(unit(i))).collect(), &[out, inner])
    };
    let name = |w: &str| format!("model.layers.0.mlp.{w}_proj.weight");
    full.insert(name("gate"), Arc::new(fill(0, &|u| if u % 2 == 0 { strength[u] } else { 2.0 })));
    full.insert(name("up"), Arc::new(fill(0, &|u| if u % 2 == 0 { 2.0 } else { strength[u] * 100.0 })));
    full.insert(name("down"), Arc::new(fill(1, &|u| if u % 2 == 0 { 1.0 } else { 0.01 })));
    let pass = structured(Family::FeedForward, 0.5).with_score(UnitScore::Product);
    let small = run(&pass, full).unwrap();
    // The five strongest are 10, 9, 8, 7, 6.
    let kept: Vec<f32> = [2, 4, 6, 8, 9].iter().map(|&u: &usize| strength[u]).collect();
    let gate: Vec<f32> = values(&small, &name("gate")).chunks(12).map(|r| r[0]).collect();
    let up: Vec<f32> = values(&small, &name("up")).chunks(12).map(|r| r[0]).collect();
    let strengths: Vec<f32> =
        gate.iter().zip(&up).map(|(g, u)| if *u == 2.0 { *g } else { *u / 100.0 }).collect();
    assert_eq!(strengths, kept);
}

#[test]
fn widths_can_be_rounded_to_a_multiple() {
    let pass = structured(Family::FeedForward, 0.5).with_multiple_of(NonZeroUsize::new(4).unwrap());
    let small = run(&pass, model(2, DType::BF16)).unwrap();
    assert_eq!(small.config()["intermediate_size"], 8);
    let down = small.get("model.layers.0.mlp.down_proj.weight").unwrap();
    assert_eq!((down.shape(), down.encoding().format.as_str()), (&[12, 8][..], "bf16"), "bf16 stays bf16");
}

#[test]
fn a_ratio_that_rounds_to_nothing_is_reported() {
    let (same, report) = Pipeline::new()
        .then(structured(Family::AttentionGroups, 0.25))
        .run(model(1, DType::F32), &Run::new())
        .unwrap();
    assert_eq!(same.config()["num_key_value_heads"], 2);
    let left: Vec<_> = report.left().collect();
    assert_eq!(left.len(), 4);
    assert!(left[0].1.contains("keeps all of its 2 units"), "{left:?}");
}

#[test]
fn named_units_are_kept_as_named() {
    let units = |list: &[(&str, &[usize])]| -> BTreeMap<String, Vec<usize>> {
        list.iter().map(|(name, units)| ((*name).to_owned(), units.to_vec())).collect()
    };
    let keeping = |list: &[(&str, &[usize])]| {
        run(&Structured::keeping(Arc::new(Llama), Family::FeedForward, units(list)), model(2, DType::F32))
    };
    let full = model(2, DType::F32);
    let small = keeping(&[("model.layers.0.mlp", &[1, 4]), ("model.layers.1.mlp", &[0, 9])]).unwrap();
    let name = "model.layers.1.mlp.up_proj.weight";
    let (before, after) = (values(&full, name), values(&small, name));
    assert_eq!(after, [&before[..12], &before[108..]].concat());

    let uneven = keeping(&[("model.layers.0.mlp", &[1, 4])]).unwrap_err();
    assert!(matches!(own(&uneven), PruneError::Uneven { first_units: 2, second_units: 10, .. }), "{uneven}");
    for (list, message) in [
        (&[("model.layers.7.mlp", &[1usize][..])][..], "no such coupling"),
        (&[("model.layers.0.mlp", &[][..])], "keep at least one"),
        (&[("model.layers.0.mlp", &[4, 1][..])], "ascending"),
        (&[("model.layers.0.mlp", &[4, 10][..])], "unit 10 does not exist"),
    ] {
        let error = keeping(list).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
}

#[test]
fn what_cannot_be_cut_is_a_clear_error() {
    let name = "model.layers.0.mlp.up_proj.weight";
    let mut packed = model(1, DType::F32);
    let dense = packed.get(name).unwrap().dense().unwrap();
    packed.insert(name, Arc::new(Bitmask::from_dense(&dense).unwrap()));
    let error = run(&structured(Family::FeedForward, 0.5), packed).unwrap_err().to_string();
    assert!(error.contains("`model.layers.0.mlp.up_proj.weight`: is stored as bitmask f32"), "{error}");
    assert!(error.contains("cut before encoding"), "{error}");

    let error = run(&structured(Family::Channels, 0.5), model(1, DType::F32)).unwrap_err();
    assert!(error.to_string().contains("declares `attention-groups`, `feed-forward`"), "{error}");

    let mut lying = model(1, DType::F32);
    lying.insert(name, Arc::new(tensor(uniform(1, 24), &[2, 12])));
    let error = run(&structured(Family::FeedForward, 0.5), lying).unwrap_err().to_string();
    assert!(error.contains("shape [2, 12] does not hold 10 units of 1 on axis 0"), "{error}");

    let mut other = model(1, DType::F32);
    other.config_mut().remove("hidden_size");
    let fixed = |c: &Checkpoint| {
        Llama.couplings(&{
            let mut c = c.clone();
            c.config_mut().insert("hidden_size".into(), 12.into());
            c
        })
    };
    let pass = Structured::new(Arc::new(fixed), Family::AttentionGroups, 0.5).unwrap();
    let error = run(&pass, other).unwrap_err().to_string();
    assert!(error.contains("config `hidden_size`"), "{error}");

    let twice = |_: &Checkpoint| {
        let member = || Member::produces("model.layers.0.mlp.up_proj.weight", 0, 1);
        Ok(vec![Coupling {
            name: "c".into(),
            family: Family::FeedForward,
            units: 10,
            members: vec![member(), member()],
            config: vec![],
        }])
    };
    let pass = Structured::new(Arc::new(twice), Family::FeedForward, 0.5).unwrap();
    assert!(run(&pass, model(1, DType::F32)).unwrap_err().to_string().contains("declared twice"));

    let mut wrong = model(1, DType::F32);
    wrong.insert(name, Arc::new(tensor(vec![f32::NAN; 120], &[10, 12])));
    let error = run(&structured(Family::FeedForward, 0.5), wrong).unwrap_err();
    assert!(matches!(error, Error::NotFinite { count: 120, .. }), "{error}");
}

#[test]
fn a_config_that_contradicts_the_weights_is_an_error() {
    let mut full = model(1, DType::F32);
    full.config_mut().insert("intermediate_size".into(), 11.into());
    let ten = |c: &Checkpoint| {
        Llama.couplings(&{
            let mut c = c.clone();
            c.config_mut().insert("intermediate_size".into(), 10.into());
            c
        })
    };
    let pass = Structured::new(Arc::new(ten), Family::FeedForward, 0.5).unwrap();
    let error = run(&pass, full).unwrap_err().to_string();
    assert!(
        error.contains("config `intermediate_size`: is 11, but the weights and their couplings say 10"),
        "{error}"
    );
}

#[test]
fn settings_read_from_a_recipe_and_refuse_nonsense() {
    let read = |text: &str| serde_json::from_str::<StructuredSettings>(text);
    let settings = read(r#"{"family": "feed-forward", "ratio": 0.25, "multiple-of": 8}"#).unwrap();
    assert_eq!((settings.family, settings.multiple_of.get(), settings.score), (Family::FeedForward, 8, None));
    let pass = Structured::from_settings(Arc::new(Llama), settings).unwrap();
    assert_eq!(pass.settings()["score"], "consumers", "what a feed-forward block gets by default");
    assert_eq!(structured(Family::AttentionGroups, 0.5).settings()["score"], "product");
    assert_eq!(pass.settings()["amount"], json!({ "ratio": { "ratio": 0.25, "multiple_of": 8 } }));
    for bad in [
        r#"{"family": "feed-forward"}"#,
        r#"{"family": "ffn", "ratio": 0.2}"#,
        r#"{"family": "channels", "ratio": 0.2, "multiple-of": 0}"#,
        r#"{"family": "channels", "ratio": 0.2, "rato": 0.1}"#,
    ] {
        assert!(read(bad).is_err(), "{bad}");
    }
    for ratio in [1.0, -0.1, f64::NAN] {
        assert!(Structured::new(Arc::new(Llama), Family::FeedForward, ratio).is_err());
    }
}

/// A real model, cut, written, read: a stock Llama a quarter narrower, the same bytes for any number of threads.
#[test]
fn a_real_model_becomes_a_narrower_stock_model() {
    let Some(dir) = shared("models/stories260k") else { return };
    let out = tempfile::tempdir().unwrap();
    let write = |threads: usize| {
        let target = out.path().join(threads.to_string());
        let pipeline = Pipeline::new()
            .then(structured(Family::FeedForward, 0.25).with_multiple_of(NonZeroUsize::new(4).unwrap()))
            .then(structured(Family::AttentionGroups, 0.25));
        rayon_pool(threads)
            .install(|| pipeline.run_to(Checkpoint::open(&dir).unwrap(), &target, &Run::new()))
            .unwrap();
        target
    };
    let (one, four) = (write(1), write(4));
    for file in ["model.safetensors", "config.json"] {
        assert_eq!(std::fs::read(one.join(file)).unwrap(), std::fs::read(four.join(file)).unwrap(), "{file}");
    }
    let small = Checkpoint::open(&one).unwrap();
    let config = small.config();
    // 172 − 43 = 129 is rounded up to 132; 4 groups lose one, and with it two of eight heads.
    assert_eq!(
        [&config["intermediate_size"], &config["num_key_value_heads"], &config["num_attention_heads"]],
        [132, 3, 6]
    );
    assert_eq!(small.info("model.layers.4.mlp.down_proj.weight").unwrap().shape, [64, 132]);
    assert_eq!(small.info("model.layers.4.self_attn.o_proj.weight").unwrap().shape, [64, 48]);
}
