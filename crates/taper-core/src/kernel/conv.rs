//! Convolutions as products, and depthwise ones directly.
//!
//! ```text
//! patches      [images, channels, h, w] ─▶ [images · pixels, channels · kh · kw]     a row per output pixel, for a product
//! depthwise    out[y, ·] = Σ_taps w_tap · padded[y + dy, dx + ·]                     rows of pixels side by side
//! ```
//!
//! Neighbours: [`super::dense`] and the products of encoded weights multiply patches; `nn::conv` puts both together.

use rayon::prelude::*;
use std::ops::Range;

use super::{sheet, table};

/// One convolution's geometry; pairs are rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Size of an input plane.
    pub input: (usize, usize),
    /// Size of the kernel; at least 1 each.
    pub kernel: (usize, usize),
    /// Step; at least 1 each.
    pub stride: (usize, usize),
    /// Distance of two taps; at least 1 each.
    pub dilation: (usize, usize),
    /// Zeros at the top, left, bottom and right.
    pub padding: (usize, usize, usize, usize),
}

impl Window {
    /// Size of an output plane; `None` where the kernel is larger than the padded input.
    #[must_use]
    pub fn output(&self) -> Option<(usize, usize)> {
        let (height, width) = self.padded();
        let along = |size: usize, kernel: usize, dilation: usize, stride: usize| {
            Some((size.checked_sub((kernel - 1) * dilation + 1)?) / stride + 1)
        };
        Some((
            along(height, self.kernel.0, self.dilation.0, self.stride.0)?,
            along(width, self.kernel.1, self.dilation.1, self.stride.1)?,
        ))
    }

    fn padded(&self) -> (usize, usize) {
        let (top, left, bottom, right) = self.padding;
        (self.input.0 + top + bottom, self.input.1 + left + right)
    }

    /// A plane with its zeros around, into `out`, which already holds the zeros.
    fn pad(&self, plane: &[f32], out: &mut [f32]) {
        let ((_, width), (top, left, ..)) = (self.padded(), self.padding);
        for (y, row) in plane.chunks_exact(self.input.1.max(1)).enumerate() {
            out[(y + top) * width + left..][..row.len()].copy_from_slice(row);
        }
    }

    /// Distance of each tap from the first, in a padded plane.
    fn taps(&self) -> Vec<usize> {
        let width = self.padded().1;
        let row =
            |y: usize| (0..self.kernel.1).map(move |x| y * self.dilation.0 * width + x * self.dilation.1);
        (0..self.kernel.0).flat_map(row).collect()
    }
}

/// Some channels of images `[images, all, h, w]` as one row per output pixel, `[images · pixels, channels · kh · kw]`.
///
/// Panics where the window does not fit its input or `x` is not whole images.
#[must_use]
pub fn patches(x: &[f32], all: usize, channels: Range<usize>, window: &Window) -> Vec<f32> {
    let (height, width) = window.output().expect("a window that fits its input");
    let plane = window.input.0 * window.input.1;
    let image = plane * all;
    assert!(image > 0 && x.len().is_multiple_of(image), "{} values are not images of {image}", x.len());
    let (padded_height, padded_width) = window.padded();
    let (size, count, images) = (padded_height * padded_width, channels.len(), x.len() / image);
    let mut padded = vec![0f32; images * count * size];
    padded.par_chunks_mut((size * count).max(1)).zip(x.par_chunks_exact(image)).for_each(|(out, x)| {
        let planes = x[channels.start * plane..channels.end * plane].chunks_exact(plane);
        planes.zip(out.chunks_exact_mut(size)).for_each(|(x, out)| window.pad(x, out));
    });
    let taps = window.taps();
    let columns = count * taps.len();
    let mut out = vec![0f32; images * height * width * columns];
    out.par_chunks_mut((width * columns).max(1)).enumerate().for_each(|(row, out)| {
        let (image, y) = (row / height, row % height);
        let planes = &padded[image * count * size..(image + 1) * count * size];
        for (x, out) in out.chunks_exact_mut(columns).enumerate() {
            let first = y * window.stride.0 * padded_width + x * window.stride.1;
            for (plane, out) in planes.chunks_exact(size).zip(out.chunks_exact_mut(taps.len())) {
                let from = &plane[first..];
                out.iter_mut().zip(&taps).for_each(|(out, tap)| *out = from[*tap]);
            }
        }
    });
    out
}

/// A convolution whose outputs see one channel each: `x` is `[images · channels, h, w]`, `w` `[channels · m, kh, kw]`,
/// the result `[images, channels · m, h', w']`.
///
/// Panics where the window does not fit its input or the lengths do not fit.
#[must_use]
pub fn depthwise(x: &[f32], w: &[f32], channels: usize, window: &Window) -> Vec<f32> {
    let (height, width) = window.output().expect("a window that fits its input");
    let (plane, kernel) = (window.input.0 * window.input.1, window.kernel.0 * window.kernel.1);
    assert!(plane > 0 && x.len().is_multiple_of(plane * channels), "{} values are not images", x.len());
    assert!(w.len().is_multiple_of(kernel * channels), "{} weights are not whole kernels", w.len());
    let (images, outputs) = (x.len() / plane / channels, w.len() / kernel);
    let (padded_height, padded_width) = window.padded();
    let (taps, loops) = (window.taps(), table::active());
    let planes = images * outputs;
    let cost = height * width * kernel;
    sheet::fill_planes(planes, height * width, cost, |index, out| {
        let (image, output) = (index / outputs, index % outputs);
        let from = (image * channels + output / (outputs / channels)) * plane;
        let mut padded = vec![0f32; padded_height * padded_width];
        window.pad(&x[from..from + plane], &mut padded);
        let w = &w[output * kernel..(output + 1) * kernel];
        let mut whole = vec![0f32; (width - 1) * window.stride.1 + 1];
        for (y, out) in out.chunks_exact_mut(width).enumerate() {
            let rows = &padded[y * window.stride.0 * padded_width..];
            if window.stride.1 == 1 {
                (loops.taps)(rows, &taps, w, out);
                continue;
            }
            (loops.taps)(rows, &taps, w, &mut whole);
            out.iter_mut().zip(whole.iter().step_by(window.stride.1)).for_each(|(out, v)| *out = *v);
        }
    })
}

/// `[rows, columns]` turned over, in blocks that caches hold.
#[must_use]
pub fn transpose(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    assert!(x.len() == rows * columns, "{} values are not {rows} rows of {columns}", x.len());
    const BLOCK: usize = 16;
    let mut out = vec![0f32; x.len()];
    out.par_chunks_mut((BLOCK * rows).max(1)).enumerate().for_each(|(block, out)| {
        for start in (0..rows).step_by(BLOCK) {
            let run = BLOCK.min(rows - start);
            for (column, out) in out.chunks_exact_mut(rows).enumerate() {
                let from = &x[start * columns + block * BLOCK + column..];
                let values = from.iter().step_by(columns);
                out[start..start + run].iter_mut().zip(values).for_each(|(out, v)| *out = *v);
            }
        }
    });
    out
}
