//! Activations, alone and as the gate of a product.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::{
    smooth::{exp, normal},
    values, widest,
};
use crate::activation::Activation;

/// Values per task.
const STRETCH: usize = 1 << 14;

/// act(g) ⊙ u of equal shapes; `None` where one is not plain.
pub(crate) fn gated(activation: Activation, g: &Tensor, u: &Tensor) -> Option<Result<Tensor>> {
    let mut out = values(g, <[f32]>::to_vec)?;
    values(u, |u| gate_in_place(activation, &mut out, u))?;
    Some(Tensor::from_vec(out, g.shape(), g.device()))
}

/// act(x); `None` where it is not plain.
pub(crate) fn activated(activation: Activation, x: &Tensor) -> Option<Result<Tensor>> {
    let mut out = values(x, <[f32]>::to_vec)?;
    out.par_chunks_mut(STRETCH).for_each(|out| activate(activation, out));
    Some(Tensor::from_vec(out, x.shape(), x.device()))
}

/// out ← act(out) ⊙ u
pub(crate) fn gate_in_place(activation: Activation, out: &mut [f32], u: &[f32]) {
    out.par_chunks_mut(STRETCH).zip(u.par_chunks(STRETCH)).for_each(|(out, u)| gate(activation, out, u));
}

widest! {
    /// out ← act(out) ⊙ u
    fn gate = gate_body; (activation: Activation, out: &mut [f32], u: &[f32])
}

widest! {
    /// out ← act(out)
    fn activate = activate_body; (activation: Activation, out: &mut [f32])
}

#[inline(always)]
fn gate_body(activation: Activation, out: &mut [f32], u: &[f32]) {
    activate_body(activation, out);
    for (out, u) in out.iter_mut().zip(u) {
        *out *= u;
    }
}

#[inline(always)]
fn activate_body(activation: Activation, out: &mut [f32]) {
    match activation {
        Activation::Silu => {
            for x in out {
                *x /= 1.0 + exp(-*x);
            }
        }
        Activation::Gelu => {
            for x in out {
                *x *= normal(*x);
            }
        }
        Activation::GeluTanh => {
            // x/2 (1 + tanh z) = x σ(2z)
            for x in out {
                let z = 0.797_884_6 * (*x + 0.044_715 * *x * *x * *x);
                *x /= 1.0 + exp(-2.0 * z);
            }
        }
        Activation::Relu => {
            for x in out {
                *x = x.max(0.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn every_activation_equals_candles() {
        let x: Vec<f32> = (-4000..4000).map(|i| i as f32 / 500.0).collect();
        let x = Tensor::new(x, &Device::Cpu).unwrap();
        let u = (&x * 0.5).unwrap();
        for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
            let theirs = activation.differentiable(&x).unwrap();
            let pairs = [
                (activated(activation, &x).unwrap().unwrap(), theirs.clone()),
                (gated(activation, &x, &u).unwrap().unwrap(), (theirs * &u).unwrap()),
            ];
            for (ours, theirs) in pairs {
                let gap = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap();
                let gap = gap.to_scalar::<f32>().unwrap();
                assert!(gap < 6e-6, "{activation:?}: {gap}");
            }
        }
    }

    #[test]
    fn what_is_not_plain_is_left_to_candle() {
        let x = Tensor::zeros((2, 3), candle_core::DType::F16, &Device::Cpu).unwrap();
        assert!(activated(Activation::Silu, &x).is_none());
        let turned = Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu).unwrap().t().unwrap();
        assert!(activated(Activation::Silu, &turned).is_none());
    }
}
