//! x · Wᵀ over tiles: one walk for every arithmetic.
//!
//! ```text
//! for each block of up to four panels (64 rows), in parallel
//!   for each run of segments (a few thousand columns)
//!     expand the panels of the run, unless the kernel reads codes as they are
//!     for each tile of up to twelve tokens: multiply by two panels at a time
//! ```
//!
//! A run's panels stay in the second-level cache while all tokens pass; a tile's activations stay in the first. Every
//! output is summed by one thread in one order, whatever the number of threads.
//!
//! Neighbours: [`exact`], [`bf16`] and [`int8`] say what is expanded and multiplied; [`super::tiles`] is what they read.

pub(crate) mod bf16;
pub(crate) mod exact;
pub(crate) mod int8;

use rayon::prelude::*;
use std::{borrow::Cow, ops::Range};

use taper_core::kernel::{aligned::Number, lent::Lent, sheet};

use super::{
    Cells, Kernels, PanelGrids,
    tiles::{LANES, Segment, Tiles},
};

/// Panels of a block.
const PANELS: usize = 4;

/// What differs between arithmetics.
pub(crate) trait Mode: Sync {
    /// What expanded panels are made of.
    type Word: Number;
    /// Activations of some tokens, as the kernel wants them.
    type Tile: Send + Sync;

    /// Columns of a run.
    fn depth(&self) -> usize;

    /// How many multiplications of f32 take as long as so many of these.
    fn cost(&self, multiplications: usize) -> usize {
        multiplications / 2
    }

    /// Most tokens of a tile, of `tokens` in all.
    fn together(&self, tokens: usize) -> usize;

    /// Packs activations `[tokens, padded columns]`.
    fn tile(&self, x: &[f32], tokens: usize) -> Self::Tile;

    /// Words of an expanded panel; 0 where the kernel reads the codes for so many tokens as they are.
    fn words(&self, columns: usize, tiles: &[usize]) -> usize;

    /// Expands one panel of a run.
    fn expand(&self, panel: &Panel<'_>, out: &mut [Self::Word]);

    /// Multiplies a tile by panels.
    fn multiply(&self, job: &Job<'_, Self>, c: &mut Cells<'_>);
}

/// One panel of a run.
pub(crate) struct Panel<'a> {
    pub(crate) index: usize,
    pub(crate) run: &'a Run,
    pub(crate) grids: PanelGrids<'a>,
}

/// Some panels of a run and a tile.
pub(crate) struct Job<'a, M: Mode + ?Sized> {
    /// First panel.
    pub(crate) index: usize,
    pub(crate) run: &'a Run,
    /// Expanded, as many as [`Mode::words`] says for each panel.
    pub(crate) panels: &'a [M::Word],
    /// Words from one panel to the next.
    pub(crate) stride: usize,
    pub(crate) grids: PanelGrids<'a>,
    pub(crate) tile: &'a M::Tile,
}

/// Segments that are expanded and multiplied together.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) segments: Range<usize>,
    /// Padded columns.
    pub(crate) columns: Range<usize>,
    /// Quads of each segment.
    pub(crate) quads: Vec<u32>,
}

/// Whole segments of about `depth` columns together.
fn runs(segments: &[Segment], depth: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (i, segment) in segments.iter().enumerate() {
        let end = segment.at + segment.padded;
        let quads = (segment.padded / 4) as u32;
        match runs.last_mut() {
            Some(run) if end - run.columns.start <= depth => {
                (run.segments.end, run.columns.end) = (i + 1, end);
                run.quads.push(quads);
            }
            _ => runs.push(Run { segments: i..i + 1, columns: segment.at..end, quads: vec![quads] }),
        }
    }
    runs
}

/// Tokens per tile: as few tiles as `most` allows, of nearly the same size; they add up to `tokens`.
fn tile_sizes(tokens: usize, most: usize) -> Vec<usize> {
    let count = tokens.div_ceil(most);
    (0..count).map(|i| (i + 1) * tokens / count - i * tokens / count).collect()
}

/// Tokens of a tile that may have `most`: half of twelve where the sums of short groups are scaled so often that they must
/// stay in registers, beside the integer or unscaled ones.
fn held(w: &Tiles, tokens: usize, most: usize) -> usize {
    let short = w.segments.len() > 1 && w.segments.iter().all(|segment| segment.len <= 64);
    if most == 12 && tokens > most && short { 6 } else { most }
}

/// Activations in the order of the tiles, every segment padded with zeros: `[tokens, padded]`.
fn arranged<'a>(w: &Tiles, x: &'a [f32]) -> Cow<'a, [f32]> {
    if w.order.is_none() && w.padded == w.cols {
        return Cow::Borrowed(x);
    }
    let mut out = vec![0f32; x.len() / w.cols * w.padded];
    for (out, x) in out.chunks_exact_mut(w.padded).zip(x.chunks_exact(w.cols)) {
        for segment in &w.segments {
            let out = &mut out[segment.at..segment.at + segment.len];
            match &w.order {
                None => out.copy_from_slice(&x[segment.start..segment.start + segment.len]),
                Some(order) => {
                    let columns = &order[segment.start..];
                    out.iter_mut().zip(columns).for_each(|(out, column)| *out = x[*column as usize]);
                }
            }
        }
    }
    Cow::Owned(out)
}

/// x · Wᵀ: `x` is `[tokens, cols]`, the result `[tokens, rows]`.
fn product<M: Mode>(kernels: &Kernels, w: &Tiles, mode: &M, x: &[f32], tokens: usize) -> Vec<f32> {
    if w.cols == 0 || tokens == 0 {
        return vec![0.0; w.rows * tokens];
    }
    let x = arranged(w, x);
    let sizes = tile_sizes(tokens, mode.together(tokens));
    let mut rest = &x[..];
    let mut parts = Vec::with_capacity(sizes.len());
    for &size in &sizes {
        let (part, more) = rest.split_at(size * w.padded);
        parts.push((part, size));
        rest = more;
    }
    let tiles: Vec<M::Tile> = match x.len() {
        ..65_536 => parts.into_iter().map(|(x, size)| mode.tile(x, size)).collect(),
        _ => parts.into_par_iter().map(|(x, size)| mode.tile(x, size)).collect(),
    };
    let direct = mode.words(LANES, &sizes) == 0;
    let walk = Walk {
        kernels,
        w,
        mode,
        runs: runs(&w.segments, if direct && tiles.len() == 1 { usize::MAX } else { mode.depth() }),
        sizes: &sizes,
        tiles: &tiles,
        tokens,
    };
    let block = PANELS * LANES;
    sheet::gather(tokens, w.rows, [block, block, LANES], mode.cost(w.cols * tokens), |place| {
        walk.block(place.first / LANES, place.len.div_ceil(LANES))
    })
}

/// Everything that blocks share.
struct Walk<'a, M: Mode> {
    kernels: &'a Kernels,
    w: &'a Tiles,
    mode: &'a M,
    runs: Vec<Run>,
    sizes: &'a [usize],
    tiles: &'a [M::Tile],
    tokens: usize,
}

impl<M: Mode> Walk<'_, M> {
    /// Up to [`PANELS`] panels times all tokens: `[panels, tokens, 16]`.
    fn block(&self, first: usize, panels: usize) -> Lent<f32> {
        let (w, tokens) = (self.w, self.tokens);
        let each = w.segments.len() * LANES;
        let mut c = Lent::zeros(panels * tokens * LANES);
        let mut scales = Lent::new(panels * each);
        w.segment_scales(self.kernels, first, &mut scales);
        let centers = w.segment_centers(first, panels);
        let grids = PanelGrids {
            scales: &scales,
            stride: each,
            offset: w.offset.into(),
            centers: centers.as_deref(),
        };
        for run in &self.runs {
            let stride = self.mode.words(run.columns.len(), self.sizes);
            let mut words = Lent::new(panels * stride);
            for p in (0..panels).filter(|_| stride > 0) {
                let panel = Panel { index: first + p, run, grids: grids.from(p, &run.segments) };
                self.mode.expand(&panel, &mut words[p * stride..(p + 1) * stride]);
            }
            for (p, together) in groups_of_panels(panels, self.sizes[0]) {
                let mut token = 0;
                for (tile, &size) in self.tiles.iter().zip(self.sizes) {
                    let job = Job {
                        index: first + p,
                        run,
                        panels: &words[p * stride..],
                        stride,
                        grids: grids.from(p, &run.segments),
                        tile,
                    };
                    let values = &mut c[(p * tokens + token) * LANES..];
                    let mut cells = Cells { values, stride: tokens * LANES, panels: together, tokens: size };
                    self.mode.multiply(&job, &mut cells);
                    token += size;
                }
            }
        }
        c
    }
}

/// First panel and count: four at a time for one or two tokens, else two, and what remains one by one.
fn groups_of_panels(panels: usize, tokens: usize) -> impl Iterator<Item = (usize, usize)> {
    let most = if tokens <= 2 { 4 } else { 2 };
    let mut next = 0;
    std::iter::from_fn(move || {
        let left = panels - next;
        let count = match left {
            0 => return None,
            4.. if most == 4 => 4,
            2.. => 2,
            _ => 1,
        };
        next += count;
        Some((next - count, count))
    })
}

impl<'a> PanelGrids<'a> {
    /// From a panel on, and from the first of some segments on.
    fn from(self, panel: usize, segments: &Range<usize>) -> Self {
        let at = panel * self.stride + segments.start * LANES;
        Self { scales: &self.scales[at..], centers: self.centers.map(|centers| &centers[at..]), ..self }
    }
}
