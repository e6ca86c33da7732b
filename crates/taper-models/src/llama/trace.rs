//! A layer forward and back in plain code: what learning its matrices needs and nothing else.
//!
//! ```text
//! x ─norm─▶ n ─Q K V─▶ attend ─▶ z ─O─▶ + x = h ─norm─▶ m ─G U─▶ a, u ─▶ silu(a) ⊙ u = p ─D─▶ + h = y
//!
//! ∂p = g D       ∂D = gᵀ p        ∂a, ∂u ◀─ ∂p       ∂m = ∂a G + ∂u U      ∂G = ∂aᵀ m      ∂U = ∂uᵀ m
//! ∂h = g + norm'(∂m)              ∂z = ∂h O          ∂O = ∂hᵀ z            ∂q ∂k ∂v ◀─ ∂z  ∂Q = ∂qᵀ n …
//! ```
//!
//! Nothing flows back into x. It serves layers of SiLU gates without norms of queries and keys, whose weights are f32 in
//! memory (or decode to it), on the CPU; others keep candle's gradients. Neighbours: `layer.rs` is the layer,
//! [`crate::kernel::back`] and [`crate::kernel::attention::back`] have the loops.

use candle_core::Tensor;
use rayon::prelude::*;
use taper_core::{
    Error, Gradients, Result, Trace,
    kernel::{
        Arithmetic, Operand, Sizes,
        multiply::{add_product, multiply},
    },
    nn::{Linear, RmsNorm},
};

use super::{
    config::Reach,
    layer::{Layer, Stretch},
};
use crate::{
    activation::Activation,
    kernel::{
        self,
        attention::{Heads, Turn, back::Causal},
        back::{add_rms_norm_gradient, rms_norm, silu_gate_gradient},
        gate,
    },
};

/// Values that a task has at least.
const TASK: usize = 1 << 14;

/// What a forward run of a layer keeps; every state is `[tokens, width]`.
pub(super) struct LayerTrace {
    matrices: Matrices,
    norm: Norm,
    stretch: Stretch,
    rotated: bool,
    attention: Causal,
    n: Vec<f32>,
    z: Vec<f32>,
    h: Vec<f32>,
    m: Vec<f32>,
    a: Vec<f32>,
    u: Vec<f32>,
    p: Vec<f32>,
    y: Vec<f32>,
}

/// The layer's products.
struct Matrices {
    q: Product,
    k: Product,
    v: Product,
    o: Product,
    gate: Product,
    up: Product,
    down: Product,
}

impl Matrices {
    fn of(layer: &Layer, prefix: &str, arithmetic: Arithmetic) -> Result<Option<Self>> {
        let product =
            |linear: &Linear, name: &str| Product::of(linear, format!("{prefix}{name}.weight"), arithmetic);
        let (attention, mlp) = (&layer.attention, &layer.mlp);
        let (q, k) = (product(&attention.q, "self_attn.q_proj")?, product(&attention.k, "self_attn.k_proj")?);
        let (v, o) = (product(&attention.v, "self_attn.v_proj")?, product(&attention.o, "self_attn.o_proj")?);
        let (gate, up) = (product(&mlp.gate, "mlp.gate_proj")?, product(&mlp.up, "mlp.up_proj")?);
        let down = product(&mlp.down, "mlp.down_proj")?;
        let (Some(q), Some(k), Some(v), Some(o)) = (q, k, v, o) else { return Ok(None) };
        let (Some(gate), Some(up), Some(down)) = (gate, up, down) else { return Ok(None) };
        Ok(Some(Self { q, k, v, o, gate, up, down }))
    }
}

impl LayerTrace {
    /// Runs the layer on `x` `[batch, len, hidden]`, none where it or `x` is of another kind; names begin with `prefix`.
    pub(super) fn forward(
        layer: &Layer,
        prefix: &str,
        x: &Tensor,
        stretch: Stretch,
        arithmetic: Arithmetic,
    ) -> Result<Option<Self>> {
        if layer.mlp.activation != Activation::Silu || layer.attention.qk_norm.is_some() || !kernel::plain(x)
        {
            return Ok(None);
        }
        let (norms, matrices) = (
            (Norm::of(&layer.attention_norm), Norm::of(&layer.mlp_norm)),
            Matrices::of(layer, prefix, arithmetic)?,
        );
        let ((Some(first), Some(norm)), Some(matrices)) = (norms, matrices) else { return Ok(None) };
        let batch = x.dim(0)?;
        let n = kernel::values(x, |x| first.forward(x)).ok_or_else(changed)?;
        let (q, k, v) = (matrices.q.forward(&n)?, matrices.k.forward(&n)?, matrices.v.forward(&n)?);
        let dim = matrices.q.rows / layer.attention.heads;
        let heads = Heads { batch, heads: layer.attention.heads, groups: layer.attention.groups, dim };
        let window = match layer.attention.kind.reach {
            Reach::Full => usize::MAX,
            Reach::Window(size) => size,
        };
        let attend = |turn: Option<Turn<'_>>| Causal::forward([&q, &k, &v], heads, turn, window, arithmetic);
        let rotated = layer.attention.kind.rotated;
        let (attention, z) = turned(&stretch, rotated, attend)?;
        let mut h = matrices.o.forward(&z)?;
        kernel::values(x, |x| add(&mut h, x)).ok_or_else(changed)?;
        let m = norm.forward(&h);
        let (a, u) = (matrices.gate.forward(&m)?, matrices.up.forward(&m)?);
        let mut p = a.clone();
        gate::gate_in_place(Activation::Silu, &mut p, &u);
        let mut y = matrices.down.forward(&p)?;
        add(&mut y, &h);
        Ok(Some(Self { matrices, norm, stretch, rotated, attention, n, z, h, m, a, u, p, y }))
    }
}

impl Trace for LayerTrace {
    fn output(&self) -> &[f32] {
        &self.y
    }

    fn back(self: Box<Self>, gradient: &[f32], sums: &mut Gradients) -> Result<()> {
        if gradient.len() != self.y.len() {
            let found = format!("of {} values", gradient.len());
            return Err(Error::bad_option("gradient", found, format!("one of {}", self.y.len())));
        }
        let Matrices { q, k, v, o, gate, up, down } = &self.matrices;
        down.add_gradient(gradient, &self.p, sums)?;
        let mut dp = vec![0f32; self.p.len()];
        down.add_back(gradient, &mut dp)?;
        let (mut da, mut du) = (self.a, self.u);
        silu_gate_gradient(&mut da, &mut du, &dp);
        gate.add_gradient(&da, &self.m, sums)?;
        up.add_gradient(&du, &self.m, sums)?;
        let mut dm = vec![0f32; self.m.len()];
        gate.add_back(&da, &mut dm)?;
        up.add_back(&du, &mut dm)?;
        let mut dh = gradient.to_vec();
        self.norm.add_gradient(&self.h, &dm, &mut dh);
        o.add_gradient(&dh, &self.z, sums)?;
        let mut dz = vec![0f32; self.z.len()];
        o.add_back(&dh, &mut dz)?;
        let [dq, dk, dv] = turned(&self.stretch, self.rotated, |turn| self.attention.back(&dz, turn))?;
        q.add_gradient(&dq, &self.n, sums)?;
        k.add_gradient(&dk, &self.n, sums)?;
        v.add_gradient(&dv, &self.n, sums)
    }
}

/// Runs `work` with the angles of the stretch, where heads are rotated.
fn turned<T>(stretch: &Stretch, rotated: bool, work: impl FnOnce(Option<Turn<'_>>) -> T) -> Result<T> {
    if !rotated {
        return Ok(work(None));
    }
    stretch.rotation.with_turn(|turn| work(Some(turn))).ok_or_else(changed)
}

fn add(sum: &mut [f32], x: &[f32]) {
    sum.par_iter_mut().with_min_len(TASK).zip(x).for_each(|(sum, x)| *sum += x);
}

/// What was seen to be f32 in memory no longer is.
fn changed() -> Error {
    Error::bad_option("activations", "other than f32 in memory", "f32 in memory, as they were")
}

/// A norm's γ and ε.
struct Norm {
    gamma: Vec<f32>,
    eps: f32,
}

impl Norm {
    fn of(norm: &RmsNorm) -> Option<Self> {
        let gamma = kernel::values(norm.weight(), <[f32]>::to_vec)?;
        Some(Self { gamma, eps: norm.eps() as f32 })
    }

    fn forward(&self, x: &[f32]) -> Vec<f32> {
        rms_norm(x, &self.gamma, self.eps)
    }

    fn add_gradient(&self, x: &[f32], g: &[f32], sum: &mut [f32]) {
        add_rms_norm_gradient(x, &self.gamma, self.eps, g, sum);
    }
}

/// x · Wᵀ + b and its way back.
struct Product {
    name: String,
    weight: Tensor,
    bias: Option<Vec<f32>>,
    rows: usize,
    columns: usize,
    arithmetic: Arithmetic,
}

impl Product {
    fn of(linear: &Linear, name: String, arithmetic: Arithmetic) -> Result<Option<Self>> {
        let weight = linear.weight().dense()?;
        let (rows, columns) = weight.dims2()?;
        let bias = match linear.bias() {
            None => None,
            Some(bias) => match kernel::values(bias, <[f32]>::to_vec) {
                Some(bias) => Some(bias),
                None => return Ok(None),
            },
        };
        let plain = kernel::values(&weight, |_| ()).is_some();
        Ok(plain.then_some(Self { name, weight, bias, rows, columns, arithmetic }))
    }

    fn read<T>(&self, work: impl FnOnce(&[f32]) -> T) -> Result<T> {
        kernel::values(&self.weight, work).ok_or_else(changed)
    }

    fn forward(&self, x: &[f32]) -> Result<Vec<f32>> {
        let sizes = Sizes { rows: x.len() / self.columns, columns: self.rows, depth: self.columns };
        let product = |w: &[f32]| multiply(Operand::Along(x), Operand::Along(w), sizes, self.arithmetic);
        let mut y = self.read(product)?;
        if let Some(bias) = &self.bias {
            y.chunks_exact_mut(self.rows).for_each(|y| add(y, bias));
        }
        Ok(y)
    }

    /// sum ← sum + g · W.
    fn add_back(&self, g: &[f32], sum: &mut [f32]) -> Result<()> {
        let sizes = Sizes { rows: g.len() / self.rows, columns: self.columns, depth: self.rows };
        self.read(|w| add_product(Operand::Along(g), Operand::Across(w), sizes, self.arithmetic, sum))
    }

    /// Adds gᵀ · x where somebody asks for it.
    fn add_gradient(&self, g: &[f32], x: &[f32], sums: &mut Gradients) -> Result<()> {
        let Some(sum) = sums.get_mut(&self.name) else { return Ok(()) };
        let (wanted, found) = (self.rows * self.columns, sum.len());
        if found != wanted {
            return Err(Error::bad_option(
                "gradients",
                format!("{found} values"),
                format!("{wanted} of `{}`", self.name),
            ));
        }
        let sizes = Sizes { rows: self.rows, columns: self.columns, depth: x.len() / self.columns };
        add_product(Operand::Across(g), Operand::Across(x), sizes, self.arithmetic, sum);
        Ok(())
    }
}
