//! Scales from what activations and weights are like.
//!
//! ```text
//! AWQ (arXiv:2306.00978)          s = act^a / w^b       act = mean |x|, w = mean of |w| over the largest of its group
//! SmoothQuant (arXiv:2211.10438)  s = max |x|^α / max |w|^(1−α)
//! ```
//!
//! Scales are divided by √(max s · min s), which changes nothing that counts and keeps them around 1. A channel whose
//! activations or weights are all zero keeps the scale 1.

use serde::{Deserialize, Serialize};

/// Scales smaller or larger than this before they are centred are of channels that hardly exist; both tools clamp here.
const SMALLEST: f64 = 1e-4;

/// Whether AWQ's grid has the weights' magnitude in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exponents {
    /// b = 0: the paper's own.
    Activations,
    /// b = 1 − a: llm-compressor's "duo scaling".
    Both,
    /// Half of the points each, so that the better one is found.
    #[default]
    Either,
}

impl Exponents {
    /// `points` pairs (a, b); the first is (0, 0), no scaling at all.
    #[must_use]
    pub fn grid(self, points: usize) -> Vec<(f64, f64)> {
        let line = |count: usize, b: fn(f64) -> f64| {
            (1..=count).map(move |i| i as f64 / count as f64).map(move |a| (a, b(a)))
        };
        let rest = points.saturating_sub(1);
        let (plain, both) = match self {
            Self::Activations => (rest, 0),
            Self::Both => (0, rest),
            Self::Either => (rest.div_ceil(2), rest / 2),
        };
        let start = std::iter::once((0.0, 0.0));
        start.chain(line(plain, |_| 0.0)).chain(line(both, |a| 1.0 - a)).take(points).collect()
    }
}

/// act^a / w^b per channel, centred.
#[must_use]
pub fn scales(act: &[f64], weight: &[f64], (a, b): (f64, f64)) -> Vec<f64> {
    let raw = |(&x, &w): (&f64, &f64)| (x > 0.0 && w > 0.0).then(|| (x.powf(a) / w.powf(b)).max(SMALLEST));
    centred(act.iter().zip(weight).map(raw).collect())
}

/// SmoothQuant's scales: `act` is max |x| and `weight` max |w| per channel.
#[must_use]
pub fn smooth(act: &[f64], weight: &[f64], alpha: f64) -> Vec<f64> {
    let raw = |(&x, &w): (&f64, &f64)| (x > 0.0 && w > 0.0).then(|| x.powf(alpha) / w.powf(1.0 - alpha));
    centred(act.iter().zip(weight).map(raw).collect())
}

/// Divides by √(max · min) of the channels that are there; the others become 1.
fn centred(raw: Vec<Option<f64>>) -> Vec<f64> {
    let usable = |s: &f64| s.is_finite() && *s > 0.0;
    let live = || raw.iter().flatten().copied().filter(usable);
    let (low, high) = live().fold((f64::MAX, 0.0), |(low, high): (f64, f64), s| (low.min(s), high.max(s)));
    let centre = (low.sqrt() * high.sqrt()).max(f64::MIN_POSITIVE);
    raw.into_iter().map(|s| s.filter(usable).map_or(1.0, |s| s / centre)).collect()
}

/// A statistic per index of an axis, averaged over the indices of each channel.
#[must_use]
pub fn by_channel(values: &[f64], channels: usize, channel: impl Fn(usize) -> usize) -> Vec<f64> {
    let (mut sums, mut counts) = (vec![0.0; channels], vec![0usize; channels]);
    for (i, value) in values.iter().enumerate() {
        sums[channel(i)] += value;
        counts[channel(i)] += 1;
    }
    sums.iter().zip(counts).map(|(sum, count)| sum / count.max(1) as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_begins_with_no_scaling_and_has_the_points_asked_for() {
        for exponents in [Exponents::Activations, Exponents::Both, Exponents::Either] {
            for points in [1, 2, 20, 21] {
                let grid = exponents.grid(points);
                assert_eq!((grid.len(), grid[0]), (points, (0.0, 0.0)));
            }
        }
        assert!(Exponents::Both.grid(5)[1..].iter().all(|(a, b)| (a + b - 1.0).abs() < 1e-12));
    }

    #[test]
    fn scales_are_the_formula_up_to_one_factor_and_dead_channels_are_left_alone() {
        let s = scales(&[4.0, 1.0, 0.0, 9.0], &[1.0, 4.0, 1.0, 1.0], (0.5, 0.5));
        assert!((s[0] / s[1] - 4.0).abs() < 1e-12 && (s[3] / s[0] - 1.5).abs() < 1e-12);
        assert_eq!(s[2], 1.0);
        let live = [s[0], s[1], s[3]];
        let product =
            live.iter().copied().fold(0.0, f64::max) * live.iter().copied().fold(f64::MAX, f64::min);
        assert!((product - 1.0).abs() < 1e-12, "centred around 1");
        // Xiao et al., eq. 4, for α = ½: √(max |x| / max |w|).
        let s = smooth(&[16.0, 1.0], &[1.0, 1.0], 0.5);
        assert!((s[0] / s[1] - 4.0).abs() < 1e-12);
    }

    #[test]
    fn huge_outliers_leave_finite_scales() {
        let act = [1e4, 1e-30, 1.0];
        for point in Exponents::Either.grid(20) {
            assert!(scales(&act, &[1.0, 1e-20, 1.0], point).iter().all(|s| s.is_finite() && *s > 0.0));
        }
    }
}
