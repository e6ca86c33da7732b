//! The search for the scale of least squared error, group beside group.
//!
//! ```text
//! tile:  [values, lanes]   one group per lane      u = ι x      q = nearest level      e = u − q
//!
//! S_ee = Σ w e²    S_qe = Σ w q e    S_qq = Σ w q²        scale* = (S_qq + S_qe) / (ι S_qq)
//! error at scale (1 + d) / ι, in units of 1 / ι²:         S_ee − 2 d S_qe + d² S_qq
//! ```
//!
//! The steps are those of [`crate::fit::search`], which says why they are taken: a coarse grid of inverse scales, each
//! closed by least squares and judged at its stored scale, finer steps around the best, codes and scale refitted in turn.
//! Lanes stop being changed one by one; the last of them ends the loop, and going on changes nothing in the others, because
//! every step depends on a lane's own best alone. Errors of two candidates are compared across, e₁ ι₂² < e₂ ι₁², which
//! spares a division.
//!
//! Sums are f32: groups have at most [`LONGEST`] values.

use super::{Number, Tile, lanes::Lanes};
use crate::{
    fit::ScaleSign,
    scheme::{Bits, ScaleType},
};

/// Most values of a group that is searched in a tile.
pub(crate) const LONGEST: usize = 1024;

/// Where candidates of the finer grid lie around the best one, in steps of the coarser.
const FINER: [f32; 8] = [-0.75, -0.5, -0.25, -0.125, 0.125, 0.25, 0.5, 0.75];

/// Times that codes and scale are refitted in turn, at most; it ends by itself when nothing changes.
const REFITS: usize = 4;

/// The levels of each lane.
trait Levels<L>: Copy {
    fn nearest(self, u: L) -> L;
    fn choose(mask: <L as Lanes>::Mask, yes: Self, no: Self) -> Self
    where
        L: Lanes;
}

/// All integers between two.
#[derive(Clone, Copy)]
struct Window<L> {
    low: L,
    high: L,
}

impl<L: Lanes> Levels<L> for Window<L> {
    #[inline(always)]
    fn nearest(self, u: L) -> L {
        u.most(self.low).least(self.high).round()
    }

    #[inline(always)]
    fn choose(mask: L::Mask, yes: Self, no: Self) -> Self {
        Self { low: L::choose(mask, yes.low, no.low), high: L::choose(mask, yes.high, no.high) }
    }
}

/// The sixteen levels of NF4.
#[derive(Clone, Copy)]
struct Quantiles;

impl<L: Lanes> Levels<L> for Quantiles {
    #[inline(always)]
    fn nearest(self, u: L) -> L {
        u.level()
    }

    #[inline(always)]
    fn choose(_: L::Mask, _: Self, _: Self) -> Self {
        Self
    }
}

/// See [`super::Encoders::search`].
#[inline(always)]
pub(crate) fn search<L: Lanes>(job: &Tile<'_>, steps: u16, scales: &mut [f32], zeros: &mut [f32]) {
    match job.weights {
        None => numbers::<L, false>(job, job.values, steps, scales, zeros),
        Some(weights) => numbers::<L, true>(job, weights, steps, scales, zeros),
    }
}

#[inline(always)]
fn numbers<L: Lanes, const WEIGHTED: bool>(
    job: &Tile<'_>,
    weights: &[f32],
    steps: u16,
    scales: &mut [f32],
    zeros: &mut [f32],
) {
    match job.number {
        Number::Symmetric { bits, sign, stored } => {
            symmetric::<L, WEIGHTED>(job, weights, steps, (bits, sign, stored)).store(scales);
        }
        Number::Asymmetric { bits, stored } => {
            let (scale, zero) = asymmetric::<L, WEIGHTED>(job, weights, steps, (bits, stored));
            scale.store(scales);
            zero.store(zeros);
        }
        Number::Quantiles => quantiles::<L, WEIGHTED>(job, weights, steps).store(scales),
    }
}

#[inline(always)]
fn symmetric<L: Lanes, const WEIGHTED: bool>(
    job: &Tile<'_>,
    weights: &[f32],
    points: u16,
    (bits, sign, stored): (Bits, ScaleSign, ScaleType),
) -> L {
    let (bottom, top) = (bits.lowest() as f32, bits.highest() as f32);
    let (zero, one) = (L::splat(0.0), L::splat(1.0));
    let (low, high) = (L::load(job.low), L::load(job.high));
    let peak = high.most(zero - low);
    let window = Window { low: L::splat(bottom), high: L::splat(top) };
    let mut hunt = Hunt::<L, _, WEIGHTED>::new(job.values, weights, stored, peak, window);
    let growth = growth::<L, WEIGHTED>(job, weights, peak, -bottom);
    // −1 turns values around, so that what was above zero meets the longer negative side.
    let natural = match sign {
        ScaleSign::Either => L::choose((zero - low).below(high), zero - one, one),
        ScaleSign::Positive => one,
    };
    let rounds = if sign == ScaleSign::Either && bits <= Bits::THREE { 2 } else { 1 };
    for round in 0..rounds {
        let towards = if round == 0 { natural } else { zero - natural };
        // Which end the larger values meet.
        let reach = match sign {
            ScaleSign::Either => L::splat(if round == 0 { -bottom } else { top }),
            ScaleSign::Positive => L::choose((zero - low).below(high), L::splat(top), L::splat(-bottom)),
        };
        let axis = Axis::new(top - 0.35, reach * growth + L::splat(0.35), points);
        let mut k = axis.from;
        for point in 0..axis.most {
            hunt.judge(towards * k / peak, window, axis.has(point));
            k = axis.next(k);
        }
        hunt.refine(&axis, false);
    }
    hunt.refit();
    hunt.settle();
    hunt.scale
}

#[inline(always)]
fn asymmetric<L: Lanes, const WEIGHTED: bool>(
    job: &Tile<'_>,
    weights: &[f32],
    points: u16,
    (bits, stored): (Bits, ScaleType),
) -> (L, L) {
    let count = bits.steps() as f32;
    let (steps, half) = (L::splat(count), L::splat(count / 2.0));
    let (low, high) = (L::load(job.low), L::load(job.high));
    let (range, middle) = (high - low, (low + high) / L::splat(2.0));
    let mut hunt =
        Hunt::<L, _, WEIGHTED>::new(job.values, weights, stored, range, window_from(L::splat(0.0), steps));
    let peak = high.most(L::splat(0.0) - low);
    let growth = growth::<L, WEIGHTED>(job, weights, peak, count);
    let axis = Axis::new(count - 0.7, steps * growth + L::splat(0.7), points);
    let mean = mean::<L, WEIGHTED>(job, weights);
    let mut k = axis.from;
    for point in 0..axis.most {
        let (inv, here) = (k / range, axis.has(point));
        // Where the window starts: values centred in it (rounded either way), or their mean.
        let centred = (middle * inv - half).floor();
        let about_mean = (mean * inv - half).round();
        hunt.judge(inv, window_from(centred, steps), here);
        hunt.judge(inv, window_from(centred + L::splat(1.0), steps), here);
        hunt.judge(inv, window_from(about_mean, steps), here);
        k = axis.next(k);
    }
    hunt.refine(&axis, false);
    for by in [-1.0, 1.0] {
        hunt.slide(L::splat(by), steps);
    }
    // Windows multiply the local minima: a second look makes up for sums in f32.
    hunt.refine(&axis, true);
    hunt.refit();
    hunt.settle();
    (hunt.scale, L::splat(bits.lowest() as f32) - hunt.levels.low)
}

#[inline(always)]
fn quantiles<L: Lanes, const WEIGHTED: bool>(job: &Tile<'_>, weights: &[f32], points: u16) -> L {
    let peak = L::load(job.high).most(L::splat(0.0) - L::load(job.low));
    let mut hunt = Hunt::<L, _, WEIGHTED>::new(job.values, weights, ScaleType::F32, peak, Quantiles);
    // About 16 levels: as much clipping as 8 steps from zero to the peak can pay for.
    let axis = Axis::new(0.92, growth::<L, WEIGHTED>(job, weights, peak, 8.0), points);
    let mut k = axis.from;
    for point in 0..axis.most {
        hunt.judge(k / peak, Quantiles, axis.has(point));
        k = axis.next(k);
    }
    hunt.refine(&axis, false);
    hunt.refit();
    hunt.settle();
    hunt.scale
}

/// The window of codes that starts at `low`, moved to contain zero.
#[inline(always)]
fn window_from<L: Lanes>(low: L, steps: L) -> Window<L> {
    let zero = L::splat(0.0);
    let low = low.most(zero - steps).least(zero);
    Window { low, high: low + steps }
}

/// How far the inverse scale may grow beyond the one that clips nothing: 1 / (1 − c), c ≤ √(Σw / (12 w)) / steps, with w the
/// least weight of a value at the peak.
#[inline(always)]
fn growth<L: Lanes, const WEIGHTED: bool>(job: &Tile<'_>, weights: &[f32], peak: L, steps: f32) -> L {
    let share = if WEIGHTED {
        let (mut total, mut cheapest) = (L::splat(0.0), L::splat(f32::MAX));
        let near = peak * L::splat(0.99);
        for (x, w) in job.values.chunks_exact(L::WIDTH).zip(weights.chunks_exact(L::WIDTH)) {
            let (x, w) = (L::load(x), L::load(w));
            total = total + w;
            cheapest = L::choose(x.magnitude().below(near), cheapest, w.least(cheapest));
        }
        total / cheapest.most(L::splat(f32::MIN_POSITIVE))
    } else {
        L::load(job.counts)
    };
    let c = (share / L::splat(12.0)).root() / L::splat(steps);
    L::splat(1.0) / (L::splat(1.0) - c.least(L::splat(63.0 / 64.0)))
}

/// The weighted mean.
#[inline(always)]
fn mean<L: Lanes, const WEIGHTED: bool>(job: &Tile<'_>, weights: &[f32]) -> L {
    let (mut total, mut weight) = (L::splat(0.0), L::splat(0.0));
    for (x, w) in job.values.chunks_exact(L::WIDTH).zip(weights.chunks_exact(L::WIDTH)) {
        let (x, w) = (L::load(x), L::load(w));
        if WEIGHTED {
            (total, weight) = (total + x * w, weight + w);
        } else {
            total = total + x;
        }
    }
    let weight = if WEIGHTED { weight.most(L::splat(f32::MIN_POSITIVE)) } else { L::load(job.counts) };
    total / weight
}

/// The coarse grid of each lane: even steps where its ends are near, even ratios where they are far apart.
struct Axis<L: Lanes> {
    from: L,
    step: L,
    ratio: L,
    /// Points of each lane.
    points: L,
    /// Points of the lane that has most.
    most: u16,
    /// The relative distance of neighbours.
    relative: L,
    /// Which lanes go in ratios.
    wide: L::Mask,
}

impl<L: Lanes> Axis<L> {
    #[inline(always)]
    fn new(from: f32, to: L, steps: u16) -> Self {
        let steps = steps.max(2);
        let (few, many) = (f32::from(steps), f32::from(steps.saturating_mul(2)));
        let start = L::splat(from);
        let wide = L::splat(2.0 * from).below(to);
        let step = (to - start) / L::splat(few - 1.0);
        let near = L::splat(2.0) * (to - start) / (to + start) / L::splat(few - 1.0);
        let ratio = if L::any(wide) { ratios(from, to, many) } else { L::splat(1.0) };
        let most = if L::any(wide) { steps.saturating_mul(2) } else { steps };
        Self {
            from: start,
            step: L::choose(wide, L::splat(0.0), step),
            ratio: L::choose(wide, ratio, L::splat(1.0)),
            points: L::choose(wide, L::splat(many), L::splat(few)),
            most,
            relative: L::choose(wide, ratio - L::splat(1.0), near),
            wide,
        }
    }

    /// Which lanes have a point of this number.
    #[inline(always)]
    fn has(&self, point: u16) -> L::Mask {
        L::splat(f32::from(point)).below(self.points)
    }

    #[inline(always)]
    fn next(&self, k: L) -> L {
        k * self.ratio + self.step
    }
}

/// (to / from)^(1 / (count − 1)) of each lane; neighbours that are alike share the work.
#[inline(always)]
fn ratios<L: Lanes>(from: f32, to: L, count: f32) -> L {
    let mut lanes = [0f32; 16];
    to.store(&mut lanes);
    let (mut last, mut power) = (f32::NAN, 1.0);
    for lane in &mut lanes[..L::WIDTH] {
        if *lane != last {
            last = *lane;
            power = (last / from).powf(1.0 / (count - 1.0));
        }
        *lane = power;
    }
    L::load(&lanes)
}

/// A search in progress: the best candidate of each lane.
struct Hunt<'a, L: Lanes, V, const WEIGHTED: bool> {
    values: &'a [f32],
    weights: &'a [f32],
    stored: ScaleType,
    /// The length in which ι is measured, so that no square leaves f32: k = ι · peak.
    peak: L,
    /// The error in units of 1 / ι²; infinite where there is none yet.
    error: L,
    /// k².
    unit: L,
    /// The scale as stored; 0 where there is none yet.
    scale: L,
    levels: V,
}

impl<'a, L: Lanes, V: Levels<L>, const WEIGHTED: bool> Hunt<'a, L, V, WEIGHTED> {
    #[inline(always)]
    fn new(values: &'a [f32], weights: &'a [f32], stored: ScaleType, peak: L, levels: V) -> Self {
        let (error, unit, scale) = (L::splat(f32::INFINITY), L::splat(1.0), L::splat(0.0));
        Self { values, weights, stored, peak, error, unit, scale, levels }
    }

    /// Judges the codes of one inverse scale per lane, at the least-squares scale as stored, where `here` says so.
    #[inline(always)]
    fn judge(&mut self, inv: L, levels: V, here: L::Mask) {
        let (zero, one) = (L::splat(0.0), L::splat(1.0));
        let [see, sqe, sqq] = sums::<L, V, WEIGHTED>(self.values, self.weights, inv, levels);
        let k = inv * self.peak;
        let ideal = (sqq + sqe) / (k * sqq) * self.peak;
        let scale = ideal.stored(self.stored);
        let d = scale * inv - one;
        let error = see - (d + d) * sqe + d * d * sqq;
        let unit = k * k;
        let better = (error * self.unit).below(self.error * unit);
        // No level but zero (or nothing finite) says nothing of a scale; one that rounds to 0 or beyond its type is none.
        let size = scale.magnitude();
        let real = L::both(zero.below(sqq), L::both(zero.below(size), size.below(L::splat(f32::INFINITY))));
        let taken = L::both(here, L::both(real, better));
        self.error = L::choose(taken, error, self.error);
        self.unit = L::choose(taken, unit, self.unit);
        self.scale = L::choose(taken, scale, self.scale);
        self.levels = V::choose(taken, levels, self.levels);
    }

    /// Looks on both sides of the best scale, between the steps of the coarse grid; again where those are wide, or in all
    /// lanes if `twice` says so.
    #[inline(always)]
    fn refine(&mut self, axis: &Axis<L>, twice: bool) {
        let mut step = axis.relative;
        let mut here = self.found();
        for round in 0..2 {
            if round == 1 && !twice {
                here = L::both(here, axis.wide);
            }
            if !L::any(here) {
                return;
            }
            let (scale, levels) = (self.scale, self.levels);
            for by in FINER {
                self.judge((L::splat(1.0) + L::splat(by) * step) / scale, levels, here);
            }
            step = step / L::splat(4.0);
        }
    }

    /// Refits codes and scale in turn while that helps.
    #[inline(always)]
    fn refit(&mut self) {
        let here = self.found();
        for _ in 0..REFITS {
            let before = self.scale;
            self.judge(L::splat(1.0) / before, self.levels, here);
            if !self.moved(before) {
                return;
            }
        }
    }

    /// Clears what f32 sums of errors leave of a scale that is not rounded anyway: Σ w x q / Σ w q² for the codes at hand, where
    /// that is the same scale but for its last digits. Values on a grid then keep their very scale.
    #[inline(always)]
    fn settle(&mut self) {
        if self.stored != ScaleType::F32 {
            return;
        }
        let zero = L::splat(0.0);
        let (inv, mut sxq, mut sqq) = (L::splat(1.0) / self.scale, zero, zero);
        for (x, w) in self.values.chunks_exact(L::WIDTH).zip(self.weights.chunks_exact(L::WIDTH)) {
            let x = L::load(x);
            let q = self.levels.nearest(x * inv);
            let wq = if WEIGHTED { L::load(w) * q } else { q };
            (sxq, sqq) = (sxq + wq * x, sqq + wq * q);
        }
        let scale = sxq / sqq;
        let near = (scale - self.scale).magnitude().below(self.scale.magnitude() * L::splat(1e-6));
        self.scale = L::choose(L::both(self.found(), near), scale, self.scale);
    }

    /// Which lanes have a best candidate.
    #[inline(always)]
    fn found(&self) -> L::Mask {
        L::splat(0.0).below(self.scale.magnitude())
    }

    /// Whether any scale differs from what it was.
    #[inline(always)]
    fn moved(&self, before: L) -> bool {
        L::any(L::splat(0.0).below((self.scale - before).magnitude()))
    }
}

impl<L: Lanes, const WEIGHTED: bool> Hunt<'_, L, Window<L>, WEIGHTED> {
    /// Moves the window of an asymmetric grid while that helps.
    #[inline(always)]
    fn slide(&mut self, by: L, steps: L) {
        let found = self.found();
        loop {
            let before = self.levels.low;
            let window = window_from(before + by, steps);
            let moves = L::splat(0.0).below((window.low - before).magnitude());
            let here = L::both(found, moves);
            if !L::any(here) {
                return;
            }
            self.judge(L::splat(1.0) / self.scale, window, here);
            if !L::any(L::splat(0.0).below((self.levels.low - before).magnitude())) {
                return;
            }
        }
    }
}

/// Σ w e², Σ w q e, Σ w q² of each lane.
#[inline(always)]
fn sums<L: Lanes, V: Levels<L>, const WEIGHTED: bool>(x: &[f32], w: &[f32], inv: L, levels: V) -> [L; 3] {
    let zero = L::splat(0.0);
    let (mut see, mut sqe, mut sqq) = (zero, zero, zero);
    for (x, w) in x.chunks_exact(L::WIDTH).zip(w.chunks_exact(L::WIDTH)) {
        let u = L::load(x) * inv;
        let q = levels.nearest(u);
        let e = u - q;
        let (we, wq) = if WEIGHTED { (L::load(w) * e, L::load(w) * q) } else { (e, q) };
        (see, sqe, sqq) = (see + we * e, sqe + wq * e, sqq + wq * q);
    }
    [see, sqe, sqq]
}
