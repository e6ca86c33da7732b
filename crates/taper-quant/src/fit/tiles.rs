//! Groups side by side, so that one search serves as many as a vector has lanes.
//!
//! ```text
//! put, put, put, …   value i of lane l goes to [i, l]        run: one scale and zero point per lane
//! ```
//!
//! Neighbours: the searches themselves are `kernel/encode/search.rs` and `kernel/encode/hqq.rs`.

use crate::kernel::encode::{Encoders, Method, Number, Tile};

/// Most lanes of any table.
const LANES: usize = 16;

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
    filled: usize,
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
        let (low, high, counts, places) = ([0f32; LANES], [0f32; LANES], [1f32; LANES], [0; LANES]);
        let weights = weighted.then(zeros);
        Self { encoders, number, method, values: zeros(), weights, low, high, counts, places, filled: 0 }
    }

    /// Adds a group whose values lie between `low` and `high`; there is room for it.
    pub(crate) fn put(&mut self, place: usize, x: &[f32], weights: Option<&[f32]>, low: f32, high: f32) {
        let lane = self.filled;
        column(&mut self.values, self.encoders.lanes, lane, x);
        if let (Some(all), Some(weights)) = (&mut self.weights, weights) {
            column(all, self.encoders.lanes, lane, weights);
        }
        (self.low[lane], self.high[lane], self.counts[lane]) = (low, high, x.len() as f32);
        self.places[lane] = place;
        self.filled += 1;
    }

    /// True where no group has room.
    pub(crate) fn full(&self) -> bool {
        self.filled == self.encoders.lanes
    }

    /// Searches the groups that wait; those of which no candidate could be judged are not among the result.
    pub(crate) fn run(&mut self) -> impl Iterator<Item = Found> + use<> {
        let (mut scales, mut zeros) = ([0f32; LANES], [0f32; LANES]);
        let filled = std::mem::take(&mut self.filled);
        if filled > 0 {
            // What earlier groups left in other lanes is searched again, and not looked at.
            let tile = Tile {
                number: self.number,
                method: self.method,
                values: &self.values,
                weights: self.weights.as_deref(),
                low: &self.low,
                high: &self.high,
                counts: &self.counts,
            };
            (self.encoders.search)(&tile, &mut scales, &mut zeros);
        }
        let places = self.places;
        (0..filled)
            .map(move |lane| Found { place: places[lane], scale: scales[lane], zero: zeros[lane] })
            .filter(|found| found.scale != 0.0)
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
