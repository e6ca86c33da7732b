//! Products and convolutions of plain and encoded weights: against plain sums, with their gradients.

use crate::toy::{Halved, tensor};
use candle_core::{DType, Device, Tensor, Var};
use proptest::prelude::*;
use std::sync::Arc;
use taper_core::{SharedWeight, Weight, nn};

fn floats(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// ‖a − b‖ / ‖b‖.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let (off, size) =
        a.iter().zip(b).fold((0.0, 1e-30), |(off, size), (a, b)| (off + (a - b) * (a - b), size + b * b));
    (off / size).sqrt()
}

#[test]
fn a_product_has_the_type_of_its_activations_and_rounds_once() {
    let types = [(DType::F32, 1e-6), (DType::F16, 5e-4), (DType::BF16, 4e-3)];
    let (w, x) = (tensor(&[33, 70], 1), tensor(&[2, 7, 70], 2));
    for (stored, _) in types {
        let w = w.to_dtype(stored).unwrap();
        for (dtype, rounding) in types {
            let x = x.to_dtype(dtype).unwrap();
            let y = Weight::matmul(&w, &x).unwrap();
            assert_eq!((y.dims(), y.dtype()), (&[2, 7, 33][..], dtype));
            let (w, x) = (w.to_dtype(DType::F64).unwrap(), x.to_dtype(DType::F64).unwrap());
            let exact = x.reshape((14, 70)).unwrap().matmul(&w.t().unwrap()).unwrap();
            let off = distance(&floats(&y), &floats(&exact));
            assert!(off <= rounding, "{stored:?} × {dtype:?}: {off}");
        }
    }
}

#[test]
fn weights_that_do_not_lie_row_by_row_multiply_the_same() {
    let (w, x) = (tensor(&[40, 24], 3), tensor(&[5, 40], 4));
    let turned = w.t().unwrap();
    let expected = Weight::matmul(&turned.contiguous().unwrap(), &x).unwrap();
    let off = distance(&floats(&Weight::matmul(&turned, &x).unwrap()), &floats(&expected));
    assert!(off < 1e-6, "{off}");
    // Some rows of a larger matrix lie row by row, but not at its beginning.
    let (some, x) = (w.narrow(0, 7, 11).unwrap(), tensor(&[5, 24], 5));
    let all = Weight::matmul(&w, &x).unwrap().narrow(1, 7, 11).unwrap();
    let off = distance(&floats(&Weight::matmul(&some, &x).unwrap()), &floats(&all));
    assert!(off < 1e-6, "{off}");
}

#[test]
fn gradients_reach_activations_and_trained_weights() {
    let (w, x, c) = (tensor(&[24, 16], 3), tensor(&[4, 16], 5), tensor(&[4, 24], 6));
    let (w_var, x_var) = (Var::from_tensor(&w).unwrap(), Var::from_tensor(&x).unwrap());
    let dx = c.matmul(&w).unwrap();
    let dw = c.t().unwrap().matmul(&x).unwrap();
    for weight in [&w, w_var.as_tensor()] {
        let loss = (Weight::matmul(weight, &x_var).unwrap() * &c).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        assert!(distance(&floats(grads.get(&x_var).unwrap()), &floats(&dx)) < 1e-6);
        if weight.is_variable() {
            assert!(distance(&floats(grads.get(&w_var).unwrap()), &floats(&dw)) < 1e-6);
        }
    }
}

/// A convolution to try.
#[derive(Debug, Clone)]
struct Geometry {
    images: usize,
    groups: usize,
    /// Channels in and out, per group.
    each: (usize, usize),
    size: (usize, usize),
    kernel: (usize, usize),
    config: nn::Conv2dConfig,
    seed: u64,
}

fn geometries() -> impl Strategy<Value = Geometry> {
    let pair = |range: std::ops::Range<usize>| (range.clone(), range);
    let padding = (0usize..3, 0usize..3, 0usize..3, 0usize..3);
    let config = (pair(1..4), padding, pair(1..3));
    let channels = (1usize..3, 1usize..4, pair(1..4), pair(5..12), pair(1..4));
    (channels, config, 0u64..1000).prop_map(|((images, groups, each, size, kernel), config, seed)| {
        let (stride, padding, dilation) = config;
        let config = nn::Conv2dConfig { stride, padding, groups, dilation };
        Geometry { images, groups, each, size, kernel, config, seed }
    })
}

impl Geometry {
    fn tensors(&self) -> (Tensor, Tensor) {
        let (inner, outer) = self.each;
        let x = tensor(&[self.images, self.groups * inner, self.size.0, self.size.1], self.seed);
        let w = tensor(&[self.groups * outer, inner, self.kernel.0, self.kernel.1], self.seed + 1);
        (x, w)
    }

    /// The plainest convolution there is.
    fn plain(&self, x: &[f64], w: &[f64]) -> Vec<f64> {
        let ((inner, outer), (h, wide), (kh, kw)) = (self.each, self.size, self.kernel);
        let nn::Conv2dConfig { stride, padding, dilation, .. } = self.config;
        let (top, left, bottom, right) = padding;
        let rows = (h + top + bottom - (kh - 1) * dilation.0 - 1) / stride.0 + 1;
        let columns = (wide + left + right - (kw - 1) * dilation.1 - 1) / stride.1 + 1;
        let mut y = vec![];
        for (n, o) in (0..self.images).flat_map(|n| (0..self.groups * outer).map(move |o| (n, o))) {
            for (r, c) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
                let mut sum = 0.0;
                for (i, a, b) in
                    (0..inner).flat_map(|i| (0..kh).flat_map(move |a| (0..kw).map(move |b| (i, a, b))))
                {
                    let row = (r * stride.0 + a * dilation.0).wrapping_sub(top);
                    let column = (c * stride.1 + b * dilation.1).wrapping_sub(left);
                    if row < h && column < wide {
                        let channel = n * self.groups * inner + o / outer * inner + i;
                        sum +=
                            x[(channel * h + row) * wide + column] * w[((o * inner + i) * kh + a) * kw + b];
                    }
                }
                y.push(sum);
            }
        }
        y
    }
}

fn conv(weight: SharedWeight, geometry: &Geometry) -> nn::Conv2d {
    nn::Conv2d::from_weight(weight, None, geometry.config)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn convolutions_match_a_plain_loop_packed_dense_and_with_gradients(geometry in geometries()) {
        let (x, w) = geometry.tensors();
        let halved = Halved::of(&w).unwrap();
        let decoded = halved.dense().unwrap();
        let expected = geometry.plain(&floats(&x), &floats(&w));
        let rounded = geometry.plain(&floats(&x), &floats(&decoded));
        let var = Var::from_tensor(&x).unwrap();
        let dense = conv(Arc::new(w), &geometry);
        for (y, expected) in [
            (dense.forward(&x).unwrap(), &expected),
            (dense.forward(&var).unwrap(), &expected),
            (conv(Arc::new(halved), &geometry).forward(&x).unwrap(), &rounded),
        ] {
            let off = distance(&floats(&y), expected);
            prop_assert!(off < 1e-5, "{geometry:?}: {off}");
        }
    }
}

#[test]
fn gradients_reach_the_input_and_the_kernel_of_a_convolution() {
    for groups in [1, 2, 4] {
        let config = nn::Conv2dConfig { padding: (1, 1, 1, 1), groups, ..Default::default() };
        let (x, w) = (tensor(&[2, 4, 6, 6], 1), tensor(&[4, 4 / groups, 3, 3], 2));
        let (x_var, w_var) = (Var::from_tensor(&x).unwrap(), Var::from_tensor(&w).unwrap());
        let trained = nn::Conv2d::from_weight(Arc::new(w_var.as_tensor().clone()), None, config);
        let fixed = nn::Conv2d::from_weight(Arc::new(w.clone()), None, config);
        let grads = |y: Tensor| y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        assert!(grads(trained.forward(&x).unwrap()).get(&w_var).is_some(), "the kernel, {groups} groups");
        assert!(grads(fixed.forward(&x_var).unwrap()).get(&x_var).is_some(), "the input, {groups} groups");
        let off = distance(&floats(&trained.forward(&x).unwrap()), &floats(&fixed.forward(&x).unwrap()));
        assert!(off < 1e-6, "{off}");
    }
}

#[test]
fn a_kernel_larger_than_its_input_is_an_error() {
    let conv = nn::Conv2d::from_weight(Arc::new(tensor(&[2, 1, 5, 5], 1)), None, nn::Conv2dConfig::default());
    let refusal = conv.forward(&tensor(&[1, 1, 4, 9], 2)).unwrap_err().to_string();
    assert_eq!(refusal, "`input of a convolution` is 4 × 9; with its padding it must be at least 5 × 5");
    assert!(conv.forward(&Tensor::zeros((1, 3, 9, 9), DType::F32, &Device::Cpu).unwrap()).is_err());
}
