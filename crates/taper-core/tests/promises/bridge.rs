//! Models over any encoding: the builder, the layers, the bridge to candle.

use crate::toy::{Halve, Halved, checkpoint, error_of, tensor};
use candle_core::{DType, Device, Module, Tensor, Var};
use std::sync::Arc;
use taper_core::{Pipeline, Run, Weight, WeightBuilder, WeightPass, build::var_builder, nn};

fn close(a: &Tensor, b: &Tensor, tolerance: f32) {
    assert_eq!(a.dims(), b.dims());
    if a.elem_count() == 0 {
        return;
    }
    let gap = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
    let gap = gap.to_dtype(DType::F32).unwrap().to_scalar::<f32>().unwrap();
    assert!(gap <= tolerance, "{gap} > {tolerance}");
}

#[test]
fn products_and_lookups_of_an_encoded_weight_equal_those_of_its_dense_form() {
    let halved = Halved::of(&tensor(&[24, 16], 3)).unwrap();
    let dense = halved.dense().unwrap();
    for lead in [vec![1], vec![5], vec![2, 3], vec![0]] {
        let x = tensor(&[lead.clone(), vec![16]].concat(), 4);
        let expected = Weight::matmul(&dense, &x).unwrap();
        close(&halved.matmul(&x).unwrap(), &expected, 1e-5);
    }
    let ids = Tensor::new(&[[3u32, 0], [23, 3]], &Device::Cpu).unwrap();
    close(&halved.gather(&ids).unwrap(), &Weight::gather(&dense, &ids).unwrap(), 0.0);
    let outside = Tensor::new(&[24u32], &Device::Cpu).unwrap();
    assert!(error_of(halved.gather(&outside)).contains("the weight has 24 rows"));
    assert!(error_of(halved.matmul(&tensor(&[2, 15], 1))).contains("expected [.., 16]"));
}

#[test]
fn a_gradient_passes_through_an_encoded_weight() {
    let halved = Halved::of(&tensor(&[24, 16], 3)).unwrap();
    let x = Var::from_tensor(&tensor(&[4, 16], 5)).unwrap();
    let c = tensor(&[4, 24], 6);
    let loss = (halved.matmul(&x).unwrap() * &c).unwrap().sum_all().unwrap();
    let grads = loss.backward().unwrap();
    // d/dx Σ c · (x Wᵀ) = c W
    let expected = c.matmul(&halved.dense().unwrap()).unwrap();
    close(grads.get(&x).expect("a gradient reaches x"), &expected, 1e-5);
}

#[test]
fn layers_run_on_encoded_weights_and_match_candle_nn_on_dense_ones() {
    let (packed, _) = Pipeline::new().then(Halve.on_matrices()).run(checkpoint(1), &Run::new()).unwrap();
    let weights = WeightBuilder::new(&packed, DType::F32, &Device::Cpu);
    let ours = nn::linear_no_bias(16, 24, &weights.pp("layers").pp(0)).unwrap();
    assert_eq!(ours.weight().encoding().format, "halved");
    let bridge = var_builder(&packed, DType::F32, &Device::Cpu);
    let theirs = candle_nn::linear_no_bias(16, 24, bridge.pp("layers.0")).unwrap();
    let x = tensor(&[3, 16], 9);
    close(&ours.forward(&x).unwrap(), &theirs.forward(&x).unwrap(), 1e-5);
    let error = candle_nn::linear_no_bias(16, 25, bridge.pp("layers.0")).unwrap_err().to_string();
    assert!(error.contains("the model asks for [25, 16]"), "{error}");
    assert!(error_of(nn::linear_no_bias(16, 25, &weights.pp("layers").pp(0))).contains("asks for [25, 16]"));
}

#[test]
fn norms_match_candle_nn_and_keep_gradients() {
    let x = tensor(&[2, 5, 16], 1);
    let (w, b) = (tensor(&[16], 2), tensor(&[16], 3));
    let rms = nn::RmsNorm::new(w.clone(), 1e-5);
    let theirs = candle_nn::RmsNorm::new(w.clone(), 1e-5);
    close(&rms.forward(&x).unwrap(), &theirs.forward_diff(&x).unwrap(), 1e-5);
    let layer = nn::LayerNorm::new(w.clone(), Some(b.clone()), 1e-5);
    close(&layer.forward(&x).unwrap(), &candle_nn::LayerNorm::new(w, b, 1e-5).forward(&x).unwrap(), 1e-5);
    let var = Var::from_tensor(&x).unwrap();
    for y in [rms.forward(&var).unwrap(), layer.forward(&var).unwrap()] {
        let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&var).is_some(), "candle's fused norm would have dropped this gradient");
    }
}

#[test]
fn convolutions_with_unequal_strides_and_paddings_match_a_plain_loop() {
    let (x, w) = (tensor(&[2, 4, 9, 7], 1), tensor(&[6, 2, 3, 2], 2));
    let config = nn::Conv2dConfig { stride: (2, 3), padding: (1, 0, 2, 1), groups: 2, ..Default::default() };
    let conv = nn::Conv2d::from_weight(Arc::new(w.clone()), None, config);
    let y = conv.forward(&x).unwrap();
    assert_eq!(y.dims(), [2, 6, 5, 3]);
    let x = x.to_dtype(DType::F64).unwrap();
    let at = |t: &Tensor, i: [usize; 4]| -> f64 {
        t.get(i[0])
            .unwrap()
            .get(i[1])
            .unwrap()
            .get(i[2])
            .unwrap()
            .get(i[3])
            .unwrap()
            .to_dtype(DType::F64)
            .unwrap()
            .to_scalar()
            .unwrap()
    };
    for (n, o, r, c) in [(0, 0, 0, 0), (1, 5, 4, 2), (0, 3, 2, 1), (1, 2, 4, 0), (0, 4, 0, 2)] {
        let mut sum = 0.0;
        for ch in 0..2 {
            for (kr, kc) in (0..3).flat_map(|a| (0..2).map(move |b| (a, b))) {
                let (row, col) = ((r * 2usize + kr).wrapping_sub(1), c * 3 + kc);
                if row < 9 && col < 7 {
                    sum += at(&x, [n, o / 3 * 2 + ch, row, col]) * at(&w, [o, ch, kr, kc]);
                }
            }
        }
        assert!((sum - at(&y, [n, o, r, c])).abs() < 1e-5);
    }
}
