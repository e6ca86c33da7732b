//! Trellis weights: rate and distortion, products, files, hostile parts.

use candle_core::{Device, Tensor};
use proptest::prelude::*;
use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use safetensors::Dtype;
use serde_json::{Map, json};
use std::sync::Arc;
use taper_core::{
    Checkpoint, Codec, InputStats, Needs, Part, Pipeline, Rows, Run, Stats, Weight, WeightPass,
    stats::Accumulator, weight::to_f32_vec,
};
use taper_quant::{
    PackedTrellis, Trellis,
    code::trellis::StateBits,
    codec::TaperTrellis,
    packed_trellis::{Counted, TrellisScheme},
    pass::Asymmetry,
};

fn gaussian(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| StandardNormal.sample(&mut rng)).collect()
}

fn encode(rows: usize, cols: usize, scheme: &TrellisScheme) -> (Vec<f32>, PackedTrellis) {
    let values = gaussian(rows * cols, (rows + cols) as u64);
    let packed = PackedTrellis::encode(&values, [rows, cols], scheme, None, 3).unwrap();
    (values, packed)
}

#[test]
fn gaussian_matrices_keep_to_the_table_with_every_byte_counted() {
    // What the literature has for random tables of as many states; the best scalar code at 2.25 bits leaves 0.126.
    for (state, bits, table) in [
        (StateBits::Eight, 2.0, 0.0873),
        (StateBits::Ten, 2.0, 0.0797),
        (StateBits::Ten, 3.0, 0.0224),
        (StateBits::Ten, 4.0, 0.0063),
    ] {
        let (values, packed) = encode(512, 256, &TrellisScheme { state, bits, ..TrellisScheme::default() });
        let decoded = to_f32_vec(&packed).unwrap();
        let square = |x: f32| f64::from(x) * f64::from(x);
        let noise: f64 = values.iter().zip(&decoded).map(|(a, b)| square(a - b)).sum();
        let nmse = noise / values.iter().map(|&x| square(x)).sum::<f64>();
        let stored = packed.nbytes() as f64 * 8.0 / values.len() as f64;
        println!("{state:?} {bits}: {nmse:.4} at {stored:.3} bits");
        assert!(nmse < table && nmse > 0.25f64.powf(bits), "{state:?} at {bits} bits: {nmse}");
        assert!(stored < bits + 0.1, "{stored}");
    }
}

#[test]
fn a_product_is_that_of_the_decoded_matrix_for_any_shape() {
    for (rows, cols, block) in [(300, 96, 32), (256, 50, 64), (7, 33, 64), (513, 8, 1)] {
        let (_, packed) = encode(rows, cols, &TrellisScheme { block, bits: 2.5, ..TrellisScheme::default() });
        let dense = packed.dense().unwrap();
        for batch in [1, 3, 40, 300] {
            let x = Tensor::from_vec(gaussian(batch * cols, 9), (batch, cols), &Device::Cpu).unwrap();
            let (y, plain) = (packed.matmul(&x).unwrap(), x.matmul(&dense.t().unwrap()).unwrap());
            let largest = |t: Tensor| {
                t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap()
            };
            let off = largest((y - &plain).unwrap()) / largest(plain);
            assert!(off < 2e-6, "{rows} {cols} {batch}: {off}");
        }
        let mut row = vec![0f32; cols];
        packed.decode_row(rows - 1, &mut row);
        assert_eq!(row, to_f32_vec(&packed).unwrap()[(rows - 1) * cols..]);
    }
}

#[test]
fn the_same_bytes_come_out_whatever_the_number_of_threads() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| encode(600, 64, &TrellisScheme::default()).1.to_parts().unwrap())
    };
    let (one, two) = (run(1), run(2));
    for (role, part) in &one.tensors {
        assert_eq!(part.data, two.tensors[role].data, "{role}");
    }
}

#[test]
fn what_is_read_back_is_what_was_written() {
    for block in [1, 16] {
        let (_, packed) = encode(270, 48, &TrellisScheme { block, ..TrellisScheme::default() });
        let parts = packed.to_parts().unwrap();
        assert_eq!(parts.nbytes(), packed.nbytes());
        let back = TaperTrellis.read("w", parts).unwrap();
        assert_eq!(to_f32_vec(back.as_ref()).unwrap(), to_f32_vec(&packed).unwrap());
        assert_eq!(back.encoding(), packed.encoding());
    }
}

#[test]
fn values_and_options_that_mean_nothing_are_errors() {
    let encode = |values: &[f32], scheme: TrellisScheme| {
        PackedTrellis::encode(values, [2, 2], &scheme, None, 0).map(drop).unwrap_err().to_string()
    };
    let usual = TrellisScheme::default();
    assert!(encode(&[1.0, f32::NAN, 0.0, 2.0], usual).contains("not finite"));
    assert!(encode(&[1.0; 3], usual).contains("expected 4"));
    assert!(encode(&[1e38; 4], usual).contains("too large for f16"));
    assert!(encode(&[1.0; 4], TrellisScheme { bits: 5.1, ..usual }).contains("1 to 5 bits"));
    let most = TrellisScheme { bits: 6.1, state: StateBits::Twelve, ..usual };
    assert!(encode(&[1.0; 4], most).contains("1 to 6 bits"));
    assert!(encode(&[1.0; 4], TrellisScheme { block: 12, ..usual }).contains("power of two"));
    assert!(encode(&[1.0; 4], TrellisScheme { damping: 0.0, ..usual }).contains("`damping`"));
    // Zeros are values like others.
    let zeros = PackedTrellis::encode(&[0.0; 64], [8, 8], &usual, None, 0).unwrap();
    assert!(to_f32_vec(&zeros).unwrap().iter().all(|x| x.is_finite()));
}

proptest! {
    #[test]
    fn damaged_parts_are_errors_or_weights_that_decode(
        role in prop_oneof![Just("codes"), Just("scale"), Just("rates"), Just("signs")],
        data in prop::collection::vec(any::<u8>(), 0..200),
        keep_length in any::<bool>(),
        attribute in prop_oneof![Just("state-bits"), Just("segment"), Just("block")],
        value in prop_oneof![0u64..300, Just(u64::MAX), Just(1 << 40)],
        what in 0..3,
    ) {
        let (_, packed) = encode(20, 16, &TrellisScheme::default());
        let mut parts = packed.to_parts().unwrap();
        match what {
            0 => {
                let old = parts.tensors[role].clone();
                let mut data = data;
                if keep_length {
                    data.resize(old.data.len(), 2);
                }
                let size = old.dtype.bitsize() / 8;
                data.truncate(data.len() / size * size);
                let part = Part { dtype: old.dtype, shape: vec![data.len() / size], data: data.into() };
                parts.tensors.insert(role.to_owned(), part);
            }
            1 => drop(parts.attributes.insert(attribute.to_owned(), value.into())),
            _ => parts.shape = vec![value as usize, 16],
        }
        if let Ok(weight) = TaperTrellis.read("w", parts) {
            let dense = weight.dense().unwrap();
            prop_assert_eq!(dense.dims(), weight.shape());
            prop_assert_eq!(weight.to_parts().unwrap().nbytes(), weight.nbytes());
        }
    }

    #[test]
    fn rates_out_of_range_are_refused(rate in prop_oneof![Just(0u8), 5u8..]) {
        let (_, packed) = encode(20, 16, &TrellisScheme::default());
        let mut parts = packed.to_parts().unwrap();
        parts.tensors.insert("rates".into(), Part::from_values(Dtype::U8, vec![16], &[rate; 16]));
        prop_assert!(TaperTrellis.read("w", parts).is_err());
    }
}

/// Inputs of the original model and of one whose earlier layers changed: shrunk, mixed with a neighbour, and noisy.
fn drifted(count: usize, d: usize) -> (Vec<f32>, Vec<f32>, InputStats) {
    let mut original = gaussian(count * d, 31);
    for token in original.chunks_exact_mut(d) {
        (1..d).for_each(|j| token[j] += 0.6 * token[j - 1]);
    }
    let noise = gaussian(count * d, 77);
    let mut x = original.clone();
    for ((x, o), n) in x.chunks_exact_mut(d).zip(original.chunks_exact(d)).zip(noise.chunks_exact(d)) {
        (0..d).for_each(|j| x[j] = 0.8 * o[j] + 0.15 * o[(j + 1) % d] + 0.05 * n[j]);
    }
    let mut sums = Accumulator::new(d, Needs::CrossGram);
    sums.add_beside(WEIGHT, &x, &original).unwrap();
    let stats = sums.finish(WEIGHT).unwrap();
    (x, original, stats)
}

const WEIGHT: &str = "w.weight";

/// The pass on one weight, with these statistics.
fn passed(
    pass: Trellis,
    values: &[f32],
    shape: [usize; 2],
    stats: &InputStats,
) -> taper_core::Result<Vec<f32>> {
    let mut model = Checkpoint::new(Map::new());
    let weight = Tensor::from_vec(values.to_vec(), &shape[..], &Device::Cpu).unwrap();
    model.insert(WEIGHT, Arc::new(weight));
    let stats = Stats::from_iter([(WEIGHT.to_owned(), Arc::new(stats.clone()))]);
    let run = Run::new().with_stats(&stats);
    let (compressed, _) = Pipeline::new().then(pass.on_matrices()).run(model, &run)?;
    to_f32_vec(compressed.get(WEIGHT)?.as_ref())
}

#[test]
fn asymmetric_calibration_gives_what_the_original_gave_where_plain_feedback_cannot() {
    let (rows, d, count) = (64, 64, 2048);
    let (x, original, stats) = drifted(count, d);
    let values = gaussian(rows * d, 5);
    // ‖W X̃ − V X‖² over all tokens, by hand.
    let distance = |v: &[f32]| -> f64 {
        let row = |w: &[f32], x: &[f32]| w.iter().zip(x).map(|(w, x)| f64::from(w * x)).sum::<f64>();
        let mut sum = 0.0;
        for (w, v) in values.chunks_exact(d).zip(v.chunks_exact(d)) {
            for (o, x) in original.chunks_exact(d).zip(x.chunks_exact(d)) {
                sum += (row(w, o) - row(v, x)).powi(2);
            }
        }
        sum
    };
    let plain = Trellis::new(4.0).unwrap();
    let fed = distance(&passed(plain, &values, [rows, d], &stats).unwrap());
    let whole = plain.asymmetric_calibration(Asymmetry::Share(1.0));
    let (whole, none) = (distance(&passed(whole, &values, [rows, d], &stats).unwrap()), distance(&values));
    println!("original weights {none}, plain {fed}, asymmetric {whole}");
    assert!(whole < 0.5 * fed, "{whole} against {fed}");
    assert!(whole < 0.5 * none, "{whole}: the weights as they were give {none}");
    let beyond = plain.asymmetric_calibration(Asymmetry::Share(1.5));
    let message = passed(beyond, &values, [rows, d], &stats).unwrap_err();
    assert!(message.to_string().contains("above 0 and at most 1"), "{message}");
    let once = InputStats { cross: None, ..stats };
    let message =
        passed(plain.asymmetric_calibration(Asymmetry::Share(1.0)), &values, [rows, d], &once).unwrap_err();
    assert!(message.to_string().contains("sequential calibration"), "{message}");
}

#[test]
fn bits_of_everything_are_kept_by_any_shape_and_used_up() {
    for (rows, cols) in [(256, 256), (512, 96), (300, 200), (1000, 64)] {
        for bits in [2.25, 3.125, 4.0] {
            let scheme = TrellisScheme { bits, counted: Counted::Everything, ..TrellisScheme::default() };
            let (_, packed) = encode(rows, cols, &scheme);
            let stored = 8.0 * packed.nbytes() as f64 / (rows * cols) as f64;
            // One column more would be the step above; streams that end within a byte may leave as much again.
            let step = 8.0 * (2 * rows.div_ceil(8) + cols) as f64 / (rows * cols) as f64;
            assert!(stored <= bits, "{rows} x {cols}: {stored} of {bits}");
            assert!(bits - stored < step, "{rows} x {cols}: {stored} of {bits}");
        }
    }
    let scheme = TrellisScheme { bits: 1.2, counted: Counted::Everything, ..TrellisScheme::default() };
    let error =
        PackedTrellis::encode(&[1.0; 64], [8, 8], &scheme, None, 0).map(drop).unwrap_err().to_string();
    assert!(error.contains("at least 1 bit per weight"), "{error}");
}

#[test]
fn settings_of_recipes_convert_both_ways() {
    for settings in [
        json!({ "bits": 2.5 }),
        json!({ "bits": 3.125, "counted": "everything", "state-bits": 12, "asymmetric-calibration": 1.0 }),
        json!({ "shrinkage": 0.25, "feedback": "nothing" }),
        json!({ "shrinkage": "cross-validated" }),
    ] {
        let pass: Trellis = serde_json::from_value(settings.clone()).unwrap();
        assert_eq!(serde_json::from_value::<Trellis>(pass.settings()).unwrap(), pass, "{settings}");
    }
    for (settings, expected) in [
        (json!({ "shrinkage": 1.5 }), "a share from 0 to 1"),
        (json!({ "shrinkage": "much" }), "cross-validated"),
        (json!({ "counted": "some" }), "unknown variant"),
        (json!({ "bit": 2 }), "unknown field"),
    ] {
        let message = serde_json::from_value::<Trellis>(settings).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}
