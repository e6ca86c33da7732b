//! The sum of a residual stream and what a layer adds to it.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::values;

/// The least values of a task.
const STRETCH: usize = 1 << 14;

/// x + y, of equal shapes; candle's own sum, which keeps gradients, where one of them is not plain.
pub(crate) fn sum(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let learns = x.track_op() || y.track_op();
    if learns || x.shape() != y.shape() {
        return x + y;
    }
    let added = |x: &[f32], y: &[f32]| -> Vec<f32> {
        x.par_iter().zip(y).with_min_len(STRETCH).map(|(x, y)| x + y).collect()
    };
    match values(x, |x| values(y, |y| added(x, y))).flatten() {
        Some(out) => Tensor::from_vec(out, x.shape(), x.device()),
        None => x + y,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};

    #[test]
    fn it_is_candles_sum_and_keeps_gradients() {
        let x = Tensor::arange(0f32, 40_000.0, &Device::Cpu).unwrap().reshape((200, 200)).unwrap();
        let y = (&x * 0.37).unwrap();
        let turned = y.t().unwrap();
        for y in [&y, &turned] {
            let (ours, theirs) = (sum(&x, y).unwrap(), (&x + y).unwrap());
            assert_eq!(ours.to_vec2::<f32>().unwrap(), theirs.to_vec2::<f32>().unwrap());
        }
        let half = sum(&x.to_dtype(DType::F16).unwrap(), &y.to_dtype(DType::F16).unwrap()).unwrap();
        assert_eq!(half.dtype(), DType::F16);
        assert!(sum(&x, &y.narrow(0, 0, 3).unwrap()).is_err());
        let var = Var::from_tensor(&x).unwrap();
        let gradients = sum(&var, &y).unwrap().sum_all().unwrap().backward().unwrap();
        assert_eq!(gradients.get(&var).unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap(), 1.0);
    }
}
