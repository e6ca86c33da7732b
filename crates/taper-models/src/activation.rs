//! Activation functions by the names that configs give them.
//!
//! ```text
//! silu  x σ(x)      gelu  x Φ(x), exactly by erf      tanh form  x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))
//! ```

use candle_core::Tensor;
use taper_core::Result;

use crate::{config::bad, kernel::gate};

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x · σ(x), also called swish.
    Silu,
    /// x · Φ(x) with the error function.
    Gelu,
    /// The tanh approximation of the former.
    GeluTanh,
    /// max(x, 0).
    Relu,
}

impl Activation {
    /// The activation that a config's `key` names.
    pub(crate) fn parse(key: &str, name: &str) -> Result<Self> {
        match name {
            "silu" | "swish" => Ok(Self::Silu),
            "gelu" => Ok(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Self::GeluTanh),
            "relu" => Ok(Self::Relu),
            other => Err(bad(
                key,
                format!(
                    "`{other}` is not built; expected silu, swish, gelu, gelu_new, gelu_pytorch_tanh or relu"
                ),
            )),
        }
    }

    /// Applies it to each element.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        let fast = if x.track_op() { None } else { gate::activated(self, x) };
        match fast {
            Some(y) => Ok(y?),
            None => self.differentiable(x),
        }
    }

    /// act(g) ⊙ u, of equal shapes.
    pub(crate) fn gate(self, g: &Tensor, u: &Tensor) -> Result<Tensor> {
        let fast = if g.track_op() || u.track_op() { None } else { gate::gated(self, g, u) };
        match fast {
            Some(y) => Ok(y?),
            None => Ok((self.differentiable(g)? * u)?),
        }
    }

    /// candle's forms, which carry gradients.
    pub(crate) fn differentiable(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Silu => x.silu()?,
            Self::Gelu => x.gelu_erf()?,
            Self::GeluTanh => x.gelu()?,
            Self::Relu => x.relu()?,
        })
    }
}
