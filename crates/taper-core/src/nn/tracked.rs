//! Fused operations that keep their gradients: what a transformer's block needs besides its products.
//!
//! candle's fused norms, softmax and rotations end gradients without a word, and its differentiable forms walk memory
//! once per elementary step, on one thread. These have a forward and a backward of one walk each, over all threads:
//!
//! | function | y | gradients of |
//! |---|---|---|
//! | [`rms_norm`] | γ x / √(mean(x²) + ε) | x, γ |
//! | [`softmax`] | softmax(x + mask), rows masked alike every `s` rows | x |
//! | [`rotate`] | rotary positions | x |
//! | [`silu_gate`] | x σ(x) ⊙ u | x, u |
//!
//! They are for contiguous f32 on the CPU ([`serves`]); callers keep the elementary form for everything else. Rows are
//! independent and sums over rows run in chunks of fixed size, so results do not depend on the number of threads.

mod exp;
mod gate;
mod rms;
mod rope;
mod softmax;

pub use gate::silu_gate;
pub use rms::rms_norm;
pub use rope::rotate;
pub use softmax::softmax;

use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, bail};

/// Values that a task has at least: below that a thread costs more than it saves.
const TASK: usize = 1 << 13;

/// True where these operations can take `x`: contiguous f32 on the CPU.
#[must_use]
pub fn serves(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32 && x.is_contiguous()
}

/// The values of an operation's argument.
fn slice<'a>(what: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
        bail!("`{what}` needs contiguous f32 values")
    };
    Ok(&values[start..end])
}

/// Shows the values of a tensor to `work`; other layouts are copied first.
fn read<T>(x: &Tensor, work: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(work(slice("gradient", storage, layout)?)),
        _ => bail!("a gradient left the CPU on its way"),
    }
}

/// Rows of `width` values per task.
fn rows_per_task(width: usize) -> usize {
    TASK / width.max(1) + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{D, Device, Var};

    fn var(shape: &[usize], phase: f32) -> Var {
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|i| 1.5 * (i as f32 * 0.7 + phase).sin()).collect();
        Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
    }

    fn values(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Some weighted sum, so that no gradient vanishes by symmetry.
    fn loss(y: &Tensor) -> Tensor {
        let weights = var(y.dims(), 0.3).detach();
        (y * weights).unwrap().sum_all().unwrap()
    }

    /// The values and all gradients of `fast` are those of `plain`, candle's elementary form.
    fn agree(vars: &[&Var], fast: impl Fn() -> Tensor, plain: impl Fn() -> Tensor) {
        let (a, b) = (fast(), plain());
        let (ga, gb) = (loss(&a).backward().unwrap(), loss(&b).backward().unwrap());
        let close = |a: &Tensor, b: &Tensor| {
            for (a, b) in values(a).iter().zip(values(b)) {
                assert!((a - b).abs() <= 2e-6 * (1.0 + b.abs()), "{a} instead of {b}");
            }
        };
        close(&a, &b);
        for var in vars {
            close(ga.get(var).expect("a gradient"), gb.get(var).expect("a gradient"));
        }
    }

    /// The gradients of `y` are its central differences.
    fn differences_agree(vars: &[&Var], y: impl Fn() -> Tensor) {
        let at = || f64::from(loss(&y()).to_scalar::<f32>().unwrap());
        let grads = loss(&y()).backward().unwrap();
        for var in vars {
            let (start, grad) = (values(var), values(grads.get(var).expect("a gradient")));
            for i in 0..start.len() {
                let moved = |by: f32| {
                    let mut x = start.clone();
                    x[i] += by;
                    var.set(&Tensor::from_vec(x, var.shape(), &Device::Cpu).unwrap()).unwrap();
                    at()
                };
                let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
                assert!((slope - f64::from(grad[i])).abs() < 3e-3, "{i}: {} instead of {slope}", grad[i]);
            }
            var.set(&Tensor::from_vec(start, var.shape(), &Device::Cpu).unwrap()).unwrap();
        }
    }

    #[test]
    fn gates_equal_the_elementary_form_and_central_differences() {
        let (x, u) = (var(&[3, 5], 0.0), var(&[3, 5], 1.0));
        let fast = || silu_gate(&x, &u).unwrap();
        agree(&[&x, &u], fast, || (x.silu().unwrap() * u.as_tensor()).unwrap());
        differences_agree(&[&x, &u], fast);
    }

    #[test]
    fn norms_equal_the_elementary_form_and_central_differences() {
        let (x, gamma) = (var(&[4, 6], 0.0), var(&[6], 1.0));
        let fast = || rms_norm(&x, &gamma, 1e-5).unwrap();
        agree(&[&x, &gamma], fast, || candle_nn::ops::rms_norm_slow(&x, &gamma, 1e-5).unwrap());
        differences_agree(&[&x, &gamma], fast);
    }

    #[test]
    fn masked_softmax_equals_the_elementary_form_and_central_differences() {
        let x = var(&[2, 3, 3], 0.0);
        let inf = f32::NEG_INFINITY;
        let mask = Tensor::new(&[[0.0, inf, inf], [0.0, 0.0, inf], [0.0, 0.0, 0.0]], &Device::Cpu).unwrap();
        let fast = || softmax(&x, Some(&mask)).unwrap();
        agree(&[&x], fast, || candle_nn::ops::softmax(&x.broadcast_add(&mask).unwrap(), D::Minus1).unwrap());
        differences_agree(&[&x], fast);
        differences_agree(&[&x], || softmax(&x, None).unwrap());
    }

    #[test]
    fn rotations_equal_the_elementary_form_and_central_differences() {
        let x = var(&[1, 2, 3, 4], 0.0);
        let angles = var(&[3, 2], 1.0).detach();
        let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
        let fast = || rotate(&x, &cos, &sin).unwrap();
        agree(&[&x], fast, || candle_nn::rotary_emb::rope_slow(&x, &cos, &sin).unwrap());
        differences_agree(&[&x], fast);
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let (x, short) = (var(&[2, 4], 0.0), var(&[3], 0.0));
        assert!(rms_norm(&x, &short, 1e-5).unwrap_err().to_string().contains("a norm of 3"));
        assert!(silu_gate(&x, &short).is_err() && softmax(&x, Some(&var(&[3, 4], 0.0))).is_err());
        assert!(rotate(&x, &var(&[2, 3], 0.0), &var(&[2, 3], 0.0)).is_err());
        assert!(!serves(&x.t().unwrap()) && serves(&x));
    }
}
