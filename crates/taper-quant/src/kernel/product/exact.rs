//! f32 activations: the weight is decoded, nothing else is rounded but f32 products and sums.
//!
//! ```text
//! few tokens    straight from the codes: levels times activations, a group's sum times its scale
//! more          panels of decoded weights, `[columns, 16]`, times tiles of activations, `[columns, tokens]`
//! ```
//!
//! Error against the exact sum: at most (cols + 8) · 2⁻²⁴ · Σ |w x|, as for any f32 sum.
//!
//! Neighbours: [`super::int8`] and [`super::bf16`] are the same with rounded activations.

use taper_core::kernel::{aligned::Aligned, lent::Lent};

use super::{Cells, Job, Mode, Panel, product};
use crate::kernel::{
    CodeForm, Expand, ExpandFloat, FewF32, Kernels, Levels, PanelCodes,
    tiles::{LANES, Tiles},
};

/// Most tokens that are multiplied straight from codes.
pub(super) const FEW: usize = 12;

/// x · Wᵀ: `x` is `[tokens, cols]`, the result `[tokens, rows]`.
pub(crate) fn exact(kernels: &Kernels, w: &Tiles, x: &[f32], tokens: usize) -> Vec<f32> {
    with_table(kernels, w, w.table, x, tokens)
}

/// As [`exact`], with other levels than the weight's own.
pub(super) fn with_table(
    kernels: &Kernels,
    w: &Tiles,
    table: Option<[f32; 16]>,
    x: &[f32],
    tokens: usize,
) -> Vec<f32> {
    let levels = nibble_levels(w, table);
    product(kernels, w, &Floats { kernels, w, levels }, x, tokens)
}

/// What four-bit codes stand for before the scale, where that is the same in all rows.
pub(super) fn nibble_levels(w: &Tiles, table: Option<[f32; 16]>) -> Option<[f32; 16]> {
    match (table, &w.zeros) {
        _ if w.bits != 4 => table,
        (Some(table), _) => Some(table),
        (None, None) => Some(std::array::from_fn(|code| code as f32 - f32::from(w.offset))),
        (None, Some(_)) => None,
    }
}

struct Floats<'a> {
    kernels: &'a Kernels,
    w: &'a Tiles,
    /// What nibbles stand for, where no center must be taken away.
    levels: Option<[f32; 16]>,
}

/// Activations of some tokens, `[columns, tokens]`.
pub(crate) struct Tile {
    a: Aligned<f32>,
    tokens: usize,
}

impl Floats<'_> {
    fn levels(&self) -> Levels<'_> {
        self.levels.as_ref().map_or(Levels::Integers, Levels::Table)
    }
}

/// Turns `[tokens, columns]` into `[columns, tokens]`.
pub(super) fn by_column(x: &[f32], tokens: usize) -> Aligned<f32> {
    let mut a = Aligned::zeros(x.len());
    let columns = x.len() / tokens;
    // Sixteen columns at a time, so that both sides stay in the nearest cache.
    for (run, a) in a.chunks_mut(16 * tokens).enumerate() {
        for (t, x) in x.chunks_exact(columns).enumerate() {
            a.iter_mut().skip(t).step_by(tokens).zip(&x[run * 16..]).for_each(|(a, x)| *a = *x);
        }
    }
    a
}

/// A kernel that decodes a panel to numbers.
type ExpandTo<T> = fn(&ExpandFloat<'_>, &mut [T]);

/// Decodes one panel of a run to bytes, then to numbers.
pub(super) fn expand_float<T>(
    (kernels, w): (&Kernels, &Tiles),
    levels: Levels<'_>,
    panel: &Panel<'_>,
    (expand, out): (ExpandTo<T>, &mut [T]),
) {
    let columns = &panel.run.columns;
    let codes = &w.codes_from(panel.index, columns.start)[..columns.len() * LANES * w.bits / 8];
    let mut bytes = Lent::<u8>::new(if w.bits == 8 { 0 } else { columns.len() * LANES });
    let codes = if w.bits == 8 {
        codes
    } else {
        (kernels.expand)(&Expand { codes, bits: w.bits, table: None }, &mut bytes);
        &bytes
    };
    let grids = panel.grids;
    let (quads, scales) = (&panel.run.quads, grids.scales);
    expand(&ExpandFloat { codes, levels, quads, scales, offset: grids.offset, centers: grids.centers }, out);
}

impl Mode for Floats<'_> {
    type Word = f32;
    type Tile = Tile;

    /// Four panels are 128 KiB, a tile of twelve tokens 24 KiB.
    fn depth(&self) -> usize {
        512
    }

    fn together(&self, _: usize) -> usize {
        self.kernels.tokens
    }

    fn tile(&self, x: &[f32], tokens: usize) -> Tile {
        Tile { a: by_column(x, tokens), tokens }
    }

    fn words(&self, columns: usize, tiles: &[usize]) -> usize {
        let few = self.kernels.few_f32.is_some() && matches!(self.w.bits, 4 | 8) && tiles.len() == 1;
        if few && tiles[0] <= FEW { 0 } else { columns * LANES }
    }

    fn expand(&self, panel: &Panel<'_>, out: &mut [f32]) {
        expand_float((self.kernels, self.w), self.levels(), panel, (self.kernels.expand_f32, out));
    }

    fn multiply(&self, job: &Job<'_, Self>, c: &mut Cells<'_>) {
        let tokens = job.tile.tokens;
        let x = &job.tile.a[job.run.columns.start * tokens..job.run.columns.end * tokens];
        let Some(few) = self.kernels.few_f32.filter(|_| job.stride == 0) else {
            return (self.kernels.tile_f32)(x, job.panels, job.stride, c);
        };
        let codes = PanelCodes {
            bytes: self.w.codes_from(job.index, job.run.columns.start),
            stride: self.w.panel_bytes(),
            form: if self.w.bits == 8 { CodeForm::Bytes } else { CodeForm::Nibbles },
        };
        few(&FewF32 { codes, levels: self.levels(), quads: &job.run.quads, grids: job.grids, x }, c);
    }
}
