//! One weight of Viterbi's algorithm, for states that are shift registers.
//!
//! ```text
//! s = r · 2^(L−K) + j      r: the K oldest bits, which the next weight pushes out      j: what stays
//!
//! cost(s) = best[s >> K] + (x − table[s])²           next[j] = min over r of cost(s)
//! ```
//!
//! Neighbours of a vector are states in turn, which share what came before: `best` is spread over them, 2^K lanes each. Which r
//! was the best is not kept: whoever goes back along the way finds it again from 2^K costs.
//!
//! Neighbours: [`super::lanes`] is what it is written over, [`crate::code::trellis`] goes from weight to weight and back.

use super::lanes::Lanes;

/// Numbers that `best` has besides one per j, so that vectors may reach beyond its end; they do not matter.
pub(crate) const PADDING: usize = 16;

/// The costs so far and the weight that comes.
#[derive(Debug)]
pub(crate) struct Step<'a> {
    /// The value of each of the 2^L states.
    pub(crate) table: &'a [f32],
    /// K, 1 to 6; L is at least 2 K, and L − K at least 4.
    pub(crate) rate: u8,
    pub(crate) x: f32,
    /// One per j, and [`PADDING`].
    pub(crate) best: &'a [f32],
}

impl Step<'_> {
    /// The cost of a state.
    #[inline(always)]
    pub(crate) fn cost(&self, state: usize) -> f32 {
        let error = self.x - self.table[state];
        self.best[state >> self.rate] + error * error
    }
}

/// See [`super::Encoders::viterbi`].
#[inline(always)]
pub(crate) fn step<L: Lanes>(job: &Step<'_>, next: &mut [f32]) {
    match job.rate {
        1 => run::<L, 1>(job, next),
        2 => run::<L, 2>(job, next),
        3 => run::<L, 3>(job, next),
        4 => run::<L, 4>(job, next),
        5 => run::<L, 5>(job, next),
        _ => run::<L, 6>(job, next),
    }
}

#[inline(always)]
fn run<L: Lanes, const K: usize>(job: &Step<'_>, next: &mut [f32]) {
    let (x, ends) = (L::splat(job.x), job.table.len() >> K);
    for j in (0..ends).step_by(L::WIDTH) {
        let mut least = costs::<L, K>(job, x, j);
        for r in 1..1 << K {
            least = costs::<L, K>(job, x, r * ends + j).least(least);
        }
        least.store(&mut next[j..]);
    }
}

/// The costs of states in turn.
#[inline(always)]
fn costs<L: Lanes, const K: usize>(job: &Step<'_>, x: L, state: usize) -> L {
    let error = x - L::load(&job.table[state..]);
    L::spread::<K>(&job.best[state >> K..]) + error * error
}
