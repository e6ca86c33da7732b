//! Activations rounded to bf16, exact products, f32 sums.
//!
//! ```text
//! y = Σ_groups scale · Σ level · bf16(x)        levels of integers are exact in bf16, those of NF4 are rounded to it
//! ```
//!
//! Where a table has no bf16 products, activations and levels are rounded all the same and [`super::exact`] multiplies: the
//! numbers are the same on every machine, up to the order of summation.
//!
//! Neighbours: [`super::exact`] and [`super::int8`] are the same with other numbers.

use half::bf16;

use taper_core::kernel::aligned::Aligned;

use super::{Cells, Job, Mode, Panel, exact, held, product};
use crate::kernel::{
    Bf16, CodeForm, FewBf16, Kernels, Levels, PanelCodes, TileBf16,
    tiles::{LANES, NIBBLE_PAIRS, Tiles},
};

/// x · Wᵀ: `x` is `[tokens, cols]`, the result `[tokens, rows]`.
pub(crate) fn rounded(kernels: &Kernels, w: &Tiles, x: &[f32], tokens: usize) -> Vec<f32> {
    let table = w.table.map(|levels| levels.map(|level| bf16::from_f32(level).to_f32()));
    match kernels.bf16 {
        Some(loops) => {
            // Straight from codes where one table serves all rows.
            let levels = exact::nibble_levels(w, table).filter(|_| w.bits == 4 && tokens <= exact::FEW);
            let levels = levels.map(|levels| levels.map(|level| bf16::from_f32(level).to_bits()));
            product(kernels, w, &Halves { kernels, w, table, levels, loops }, x, tokens)
        }
        None => {
            let x: Vec<f32> = x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
            exact::with_table(kernels, w, table, &x, tokens)
        }
    }
}

struct Halves<'a> {
    kernels: &'a Kernels,
    w: &'a Tiles,
    table: Option<[f32; 16]>,
    /// What nibbles stand for, where they are multiplied as they are.
    levels: Option<[u16; 16]>,
    loops: Bf16,
}

/// Activations of some tokens, `[columns / 2, tokens, 2]`.
pub(crate) struct Tile {
    a: Aligned<u16>,
    tokens: usize,
}

impl Mode for Halves<'_> {
    type Word = u16;
    type Tile = Tile;

    /// Four panels are 128 KiB, a tile of twelve tokens 24 KiB.
    fn depth(&self) -> usize {
        1024
    }

    fn together(&self, tokens: usize) -> usize {
        held(self.w, tokens, self.kernels.tokens)
    }

    fn tile(&self, x: &[f32], tokens: usize) -> Tile {
        let mut a = Aligned::zeros(x.len());
        let columns = x.len() / tokens;
        if self.levels.is_some() {
            for (t, x) in x.chunks_exact(columns).enumerate() {
                let out = a.as_chunks_mut::<2>().0.as_chunks_mut::<4>().0.iter_mut();
                let out = out.flatten().skip(t).step_by(tokens);
                let pairs =
                    x.as_chunks::<8>().0.iter().flat_map(|x| NIBBLE_PAIRS.map(|pair| pair.map(|i| x[i])));
                out.zip(pairs).for_each(|(a, x)| *a = x.map(|x| bf16::from_f32(x).to_bits()));
            }
            return Tile { a, tokens };
        }
        for (run, a) in a.chunks_mut(16 * tokens).enumerate() {
            for (t, x) in x.chunks_exact(columns).enumerate() {
                let pairs = x[run * 16..].as_chunks::<2>().0;
                let out = a.as_chunks_mut::<2>().0.iter_mut().skip(t).step_by(tokens);
                out.zip(pairs).for_each(|(a, x)| *a = x.map(|x| bf16::from_f32(x).to_bits()));
            }
        }
        Tile { a, tokens }
    }

    fn words(&self, columns: usize, _: &[usize]) -> usize {
        if self.levels.is_some() { 0 } else { columns * LANES }
    }

    fn expand(&self, panel: &Panel<'_>, out: &mut [u16]) {
        let levels = self.table.as_ref().map_or(Levels::Integers, Levels::Table);
        exact::expand_float((self.kernels, self.w), levels, panel, (self.loops.expand, out));
    }

    fn multiply(&self, job: &Job<'_, Self>, c: &mut Cells<'_>) {
        let tokens = job.tile.tokens;
        let a = &job.tile.a[job.run.columns.start * tokens..job.run.columns.end * tokens];
        if let Some(levels) = self.levels {
            let codes = PanelCodes {
                bytes: self.w.codes_from(job.index, job.run.columns.start),
                stride: self.w.panel_bytes(),
                form: CodeForm::Nibbles,
            };
            let few = FewBf16 { codes, levels, quads: &job.run.quads, grids: job.grids, a };
            return (self.loops.few)(&few, c);
        }
        let (panels, stride) = (job.panels, job.stride);
        (self.loops.tile)(&TileBf16 { panels, stride, quads: &job.run.quads, grids: job.grids, a }, c);
    }
}
