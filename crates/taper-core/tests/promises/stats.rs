//! Statistics: right, shared by layers with one input, and loud when something is off.

use crate::toy::{checkpoint, error_of, tensor, values};
use candle_core::{DType, Device, Tensor};
use taper_core::{
    Architecture, Needs, Observer, Recorder, Result, WeightBuilder, nn, observe::calibrate_checkpoint,
    stats::Accumulator,
};

/// Two layers that read one tensor, and one that reads the sum of their outputs.
struct Forked {
    left: nn::Linear,
    right: nn::Linear,
}

struct Fork;

impl Architecture for Fork {
    type Model = Forked;

    fn build(&self, weights: &WeightBuilder) -> Result<Forked> {
        let layer = |i: usize| nn::linear_no_bias(16, 24, &weights.pp("layers").pp(i));
        Ok(Forked { left: layer(0)?, right: layer(1)? })
    }
}

#[test]
fn an_input_that_two_layers_read_is_counted_once() {
    let batches = [tensor(&[2, 5, 16], 1), tensor(&[1, 3, 16], 2)];
    let stats = calibrate_checkpoint(&Fork, &checkpoint(2), Needs::Gram, |model| {
        for x in &batches {
            model.left.forward(x)?;
            model.right.forward(x)?;
        }
        Ok(())
    })
    .unwrap();
    let (left, right) = (stats.get("layers.0.weight").unwrap(), stats.get("layers.1.weight").unwrap());
    assert!(std::ptr::eq(left, right), "one value for both");
    assert_eq!(left.count, 13);

    // A plain oracle in f64.
    let rows: Vec<Vec<f64>> = batches
        .iter()
        .flat_map(|b| b.reshape(((), 16)).unwrap().to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap())
        .collect();
    let gram = left.gram.as_ref().unwrap();
    for i in 0..16 {
        let mean = rows.iter().map(|r| r[i].abs()).sum::<f64>() / 13.0;
        let max = rows.iter().map(|r| r[i].abs()).fold(0.0, f64::max);
        assert!((f64::from(left.mean_abs[i]) - mean).abs() < 1e-6);
        assert!((f64::from(left.max_abs()[i]) - max).abs() < 1e-6);
        // Products of a chunk of tokens are summed in f32.
        assert!((left.sum_squares[i] - gram.get(i, i)).abs() < 1e-5);
        for j in 0..16 {
            let expected: f64 = rows.iter().map(|r| r[i] * r[j]).sum();
            assert!((gram.get(i, j) - expected).abs() < 1e-5);
            assert_eq!(gram.get(i, j), gram.get(j, i));
        }
    }
}

#[test]
fn layers_that_stop_sharing_are_an_error_not_a_wrong_sum() {
    let recorder = Recorder::new(Needs::InputNorms);
    let (a, b, c) = (tensor(&[2, 4], 1), tensor(&[2, 4], 2), tensor(&[2, 4], 3));
    recorder.observe("q", &a).unwrap();
    recorder.observe("k", &a).unwrap();
    recorder.observe("q", &b).unwrap();
    assert!(error_of(recorder.observe("k", &c)).contains("shared its input with `q`"));
}

#[test]
fn nothing_observed_and_values_that_are_not_finite_are_errors() {
    assert!(error_of(Recorder::new(Needs::InputNorms).stats()).contains("no layer was observed"));
    let bad = Tensor::new(&[[1.0f32, f32::NAN]], &Device::Cpu).unwrap();
    let message = error_of(Recorder::new(Needs::InputNorms).observe("q", &bad));
    assert!(message.contains("statistics of `q`") && message.contains("not finite"), "{message}");
    assert!(
        error_of(Accumulator::new(3, Needs::InputNorms).add("q", &values(7, 1))).contains("vectors of 3")
    );
}

#[test]
fn an_observed_layer_computes_the_same_and_an_unobserved_one_costs_nothing() {
    let checkpoint = checkpoint(2);
    let weights = WeightBuilder::new(&checkpoint, DType::F32, &Device::Cpu);
    let recorder = Recorder::new(Needs::InputNorms);
    let plain = Fork.build(&weights).unwrap();
    let observed = Fork.build(&weights.with_observer(recorder.clone())).unwrap();
    let x = tensor(&[3, 16], 1);
    let (a, b) = (plain.left.forward(&x).unwrap(), observed.left.forward(&x).unwrap());
    assert_eq!(a.to_vec2::<f32>().unwrap(), b.to_vec2::<f32>().unwrap());
    assert_eq!(recorder.stats().unwrap().len(), 1, "only the layer that ran");
}

#[test]
fn interleaved_requests_are_each_counted_once() {
    let recorder = Recorder::new(Needs::Gram);
    let input = |at: f32| Tensor::new(&[[at, 2.0], [1.0, -at]], &Device::Cpu).unwrap();
    let (a, b) = (input(1.0), input(5.0));
    // Two requests between the layers q and k, which share an input.
    for (layer, x) in [("q", &a), ("q", &b), ("k", &a), ("k", &b), ("o", &b), ("o", &a)] {
        recorder.observe(layer, x).unwrap();
    }
    let stats = recorder.stats().unwrap();
    for layer in ["q", "k", "o"] {
        let seen = stats.get(layer).unwrap();
        assert_eq!(
            (seen.count, &seen.sum_squares[..]),
            (4, &[1.0 + 1.0 + 25.0 + 1.0, 4.0 + 1.0 + 4.0 + 25.0][..])
        );
    }
    assert_eq!(stats.get("q").unwrap(), stats.get("k").unwrap());
}
