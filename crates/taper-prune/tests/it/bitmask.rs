//! The sparse weight: storage, product, gradient, and files that lie.

use candle_core::{DType, Device, Tensor, Var};
use proptest::prelude::*;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;
use std::{collections::BTreeMap, sync::Arc};
use taper_core::{
    Checkpoint, Codec, Outcome, Part, Parts, Pipeline, Rows, Run, Weight, WeightPass,
    weight::rows::{dense_slice, dot, matmul_slice},
};
use taper_prune::{Bitmask, Magnitude, SparseBitmask, codec::BitmaskCodec, codecs};

use crate::{checkpoint, shared, tensor, uniform, values};

/// Random values of which about `sparsity` are zero.
fn sparse(seed: u64, n: usize, sparsity: f32) -> Vec<f32> {
    let draw = uniform(seed + 1, n);
    uniform(seed, n).into_iter().zip(draw).map(|(v, d)| if d.abs() < sparsity { 0.0 } else { v }).collect()
}

#[test]
fn what_is_stored_is_what_was_there_in_its_own_type() {
    for (dtype, width) in [(DType::F32, 4), (DType::F16, 2), (DType::BF16, 2)] {
        let dense = tensor(sparse(1, 6 * 21, 0.7), &[6, 3, 7]).to_dtype(dtype).unwrap();
        let weight = Bitmask::from_dense(&dense).unwrap();
        let flat =
            |t: &Tensor| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(flat(&weight.dense().unwrap()), flat(&dense));
        assert_eq!(weight.dense().unwrap().dims(), [6, 3, 7]);
        let nonzero = flat(&dense).iter().filter(|v| **v != 0.0).count();
        assert_eq!(weight.nbytes(), nonzero * width + 6 * 3);
        assert_eq!(weight.nbytes(), weight.to_parts().unwrap().nbytes(), "sizes are honest");
        assert_eq!(weight.encoding().format, format!("bitmask {}", dtype.as_str()));
        let again = BitmaskCodec.read("w", weight.to_parts().unwrap()).unwrap();
        assert_eq!(flat(&again.dense().unwrap()), flat(&dense));
    }
}

#[test]
fn the_product_is_the_dense_one_and_skipping_zeros_changes_no_bit() {
    let (out, inner, batch) = (19, 133, 5);
    let w = sparse(2, out * inner, 0.6);
    let weight = Bitmask::from_dense(&tensor(w.clone(), &[out, inner])).unwrap();
    let x = uniform(9, batch * inner);
    let y = weight.matmul(&tensor(x.clone(), &[1, batch, inner])).unwrap();
    assert_eq!(y.dims(), [1, batch, out]);
    let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for m in 0..batch {
        let alone = matmul_slice(&weight, &x[m * inner..(m + 1) * inner], 1);
        for o in 0..out {
            let row = &w[o * inner..(o + 1) * inner];
            let oracle: f64 =
                row.iter().zip(&x[m * inner..]).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            assert!((f64::from(y[m * out + o]) - oracle).abs() < 1e-5, "{} {oracle}", y[m * out + o]);
            // One row at a time walks the bits, several decode first: the very same sum.
            assert_eq!(alone[o].to_bits(), y[m * out + o].to_bits());
            assert_eq!(alone[o].to_bits(), dot(row, &x[m * inner..(m + 1) * inner]).to_bits());
        }
    }
    assert_eq!(dense_slice(&weight), w);
}

#[test]
fn rows_are_looked_up_without_decoding_the_others() {
    let w = sparse(3, 7 * 10, 0.5);
    let weight = Bitmask::from_dense(&tensor(w.clone(), &[7, 10])).unwrap();
    let ids = Tensor::from_vec(vec![6u32, 0, 3, 3], (2, 2), &Device::Cpu).unwrap();
    let rows = weight.gather(&ids).unwrap();
    assert_eq!(rows.dims(), [2, 2, 10]);
    let rows = rows.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (row, id) in rows.chunks(10).zip([6, 0, 3, 3]) {
        assert_eq!(row, &w[id * 10..(id + 1) * 10]);
    }
    assert!(weight.gather(&Tensor::new(&[7u32], &Device::Cpu).unwrap()).is_err());
}

#[test]
fn the_gradient_of_the_product_is_that_of_finite_differences() {
    let weight = Bitmask::from_dense(&tensor(sparse(4, 6 * 11, 0.5), &[6, 11])).unwrap();
    let x = uniform(5, 3 * 11);
    let c = uniform(6, 3 * 6);
    // L = Σ c · (x · Wᵀ) is linear in x, so differences are exact up to rounding.
    let loss = |x: &[f32]| -> f64 {
        matmul_slice(&weight, x, 3).iter().zip(&c).map(|(y, c)| f64::from(*y) * f64::from(*c)).sum()
    };
    let var = Var::from_tensor(&tensor(x.clone(), &[3, 11])).unwrap();
    let y = weight.matmul(&var).unwrap();
    let total = (y * tensor(c.clone(), &[3, 6])).unwrap().sum_all().unwrap();
    let grads = total.backward().unwrap();
    let grad = grads.get(&var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for i in 0..x.len() {
        let (mut up, mut down) = (x.clone(), x.clone());
        up[i] += 0.5;
        down[i] -= 0.5;
        assert!((loss(&up) - loss(&down) - f64::from(grad[i])).abs() < 2e-5, "{i}");
    }
}

#[test]
fn weights_are_stored_sparsely_only_where_that_is_smaller() {
    let mut nearly = vec![1.0f32; 64];
    nearly[5] = 0.0;
    let before = checkpoint([
        ("a.sparse", tensor(sparse(7, 64, 0.9), &[8, 8])),
        ("b.dense", tensor(nearly, &[8, 8])),
        ("c.f64", tensor(sparse(7, 64, 0.9), &[8, 8]).to_dtype(DType::F64).unwrap()),
    ])
    .with_codecs(&codecs());
    let pass = SparseBitmask::new().on_matrices();
    let (after, report) = Pipeline::new().then(pass).run(before.clone(), &Run::new()).unwrap();
    assert_eq!(values(&after, "a.sparse"), values(&before, "a.sparse"));
    assert_eq!(after.get("a.sparse").unwrap().encoding().codec, "taper-bitmask");
    let why: BTreeMap<&str, &str> = report.left().collect();
    // 63 values of 4 bytes and 8 bytes of mask are 260, against 256.
    assert!(why["b.dense"].contains("260 bytes as a bitmask, 256 bytes dense"), "{}", why["b.dense"]);
    assert!(why["c.f64"].contains("f64"));
    assert_eq!(report.passes[0].rows[0].outcome, Outcome::Done);
}

#[test]
fn a_pruned_real_model_survives_the_file_and_its_size_is_predicted_to_the_byte() {
    let Some(dir) = shared("models/stories260k") else { return };
    let out = tempfile::tempdir().unwrap();
    let pipeline = Pipeline::new()
        .then(Magnitude::new(0.6).unwrap().on_matrices())
        .then(SparseBitmask::new().on_matrices());
    let open = |dir: &std::path::Path| Checkpoint::open_with(dir, &codecs()).unwrap();
    let target = out.path().join("sparse");
    let predicted = pipeline.predict(open(&dir), &Run::new()).unwrap();
    pipeline.run_to(open(&dir), &target, &Run::new()).unwrap();
    for (file, bytes) in &predicted.files {
        assert_eq!(target.join(file).metadata().unwrap().len(), *bytes, "{file}");
    }
    let (in_memory, _) = pipeline.run(open(&dir), &Run::new()).unwrap();
    let (read, mut sparse) = (open(&target), 0);
    for name in in_memory.names() {
        assert_eq!(values(&read, &name), values(&in_memory, &name), "{name}");
        sparse += usize::from(read.info(&name).unwrap().encoding.codec == "taper-bitmask");
        assert_eq!(read.info(&name).unwrap(), in_memory.info(&name).unwrap());
    }
    assert!(sparse > 30, "{sparse}");
}

/// A directory as the legacy program wrote it, byte for byte our own.
fn legacy_directory(dir: &std::path::Path, stem: &str, config: &serde_json::Value, offsets: [i64; 2]) {
    let bytes = |v: &[i64]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let values: Vec<u8> = [1.5f32, -2.0, 3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let (shape, offsets) = (bytes(&[2, 10]), bytes(&offsets));
    let mask = [0b10u8, 0b10, 0b1000_0000, 0];
    let other = [0u8; 8];
    let view = |dtype, shape: &[usize], data| TensorView::new(dtype, shape.to_vec(), data).unwrap();
    let arrays = vec![
        (format!("{stem}.compressed"), view(Dtype::F32, &[3], &values)),
        (format!("{stem}.bitmask"), view(Dtype::U8, &[2, 2], &mask)),
        (format!("{stem}.shape"), view(Dtype::I64, &[2], &shape)),
        (format!("{stem}.row_offsets"), view(Dtype::I64, &[2], &offsets)),
        ("norm.weight".to_owned(), view(Dtype::F32, &[2], &other)),
    ];
    std::fs::create_dir_all(dir).unwrap();
    safetensors::serialize_to_file(arrays, None, &dir.join("model.safetensors")).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn legacy_checkpoints_are_read_in_both_manners() {
    let out = tempfile::tempdir().unwrap();
    let format = json!({ "format": "sparse-bitmask" });
    let configs = [
        json!({ "quantization_config": { "quant_method": "compressed-tensors", "sparsity_config": format } }),
        json!({ "compression_config": { "sparsity_config": format } }),
        json!({ "sparsity_config": format }),
    ];
    for (i, config) in configs.iter().enumerate() {
        for stem in ["layers.0.up", "layers.0.up.weight"] {
            let dir = out.path().join(format!("{i}-{stem}"));
            legacy_directory(&dir, stem, config, [0, 2]);
            let read = Checkpoint::open_with(&dir, &codecs()).unwrap();
            assert_eq!(read.names(), ["layers.0.up.weight", "norm.weight"]);
            let mut expected = vec![0f32; 20];
            (expected[1], expected[9], expected[17]) = (1.5, -2.0, 3.0);
            assert_eq!(values(&read, "layers.0.up.weight"), expected);
        }
    }
    let dir = out.path().join("lying");
    legacy_directory(&dir, "up", &configs[0], [0, 1]);
    let error = Checkpoint::open_with(&dir, &codecs()).unwrap().get("up.weight").unwrap_err();
    assert!(error.to_string().contains("`row_offsets` does not agree"), "{error}");
    let dir = out.path().join("undeclared");
    legacy_directory(&dir, "up", &json!({}), [0, 2]);
    assert_eq!(
        Checkpoint::open_with(&dir, &codecs()).unwrap().len(),
        5,
        "nobody says that these are one weight"
    );
}

/// Parts of a 2 × 10 weight with three values.
fn good() -> Parts {
    let mut w = vec![0f32; 20];
    (w[1], w[9], w[17]) = (1.5, -2.0, 3.0);
    Bitmask::from_dense(&tensor(w, &[2, 10])).unwrap().to_parts().unwrap()
}

#[test]
fn each_lie_is_told_from_the_others() {
    type Lie = fn(&mut Parts);
    let lies: [(&str, Lie); 12] = [
        ("no `bitmask`", |p| drop(p.tensors.remove("bitmask"))),
        ("no `compressed`", |p| drop(p.tensors.remove("compressed"))),
        ("expected F32, F16 or BF16", |p| p.tensors.get_mut("compressed").unwrap().dtype = Dtype::I32),
        ("expected one dimension", |p| p.tensors.get_mut("compressed").unwrap().shape = vec![3, 1]),
        ("bytes for 4 values", |p| p.tensors.get_mut("compressed").unwrap().shape = vec![4]),
        ("2 values for 3 set bits", |p| {
            p.tensors.insert("compressed".into(), Part::from_values(Dtype::F32, vec![2], &[1f32, 2.0]));
        }),
        ("expected U8 [2, 2]", |p| p.tensors.get_mut("bitmask").unwrap().shape = vec![4, 1]),
        ("a mask of 3 bytes", |p| p.tensors.get_mut("bitmask").unwrap().data = Arc::from([2u8, 2, 128])),
        ("bits set after the last of 10", |p| {
            p.tensors.get_mut("bitmask").unwrap().data = Arc::from([2u8, 4, 128, 0]);
        }),
        ("overflows", |p| p.shape = vec![usize::MAX, 10]),
        ("two or more dimensions", |p| {
            p.shape = vec![1 << 40, 0];
            p.tensors.insert("bitmask".into(), Part::from_values::<u8>(Dtype::U8, vec![1 << 40, 0], &[]));
        }),
        ("`shape` does not agree", |p| {
            p.tensors.insert("shape".into(), Part::from_values(Dtype::I64, vec![2], &[2i64, 11]));
        }),
    ];
    assert!(BitmaskCodec.read("w", good()).is_ok());
    for (message, lie) in lies {
        let mut parts = good();
        lie(&mut parts);
        let error = BitmaskCodec.read("w", parts).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        assert!(error.contains("weight `w` stored as `taper-bitmask`"), "{error}");
    }
}

fn hostile_part() -> impl Strategy<Value = Part> {
    let dtype = prop::sample::select(vec![
        Dtype::F32,
        Dtype::F16,
        Dtype::BF16,
        Dtype::U8,
        Dtype::I64,
        Dtype::F8_E4M3,
    ]);
    let dim = prop_oneof![0usize..20, Just(usize::MAX), Just(1 << 60)];
    (dtype, prop::collection::vec(dim, 0..4), prop::collection::vec(any::<u8>(), 0..64))
        .prop_map(|(dtype, shape, data)| Part { dtype, shape, data: data.into() })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn hostile_parts_are_refused_or_work(
        shape in prop::collection::vec(prop_oneof![4 => 0usize..6, 1 => Just(usize::MAX)], 0..4),
        mut parts in Just(good()),
        replaced in prop::collection::btree_map(
            prop::sample::select(vec!["compressed", "bitmask", "shape", "row_offsets"]), hostile_part(), 0..4,
        ),
        flip in any::<prop::sample::Index>(),
        keep_shape in any::<bool>(),
    ) {
        if !keep_shape {
            parts.shape = shape;
        }
        let mask = parts.tensors.get_mut("bitmask").unwrap();
        let mut bytes = mask.data.to_vec();
        bytes[flip.index(4)] ^= 1 << flip.index(8);
        mask.data = bytes.into();
        for (role, part) in replaced {
            parts.tensors.insert(role.to_owned(), part);
        }
        if let Ok(weight) = BitmaskCodec.read("w", parts) {
            let dense = weight.dense().unwrap();
            prop_assert_eq!(dense.dims(), weight.shape());
        }
    }

    #[test]
    fn any_matrix_comes_back(rows in 1usize..9, cols in 1usize..40, seed in any::<u64>(), sparsity in 0f32..1.0) {
        let w = sparse(seed >> 1, rows * cols, sparsity);
        let weight = Bitmask::from_dense(&tensor(w.clone(), &[rows, cols])).unwrap();
        prop_assert_eq!(weight.rows(), rows);
        let again = BitmaskCodec.read("w", weight.to_parts().unwrap()).unwrap();
        prop_assert_eq!(again.dense().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(), w);
    }
}
