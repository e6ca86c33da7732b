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
//! Sums run in eight fixed lanes within runs of [`RUN`] values and in order, in f64, across runs: the result does not
//! depend on threads.

use rayon::prelude::*;

use super::Sample;

/// Values summed in f32 before the total goes on in f64.
const RUN: usize = 4096;

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
        let Sample { values, importance } = sample;
        let period = importance.map_or(RUN, <[f32]>::len);
        if values.len() <= period.min(RUN) {
            return Self::run(values, importance, inv, levels);
        }
        if values.len() < PARALLEL {
            return values.chunks(period).map(|x| Self::period(x, importance, inv, levels)).sum();
        }
        // Whole periods per task, so that the partial sums are the same on any number of threads.
        let task = period * PARALLEL.div_ceil(4 * period);
        let parts: Vec<Self> = values
            .par_chunks(task)
            .map(|x| x.chunks(period).map(|x| Self::period(x, importance, inv, levels)).sum())
            .collect();
        parts.into_iter().sum()
    }

    fn period<L: Levels>(x: &[f32], w: Option<&[f32]>, inv: f32, levels: L) -> Self {
        match w {
            None => x.chunks(RUN).map(|x| Self::run(x, None, inv, levels)).sum(),
            Some(w) => {
                x.chunks(RUN).zip(w.chunks(RUN)).map(|(x, w)| Self::run(x, Some(w), inv, levels)).sum()
            }
        }
    }

    fn run<L: Levels>(x: &[f32], w: Option<&[f32]>, inv: f32, levels: L) -> Self {
        let [see, sqe, sqq] = match w {
            None => lanes::<L, false>(x, x, inv, levels),
            Some(w) => lanes::<L, true>(x, &w[..x.len().min(w.len())], inv, levels),
        };
        Self { see: f64::from(see), sqe: f64::from(sqe), sqq: f64::from(sqq) }
    }
}

impl std::iter::Sum for Sums {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self { see: 0.0, sqe: 0.0, sqq: 0.0 }, |a, b| Self {
            see: a.see + b.see,
            sqe: a.sqe + b.sqe,
            sqq: a.sqq + b.sqq,
        })
    }
}

const LANES: usize = 8;

fn lanes<L: Levels, const WEIGHTED: bool>(x: &[f32], w: &[f32], inv: f32, levels: L) -> [f32; 3] {
    let mut acc = [[0f32; LANES]; 3];
    let (xs, x_rest) = x.as_chunks::<LANES>();
    let (ws, w_rest) = w.as_chunks::<LANES>();
    for (x, w) in xs.iter().zip(ws) {
        add::<L, WEIGHTED>(x, w, inv, levels, &mut acc);
    }
    if !x_rest.is_empty() {
        // Zeros are at their own level and add nothing to any sum.
        let (mut x, mut w) = ([0f32; LANES], [0f32; LANES]);
        x[..x_rest.len()].copy_from_slice(x_rest);
        let used = w_rest.len().min(x_rest.len());
        w[..used].copy_from_slice(&w_rest[..used]);
        add::<L, WEIGHTED>(&x, &w, inv, levels, &mut acc);
    }
    acc.map(|[a, b, c, d, e, f, g, h]| ((a + e) + (c + g)) + ((b + f) + (d + h)))
}

#[inline(always)]
fn add<L: Levels, const WEIGHTED: bool>(
    x: &[f32; LANES],
    w: &[f32; LANES],
    inv: f32,
    levels: L,
    [see, sqe, sqq]: &mut [[f32; LANES]; 3],
) {
    for i in 0..LANES {
        let u = x[i] * inv;
        let q = levels.nearest(u);
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
    fn lanes_agree_with_a_plain_sum_at_every_length() {
        let window = Window { low: -8.0, high: 7.0 };
        for n in [1usize, 7, 8, 9, 31, 4095, 4096, 4097, 9000] {
            let x: Vec<f32> = (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 17.0).collect();
            let w: Vec<f32> = (0..n).map(|i| (i * 13 % 7) as f32 * 0.25).collect();
            for weights in [None, Some(&w[..]), Some(&w[..n.div_ceil(3)])] {
                let sums = Sums::of(Sample::weighted(&x, weights), 2.3, window);
                let (mut see, mut sqe, mut sqq) = (0.0, 0.0, 0.0);
                for (i, &x) in x.iter().enumerate() {
                    let u = f64::from(x * 2.3f32);
                    let q = u.clamp(-8.0, 7.0).round_ties_even();
                    let w = weights.map_or(1.0, |w| f64::from(w[i % w.len()]));
                    see += w * (u - q) * (u - q);
                    sqe += w * q * (u - q);
                    sqq += w * q * q;
                }
                for (got, want) in [(sums.see, see), (sums.sqe, sqe), (sums.sqq, sqq)] {
                    assert!((got - want).abs() <= 1e-5 * (see + sqq), "{n}: {got} instead of {want}");
                }
            }
        }
    }
}
