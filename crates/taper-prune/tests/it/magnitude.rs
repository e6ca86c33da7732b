//! Magnitude pruning in its three scopes.

use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;
use std::sync::Arc;
use taper_core::{Checkpoint, Error, Outcome, Pass, Pipeline, Run, Select};
use taper_prune::{Bitmask, Magnitude, Scope};

use crate::{checkpoint, run, shared, sorted_support, support, tensor, uniform, values};

#[test]
fn a_tensor_loses_exactly_its_share_and_keeps_its_type() {
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64] {
        let weight = tensor(uniform(1, 7 * 9), &[7, 9]).to_dtype(dtype).unwrap();
        let before = checkpoint([("a.weight", weight)]);
        let old = values(&before, "a.weight");
        let after = run(&Magnitude::new(0.3).unwrap().on_matrices(), before).unwrap();
        let new = values(&after, "a.weight");
        // 63 · 0.3 = 18.9
        assert_eq!(support(&new), sorted_support(&old, 19), "{dtype:?}");
        assert!(new.iter().zip(&old).all(|(n, o)| *n == 0.0 || n.to_bits() == o.to_bits()));
        assert_eq!(after.get("a.weight").unwrap().dense().unwrap().dtype(), dtype);
    }
}

#[test]
fn rows_of_a_convolution_are_its_filters() {
    let before = checkpoint([("conv.weight", tensor(uniform(2, 4 * 3 * 3 * 3), &[4, 3, 3, 3]))]);
    let old = values(&before, "conv.weight");
    let pass = Magnitude::new(0.5).unwrap().with_scope(Scope::Row).on_matrices();
    let new = values(&run(&pass, before).unwrap(), "conv.weight");
    // 27 · 0.5 = 13.5, half to even is 14.
    let expected: Vec<bool> = old.chunks(27).flat_map(|row| sorted_support(row, 14)).collect();
    assert_eq!(support(&new), expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Coarse values tie within and across weights.
    #[test]
    fn the_global_threshold_is_that_of_one_great_sort(
        seed in any::<u64>(),
        levels in prop_oneof![Just(3f32), Just(20.0), Just(1e6)],
        sparsity in 0.0f64..0.99,
    ) {
        let coarse = |v: Vec<f32>| v.into_iter().map(|x| ((x * levels).round() + 0.5) / levels).collect::<Vec<_>>();
        let all = coarse(uniform(seed, 30 + 35 + 24));
        let mut before = Checkpoint::new(serde_json::Map::new());
        before.insert("a", Arc::new(tensor(all[..30].to_vec(), &[5, 6])));
        before.insert("b", Arc::new(tensor(all[30..65].to_vec(), &[7, 5])));
        before.insert("c", Arc::new(tensor(all[65..].to_vec(), &[2, 3, 2, 2])));
        let pass = Magnitude::new(sparsity).unwrap().with_scope(Scope::Global).on_matrices();
        let after = run(&pass, before).unwrap();
        let new: Vec<f32> = ["a", "b", "c"].iter().flat_map(|n| values(&after, n)).collect();
        let prune = (89.0 * sparsity).round_ties_even() as usize;
        prop_assert_eq!(support(&new), sorted_support(&all, prune));
    }
}

#[test]
fn the_global_scope_leaves_what_it_cannot_prune_and_says_why() {
    let sparse = Bitmask::from_dense(&tensor(vec![1.0, 0.0, 0.0, 2.0], &[2, 2])).unwrap();
    for scope in [Scope::Tensor, Scope::Row, Scope::Global] {
        let ids = Tensor::from_vec(vec![1u32, 2, 3, 4], (2, 2), &Device::Cpu).unwrap();
        let mut before = checkpoint([
            ("bias", tensor(uniform(3, 8), &[8])),
            ("ids", ids),
            ("w", tensor(uniform(4, 64), &[8, 8])),
        ]);
        before.insert("packed", Arc::new(sparse.clone()));
        let pass = Magnitude::new(0.5).unwrap().with_scope(scope).on(Select::glob("*").unwrap());
        let (after, report) = Pipeline::new().then(pass).run(before, &Run::new()).unwrap();
        assert_eq!(values(&after, "w").iter().filter(|v| **v == 0.0).count(), 32);
        let left: Vec<&str> = report.left().map(|(name, _)| name).collect();
        assert_eq!(left, ["bias", "ids", "packed"], "{scope:?}");
        let why = |name| report.left().find(|(n, _)| *n == name).unwrap().1;
        assert!(why("bias").contains("1 dimensions"));
        assert!(why("ids").contains("u32"));
        assert!(why("packed").contains("bitmask f32"));
    }
}

#[test]
fn a_fraction_that_rounds_to_nothing_is_reported() {
    for scope in [Scope::Tensor, Scope::Row, Scope::Global] {
        let before = checkpoint([("w", tensor(uniform(4, 4), &[2, 2]))]);
        let pass = Magnitude::new(0.1).unwrap().with_scope(scope).on_matrices();
        let (_, report) = Pipeline::new().then(pass).run(before, &Run::new()).unwrap();
        let row = &report.passes[0].rows[0];
        assert!(matches!(&row.outcome, Outcome::Left { why } if why.contains("rounds to none")), "{row:?}");
    }
}

#[test]
fn values_that_are_not_finite_are_errors_that_name_the_weight() {
    for scope in [Scope::Tensor, Scope::Row, Scope::Global] {
        let mut bad = uniform(5, 16);
        (bad[3], bad[9]) = (f32::NAN, f32::INFINITY);
        let before = checkpoint([("w", tensor(bad, &[4, 4]))]);
        let pass = Magnitude::new(0.5).unwrap().with_scope(scope).on_matrices();
        let error = run(&pass, before).unwrap_err();
        assert!(
            matches!(&error, Error::NotFinite { weight, count: 2, first: 3 } if weight == "w"),
            "{error}"
        );
    }
}

#[test]
fn a_global_selection_of_nothing_is_an_error() {
    let pass = Magnitude::new(0.5).unwrap().with_scope(Scope::Global).on(Select::glob("nowhere.*").unwrap());
    let error = run(&pass, checkpoint([("w", tensor(uniform(5, 4), &[2, 2]))])).unwrap_err();
    assert!(matches!(error, Error::NothingSelected { .. }), "{error}");
}

#[test]
fn settings_read_from_a_recipe_and_refuse_nonsense() {
    let read = |text: &str| serde_json::from_str::<Magnitude>(text);
    let pass = read(r#"{"sparsity": 0.5, "scope": "global"}"#).unwrap();
    assert_eq!((pass.sparsity(), pass.scope()), (0.5, Scope::Global));
    assert_eq!(read(r#"{"sparsity": 0.25}"#).unwrap().scope(), Scope::Tensor);
    assert!(read(r#"{"sparsity": 1.0}"#).unwrap_err().to_string().contains("less than 1"));
    assert!(read(r#"{"sparsity": 0.5, "scop": "row"}"#).unwrap_err().to_string().contains("scop"));
    assert!(Magnitude::new(f64::NAN).is_err() && Magnitude::new(-0.1).is_err());
    let settings = pass.on_matrices().settings();
    assert_eq!(settings["scope"], "global");
    assert_eq!(settings["select"], "all matrices");
}

/// The same bytes for one thread and for four, on a real model in bf16.
#[test]
fn a_real_model_is_pruned_alike_by_any_number_of_threads() {
    let Some(dir) = shared("models/novels-1m") else { return };
    for scope in [Scope::Tensor, Scope::Row, Scope::Global] {
        let prune = |threads| {
            let pool = rayon_pool(threads);
            let pass = Magnitude::new(0.5).unwrap().with_scope(scope).on_matrices();
            pool.install(|| run(&pass, Checkpoint::open(&dir).unwrap()).unwrap())
        };
        let (one, four) = (prune(1), prune(4));
        let (mut zeros, mut elements) = (0, 0);
        for name in one.names() {
            let (a, b) = (one.get(&name).unwrap(), four.get(&name).unwrap());
            assert_eq!(a.encoding().format, "bf16");
            let bytes = |w: &dyn taper_core::Weight| w.to_parts().unwrap().tensors["data"].data.clone();
            assert_eq!(bytes(a.as_ref()), bytes(b.as_ref()), "{name}");
            if a.shape().len() == 2 {
                let v = values(&one, &name);
                zeros += v.iter().filter(|v| **v == 0.0).count();
                elements += v.len();
            }
        }
        // The model's own zeros are the first to be counted among the pruned, so half is exact.
        assert_eq!(zeros, elements / 2, "{scope:?}");
    }
}

pub(crate) fn rayon_pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}
