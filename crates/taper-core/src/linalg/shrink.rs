//! How far a Gram matrix can be trusted, asked of its own two halves.
//!
//! With R the Gram matrix scaled to ones on its diagonal,
//!
//! ```text
//! R_α = (1 − α) R + α I          α = 0: trust every correlation      α = 1: none, only the sizes of the inputs
//! ```
//!
//! A method that settles inputs one after another (see [`super::ldl`]) and makes an independent error ε at each step is
//! left with E = ε L⁻¹, which on other tokens with Gram matrix B costs tr L⁻¹ B L⁻ᵀ. With L from one half of the tokens
//! and B from the other that is a cross-validation of α, and its minimum is flat: a few values suffice, and a few random
//! signs z instead of the whole trace (E z zᵀ = I).
//!
//! Of more than `MOST` inputs so many are asked, at even distances in the order of settling: the cost of a factor falls with
//! the cube. With fewer inputs to predict each other there is less to get wrong, so the best α/(1 − α) is smaller: on
//! synthetic layers (spectra i⁻¹ and i⁻⁰·⁵, 1,024 to 16,384 tokens, 512 to 4,096 inputs) it grew with the power 0.2 to 0.65
//! of their number; `GROWTH` is used. The memory is that of two matrices of so many inputs.
//!
//! The half has half the tokens. Sampling error falls with 1/n, and the best α/(1 − α) with it: the value found is
//! halved for all tokens. On synthetic layers with spectra i⁻¹ and i⁻⁰·⁵ this is within 1 % of the best error of any α.
//! The closed forms (Ledoit–Wolf, OAS) minimise the error of R itself, which large eigenvalues decide, and are 2 to 10
//! times too small here: the small eigenvalues decide what L⁻¹ makes of it.

use rayon::prelude::*;

use super::{
    Ldl, Symmetric,
    kernel::{View, product},
};

/// Random signs per trial. Their relative error is about √(2 / (32 · d)), far below what separates the candidates, and
/// all candidates see the same.
const PROBES: usize = 32;

/// Candidates for α / (1 − α): the ladder is climbed from the middle as long as it descends.
const LADDER: [f64; 9] = [0.004, 0.012, 0.037, 0.11, 0.33, 1.0, 3.0, 9.0, 27.0];

/// Inputs that are asked at most.
const MOST: usize = 1024;

/// α/(1 − α) grows with this power of the number of inputs.
const GROWTH: f64 = 0.4;

/// Tokens in the smaller half below which nothing can be learnt from comparing halves.
const FEW: u64 = 8;

/// α for the sum of two halves, or `None` where one of them has too few tokens to tell.
pub(super) fn cross_validated(halves: [&Symmetric; 2], counts: [u64; 2], order: &[usize]) -> Option<f64> {
    if counts[0].min(counts[1]) < FEW {
        return None;
    }
    let asked: Vec<usize> = {
        let (all, count) = (order.len(), order.len().min(MOST));
        (0..count).map(|i| order[i * all / count]).collect()
    };
    let growth = (order.len() as f64 / asked.len().max(1) as f64).powf(GROWTH);
    let order = asked.as_slice();
    let (fitted, judge) = if counts[0] >= counts[1] { (0, 1) } else { (1, 0) };
    let mut scales = super::factor::scales(halves[fitted], order);
    // An input that only one half saw would be judged by nothing or by everything.
    for (s, &i) in scales.iter_mut().zip(order) {
        if halves[judge].get(i, i) <= 0.0 {
            *s = 0.0;
        }
    }
    let judge = Judge::new(halves[judge], order, &scales);
    let cost = |ratio: f64| {
        let alpha = ratio / (1.0 + ratio);
        let matrix = super::factor::correlations::<f32, _>(halves[fitted], order, &scales, alpha);
        Ldl::of(matrix, order.len(), alpha / 2.0).map_or(f64::INFINITY, |ldl| judge.cost(&ldl))
    };
    let ratio = descend(cost)?;
    // From the tokens of the half to those of both.
    let share = counts[fitted] as f64 / (counts[0] + counts[1]) as f64;
    let ratio = ratio * share * growth;
    Some(ratio / (1.0 + ratio))
}

/// The lowest point of the ladder and its neighbours, by a parabola in the logarithm.
fn descend(cost: impl Fn(f64) -> f64) -> Option<f64> {
    let mut known = [None; LADDER.len()];
    let mut at = LADDER.len() / 2;
    let mut value = |i: usize| *known[i].get_or_insert_with(|| cost(LADDER[i]));
    loop {
        let here = value(at);
        if at + 1 < LADDER.len() && value(at + 1) < here {
            at += 1;
        } else if at > 0 && value(at - 1) < here {
            at -= 1;
        } else if !here.is_finite() {
            return None;
        } else {
            break;
        }
    }
    if at == 0 || at + 1 == LADDER.len() {
        return Some(LADDER[at]);
    }
    let (left, here, right) = (value(at - 1), value(at), value(at + 1));
    let bend = left + right - 2.0 * here;
    let shift = if bend > 0.0 && bend.is_finite() { (left - right) / (2.0 * bend) } else { 0.0 };
    Some(LADDER[at] * 3f64.powf(shift.clamp(-0.5, 0.5)))
}

/// The other half, and the signs.
struct Judge {
    order: usize,
    /// Correlations in the scales of the fitted half.
    matrix: Vec<f32>,
    /// `[PROBES, order]`.
    signs: Vec<f32>,
}

impl Judge {
    fn new(half: &Symmetric, order: &[usize], scales: &[f64]) -> Self {
        let mut matrix = super::factor::correlations::<f32, _>(half, order, scales, 0.0);
        let d = order.len();
        for i in 0..d {
            for j in i + 1..d {
                matrix[j * d + i] = matrix[i * d + j];
            }
        }
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let signs = (0..PROBES * d)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                if state >> 63 == 0 { 1.0 } else { -1.0 }
            })
            .collect();
        Self { order: d, matrix, signs }
    }

    /// tr L⁻¹ B L⁻ᵀ, as Σ y B yᵀ over y = z L⁻¹.
    fn cost(&self, ldl: &Ldl<f32>) -> f64 {
        let d = self.order;
        let mut y = self.signs.clone();
        solve_rows(&mut y, ldl);
        (0..d)
            .into_par_iter()
            .step_by(COLUMNS)
            .map(|from| {
                let width = COLUMNS.min(d - from);
                let mut product_ = vec![0f32; PROBES * width];
                let right = View::rows(&self.matrix[from..], d);
                product(&mut product_, width, (PROBES, width, d), (0.0, 1.0), View::rows(&y, d), right);
                let mut sum = 0f64;
                for (p, y) in product_.chunks_exact(width).zip(y.chunks_exact(d)) {
                    sum += p.iter().zip(&y[from..]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
                }
                sum
            })
            .collect::<Vec<_>>()
            .iter()
            .sum()
    }
}

/// Columns per task of a product with few rows.
const COLUMNS: usize = 128;

/// Y ← Y L⁻¹ for some rows, from the last column to the first.
pub(super) fn solve_rows(y: &mut [f32], ldl: &Ldl<f32>) {
    let (d, lower) = (ldl.order(), ldl.lower());
    let rows = y.len() / d.max(1);
    for from in (0..d).step_by(COLUMNS).collect::<Vec<_>>().into_iter().rev() {
        let to = (from + COLUMNS).min(d);
        let width = to - from;
        let mut block = vec![0f32; rows * width];
        if to < d {
            let (left, right) = (View::rows(&y[to..], d), View::rows(&lower[to * d + from..], d));
            product(&mut block, width, (rows, width, d - to), (0.0, 1.0), left, right);
        }
        for (minus, row) in block.chunks_exact(width).zip(y.chunks_exact_mut(d)) {
            for (x, minus) in row[from..to].iter_mut().zip(minus) {
                *x -= minus;
            }
            for j in (from + 1..to).rev() {
                let x = row[j];
                for (out, l) in row[from..j].iter_mut().zip(&lower[j * d + from..]) {
                    *out -= x * l;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_finds_the_bottom_of_a_valley() {
        for bottom in [0.01f64, 0.2, 5.0] {
            let found = descend(|x| (x / bottom).ln().powi(2) + 7.0).unwrap();
            assert!((found / bottom).ln().abs() < 0.05, "{found} instead of {bottom}");
        }
        assert_eq!(descend(|x| x), Some(LADDER[0]));
        assert_eq!(descend(|_| f64::INFINITY), None);
    }
}
