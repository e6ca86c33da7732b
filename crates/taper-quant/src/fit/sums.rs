//! The three sums by which a candidate scale is judged.
//!
//! For an inverse scale ι, u = ι·x, the nearest level q(u) and e = u − q:
//!
//! ```text
//! S_ee = Σ w e²      S_qe = Σ w q e      S_qq = Σ w q²
//!
//! least squares    scale* = (1 + S_qe / S_qq) / ι
//! error at scale (1 + d) / ι, in units of 1/ι²:   S_ee − 2 d S_qe + d² S_qq
//! ```
//!
//! Working with e instead of x avoids subtracting nearly equal sums, which would drown an 8-bit error in f32 rounding.
//!
//! Two kernels: [`Sums::of_each`] judges eight candidates side by side, one per lane, so that short groups need no
//! sum across lanes; [`Sums::of`] judges one with eight lanes along the values. Both add up runs of [`RUN`] values in
//! f32 and go on in f64, in fixed order: results do not depend on threads.

use rayon::prelude::*;

use super::Sample;

/// Values summed in f32 before the total goes on in f64.
const RUN: usize = 1024;

/// From this many values on, runs are summed in parallel.
const PARALLEL: usize = 1 << 18;

/// 1.5 · 2²³: adding and subtracting it rounds |v| < 2²² half to even, in the plain instruction set.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// The levels that codes stand for, in units of the scale.
pub(crate) trait Levels: Copy + Send + Sync {
    /// The nearest level.
    fn nearest(self, u: f32) -> f32;
}

/// All integers of `low..=high`; contains 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Window {
    pub(crate) low: f32,
    pub(crate) high: f32,
}

impl Levels for Window {
    #[inline(always)]
    fn nearest(self, u: f32) -> f32 {
        let c = if u > self.low { u } else { self.low };
        let c = if c < self.high { c } else { self.high };
        (c + ROUND) - ROUND
    }
}

/// The sums of one candidate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sums {
    pub(crate) see: f64,
    pub(crate) sqe: f64,
    pub(crate) sqq: f64,
}

impl Sums {
    /// The sums of a sample at inverse scale `inv`.
    pub(crate) fn of<L: Levels>(sample: Sample<'_>, inv: f32, levels: L) -> Self {
        let [sums] = over_runs(sample, &|x: &[f32], w: Option<&[f32]>| {
            [Self::from_lane(match w {
                None => along::<L, false>(x, x, inv, levels),
                Some(w) => along::<L, true>(x, w, inv, levels),
            })]
        });
        sums
    }

    /// The sums of a sample at each of several inverse scales, each with levels of its own.
    pub(crate) fn of_each<L: Levels>(
        sample: Sample<'_>,
        inv: &[f32; LANES],
        levels: &[L; LANES],
    ) -> [Self; LANES] {
        over_runs(sample, &|x: &[f32], w: Option<&[f32]>| {
            let [see, sqe, sqq] = match w {
                None => across::<L, false>(x, x, inv, levels),
                Some(w) => across::<L, true>(x, w, inv, levels),
            };
            std::array::from_fn(|i| Self::from_lane([see[i], sqe[i], sqq[i]]))
        })
    }

    fn from_lane([see, sqe, sqq]: [f32; 3]) -> Self {
        Self { see: f64::from(see), sqe: f64::from(sqe), sqq: f64::from(sqq) }
    }

    const ZERO: Self = Self { see: 0.0, sqe: 0.0, sqq: 0.0 };

    fn add(&mut self, other: &Self) {
        self.see += other.see;
        self.sqe += other.sqe;
        self.sqq += other.sqq;
    }
}

/// Adds up what `run` says of the runs of a sample, in order.
fn over_runs<const N: usize>(
    sample: Sample<'_>,
    run: &(impl Fn(&[f32], Option<&[f32]>) -> [Sums; N] + Sync),
) -> [Sums; N] {
    let Sample { values, importance } = sample;
    let period = importance.map_or(values.len().max(1), <[f32]>::len);
    if values.len() <= period.min(RUN) {
        return run(values, importance.map(|w| &w[..values.len()]));
    }
    let serial = |values: &[f32]| {
        let mut total = [Sums::ZERO; N];
        for values in values.chunks(period) {
            for (i, x) in values.chunks(RUN).enumerate() {
                let part = run(x, importance.map(|w| &w[i * RUN..i * RUN + x.len()]));
                total.iter_mut().zip(&part).for_each(|(total, part)| total.add(part));
            }
        }
        total
    };
    if values.len() < PARALLEL {
        return serial(values);
    }
    // Whole periods (or whole runs) per task, so that partial sums are the same on any number of threads.
    let unit = importance.map_or(RUN, <[f32]>::len);
    let parts: Vec<[Sums; N]> = values.par_chunks(unit * (PARALLEL / 4).div_ceil(unit)).map(serial).collect();
    let mut total = [Sums::ZERO; N];
    for part in &parts {
        total.iter_mut().zip(part).for_each(|(total, part)| total.add(part));
    }
    total
}

/// Candidates judged side by side, and values per step of a single one.
pub(crate) const LANES: usize = 8;

/// One candidate per lane: Σ w e², Σ w q e, Σ w q².
fn across<L: Levels, const WEIGHTED: bool>(
    x: &[f32],
    w: &[f32],
    inv: &[f32; LANES],
    levels: &[L; LANES],
) -> [[f32; LANES]; 3] {
    let mut acc = [[0f32; LANES]; 3];
    for (&x, &w) in x.iter().zip(w) {
        step::<L, WEIGHTED>(&[x; LANES], &[w; LANES], inv, levels, &mut acc);
    }
    acc
}

/// One candidate, one value per lane.
fn along<L: Levels, const WEIGHTED: bool>(x: &[f32], w: &[f32], inv: f32, levels: L) -> [f32; 3] {
    let mut acc = [[0f32; LANES]; 3];
    let (inv, levels) = ([inv; LANES], [levels; LANES]);
    let (xs, x_rest) = x.as_chunks::<LANES>();
    let (ws, w_rest) = w.as_chunks::<LANES>();
    for (x, w) in xs.iter().zip(ws) {
        step::<L, WEIGHTED>(x, w, &inv, &levels, &mut acc);
    }
    if !x_rest.is_empty() {
        // Zeros are at their own level and add nothing to any sum.
        let (mut x, mut w) = ([0f32; LANES], [0f32; LANES]);
        x[..x_rest.len()].copy_from_slice(x_rest);
        w[..w_rest.len()].copy_from_slice(w_rest);
        step::<L, WEIGHTED>(&x, &w, &inv, &levels, &mut acc);
    }
    acc.map(|[a, b, c, d, e, f, g, h]| ((a + e) + (c + g)) + ((b + f) + (d + h)))
}

#[inline(always)]
fn step<L: Levels, const WEIGHTED: bool>(
    x: &[f32; LANES],
    w: &[f32; LANES],
    inv: &[f32; LANES],
    levels: &[L; LANES],
    [see, sqe, sqq]: &mut [[f32; LANES]; 3],
) {
    for i in 0..LANES {
        let u = x[i] * inv[i];
        let q = levels[i].nearest(u);
        let e = u - q;
        let (we, wq) = if WEIGHTED { (w[i] * e, w[i] * q) } else { (e, q) };
        see[i] += we * e;
        sqe[i] += wq * e;
        sqq[i] += wq * q;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kernels_agree_with_a_plain_sum_at_every_length() {
        let window = Window { low: -8.0, high: 7.0 };
        for n in [1usize, 7, 8, 9, 31, 4095, 4096, 4097, 9000] {
            let x: Vec<f32> = (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 17.0).collect();
            let w: Vec<f32> = (0..n).map(|i| (i * 13 % 7) as f32 * 0.25).collect();
            for weights in [None, Some(&w[..]), Some(&w[..n.div_ceil(3)])] {
                let sample = Sample::weighted(&x, weights);
                let mut inv = [1.0; LANES];
                inv[5] = 2.3;
                let judged =
                    [Sums::of(sample, 2.3, window), Sums::of_each(sample, &inv, &[window; LANES])[5]];
                let (mut see, mut sqe, mut sqq) = (0.0, 0.0, 0.0);
                for (i, &x) in x.iter().enumerate() {
                    let u = f64::from(x * 2.3f32);
                    let q = u.clamp(-8.0, 7.0).round_ties_even();
                    let w = weights.map_or(1.0, |w| f64::from(w[i % w.len()]));
                    see += w * (u - q) * (u - q);
                    sqe += w * q * (u - q);
                    sqq += w * q * q;
                }
                for sums in judged {
                    for (got, want) in [(sums.see, see), (sums.sqe, sqe), (sums.sqq, sqq)] {
                        assert!((got - want).abs() <= 1e-5 * (see + sqq), "{n}: {got} instead of {want}");
                    }
                }
            }
        }
    }
}
