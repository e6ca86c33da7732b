//! Attention transfer: Zagoruyko, Komodakis 2016, "Paying More Attention to Attention", arXiv 1612.03928.
//!
//! ```text
//! a(f) = v / ‖v‖₂,   v = mean over channels of f², flattened [H·W]
//! mean over places of (a(s) − a(t))²
//! ```
//!
//! This is the activation-based form with p = 2 and means, as the authors' code computes it; the paper prints
//! ‖a(s) − a(t)‖₂, whose scale is another. Maps of different size are pooled (adaptive mean) to the smaller one.

use super::FeatureLoss;
use crate::{Error, Features, Result, RowLoss, Unit, geometry::direction};
use candle_core::{D, Device, Tensor};

/// Attention maps of feature maps [batch, channels, height, width], per sample; channels may differ.
///
/// The published recipes weigh it by 1000.
#[derive(Debug, Clone, Copy, Default)]
pub struct AttentionTransfer;

impl FeatureLoss for AttentionTransfer {
    fn rows(&self, features: &Features) -> Result<RowLoss> {
        let (student, teacher) = features.samples()?;
        let (&[b, c, h, w], &[b_t, c_t, h_t, w_t]) = (student.dims(), teacher.dims()) else {
            let expected = "[batch, channels, height, width] in both models";
            return Err(Error::rank("features", features.student().dims(), expected));
        };
        if b != b_t || [c, h, w, c_t, h_t, w_t].contains(&0) {
            return Err(Error::shapes(
                ("student features", student.dims()),
                ("teacher features", teacher.dims()),
                "the batch must be equal and no dimension empty",
            ));
        }
        if b == 0 {
            return Ok(RowLoss::none(features.student(), Unit::Sample));
        }
        let size = (h.min(h_t), w.min(w_t));
        let (student, teacher) =
            (attention_map(&pooled(&student, size)?)?, attention_map(&pooled(&teacher, size)?)?);
        RowLoss::each((student - teacher)?.sqr()?.mean(D::Minus1)?, Unit::Sample)
    }
}

/// [batch, channels, h, w] to [batch, h·w], each of length 1.
fn attention_map(x: &Tensor) -> Result<Tensor> {
    direction(&x.sqr()?.mean(1)?.flatten_from(1)?)
}

/// The adaptive mean over places, as a product with two matrices of means: candle's own pooling propagates
/// gradients only where the sizes divide each other.
fn pooled(x: &Tensor, (height, width): (usize, usize)) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    let mut pooled = x.clone();
    if width < w {
        let means = means(w, width, x.device())?.to_dtype(x.dtype())?;
        pooled = pooled.contiguous()?.broadcast_matmul(&means.t()?)?;
    }
    if height < h {
        let means = means(h, height, x.device())?.to_dtype(x.dtype())?;
        let columns = pooled.transpose(2, 3)?.contiguous()?;
        pooled = columns.broadcast_matmul(&means.t()?)?.transpose(2, 3)?.contiguous()?;
    }
    Ok(pooled)
}

/// [to, from]: row i averages the places ⌊i·from/to⌋ .. ⌈(i+1)·from/to⌉.
fn means(from: usize, to: usize, device: &Device) -> Result<Tensor> {
    let mut matrix = vec![0f64; to * from];
    for (i, row) in matrix.chunks_exact_mut(from).enumerate() {
        let places = i * from / to..((i + 1) * from).div_ceil(to);
        let share = 1.0 / places.len() as f64;
        row[places].fill(share);
    }
    Ok(Tensor::from_vec(matrix, (to, from), device)?)
}
