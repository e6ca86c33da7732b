//! Asymmetric calibration (GPTAQ, Li et al., 2025): a layer makes up for what the layers before it changed.
//!
//! Rounding with feedback keeps W X for the inputs X that the quantized layers before give. The original model has other
//! inputs X̃ at the same tokens, and what should be kept is W X̃. With G = X Xᵀ and C = X̃ Xᵀ,
//!
//! ```text
//! argmin_V ‖W X̃ − V X‖²  =  W C G⁻¹  =  W + W (C − G) G⁻¹        W' = W + a · W (C − G) / n · H⁻¹
//! ```
//!
//! where H is the shrunk G / n whose factor [`Gptq`](super::Gptq) has already: the correction is trusted as far as the
//! correlations are. `a` is a share up to 1 (0 would be plain GPTQ). W' is what is then rounded with feedback: without shrinkage
//! ‖W X̃ − V X‖² is ‖(W' − V) X‖² plus what no V changes.
//!
//! Rows are independent and cut in pieces of fixed size: the same bits for any number of threads.
//!
//! Neighbours: [`super::gptq`] is the pass, `taper_core::stats` has G and C.

use rayon::prelude::*;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use taper_core::{
    Gram,
    linalg::{Ldl, View, product},
};

use crate::Error;

/// How much of what the layers before a layer changed it makes up for.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Asymmetry {
    /// Nothing: plain GPTQ.
    #[default]
    Off,
    /// This share, above 0 and at most 1 (all of it).
    Share(f64),
}

/// The key of a share in recipes; without it there is none.
pub(super) const KEY: &str = "asymmetric-calibration";

impl Asymmetry {
    pub(super) fn is_off(&self) -> bool {
        *self == Self::Off
    }

    /// Refuses shares that are none.
    pub(super) fn check(self) -> crate::Result<()> {
        match self {
            Self::Share(share) if !(share > 0.0 && share <= 1.0) => Err(Error::Conflict {
                option: KEY,
                conflict: "is not above 0 and at most 1".into(),
                expected: "choose a share, such as 1 (all of it), or leave it out".into(),
            }),
            _ => Ok(()),
        }
    }
}

/// As a recipe spells it: the share. Passes leave out [`Asymmetry::Off`], so that their settings read as without the option.
impl Serialize for Asymmetry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_none(),
            Self::Share(share) => serializer.serialize_f64(*share),
        }
    }
}

impl<'de> Deserialize<'de> for Asymmetry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let asymmetry = Option::<f64>::deserialize(deserializer)?.map_or(Self::Off, Self::Share);
        asymmetry.check().map_err(D::Error::custom)?;
        Ok(asymmetry)
    }
}

/// What calibration saw at a layer, as [`Gptq`](super::Gptq) uses it.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Σ x xᵀ.
    pub gram: &'a Gram,
    /// Σ x̃ xᵀ with the inputs of the original model, `[d, d]` row-major; asymmetric calibration alone needs it.
    pub cross: Option<&'a [f64]>,
}

impl<'a> From<&'a Gram> for Inputs<'a> {
    fn from(gram: &'a Gram) -> Self {
        Self { gram, cross: None }
    }
}

/// The cross Gram matrix of a layer with `d` inputs.
pub(super) fn cross(cross: Option<&[f64]>, d: usize) -> crate::Result<&[f64]> {
    match cross {
        None => Err(Error::Conflict {
            option: KEY,
            conflict: "needs a cross gram matrix with the inputs of the original model, and there is none"
                .into(),
            expected: "calibrate sequentially for this pass, or remove the option".into(),
        }),
        Some(cross) if cross.len() != d * d => {
            Err(Error::Length { what: "cross", found: cross.len(), expected: d * d })
        }
        Some(cross) => match cross.iter().position(|x| !x.is_finite()) {
            Some(first) => {
                Err(Error::NotFinite { count: cross.iter().filter(|x| !x.is_finite()).count(), first })
            }
            None => Ok(cross),
        },
    }
}

/// Rows per task.
const ROWS: usize = 64;

/// Columns that are solved one by one; what the others contribute to them is a product.
const BLOCK: usize = 64;

/// W' of W, `[rows, d]` row-major, for a cross Gram matrix `[d, d]`, a share `a` and the factor of H for this order.
pub(super) fn target(
    values: &[f32],
    (gram, cross): (&Gram, &[f64]),
    share: f64,
    order: &[usize],
    factor: &Ldl<f32>,
) -> Vec<f32> {
    let d = order.len();
    let reversed: Vec<usize> = order.iter().rev().copied().collect();
    let unit = share / gram.count().max(1) as f64;
    // a (C − G) / n, with columns in the order of the factor.
    let mut drift = vec![0f32; d * d];
    drift.par_chunks_mut(d.max(1)).enumerate().for_each(|(i, row)| {
        for (x, &j) in row.iter_mut().zip(&reversed) {
            *x = (unit * (cross[i * d + j] - gram.get(i, j))) as f32;
        }
    });
    let mut out = values.to_vec();
    out.par_chunks_mut((ROWS * d).max(1)).for_each(|w| {
        let mut moved = vec![0f32; w.len()];
        let shape = (w.len() / d, d, d);
        product(&mut moved, d, shape, (0.0, 1.0), View::rows(w, d), View::rows(&drift, d));
        solve(&mut moved, factor);
        for (w, moved) in w.chunks_exact_mut(d).zip(moved.chunks_exact(d)) {
            moved.iter().zip(&reversed).for_each(|(x, &j)| w[j] += x);
        }
    });
    out
}

/// Each row t becomes H⁻¹ t: L z = t, then Lᵀ y = D⁻¹ z.
fn solve(rows: &mut [f32], factor: &Ldl<f32>) {
    let (d, lower) = (factor.order(), factor.lower());
    let blocks: Vec<(usize, usize)> =
        (0..d).step_by(BLOCK).map(|from| (from, (from + BLOCK).min(d))).collect();
    for &(from, to) in &blocks {
        let right = View::columns(&lower[from * d..], d);
        reduce(rows, d, (from, to), 0..from, right);
        for row in rows.chunks_exact_mut(d) {
            for i in from..to {
                let known: f32 = (from..i).map(|j| lower[i * d + j] * row[j]).sum();
                row[i] -= known;
            }
        }
    }
    for row in rows.chunks_exact_mut(d) {
        row.iter_mut().zip(factor.pivots()).for_each(|(x, &pivot)| *x = (f64::from(*x) / pivot) as f32);
    }
    for &(from, to) in blocks.iter().rev() {
        if to < d {
            reduce(rows, d, (from, to), to..d, View::rows(&lower[to * d + from..], d));
        }
        for row in rows.chunks_exact_mut(d) {
            for i in (from..to).rev() {
                let known: f32 = (i + 1..to).map(|j| lower[j * d + i] * row[j]).sum();
                row[i] -= known;
            }
        }
    }
}

/// Takes from columns `from..to` what the `solved` ones contribute.
fn reduce(
    rows: &mut [f32],
    d: usize,
    (from, to): (usize, usize),
    solved: std::ops::Range<usize>,
    right: View<'_, f32>,
) {
    if solved.is_empty() {
        return;
    }
    let (count, width) = (rows.len() / d, to - from);
    let mut panel: Vec<f32> = rows.chunks_exact(d).flat_map(|row| row[from..to].iter().copied()).collect();
    let left = View::rows(&rows[solved.start..], d);
    product(&mut panel, width, (count, width, solved.len()), (1.0, -1.0), left, right);
    for (row, panel) in rows.chunks_exact_mut(d).zip(panel.chunks_exact(width)) {
        row[from..to].copy_from_slice(panel);
    }
}
