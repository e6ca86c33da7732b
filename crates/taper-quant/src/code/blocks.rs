//! NF4: blocks of values to nibbles and scales, many blocks per task.
//!
//! ```text
//! values ─▶ widen ─▶ peaks ─▶ search ─▶ codes ─▶ nibbles       in one go, unless a search has to see nested scales first
//! ```
//!
//! Neighbours: [`super::nf4`] is the format, [`super::rows`] does the same for integers.

use rayon::prelude::*;
use std::mem::MaybeUninit;

use super::{
    STRETCH,
    nested::Nested,
    nf4::{self, Absmax, BlockScales, Nf4Scheme, Quantiles, ZERO_CODE},
    normalized,
    rows::row_count,
};
use crate::{
    Error, Result,
    fit::{Fit, Sample, Tiles, search},
    kernel::encode::{
        Encoders, Method, Number,
        fresh::{Fresh, Memory, Piece},
    },
    values::Values,
};

/// What all blocks have in common.
struct Work<'a> {
    encoders: &'static Encoders,
    block: usize,
    fit: &'a Fit,
    /// Repeats with every row.
    weights: Option<&'a [f32]>,
}

/// Some blocks and where their results go.
struct Task<'a> {
    /// The index of the first value.
    start: usize,
    values: Values<'a>,
    scales: Option<Piece<'a, f32>>,
    codes: Option<Piece<'a, u8>>,
}

/// Codes, in memory of kind `M`, and scales.
pub(crate) fn encode<M: Memory<u8>>(
    encoders: &'static Encoders,
    values: Values<'_>,
    cols: usize,
    scheme: Nf4Scheme,
    fit: &Fit,
    importance: Option<&[f32]>,
) -> Result<(M::Filled, Absmax)> {
    nf4::check_fit(fit)?;
    row_count(values.len(), cols)?;
    let weights = match normalized(importance, cols) {
        // Values are looked at first.
        Err(error) => return Err(values.check_finite().err().unwrap_or(error)),
        Ok(weights) => weights,
    };
    let work = Work { encoders, block: scheme.block.get(), fit, weights: weights.as_deref() };
    // bitsandbytes chooses codes before it quantizes the scales; a search knows better.
    let late = scheme.scales == BlockScales::Double && matches!(fit, Fit::Search(_));
    let mut codes = Fresh::<M>::new(values.len().div_ceil(2));
    let mut scales = Fresh::<Box<[MaybeUninit<f32>]>>::new(values.len().div_ceil(work.block));
    // Two blocks are a whole number of bytes.
    let blocks = 2 * (STRETCH / 2).div_ceil(work.block);
    let mut code_pieces = (!late).then(|| codes.pieces(blocks * work.block / 2));
    let tasks: Vec<Task<'_>> = scales
        .pieces(blocks)
        .enumerate()
        .map(|(i, scales)| Task {
            start: i * blocks * work.block,
            values: values.part(i * blocks * work.block..(i + 1) * blocks * work.block),
            scales: Some(scales),
            codes: code_pieces.as_mut().and_then(Iterator::next),
        })
        .collect();
    drop(code_pieces);
    let finite = tasks
        .into_par_iter()
        .map_init(Scratch::default, |scratch, task| work.task(task, &|_| None, scratch))
        .reduce(|| true, |a, b| a & b);
    if !finite {
        values.check_finite()?;
    }
    let lost = || Error::Empty { shape: vec![values.len()] };
    let scales = scales.finish().ok_or_else(lost)?;
    let absmax = match scheme.scales {
        BlockScales::Plain => Absmax::Plain(scales),
        BlockScales::Double => Absmax::Nested(Nested::encode(&scales)),
    };
    if late {
        let tasks: Vec<Task<'_>> = codes
            .pieces(blocks * work.block / 2)
            .enumerate()
            .map(|(i, codes)| Task {
                start: i * blocks * work.block,
                values: values.part(i * blocks * work.block..(i + 1) * blocks * work.block),
                scales: None,
                codes: Some(codes),
            })
            .collect();
        let chosen = |block: usize| Some(absmax.get(block));
        tasks.into_par_iter().for_each_init(Scratch::default, |scratch, task| {
            work.task(task, &chosen, scratch);
        });
    }
    Ok((codes.finish().ok_or_else(lost)?, absmax))
}

/// What a thread writes to on the way.
#[derive(Default)]
struct Scratch {
    wide: Vec<f32>,
    scales: Vec<f32>,
    codes: Vec<u8>,
}

impl Work<'_> {
    /// False where a value is not finite. Scales are fitted where `chosen` does not know them.
    fn task(&self, task: Task<'_>, chosen: &dyn Fn(usize) -> Option<f32>, scratch: &mut Scratch) -> bool {
        let Scratch { wide, scales, codes } = scratch;
        let x = task.values.widened(self.encoders, wide);
        scales.clear();
        scales.resize(x.len().div_ceil(self.block), 0.0);
        if let Some(kept) = task.scales {
            if !(self.encoders.peaks)(x, self.block, scales) {
                return false;
            }
            if let Fit::Search(options) = self.fit {
                self.search(options.steps, task.start, x, scales);
            }
            kept.clear(0.0).copy_from_slice(scales);
        } else {
            let first = task.start / self.block;
            for (b, scale) in scales.iter_mut().enumerate() {
                *scale = chosen(first + b).unwrap_or(0.0);
            }
        }
        if let Some(out) = task.codes {
            codes.clear();
            codes.resize(x.len().next_multiple_of(2), ZERO_CODE);
            for ((x, codes), &scale) in x.chunks(self.block).zip(codes.chunks_mut(self.block)).zip(&*scales) {
                if scale == 0.0 {
                    codes[..x.len()].fill(ZERO_CODE);
                } else {
                    (self.encoders.levels)(x, scale, &mut codes[..x.len()]);
                }
            }
            (self.encoders.pack_high)(codes, out.clear(0));
        }
        true
    }

    /// Replaces peaks by searched scales.
    fn search(&self, steps: u16, start: usize, x: &[f32], scales: &mut [f32]) {
        let weighted = self.weights.is_some();
        let depth = self.block.min(x.len());
        let mut tiles = (depth <= search::LONGEST)
            .then(|| Tiles::new(self.encoders, Number::Quantiles, Method::Search { steps }, depth, weighted));
        let mut weights = Vec::new();
        let last = scales.len().saturating_sub(1);
        for (b, x) in x.chunks(self.block).enumerate() {
            let peak = scales[b];
            if let Some(all) = self.weights {
                let at = start + b * self.block;
                weights.clear();
                weights.extend((at..at + x.len()).map(|i| all[i % all.len()]));
            }
            let weights = weighted.then_some(&weights[..]);
            match &mut tiles {
                Some(tiles) => {
                    if search::searchable(0.0, peak) {
                        tiles.put(b, x, weights, 0.0, peak);
                    }
                    if tiles.full() || b == last {
                        tiles.run().for_each(|found| scales[found.place] = found.scale);
                    }
                }
                None => {
                    let sample = Sample::weighted(x, weights);
                    scales[b] = search::unit_scale(sample, peak, Quantiles, steps).unwrap_or(peak);
                }
            }
        }
    }
}
