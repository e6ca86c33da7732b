//! Activations rounded to eight bits: integer products and sums within a group, f32 between groups.
//!
//! ```text
//! step = max |x| / 127    a = round(x / step)                                    per token and group
//! y = Σ_groups scale · step · (Σ code · a − center · Σ a)
//! ```
//!
//! A table of levels (NF4) becomes bytes too: 128 + round(127 · level), an error of at most 1/254 of the block's scale.
//! The integers are the same on every machine; f32 sums differ in order between tables. An activation that is not finite
//! makes its step NaN, so the result says so.
//!
//! Neighbours: [`super::exact`] and [`super::bf16`] are the same with other numbers.

use taper_core::kernel::aligned::Aligned;

use super::{Cells, Job, Mode, Panel, held, product};
use crate::{
    fit::ROUND,
    kernel::{
        ActivationScale, CodeForm, Expand, Kernels, PanelCodes, TileI8, Wide,
        tiles::{LANES, Tiles},
    },
};

/// x · Wᵀ: `x` is `[tokens, cols]`, the result `[tokens, rows]`.
pub(crate) fn rounded(
    kernels: &Kernels,
    w: &Tiles,
    x: &[f32],
    tokens: usize,
    scale: ActivationScale,
) -> Vec<f32> {
    let table = w.table.map(|levels| levels.map(|level| (128.0 + (127.0 * level).round()) as u8));
    let mut bytes = Bytes { kernels, w, table, scale, wide: None };
    let nibbles = matches!(bytes.form(), Some(CodeForm::Nibbles));
    bytes.wide = kernels.wide.filter(|_| !nibbles && tokens > 2 * bytes.together(tokens));
    product(kernels, w, &bytes, x, tokens)
}

struct Bytes<'a> {
    kernels: &'a Kernels,
    w: &'a Tiles,
    table: Option<[u8; 16]>,
    scale: ActivationScale,
    /// Set where products are of words.
    wide: Option<Wide>,
}

/// Rounded activations of some tokens.
pub(crate) struct Tile {
    /// `[quads, tokens, 4]`, or as [`Wide`] wants them.
    a: Aligned<i8>,
    /// `[segments, tokens]`.
    steps: Vec<f32>,
    /// `[segments, tokens]`.
    starts: Vec<i32>,
    tokens: usize,
}

impl Bytes<'_> {
    /// How the kernel would read the codes as they are.
    fn form(&self) -> Option<CodeForm<'_>> {
        match (self.w.bits, &self.table) {
            (8, None) => Some(CodeForm::Bytes),
            (4, None) => Some(CodeForm::Nibbles),
            (4, Some(table)) => Some(CodeForm::Table(table)),
            _ => None,
        }
    }

    /// The code of zero: with a table, of its bytes.
    fn offset(&self) -> i32 {
        if self.table.is_some() { 128 } else { self.w.offset.into() }
    }

    /// Bytes of a code and of a rounded activation.
    fn width(&self) -> usize {
        if self.wide.is_some() { 2 } else { 1 }
    }

    fn round(&self, x: &[f32], out: &mut [i8]) -> f32 {
        match self.scale {
            ActivationScale::Dynamic => (self.kernels.quantize)(x, out),
            ActivationScale::Static(step) => {
                let finite = x.iter().fold(true, |finite, x| finite & x.is_finite());
                for (out, x) in out.iter_mut().zip(x) {
                    // Within ±127, so that the low byte is the nearest integer, half to even.
                    *out = (((x / step).clamp(-127.0, 127.0) + ROUND).to_bits() as u8).cast_signed();
                }
                if finite { step } else { f32::NAN }
            }
        }
    }
}

/// A quad as words, even columns first.
fn words([a0, a1, a2, a3]: [i8; 4]) -> [i8; 8] {
    bytemuck::cast([a0, a2, a1, a3].map(i16::from))
}

impl Mode for Bytes<'_> {
    type Word = u8;
    type Tile = Tile;

    /// Panels of 16 KiB, of which two stay near while tokens pass.
    fn depth(&self) -> usize {
        1024
    }

    fn cost(&self, multiplications: usize) -> usize {
        multiplications / 8
    }

    fn together(&self, tokens: usize) -> usize {
        if let Some(wide) = self.wide {
            return wide.tokens;
        }
        let [nibbles, others] = self.kernels.tokens_i8;
        let most = if matches!(self.form(), Some(CodeForm::Nibbles)) { nibbles } else { others };
        held(self.w, tokens, most)
    }

    fn tile(&self, x: &[f32], tokens: usize) -> Tile {
        let (padded, segments) = (self.w.padded, &self.w.segments);
        let mut tile = Tile {
            a: Aligned::zeros(padded * tokens * self.width()),
            steps: vec![0.0; segments.len() * tokens],
            starts: vec![0; segments.len() * tokens],
            tokens,
        };
        // Bytes of a table are 127 times their level.
        let level = if self.table.is_some() { 127.0 } else { 1.0 };
        let factor = if self.w.zeros.is_some() { 1 } else { self.offset() };
        let mut bytes = Aligned::<i8>::zeros(padded);
        for (t, x) in x.chunks_exact(padded).enumerate() {
            for (s, segment) in segments.iter().enumerate() {
                let range = segment.at..segment.at + segment.padded;
                let a = &mut bytes[range.clone()];
                tile.steps[s * tokens + t] = self.round(&x[range], a) / level;
                let sum: i32 = a.iter().map(|&a| i32::from(a)).sum();
                tile.starts[s * tokens + t] = -sum * factor;
            }
            let quads = bytes.as_chunks::<4>().0;
            if self.wide.is_some() {
                let out = tile.a.as_chunks_mut::<8>().0.iter_mut().skip(t).step_by(tokens);
                out.zip(quads).for_each(|(out, quad)| *out = words(*quad));
            } else {
                let out = tile.a.as_chunks_mut::<4>().0.iter_mut().skip(t).step_by(tokens);
                out.zip(quads).for_each(|(out, quad)| *out = *quad);
            }
        }
        tile
    }

    fn words(&self, columns: usize, tiles: &[usize]) -> usize {
        match self.form() {
            _ if self.wide.is_some() => columns * LANES * self.width(),
            Some(CodeForm::Bytes) => 0,
            Some(_) if tiles.len() == 1 || self.kernels.unpacks_along => 0,
            _ => columns * LANES,
        }
    }

    fn expand(&self, panel: &Panel<'_>, out: &mut [u8]) {
        let codes = self.w.codes_from(panel.index, panel.run.columns.start);
        let codes = &codes[..panel.run.columns.len() * LANES * self.w.bits / 8];
        let expand = self.wide.map_or(self.kernels.expand, |wide| wide.expand);
        expand(&Expand { codes, bits: self.w.bits, table: self.table.as_ref() }, out);
    }

    fn multiply(&self, job: &Job<'_, Self>, c: &mut Cells<'_>) {
        let (tokens, tile, width) = (job.tile.tokens, job.tile, self.width());
        let codes = match self.form() {
            Some(form) if job.stride == 0 => PanelCodes {
                bytes: self.w.codes_from(job.index, job.run.columns.start),
                stride: self.w.panel_bytes(),
                form,
            },
            _ => PanelCodes { bytes: job.panels, stride: job.stride, form: CodeForm::Bytes },
        };
        let segments = job.run.segments.start * tokens..job.run.segments.end * tokens;
        let mut grids = job.grids;
        grids.offset = self.offset();
        let tile = TileI8 {
            codes,
            quads: &job.run.quads,
            grids,
            a: &tile.a[job.run.columns.start * tokens * width..job.run.columns.end * tokens * width],
            starts: &tile.starts[segments.clone()],
            steps: &tile.steps[segments],
        };
        self.wide.map_or(self.kernels.tile_i8, |wide| wide.tile)(&tile, c);
    }
}
