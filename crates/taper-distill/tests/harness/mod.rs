//! What all tests of the losses share: reproducible inputs, the list of all losses, gradients and their finite differences.
#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod golden_numbers;

use candle_core::{DType, Device, Tensor, Var};
use taper_distill::*;

/// `s·sin(a·k + b)` for k = 0, 1, .. in row-major order, in f64.
pub(crate) fn wave(dims: &[usize], a: f64, b: f64, s: f64) -> Tensor {
    let values: Vec<f64> = (0..dims.iter().product()).map(|k| s * (a * k as f64 + b).sin()).collect();
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

pub(crate) fn labels(values: &[i64], dims: &[usize]) -> Tensor {
    Tensor::from_slice(values, dims, &Device::Cpu).unwrap()
}

pub(crate) fn temperature(value: f64) -> Temperature {
    Temperature::new(value).unwrap()
}

pub(crate) fn values(x: &Tensor) -> Vec<f64> {
    x.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

pub(crate) fn scalar(x: &Tensor) -> f64 {
    x.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

/// The value of `loss` at `x` and its gradient by candle.
pub(crate) fn value_and_gradient(x: &Tensor, loss: impl Fn(&Tensor) -> Result<Tensor>) -> (f64, Vec<f64>) {
    let var = Var::from_tensor(x).unwrap();
    let loss = loss(var.as_tensor()).unwrap();
    let grads = loss.backward().unwrap();
    let gradient = grads.get(var.as_tensor()).expect("the student gets a gradient");
    assert_eq!(gradient.dims(), x.dims());
    (scalar(&loss), values(gradient))
}

/// Checks candle's gradient at `x` (f64) against central differences, entry by entry.
pub(crate) fn assert_gradient(name: &str, x: &Tensor, loss: impl Fn(&Tensor) -> Result<Tensor>) {
    const H: f64 = 1e-5;
    let (_, gradient) = value_and_gradient(x, &loss);
    let at = values(x);
    let largest = gradient.iter().fold(0f64, |m, g| m.max(g.abs()));
    assert!(largest > 1e-6, "{name}: a gradient of zero would hide every mistake");
    for (i, gradient) in gradient.iter().enumerate() {
        let shifted = |by: f64| {
            let mut at = at.clone();
            at[i] += by;
            scalar(&loss(&Tensor::from_vec(at, x.shape(), x.device()).unwrap()).unwrap())
        };
        // Five points: the error is of order h⁴, so a kink or a wrong factor cannot hide in it.
        let difference =
            (8.0 * (shifted(H) - shifted(-H)) - (shifted(2.0 * H) - shifted(-2.0 * H))) / (12.0 * H);
        assert!(
            (gradient - difference).abs() <= 1e-8 * (1.0 + largest),
            "{name}: entry {i}: gradient {gradient:e}, finite difference {difference:e}"
        );
    }
}

/// Every loss over logits, at temperatures other than one where it has one.
pub(crate) fn logit_losses() -> Vec<(&'static str, Box<dyn LogitLoss>)> {
    vec![
        ("cross entropy", Box::new(CrossEntropy)),
        ("hinton", Box::new(Hinton::new(temperature(2.5)))),
        ("soft cross entropy", Box::new(SoftCrossEntropy::new(temperature(1.5)))),
        ("forward KL", Box::new(Divergence::forward_kl().temperature(temperature(0.7)))),
        ("reverse KL", Box::new(Divergence::reverse_kl().temperature(temperature(1.3)))),
        ("JS 0.1", Box::new(Divergence::jensen_shannon(0.1).unwrap())),
        ("JS 0.5", Box::new(Divergence::jensen_shannon(0.5).unwrap().temperature(temperature(2.0)))),
        ("skew forward KL", Box::new(Divergence::skew_forward_kl(0.1).unwrap())),
        ("skew reverse KL", Box::new(Divergence::skew_reverse_kl(0.1).unwrap())),
        ("total variation", Box::new(Divergence::total_variation().temperature(temperature(2.0)))),
        ("DKD", Box::new(Dkd::new(1.0, 8.0, temperature(4.0)).unwrap())),
        ("DIST", Box::new(Dist::new(1.0, 2.0, temperature(1.7)).unwrap())),
        ("logit standardization", Box::new(LogitStandard::new(temperature(2.0)))),
    ]
}

/// The losses over logits that are zero where student and teacher agree, and never negative.
pub(crate) fn divergences() -> Vec<(&'static str, Box<dyn LogitLoss>)> {
    let mut losses = logit_losses();
    losses.retain(|(name, _)| !name.contains("cross entropy"));
    losses
}
