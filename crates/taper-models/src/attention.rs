//! Scaled dot-product attention with grouped queries, shared by all transformers here.
//!
//! ```text
//! out = softmax(q kᵀ / √d + mask) v          softmax in f32
//!
//! q [batch, g·r, s, d] ─reshape─▶ [batch, g, r·s, d]    r query heads read one key-value group, which is never repeated
//! k, v [batch, g, t, d]
//! ```
//!
//! [`fused`] is for inference: one loop from the projections to their mixture. [`attend`] is made of candle's operations;
//! candle's fused softmax ends gradients without a word, so it is used only where none is tracked.

use candle_core::{D, DType, Tensor};
use taper_core::{Error, Result, nn::tracked};

use crate::kernel::{
    self,
    attention::{
        Heads, Seen, Sight, Turn,
        packed::{self, PackedSeen},
    },
};

/// True where [`fused`] may be used: no gradient is tracked, and all is f32 in memory.
pub(crate) fn is_plain(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|x| kernel::plain(x))
}

/// The sizes of an attention of `heads` over `groups`, by its queries `[batch, s, heads · d]`.
pub(crate) fn sizes(q: &Tensor, heads: usize, groups: usize) -> Result<Heads> {
    let (batch, _, width) = q.dims3()?;
    Ok(Heads { batch, heads, groups, dim: width / heads })
}

/// Appends to what was `seen`, making room for `growth` more positions when there is none, and attends to all of it.
///
/// `q` is `[batch, s, heads · d]`, `k` and `v` are `[batch, s, groups · d]`, all of them plain; the result is like `q`.
pub(crate) fn fused(
    [q, k, v]: [&Tensor; 3],
    heads: Heads,
    turn: Option<Turn<'_>>,
    sight: Sight<'_>,
    seen: &mut Seen,
    growth: usize,
) -> Result<Tensor> {
    let mut work = |q: &[f32], k: &[f32], v: &[f32]| {
        kernel::attention::attend([q, k, v], heads, turn, sight, seen, growth)
    };
    let y = kernel::values(q, |q| kernel::values(k, |k| kernel::values(v, |v| work(q, k, v))));
    let y = y.flatten().flatten().ok_or_else(|| not_plain(q))?;
    Ok(Tensor::from_vec(y, q.shape(), q.device())?)
}

/// As [`fused`], each query seeing itself and what came before, of that the last `window`, through packed keys and values.
///
/// Errors where a key or value is not finite or beyond f16; nothing was appended then.
pub(crate) fn fused_packed(
    [q, k, v]: [&Tensor; 3],
    heads: Heads,
    turn: Option<Turn<'_>>,
    window: usize,
    seen: &mut PackedSeen,
) -> Result<Tensor> {
    let mut work = |q: &[f32], k: &[f32], v: &[f32]| packed::attend([q, k, v], heads, turn, window, seen);
    let y = kernel::values(q, |q| kernel::values(k, |k| kernel::values(v, |v| work(q, k, v))));
    let y = y.flatten().flatten().ok_or_else(|| not_plain(q))?;
    let y = y.map_err(|packed::OutOfRange| {
        let expected = "finite keys and values of at most 65504, or a cache of full precision";
        Error::bad_option("cache", "packed", expected)
    })?;
    Ok(Tensor::from_vec(y, q.shape(), q.device())?)
}

fn not_plain(x: &Tensor) -> Error {
    Error::bad_option("activations", format!("{:?}", x.dtype()), "f32 in memory")
}

/// Attention of `q` `[batch, heads, s, d]` over `k` and `v` `[batch, groups, t, d]`; the result has the shape of `q`.
///
/// `mask` is added to the scores; its shape is `[s, t]` or `[batch, 1, 1, 1, t]`.
pub(crate) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let (batch, heads, s, d) = q.dims4()?;
    let (_, groups, t, _) = k.dims4()?;
    let r = heads / groups;
    let q = (q * (d as f64).powf(-0.5))?.reshape((batch, groups, r * s, d))?;
    let scores = q.matmul(&k.t()?)?.to_dtype(DType::F32)?.reshape((batch, groups, r, s, t))?;
    let weights = softmax(&scores, mask)?.to_dtype(v.dtype())?.reshape((batch, groups, r * s, t))?;
    Ok(weights.matmul(v)?.reshape((batch, heads, s, d))?)
}

/// `[batch, s, heads · d]` to `[batch, heads, s, d]`.
pub(crate) fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, s, width) = x.dims3()?;
    Ok(x.reshape((batch, s, heads, width / heads))?.transpose(1, 2)?.contiguous()?)
}

/// `[batch, heads, s, d]` to `[batch, s, heads · d]`.
pub(crate) fn join_heads(x: &Tensor) -> Result<Tensor> {
    let (batch, heads, s, d) = x.dims4()?;
    Ok(x.transpose(1, 2)?.reshape((batch, s, heads * d))?)
}

/// softmax(scores + mask); the fused form is for masks that every batch and head shares.
fn softmax(scores: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let shared = mask.is_none_or(|mask| mask.rank() == 2);
    if scores.track_op() && shared && tracked::serves(scores) {
        return Ok(tracked::softmax(scores, mask)?);
    }
    let scores = match mask {
        Some(mask) => scores.broadcast_add(mask)?,
        None => scores.clone(),
    };
    Ok(if scores.track_op() {
        candle_nn::ops::softmax(&scores, D::Minus1)?
    } else {
        candle_nn::ops::softmax_last_dim(&scores)?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    fn tensor(shape: (usize, usize, usize, usize), phase: f32) -> Tensor {
        let n = shape.0 * shape.1 * shape.2 * shape.3;
        let values: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7 + phase).sin()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// The definition, one query at a time, in f64.
    fn plain(q: &Tensor, k: &Tensor, v: &Tensor) -> Vec<f64> {
        let (batch, heads, s, d) = q.dims4().unwrap();
        let (_, groups, t, _) = k.dims4().unwrap();
        let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (q, k, v) = (flat(q), flat(k), flat(v));
        let mut out = Vec::new();
        for b in 0..batch {
            for h in 0..heads {
                let g = b * groups + h / (heads / groups);
                for i in 0..s {
                    let query = &q[((b * heads + h) * s + i) * d..][..d];
                    let key = |j: usize| &k[(g * t + j) * d..][..d];
                    let score = |j| {
                        let dot: f64 =
                            query.iter().zip(key(j)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                        (dot / (d as f64).sqrt()).exp()
                    };
                    let weights: Vec<f64> = (0..t).map(score).collect();
                    let total: f64 = weights.iter().sum();
                    for c in 0..d {
                        out.push(
                            (0..t).map(|j| weights[j] / total * f64::from(v[(g * t + j) * d + c])).sum(),
                        );
                    }
                }
            }
        }
        out
    }

    #[test]
    fn grouped_queries_equal_the_definition() {
        let (q, k, v) = (tensor((2, 6, 3, 4), 0.0), tensor((2, 2, 5, 4), 1.0), tensor((2, 2, 5, 4), 2.0));
        let fast = attend(&q, &k, &v, None).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (fast, plain) in fast.iter().zip(plain(&q, &k, &v)) {
            assert!((f64::from(*fast) - plain).abs() < 1e-6, "{fast} {plain}");
        }
    }

    #[test]
    fn gradients_pass_through() {
        let q = Var::from_tensor(&tensor((1, 2, 3, 4), 0.0)).unwrap();
        let k = tensor((1, 1, 3, 4), 1.0);
        let loss = attend(&q, &k, &k, None).unwrap().sqr().unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        let norm = grads.get(&q).unwrap().abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(norm > 0.0);
    }
}
