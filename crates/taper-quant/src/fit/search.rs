//! The scale of least squared error.
//!
//! ```text
//! minimise  Σ_i w_i (x_i − s (q_i − z))²     over s (as stored), z (an integer code) and the codes q_i
//! ```
//!
//! Candidates for the inverse scale span the range in which the best one can lie: from *every value in range* to *so much
//! clipped that the largest value alone costs more than all rounding*. For each candidate the codes are the nearest ones
//! and the scale is refitted by weighted least squares; the error is always that of the scale rounded to its stored type.
//! The best candidate is refined on finer and finer steps, and at last codes and scale are refitted in turn.
//! (The idea of closing each candidate by least squares is llama.cpp's `make_qx_quants`.)
//!
//! Symmetric codes reach one step further below zero than above. With [`ScaleSign::Either`] the scale's sign decides
//! which end of the values gets that step: at 4 bits in groups of 32 this alone saves a quarter of the error.
//!
//! Neighbours: `sums` judges candidates; [`super::minmax`] serves groups too small for any grid (below 10⁻³⁰).

use serde::{Deserialize, Serialize};

use super::{
    Grid, Sample, Tiles, minmax, stored,
    sums::{LANES, Levels, Sums, Window},
};
pub(crate) use crate::kernel::encode::search::LONGEST;
use crate::{
    kernel::encode::{Encoders, Method, Number},
    scheme::{Bits, ScaleType, Scheme},
};

/// Which signs a symmetric scale may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScaleSign {
    /// Both: the extra negative code serves whichever end needs it. Formats that multiply by the scale do not care.
    #[default]
    Either,
    /// Positive only, for runtimes that require it.
    Positive,
}

/// The options of the search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Search {
    /// Candidates on the coarse grid. Judged eight at a time, twice as many where the range is wide. On
    /// Gaussian groups 8 lose 0.1 % of the error against 64, the default of 16 loses 0.02 %: the refits do most of the work.
    pub steps: u16,
    /// Which signs a symmetric scale may have; asymmetric ones are positive.
    pub sign: ScaleSign,
}

impl Default for Search {
    fn default() -> Self {
        Self { steps: 16, sign: ScaleSign::Either }
    }
}

/// Below this largest value (of f32's 10⁻³⁸) an inverse scale would overflow, and the grid is min–max.
const TINY: f32 = 1e-30;

/// Where candidates of the finer grid lie around the best one, in steps of the coarser.
const FINER: [f32; LANES] = [-0.75, -0.5, -0.25, -0.125, 0.125, 0.25, 0.5, 0.75];

/// Times that codes and scale are refitted in turn, at most; it ends by itself when nothing changes.
const REFITS: usize = 4;

impl Search {
    /// With scales that are never negative.
    #[must_use]
    pub fn positive() -> Self {
        Self { sign: ScaleSign::Positive, ..Self::default() }
    }

    /// With this many candidates on the coarse grid (at least 2).
    #[must_use]
    pub fn with_steps(mut self, steps: u16) -> Self {
        self.steps = steps.max(2);
        self
    }

    /// The grid of a sample whose values lie between `low` ≤ 0 and `high` ≥ 0, not both 0.
    ///
    /// # Errors
    /// The scale, where the scheme's scale type cannot hold the one that spans all values.
    pub fn grid(&self, sample: Sample<'_>, low: f32, high: f32, scheme: &Scheme) -> Result<Grid, f32> {
        // What min-max cannot store, the search would have to clip away silently.
        let spanning = minmax::grid(low, high, scheme)?;
        if !searchable(low, high) {
            return Ok(spanning);
        }
        let (values, length) = (sample.values, sample.values.len());
        if length > LONGEST {
            return Ok(self.long_grid(sample, low, high, scheme).unwrap_or(spanning));
        }
        let weights = sample.repeated();
        let (number, method) = (self.number(scheme), Method::Search { steps: self.steps });
        let mut tiles = Tiles::new(Encoders::active(), number, method, length, weights.is_some());
        tiles.put(0, values, weights.as_deref(), low, high);
        Ok(tiles
            .finish()
            .next()
            .map_or(spanning, |found| Grid { scale: found.scale, zero: found.zero as i32 }))
    }

    /// What numbers the grids of a scheme make.
    pub(crate) fn number(&self, scheme: &Scheme) -> Number {
        let (bits, stored) = (scheme.bits, scheme.scales);
        if scheme.is_symmetric() {
            Number::Symmetric { bits, sign: self.sign, stored }
        } else {
            Number::Asymmetric { bits, stored }
        }
    }

    /// The grid of a sample of any length; `None` where no candidate can be judged.
    fn long_grid(&self, sample: Sample<'_>, low: f32, high: f32, scheme: &Scheme) -> Option<Grid> {
        if scheme.is_symmetric() {
            self.symmetric(sample, low, high, scheme)
        } else {
            self.asymmetric(sample, low, high, scheme)
        }
    }

    fn symmetric(&self, sample: Sample<'_>, low: f32, high: f32, scheme: &Scheme) -> Option<Grid> {
        let (bottom, top) = (scheme.bits.lowest() as f32, scheme.bits.highest() as f32);
        let (peak, window) = (high.max(-low), Window { low: bottom, high: top });
        let mut hunt = Hunt::new(sample, peak, scheme.scales, window);
        let growth = clipping(sample, peak, -bottom);
        // `towards` −1 turns values around, so that what was above zero meets the longer negative side.
        let natural = if high > -low { -1.0 } else { 1.0 };
        let directions: &[f32] = match self.sign {
            ScaleSign::Positive => &[1.0],
            ScaleSign::Either if scheme.bits <= Bits::THREE => &[natural, -natural],
            ScaleSign::Either => &[natural],
        };
        for &towards in directions {
            let reach = if towards == natural { -bottom } else { top };
            let axis = Axis::new(top - 0.35, reach * growth + 0.35, self.steps);
            for k in axis.points() {
                hunt.consider(towards * k / peak, window);
            }
            hunt.refine(axis);
        }
        hunt.refit();
        hunt.best.map(|best| Grid { scale: best.scale, zero: 0 })
    }

    fn asymmetric(&self, sample: Sample<'_>, low: f32, high: f32, scheme: &Scheme) -> Option<Grid> {
        let (steps, range) = (scheme.bits.steps() as f32, high - low);
        let mut hunt = Hunt::new(sample, range, scheme.scales, window_from(0.0, steps));
        let axis = Axis::new(steps - 0.7, steps * clipping(sample, high.max(-low), steps) + 0.7, self.steps);
        let mean = mean(sample);
        for k in axis.points() {
            let inv = k / range;
            // Where the window starts: values centred in it (rounded either way), or their mean.
            let centred = ((low + high) * inv / 2.0 - steps / 2.0).floor();
            let about_mean = (mean * inv - steps / 2.0).round();
            hunt.consider(inv, window_from(centred, steps));
            hunt.consider(inv, window_from(centred + 1.0, steps));
            if about_mean != centred && about_mean != centred + 1.0 {
                hunt.consider(inv, window_from(about_mean, steps));
            }
        }
        hunt.refine(axis);
        hunt.slide(steps);
        hunt.refit();
        hunt.best.map(|best| Grid { scale: best.scale, zero: scheme.bits.lowest() - best.levels.low as i32 })
    }
}

/// Whether a group with these extremes has a scale to search for: not where all values are 0, too small for an inverse
/// scale, or too far apart for f32.
pub(crate) fn searchable(low: f32, high: f32) -> bool {
    high.max(-low) >= TINY && (high - low).is_finite()
}

/// A positive scale for levels between −1 and 1 that are no integers, such as NF4's; `peak` is max |x|, not 0.
///
/// `None` where no candidate can be judged (values below 10⁻³⁰).
pub(crate) fn unit_scale<L: Levels>(sample: Sample<'_>, peak: f32, levels: L, steps: u16) -> Option<f32> {
    if peak < TINY {
        return None;
    }
    let mut hunt = Hunt::new(sample, peak, ScaleType::F32, levels);
    // About 16 levels: as much clipping as 8 steps from zero to the peak can pay for.
    let axis = Axis::new(0.92, clipping(sample, peak, 8.0), steps);
    for k in axis.points() {
        hunt.consider(k / peak, levels);
    }
    hunt.refine(axis);
    hunt.refit();
    hunt.best.map(|best| best.scale)
}

/// The window of codes that starts at `low`, moved to contain zero.
fn window_from(low: f32, steps: f32) -> Window {
    let low = low.clamp(-steps, 0.0);
    Window { low, high: low + steps }
}

/// How far the inverse scale may grow beyond the one that clips nothing.
///
/// Clipping the share c of the peak costs w·(c·peak)² at the peak alone, while all rounding together costs about
/// Σw · (peak/steps)² / 12. So c ≤ √(Σw / (12 w)) / steps; at most 63/64, which lets one outlier be given up in a large
/// sample.
fn clipping(sample: Sample<'_>, peak: f32, steps: f32) -> f32 {
    let Sample { values, importance } = sample;
    let share = importance.map_or(values.len() as f32, |w| {
        let total: f32 = w.iter().sum::<f32>() * (values.len() as f32 / w.len() as f32);
        let mut cheapest = f32::MAX;
        for x in values.chunks(w.len()) {
            for (x, &w) in x.iter().zip(w) {
                let at_peak = if x.abs() >= 0.99 * peak { w } else { f32::MAX };
                cheapest = if at_peak < cheapest { at_peak } else { cheapest };
            }
        }
        total / cheapest.max(f32::MIN_POSITIVE)
    });
    let c = (share / 12.0).sqrt() / steps;
    1.0 / (1.0 - c.min(63.0 / 64.0))
}

/// The weighted mean.
fn mean(sample: Sample<'_>) -> f32 {
    let Sample { values, importance } = sample;
    let (mut total, mut weight) = (0f64, 0f64);
    match importance {
        None => {
            total = values.iter().map(|&x| f64::from(x)).sum();
            weight = values.len() as f64;
        }
        Some(w) => {
            for (&x, &w) in values.iter().zip(w.iter().cycle()) {
                total += f64::from(x) * f64::from(w);
                weight += f64::from(w);
            }
        }
    }
    if weight > 0.0 { (total / weight) as f32 } else { 0.0 }
}

/// The coarse grid: even steps where the ends are near, even ratios where they are far apart.
#[derive(Debug, Clone, Copy)]
struct Axis {
    from: f32,
    to: f32,
    count: u16,
    ratio: f32,
}

impl Axis {
    fn new(from: f32, to: f32, steps: u16) -> Self {
        let wide = to > 2.0 * from;
        let count = if wide { steps.max(2).saturating_mul(2) } else { steps.max(2) };
        let ratio = if wide { (to / from).powf(1.0 / f32::from(count - 1)) } else { 1.0 };
        Self { from, to, count, ratio }
    }

    fn points(self) -> impl Iterator<Item = f32> {
        let step = (self.to - self.from) / f32::from(self.count - 1);
        let mut k = self.from;
        (0..self.count).map(move |_| {
            let here = k;
            k = if self.ratio > 1.0 { k * self.ratio } else { k + step };
            here
        })
    }

    /// The relative distance of neighbours.
    fn step(self) -> f32 {
        if self.ratio > 1.0 {
            self.ratio - 1.0
        } else {
            2.0 * (self.to - self.from) / (self.to + self.from) / f32::from(self.count - 1)
        }
    }
}

/// The best candidate so far.
#[derive(Debug, Clone, Copy)]
struct Best<L> {
    /// Its error in units of peak².
    error: f64,
    /// Its scale, as stored.
    scale: f32,
    levels: L,
}

/// A search in progress.
struct Hunt<'a, L> {
    sample: Sample<'a>,
    peak: f32,
    scales: ScaleType,
    best: Option<Best<L>>,
    /// Candidates that wait to be judged together.
    waiting: [f32; LANES],
    levels: [L; LANES],
    count: usize,
}

impl<'a, L: Levels> Hunt<'a, L> {
    fn new(sample: Sample<'a>, peak: f32, scales: ScaleType, any: L) -> Self {
        let (waiting, levels) = ([1.0; LANES], [any; LANES]);
        Self { sample, peak, scales, best: None, waiting, levels, count: 0 }
    }

    /// Adds a candidate, judged with seven others or by [`Hunt::flush`].
    fn consider(&mut self, inv: f32, levels: L) {
        (self.waiting[self.count], self.levels[self.count]) = (inv, levels);
        self.count += 1;
        if self.count == LANES {
            self.flush();
        }
    }

    /// Judges all candidates that wait.
    fn flush(&mut self) {
        let (waiting, levels) = (self.waiting, self.levels);
        match std::mem::take(&mut self.count) {
            0 => {}
            1 => {
                let sums = Sums::of(self.sample, waiting[0], levels[0]);
                self.judge(waiting[0], levels[0], sums);
            }
            count => {
                let sums = Sums::of_each(self.sample, &waiting, &levels);
                for i in 0..count {
                    self.judge(waiting[i], levels[i], sums[i]);
                }
            }
        }
    }

    /// Judges the codes of one inverse scale, at the least-squares scale as stored.
    fn judge(&mut self, inv: f32, levels: L, Sums { see, sqe, sqq }: Sums) {
        let bar = self.best.map_or(f64::INFINITY, |best| best.error);
        let unit = f64::from(inv) * f64::from(self.peak);
        let unit = unit * unit;
        // Rounding the scale can only add to the least-squares error: most candidates end here.
        // (The error is (S_ee − S_qe² / S_qq) / unit; both divisions are on the other side.)
        if sqq.is_nan() || sqq <= 0.0 || see * sqq - sqe * sqe >= bar * unit * sqq {
            return;
        }
        let ideal = ((1.0 + sqe / sqq) / f64::from(inv)) as f32;
        let Ok(scale) = stored(ideal, self.scales) else { return };
        let d = f64::from(scale) * f64::from(inv) - 1.0;
        let error = (see - 2.0 * d * sqe + d * d * sqq) / unit;
        if error < bar {
            self.best = Some(Best { error, scale, levels });
        }
    }

    /// Looks on both sides of the best scale, between the steps of the coarse grid; again where those are wide.
    fn refine(&mut self, axis: Axis) {
        self.flush();
        let mut step = axis.step();
        for _ in 0..if axis.ratio > 1.0 { 2 } else { 1 } {
            let Some(best) = self.best else { return };
            for by in FINER {
                self.consider((1.0 + by * step) / best.scale, best.levels);
            }
            self.flush();
            step /= 4.0;
        }
    }

    /// Refits codes and scale in turn while that helps.
    fn refit(&mut self) {
        for _ in 0..REFITS {
            let Some(before) = self.best else { return };
            self.consider(1.0 / before.scale, before.levels);
            self.flush();
            if self.best.is_none_or(|now| now.scale == before.scale) {
                return;
            }
        }
    }
}

impl Hunt<'_, Window> {
    /// Moves the window of an asymmetric grid while that helps.
    fn slide(&mut self, steps: f32) {
        for by in [-1.0, 1.0] {
            while let Some(before) = self.best {
                let window = window_from(before.levels.low + by, steps);
                if window == before.levels {
                    break;
                }
                self.consider(1.0 / before.scale, window);
                self.flush();
                if self.best.is_none_or(|now| now.levels == before.levels) {
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::Granularity;
    use rand::{Rng, SeedableRng};

    /// Σ w (x − x̂)² of the nearest codes on a grid, in f64.
    fn error(x: &[f32], w: Option<&[f32]>, grid: Grid, bits: Bits) -> f64 {
        let (low, high) = (f64::from(bits.lowest() - grid.zero), f64::from(bits.highest() - grid.zero));
        let scale = f64::from(grid.scale);
        let each = x.iter().enumerate().map(|(i, &x)| {
            let q = (f64::from(x) / scale).clamp(low, high).round_ties_even();
            w.map_or(1.0, |w| f64::from(w[i])) * (f64::from(x) - q * scale).powi(2)
        });
        each.sum()
    }

    /// Groups of sums of `terms` uniform values: flat at 1, near Gaussian at 4; cubed where 0, for heavy tails.
    fn group(rng: &mut impl Rng, terms: usize, count: usize) -> Vec<f32> {
        let mut draw = || -> f32 {
            let mut sum = 0f32;
            for _ in 0..terms.max(4 * usize::from(terms == 0)) {
                sum += rng.random_range(-1.0f32..1.0);
            }
            if terms == 0 { sum * sum * sum } else { sum }
        };
        (0..count).map(|_| draw()).collect()
    }

    /// The long search judges in f64 and one group at a time; it is what the short one must not fall behind.
    #[test]
    fn the_search_of_tiles_is_as_good_as_the_plain_search() {
        let (mut rng, mut failed) = (rand_chacha::ChaCha8Rng::seed_from_u64(5), false);
        for (bits, asymmetric, sign, weighted) in [
            (4, false, ScaleSign::Either, false),
            (4, false, ScaleSign::Positive, true),
            (4, true, ScaleSign::Either, false),
            (2, false, ScaleSign::Either, true),
            (3, true, ScaleSign::Either, true),
            (5, false, ScaleSign::Either, false),
            (6, true, ScaleSign::Either, false),
            (8, false, ScaleSign::Either, false),
            (8, true, ScaleSign::Either, true),
        ] {
            let scheme = Scheme::new(Bits::new(bits).unwrap(), Granularity::Channel);
            let scheme = if asymmetric { scheme.asymmetric() } else { scheme };
            let search = Search { sign, ..Search::default() };
            let (mut tiled, mut plain, mut behind) = (0.0, 0.0, 0);
            for round in 0..600 {
                let x = group(&mut rng, round % 5, [32, 64, 128, 31][round % 4]);
                let w: Vec<f32> = x.iter().map(|_| rng.random_range(0.01f32..3.0)).collect();
                let w = weighted.then_some(&w[..]);
                let sample = Sample::weighted(&x, w);
                let (low, high) = sample.extremes();
                let ours = search.grid(sample, low, high, &scheme).unwrap();
                let theirs = search.long_grid(sample, low, high, &scheme).unwrap();
                let energy: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
                let ours = error(&x, w, ours, scheme.bits) / energy;
                let theirs = error(&x, w, theirs, scheme.bits) / energy;
                tiled += ours;
                plain += theirs;
                behind += usize::from(ours > theirs * 1.001);
            }
            let ratio = tiled / plain;
            println!("{scheme} {sign:?}: {ratio}, {behind} of 600 groups behind");
            failed |= ratio > 1.000_02 || behind > 6;
        }
        assert!(!failed, "some search falls behind the plain one");
    }
}
