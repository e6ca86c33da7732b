//! Half-quadratic grids, group beside group.
//!
//! ```text
//! tile:  [values, lanes]   one group per lane      y = x / s₀      ρ = s / s₀      q = nearest code of y / ρ
//!
//! e = y − ρ q      d = e clamped to ±|e|^(p−1) / β      cost = Σ w |e|^p
//! D = Σ w d        D_q = Σ w d q        Q = Σ w q       Q_q = Σ w q²
//! ```
//!
//! d is what shrinkage leaves of the error: e − shrink(e). The steps are those of [`crate::fit::hqq`], which says why they are
//! taken. A lane stops where its cost hardly falls any more, and the loop with it, so that another group can take the lane.
//!
//! Powers are 2^((p−1) log₂ |e|), with polynomials good to 6·10⁻⁶: the shrinkage is a matter of degree, and costs that
//! differ by less belong to grids that are equally good.
//!
//! Neighbours: [`super::lanes`] is what all of it is written over; [`super::search`] is the other way to look for grids.

use super::{LANES, Number, Tile, lanes::Lanes};
use crate::{
    fit::hqq::{CLOSE, GROWTH, Hqq, STRENGTH},
    scheme::ScaleType,
};

/// What stands for an error of 0, in steps: its power would be infinite.
const LEAST: f32 = 1e-9;

/// log₂(1.5 + x) for |x| ≤ 0.5, from the constant on.
const LOG: [f32; 6] = [0.584_950_75, 0.961_803_44, -0.319_757_7, 0.142_005_49, -0.079_976_21, 0.043_004_956];

/// 2^x for |x| ≤ 0.5, from the constant on.
const EXP: [f32; 5] = [1.0, 0.693_121, 0.240_223_5, 0.055_921_976, 0.009_666_368];

/// The grids that a half-quadratic search starts from and what it may change.
struct Start<L> {
    scale: L,
    /// The code of the lowest level, counted from that of zero.
    low: L,
    /// Codes from lowest to highest.
    steps: L,
    stored: ScaleType,
    /// Whether zero may move.
    sliding: bool,
}

/// The sums of one iteration.
struct Sums<L> {
    cost: L,
    d: L,
    dq: L,
    q: L,
    qq: L,
}

/// How far the fit of a lane is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Stage {
    /// Its values are new.
    Fresh,
    /// It goes on with the next call.
    Going,
    /// It is done, or there is none.
    #[default]
    Done,
}

/// Fits in progress, one per lane.
#[derive(Debug, Clone, Default)]
pub(crate) struct Refining {
    pub(crate) stages: [Stage; LANES],
    /// Candidates to come.
    left: [f32; LANES],
    /// The next candidate, and 1 / β for it.
    scale: [f32; LANES],
    low: [f32; LANES],
    limit: [f32; LANES],
    /// The best so far and its cost.
    best: [f32; LANES],
    best_scale: [f32; LANES],
    best_low: [f32; LANES],
}

/// See [`super::Encoders::refine`].
#[inline(always)]
pub(crate) fn refine<L: Lanes>(
    job: &Tile<'_>,
    hqq: Hqq,
    refining: &mut Refining,
    scales: &mut [f32],
    zeros: &mut [f32],
) {
    match job.weights {
        None => grids::<L, false>(job, job.values, hqq, refining, scales, zeros),
        Some(weights) => grids::<L, true>(job, weights, hqq, refining, scales, zeros),
    }
}

/// The grids of min–max, by its rules.
#[inline(always)]
fn start<L: Lanes>(job: &Tile<'_>) -> Option<Start<L>> {
    let (low, high) = (L::load(job.low), L::load(job.high));
    let zero = L::splat(0.0);
    match job.number {
        Number::Symmetric { bits, stored, .. } => {
            let steps = L::splat(bits.steps() as f32);
            let scale = (high.most(zero - low) / L::splat(bits.steps() as f32 / 2.0)).stored_below(stored);
            Some(Start { scale, low: L::splat(bits.lowest() as f32), steps, stored, sliding: false })
        }
        Number::Asymmetric { bits, stored } => {
            let (steps, lowest) = (L::splat(bits.steps() as f32), L::splat(bits.lowest() as f32));
            let scale = ((high - low) / steps).stored(stored);
            let at = (lowest - low / scale).most(lowest).least(lowest + steps).round();
            Some(Start { scale, low: lowest - at, steps, stored, sliding: true })
        }
        Number::Quantiles => None,
    }
}

impl Refining {
    /// Ones for the lanes at a stage.
    fn at(&self, stage: Stage) -> [f32; LANES] {
        self.stages.map(|other| if other == stage { 1.0 } else { 0.0 })
    }
}

#[inline(always)]
fn grids<L: Lanes, const WEIGHTED: bool>(
    job: &Tile<'_>,
    weights: &[f32],
    hqq: Hqq,
    refining: &mut Refining,
    scales: &mut [f32],
    zeros: &mut [f32],
) {
    let (zero, one, infinite) = (L::splat(0.0), L::splat(1.0), L::splat(f32::INFINITY));
    let Some(Start { scale: first, low: start, steps, stored, sliding }) = start::<L>(job) else { return };
    let usable = |scale: L| L::both(zero.below(scale), scale.below(infinite));
    let unit = L::choose(usable(first), one / first, zero);
    let total = if WEIGHTED { total::<L>(weights) } else { L::load(job.counts) };
    // What goes on where it was left, and what begins.
    let fresh = zero.below(L::load(&refining.at(Stage::Fresh)));
    let from = |known: &[f32; LANES], new: L| L::choose(fresh, new, L::load(known));
    let (mut scale, mut low) = (from(&refining.scale, first), from(&refining.low, start));
    let mut limit = from(&refining.limit, L::splat(1.0 / STRENGTH));
    let mut left = from(&refining.left, L::splat(f32::from(hqq.steps) + 1.0));
    let mut best = from(&refining.best, infinite);
    let (mut best_scale, mut best_low) = (from(&refining.best_scale, zero), from(&refining.best_low, start));
    let going = L::choose(fresh, L::choose(usable(first), one, zero), L::load(&refining.at(Stage::Going)));
    let mut active = zero.below(going);
    let all = active;
    while L::any(all) {
        let ratio = scale / first;
        let at = Place { unit, ratio, low, high: low + steps, limit };
        let sums = sums::<L, WEIGHTED>(job.values, weights, &at, hqq.norm - 1.0);
        let better = L::both(active, sums.cost.below(best));
        active = L::both(better, sums.cost.below(best * L::splat(CLOSE)));
        best = L::choose(better, sums.cost, best);
        best_scale = L::choose(better, scale, best_scale);
        best_low = L::choose(better, low, best_low);
        let slid = (low + (sums.d / (ratio * total)).round()).most(zero - steps).least(zero);
        let by = if sliding { slid - low } else { zero };
        let above = ratio * (sums.qq + by * sums.q) + (sums.dq + by * sums.d);
        let below = sums.qq + (by + by) * sums.q + by * by * total;
        scale = (above / below * first).stored(stored);
        low = low + by;
        limit = limit * L::splat(1.0 / GROWTH);
        left = left - one;
        active = L::both(L::both(active, usable(scale)), zero.below(left));
        if L::any(L::both(all, zero.below(L::choose(active, zero, one)))) {
            break;
        }
    }
    scale.store(&mut refining.scale);
    low.store(&mut refining.low);
    limit.store(&mut refining.limit);
    left.store(&mut refining.left);
    best.store(&mut refining.best);
    best_scale.store(&mut refining.best_scale);
    best_low.store(&mut refining.best_low);
    let mut going = [0f32; LANES];
    L::choose(active, one, zero).store(&mut going);
    refining.stages = going.map(|going| if going > 0.0 { Stage::Going } else { Stage::Done });
    best_scale.store(scales);
    if let Number::Asymmetric { bits, .. } = job.number {
        (L::splat(bits.lowest() as f32) - best_low).store(zeros);
    }
}

/// Where one iteration looks.
struct Place<L> {
    /// 1 / s₀.
    unit: L,
    ratio: L,
    low: L,
    high: L,
    /// 1 / β.
    limit: L,
}

#[inline(always)]
fn sums<L: Lanes, const WEIGHTED: bool>(x: &[f32], w: &[f32], at: &Place<L>, power: f32) -> Sums<L> {
    let (zero, least) = (L::splat(0.0), L::splat(LEAST));
    let inverse = L::splat(1.0) / at.ratio;
    let (mut cost, mut d_sum, mut dq_sum, mut q_sum, mut qq_sum) = (zero, zero, zero, zero, zero);
    for (x, w) in x.chunks_exact(L::WIDTH).zip(w.chunks_exact(L::WIDTH)) {
        let y = L::load(x) * at.unit;
        let q = (y * inverse).most(at.low).least(at.high).round();
        let e = y - at.ratio * q;
        let size = e.magnitude().most(least);
        let t = to_power(size, power);
        let reach = t * at.limit;
        let d = e.most(zero - reach).least(reach);
        let (wd, wq, each) =
            if WEIGHTED { (L::load(w) * d, L::load(w) * q, L::load(w) * size) } else { (d, q, size) };
        cost = cost + each * t;
        (d_sum, dq_sum) = (d_sum + wd, dq_sum + wd * q);
        (q_sum, qq_sum) = (q_sum + wq, qq_sum + wq * q);
    }
    Sums { cost, d: d_sum, dq: dq_sum, q: q_sum, qq: qq_sum }
}

/// x^power for normal x > 0.
#[inline(always)]
fn to_power<L: Lanes>(x: L, power: f32) -> L {
    let log = x.exponent() + polynomial(x.fraction() - L::splat(1.5), &LOG);
    let exponent = log * L::splat(power);
    let whole = exponent.round();
    polynomial(exponent - whole, &EXP) * whole.power_of_two()
}

#[inline(always)]
fn polynomial<L: Lanes, const N: usize>(x: L, factors: &[f32; N]) -> L {
    let mut value = L::splat(factors[N - 1]);
    for i in (0..N - 1).rev() {
        value = value * x + L::splat(factors[i]);
    }
    value
}

/// Σ w of each lane.
#[inline(always)]
fn total<L: Lanes>(weights: &[f32]) -> L {
    let mut total = L::splat(0.0);
    for w in weights.chunks_exact(L::WIDTH) {
        total = total + L::load(w);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_are_those_of_the_standard_library() {
        for i in 0..20_000 {
            let x = 1e-9f32 * 1.0013f32.powi(i);
            for power in [-0.3f32, -0.5, -1.0, 0.0] {
                let (got, want) = (f64::from(to_power(x, power)), f64::from(x).powf(f64::from(power)));
                assert!((got / want - 1.0).abs() < 2e-5, "{x}^{power} is {got} instead of {want}");
            }
        }
    }
}
