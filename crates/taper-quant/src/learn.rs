//! Rounding and scales of one matrix as something that can be learned.
//!
//! ```text
//! s = stored(s₀ (1 + a))      q = clamp(round(w / s + z + v))      ŵ = s (q − z)      v ∈ [−½, ½]
//!
//! ∂ŵ/∂v = s                         where w / s + z + v is within the codes, else 0
//! ∂ŵ/∂s = (q − z) − w / s           there, else q − z
//! ```
//!
//! Rounding passes its gradient straight through (Bengio et al. 2013). v decides which of two neighbouring codes a weight
//! gets, a widens or narrows a group's range. SignRound (Cheng et al., arXiv 2309.05516) moves v by the sign of its
//! gradient, because all that matters is whether a weight crosses a border; a moves by its gradient over its running size.
//! Learning starts at the grids of [`Fit`], with v = a = 0: at the first step ŵ is what that fit alone would store.
//!
//! What is simulated is what is stored: [`Rounding::values`] and [`Rounding::packed`] come from one function for codes and one
//! for scales, and scales are rounded to their stored type in both. Neighbours: [`crate::pass::Tuned`] provides gradients.

use rayon::prelude::*;

use crate::{
    Error, IntLayout, PackedInt, Result,
    code::int,
    fit::{Fit, Grid, stored},
    kernel::store::Store,
    pack,
    packed_int::{IntRows, Stored, columns},
    scales::Scales,
    scheme::{Granularity, Scheme},
};

/// How far a group's range may shrink or grow, as a share of itself.
const REACH: f32 = 0.5;

/// How quickly the running size of a range's gradient forgets: over about twenty steps.
const MEMORY: f32 = 0.95;

/// 1.5 · 2²³: adding and taking it away rounds half to even.
const ROUND: f32 = crate::fit::ROUND;

/// A matrix whose rounding is being learned.
#[derive(Debug, Clone)]
pub struct Rounding {
    scheme: Scheme,
    shape: Vec<usize>,
    span: usize,
    weights: Vec<f32>,
    grids: Vec<Grid>,
    learned: Learned,
    /// The running gradient of each weight.
    pulls: Vec<f32>,
    steps: i32,
}

/// What moves; a copy of it is a state to come back to.
#[derive(Debug, Clone)]
pub struct Learned {
    /// v, one per weight.
    offsets: Vec<f32>,
    /// One per group.
    ranges: Vec<Range>,
}

/// a of a group, and the running mean of its squared gradient.
#[derive(Debug, Clone, Copy, Default)]
struct Range {
    a: f32,
    square: f32,
}

/// How far one step goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Of v, in steps of the grid.
    pub offset: f32,
    /// Of a, as a share of the range.
    pub range: f32,
    /// How much of the running gradient is kept at each step, from 0 to below 1: batches are small and signs do not average.
    pub momentum: f32,
}

impl Rounding {
    /// Starts from the grids that [`Fit::default`] finds with `importance` (one value per column).
    ///
    /// # Errors
    /// What [`int::encode`] refuses, and one scale for a whole tensor, which has no groups to learn.
    pub fn new(
        weights: Vec<f32>,
        shape: &[usize],
        scheme: &Scheme,
        importance: Option<&[f32]>,
    ) -> Result<Self> {
        if scheme.granularity == Granularity::Tensor {
            return Err(Error::Conflict {
                option: "granularity",
                conflict: "is `tensor`, which leaves nothing to learn per group".into(),
                expected: "use groups, or one scale per channel".into(),
            });
        }
        let cols = columns(shape);
        let seed =
            int::encode(&weights, cols, scheme, &Fit::default(), importance, IntLayout::Taper.align())?;
        let zero = |g: usize| seed.zeros.as_ref().and_then(|z| z.get(g)).map_or(0, |&z| i32::from(z));
        let grids: Vec<Grid> =
            seed.scales.iter().enumerate().map(|(g, &scale)| Grid { scale, zero: zero(g) }).collect();
        let learned =
            Learned { offsets: vec![0.0; weights.len()], ranges: vec![Range::default(); grids.len()] };
        let pulls = vec![0.0; weights.len()];
        let span = scheme.granularity.span(cols).min(cols.max(1));
        Ok(Self { scheme: *scheme, shape: shape.to_vec(), span, weights, grids, learned, pulls, steps: 0 })
    }

    /// The logical shape.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// ŵ, row-major.
    #[must_use]
    pub fn values(&self) -> Vec<f32> {
        let mut values = self.weights.clone();
        let cols = columns(&self.shape);
        values.par_chunks_mut(cols).enumerate().for_each(|(row, values)| {
            for (g, values) in values.chunks_mut(self.span).enumerate() {
                let (lane, at) = self.lane(row, g);
                let offsets = &self.learned.offsets[at..at + values.len()];
                for (w, v) in values.iter_mut().zip(offsets) {
                    *w = (lane.code(*w, *v) - lane.zero) * lane.scale;
                }
            }
        });
        values
    }

    /// Moves against the gradient of a loss with respect to ŵ.
    ///
    /// # Panics
    /// Where `gradient` is not as long as the matrix.
    pub fn step(&mut self, gradient: &[f32], rate: Rate) {
        assert_eq!(gradient.len(), self.weights.len(), "one gradient per weight");
        self.steps += 1;
        let (cols, groups, warm) = (columns(&self.shape), self.groups(), 1.0 - MEMORY.powi(self.steps));
        let mut learned = std::mem::replace(&mut self.learned, Learned { offsets: vec![], ranges: vec![] });
        let mut pulls = std::mem::take(&mut self.pulls);
        let rows = learned.offsets.par_chunks_mut(cols).zip(learned.ranges.par_chunks_mut(groups));
        rows.zip(pulls.par_chunks_mut(cols)).enumerate().for_each(|(row, ((offsets, ranges), pulls))| {
            let parts = offsets.chunks_mut(self.span).zip(pulls.chunks_mut(self.span)).zip(ranges);
            for (g, ((offsets, pulls), range)) in parts.enumerate() {
                let lane = Lane::of(self.grids[row * groups + g], range.a, &self.scheme);
                let at = row * cols + g * self.span;
                let (w, dw) = (&self.weights[at..at + offsets.len()], &gradient[at..at + offsets.len()]);
                pulls.iter_mut().zip(dw).for_each(|(pull, dw)| *pull = rate.momentum * *pull + dw);
                range.follow(lane.pull(w, pulls, offsets, rate.offset) * lane.scale, warm, rate.range);
            }
        });
        self.pulls = pulls;
        self.learned = learned;
    }

    /// The state, to come back to.
    #[must_use]
    pub fn learned(&self) -> Learned {
        self.learned.clone()
    }

    /// Goes back to a state of this matrix.
    pub fn restore(&mut self, learned: Learned) {
        self.learned = learned;
    }

    /// The matrix as it is stored.
    ///
    /// # Errors
    /// A layout that cannot hold the scheme.
    pub fn packed(&self, layout: IntLayout) -> Result<PackedInt> {
        if !layout.holds(".weight", &self.shape, &self.scheme) {
            return Err(Error::Conflict {
                option: "layout",
                conflict: format!("{} cannot hold {} of shape {:?}", layout.codec(), self.scheme, self.shape),
                expected: "choose `IntLayout::Taper`, which holds everything".into(),
            });
        }
        let (cols, groups, bits) = (columns(&self.shape), self.groups(), self.scheme.bits);
        let overflow = Error::Length { what: "values", found: self.weights.len(), expected: 0 };
        let row_bytes = layout.align().row_bytes(cols, bits).ok_or(overflow)?;
        let mut packed = vec![0u8; self.weights.len() / cols * row_bytes];
        packed.par_chunks_mut(row_bytes).enumerate().for_each(|(row, packed)| {
            let lanes: Vec<Lane> = (0..groups).map(|g| self.lane(row, g).0).collect();
            let at = row * cols;
            let offset = bits.lowest() as f32;
            let codes: Vec<u8> = (0..cols)
                .map(|i| {
                    let (w, v) = (self.weights[at + i], self.learned.offsets[at + i]);
                    (lanes[i / self.span].code(w, v) - offset) as u8
                })
                .collect();
            pack::pack(&codes, bits, packed);
            if layout == IntLayout::IntQuantized {
                packed.iter_mut().for_each(|code| *code ^= 0x80);
            }
        });
        let scales: Vec<f32> =
            (0..self.grids.len()).map(|i| self.lane(i / groups, i % groups).0.scale).collect();
        let zeros = self.grids.iter().map(|grid| grid.zero as i8).collect();
        Ok(PackedInt::from_stored(Stored {
            shape: self.shape.clone(),
            scheme: self.scheme,
            layout,
            row_bytes,
            groups,
            column_groups: None,
            store: Store::new(IntRows {
                codes: packed.into(),
                scales: Scales::new(&scales, self.scheme.scales),
                zeros: (!self.scheme.is_symmetric()).then_some(zeros),
            }),
        }))
    }

    fn groups(&self) -> usize {
        columns(&self.shape).div_ceil(self.span)
    }

    /// Group `g` of a row as it is now, and where its weights begin.
    fn lane(&self, row: usize, g: usize) -> (Lane, usize) {
        let index = row * self.groups() + g;
        let lane = Lane::of(self.grids[index], self.learned.ranges[index].a, &self.scheme);
        (lane, row * columns(&self.shape) + g * self.span)
    }
}

impl Range {
    /// A step against a slope, over its running size.
    fn follow(&mut self, slope: f32, warm: f32, rate: f32) {
        self.square = MEMORY * self.square + (1.0 - MEMORY) * slope * slope;
        let size = (self.square / warm).sqrt();
        if size > 0.0 {
            self.a = (self.a - rate * slope / size).clamp(-REACH, REACH);
        }
    }
}

/// The grid of a group at some moment.
#[derive(Debug, Clone, Copy)]
struct Lane {
    scale: f32,
    inverse: f32,
    zero: f32,
    low: f32,
    high: f32,
}

impl Lane {
    fn of(grid: Grid, range: f32, scheme: &Scheme) -> Self {
        // Where the stored type cannot hold the wider scale, the range stays as it was fitted.
        let scale = stored(grid.scale * (1.0 + range), scheme.scales).unwrap_or(grid.scale);
        let (low, high) = (scheme.bits.lowest() as f32, scheme.bits.highest() as f32);
        Self { scale, inverse: 1.0 / scale, zero: grid.zero as f32, low, high }
    }

    #[inline(always)]
    fn code(self, w: f32, v: f32) -> f32 {
        let u = w * self.inverse + self.zero + v;
        let u = if u > self.low { u } else { self.low };
        let u = if u < self.high { u } else { self.high };
        (u + ROUND) - ROUND
    }

    /// Moves the offsets of the group and returns Σ ∂ŵ/∂s · gradient.
    fn pull(self, w: &[f32], gradient: &[f32], offsets: &mut [f32], rate: f32) -> f32 {
        let mut slope = 0f32;
        let towards = rate * self.scale.signum();
        for ((w, g), v) in w.iter().zip(gradient).zip(offsets) {
            let x = w * self.inverse;
            let (u, q) = (x + self.zero + *v, self.code(*w, *v) - self.zero);
            let inside = u >= self.low - 0.5 && u <= self.high + 0.5;
            slope += g * if inside { q - x } else { q };
            let by = if !inside || *g == 0.0 { 0.0 } else { towards.copysign(towards * g) };
            *v = (*v - by).clamp(-0.5, 0.5);
        }
        slope
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use taper_core::Weight;

    fn matrix(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.37).sin() * (1.0 + (i % 7) as f32)).collect()
    }

    fn schemes() -> Vec<Scheme> {
        let int =
            |bits, group| Scheme::new(crate::Bits::new(bits).unwrap(), Granularity::group(group).unwrap());
        vec![int(2, 8), int(3, 16).asymmetric(), int(4, 10), Scheme::int8()]
    }

    fn learned(scheme: &Scheme) -> Rounding {
        let mut rounding = Rounding::new(matrix(6 * 24), &[6, 24], scheme, None).unwrap();
        for i in 0..9 {
            let gradient: Vec<f32> = (0..144).map(|j| ((i * 31 + j * 17) as f32).cos()).collect();
            rounding.step(&gradient, Rate { offset: 0.05, range: 0.02, momentum: 0.5 });
        }
        rounding
    }

    #[test]
    fn what_is_simulated_is_what_is_stored() {
        for scheme in schemes() {
            let rounding = learned(&scheme);
            let layouts = [IntLayout::Taper, IntLayout::PackQuantized, IntLayout::IntQuantized];
            for layout in layouts.into_iter().filter(|l| l.holds("a.weight", &[6, 24], &scheme)) {
                let decoded = rounding.packed(layout).unwrap().dense().unwrap();
                let decoded: Vec<f32> = decoded.flatten_all().unwrap().to_vec1().unwrap();
                assert_eq!(decoded, rounding.values(), "{scheme} {layout:?}");
            }
        }
    }

    #[test]
    fn learning_starts_at_the_fit() {
        for scheme in schemes() {
            let rounding = Rounding::new(matrix(144), &[6, 24], &scheme, None).unwrap();
            let plain =
                PackedInt::encode(&matrix(144), &[6, 24], &scheme, &Fit::default(), None, IntLayout::Taper);
            let plain: Vec<f32> = plain.unwrap().dense().unwrap().flatten_all().unwrap().to_vec1().unwrap();
            for (a, b) in rounding.values().iter().zip(plain) {
                // w/s and w·(1/s) may fall on different sides of a tie.
                assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{scheme}: {a} instead of {b}");
            }
        }
    }

    /// The loss Σ c (ŵ − t)², smooth in s where no code changes: its slope is a central difference.
    #[test]
    fn the_slope_of_a_scale_is_its_central_difference_under_straight_through_rounding() {
        let lane = |scale: f32| Lane { scale, inverse: 1.0 / scale, zero: 1.0, low: -2.0, high: 1.0 };
        let (w, c) = ([0.31f32, -0.72, 2.9, -3.3, 0.05], [1.0f32, -0.5, 2.0, 0.25, -1.5]);
        let (s, mut v) = (0.5f32, [0.1f32, -0.2, 0.0, 0.3, 0.0]);
        // Straight through: round(u) stands for u + constant, and clamped codes for constants.
        let kept: Vec<f64> =
            w.iter().zip(&v).map(|(w, v)| f64::from(lane(s).code(*w, *v) - 1.0) - f64::from(w / s)).collect();
        let surrogate = |s: f64| -> f64 {
            (0..5)
                .map(|i| {
                    let u = f64::from(w[i]) / 0.5 + 1.0 + f64::from(v[i]);
                    let inside = (-2.5..=1.5).contains(&u);
                    let q = if inside {
                        f64::from(w[i]) / s + kept[i]
                    } else {
                        f64::from(lane(0.5).code(w[i], v[i]) - 1.0)
                    };
                    f64::from(c[i]) * s * q
                })
                .sum()
        };
        let difference = (surrogate(0.5 + 1e-5) - surrogate(0.5 - 1e-5)) / 2e-5;
        let slope = f64::from(lane(s).pull(&w, &c, &mut v, 0.0));
        assert!((slope - difference).abs() < 1e-4, "{slope} instead of {difference}");
    }

    #[test]
    fn steps_lower_a_loss_that_rounding_can_lower() {
        // One row must reproduce its product with one input: offsets decide the sum.
        let scheme = Scheme::new(crate::Bits::TWO, Granularity::group(32).unwrap());
        let w = matrix(64);
        let x: Vec<f32> = (0..64).map(|i| 1.0 + (i % 3) as f32).collect();
        let dot = |w: &[f32]| w.iter().zip(&x).map(|(w, x)| w * x).sum::<f32>();
        let mut rounding = Rounding::new(w.clone(), &[1, 64], &scheme, None).unwrap();
        let error = |r: &Rounding| (dot(&r.values()) - dot(&w)).abs();
        let before = error(&rounding);
        for i in 0..40 {
            let residual = dot(&rounding.values()) - dot(&w);
            let gradient: Vec<f32> = x.iter().map(|x| 2.0 * residual * x).collect();
            let rate = 0.02 * (1.0 - i as f32 / 40.0);
            rounding.step(&gradient, Rate { offset: rate, range: rate / 4.0, momentum: 0.0 });
        }
        assert!(error(&rounding) < 0.5 * before, "{} from {before}", error(&rounding));
    }

    #[test]
    fn a_state_can_be_restored() {
        let scheme = schemes()[0];
        let mut rounding = learned(&scheme);
        let (state, values) = (rounding.learned(), rounding.values());
        rounding.step(&vec![1.0; 144], Rate { offset: 0.5, range: 0.1, momentum: 0.9 });
        assert_ne!(rounding.values(), values);
        rounding.restore(state);
        assert_eq!(rounding.values(), values);
    }

    #[test]
    fn one_scale_for_all_is_refused() {
        let scheme = Scheme::int8().with_granularity(Granularity::Tensor);
        assert!(Rounding::new(matrix(4), &[2, 2], &scheme, None).unwrap_err().to_string().contains("tensor"));
    }
}
