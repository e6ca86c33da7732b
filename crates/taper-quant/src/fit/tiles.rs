//! Groups side by side, so that one search serves as many as a vector has lanes.
//!
//! ```text
//! put, put, put, …   value i of lane l goes to [i, l]        run: one scale and zero point per lane that is done
//! ```
//!
//! A search is done with all lanes at once. Half-quadratic fits take from two steps to twenty: where one is done, its lane is
//! free for the next group, and the others go on.
//!
//! Neighbours: the searches themselves are `kernel/encode/search.rs` and `kernel/encode/hqq.rs`.

use crate::kernel::encode::{
    Encoders, LANES, Method, Number, Tile,
    hqq::{Refining, Stage},
};

/// The grid that was found for a group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    /// The number under which the group was put.
    pub(crate) place: usize,
    pub(crate) scale: f32,
    /// The code of zero.
    pub(crate) zero: f32,
}

/// Groups that wait to be searched.
pub(crate) struct Tiles {
    encoders: &'static Encoders,
    number: Number,
    method: Method,
    /// `[depth, lanes]`.
    values: Vec<f32>,
    weights: Option<Vec<f32>>,
    low: [f32; LANES],
    high: [f32; LANES],
    counts: [f32; LANES],
    places: [usize; LANES],
    /// Lanes whose groups wait.
    taken: [bool; LANES],
    refining: Refining,
}

impl Tiles {
    /// For groups of at most `depth` values.
    pub(crate) fn new(
        encoders: &'static Encoders,
        number: Number,
        method: Method,
        depth: usize,
        weighted: bool,
    ) -> Self {
        let zeros = || vec![0f32; depth * encoders.lanes];
        let weights = weighted.then(zeros);
        Self {
            encoders,
            number,
            method,
            values: zeros(),
            weights,
            low: [0.0; LANES],
            high: [0.0; LANES],
            counts: [1.0; LANES],
            places: [0; LANES],
            taken: [false; LANES],
            refining: Refining::default(),
        }
    }

    /// Adds a group whose values lie between `low` and `high`; there is room for it.
    pub(crate) fn put(&mut self, place: usize, x: &[f32], weights: Option<&[f32]>, low: f32, high: f32) {
        let lane = self.taken.iter().position(|taken| !taken).unwrap_or_default();
        column(&mut self.values, self.encoders.lanes, lane, x);
        if let (Some(all), Some(weights)) = (&mut self.weights, weights) {
            column(all, self.encoders.lanes, lane, weights);
        }
        (self.low[lane], self.high[lane], self.counts[lane]) = (low, high, x.len() as f32);
        (self.places[lane], self.taken[lane]) = (place, true);
        self.refining.stages[lane] = Stage::Fresh;
    }

    /// True where no group has room.
    pub(crate) fn full(&self) -> bool {
        self.taken[..self.encoders.lanes].iter().all(|taken| *taken)
    }

    /// Searches the groups that wait until there is room for another; those of which no candidate could be judged are not
    /// among the result.
    pub(crate) fn run(&mut self) -> impl Iterator<Item = Found> + use<> {
        let (mut scales, mut zeros) = ([0f32; LANES], [0f32; LANES]);
        let mut done = [false; LANES];
        if self.taken.contains(&true) {
            // What earlier groups left in other lanes is searched again, and not looked at.
            let tile = Tile {
                number: self.number,
                values: &self.values,
                weights: self.weights.as_deref(),
                low: &self.low,
                high: &self.high,
                counts: &self.counts,
            };
            match self.method {
                Method::Search { steps } => {
                    (self.encoders.search)(&tile, steps, &mut scales, &mut zeros);
                    done = self.taken;
                }
                Method::HalfQuadratic(how) => {
                    (self.encoders.refine)(&tile, how, &mut self.refining, &mut scales, &mut zeros);
                    for ((done, taken), stage) in done.iter_mut().zip(self.taken).zip(self.refining.stages) {
                        *done = taken && stage == Stage::Done;
                    }
                }
            }
            self.taken.iter_mut().zip(done).for_each(|(taken, done)| *taken &= !done);
        }
        let places = self.places;
        (0..LANES)
            .filter(move |&lane| done[lane])
            .map(move |lane| Found { place: places[lane], scale: scales[lane], zero: zeros[lane] })
            .filter(|found| found.scale != 0.0)
    }

    /// Searches all groups that wait.
    pub(crate) fn finish(&mut self) -> impl Iterator<Item = Found> + use<> {
        let mut all = Vec::new();
        while self.taken.contains(&true) {
            all.extend(self.run());
        }
        all.into_iter()
    }
}

/// Writes one lane; zeros below its last value.
fn column(all: &mut [f32], lanes: usize, lane: usize, from: &[f32]) {
    let mut rows = all.chunks_exact_mut(lanes);
    for (value, row) in from.iter().zip(rows.by_ref()) {
        row[lane] = *value;
    }
    rows.for_each(|row| row[lane] = 0.0);
}
