//! y = x · Wᵀ for weights that are stored as f32, f16 or bfloat16, read where they lie.
//!
//! ```text
//! few tokens    row by row, straight from the weight                      memory sets the pace
//! more          panels, `[depth, lanes]`, made once and used for every tile of tokens, `[depth, tokens]`
//! ```
//!
//! | activations | weights | products | sums |
//! |---|---|---|---|
//! | bf16 | bf16, with AVX512_BF16 | exact; values below 2⁻¹²⁶ count as zero | f32 |
//! | any other | widened to f32 as they are read | rounded once with their sum (fused), on `Isa::Scalar` twice | f32 |
//!
//! So nothing is rounded but sums: the error is at most (cols + 8) · 2⁻²⁴ · Σ |w x|, whatever the types. Each output is
//! summed by one thread in an order that depends on the shapes and the table alone.
//!
//! Neighbours: `table` has the loops, [`super::sheet`] the threads; `impl Weight for Tensor` calls this.

use half::{bf16, f16};
use rayon::prelude::*;

use super::{
    aligned::{Aligned, Number},
    lent::Lent,
    loops::ROWS,
    sheet::{self, Stretch},
    table::{self, Kernels, Loops, Pairs},
};

/// Values of a matrix, row-major, in the type that they are stored in.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half precision.
    F16(&'a [f16]),
    /// bfloat16.
    BF16(&'a [bf16]),
}

impl Values<'_> {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F16(v) => v.len(),
            Self::BF16(v) => v.len(),
        }
    }

    /// True where there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Words of a panel's rows: one or two columns each. Shorter runs of so many rows are slow to read from memory.
const DEPTH: usize = 512;

/// Panels that share one walk over the tokens.
///
/// Many tokens: four panels of 32 rows are 256 KiB, and a tile of twelve tokens 24 KiB. One tile: there is nothing to share,
/// and a single panel stays in a nearer cache. The order of sums is the same.
fn together(tiles: usize) -> usize {
    if tiles == 1 { 1 } else { 4 }
}

/// Most tokens that are multiplied row by row.
const FEW: usize = 8;

/// x · Wᵀ: `w` is `[rows, cols]`, `x` `[tokens, cols]`, the result `[tokens, rows]`. Nothing is copied but panels.
///
/// Panics where the lengths do not fit.
#[must_use]
pub fn product(w: Values<'_>, x: Values<'_>, (tokens, rows, cols): (usize, usize, usize)) -> Vec<f32> {
    product_with(table::active(), w, x, (tokens, rows, cols))
}

pub(super) fn product_with(
    kernels: &Kernels,
    w: Values<'_>,
    x: Values<'_>,
    (tokens, rows, cols): (usize, usize, usize),
) -> Vec<f32> {
    assert!(w.len() == rows * cols, "{} weights are not {rows} rows of {cols}", w.len());
    assert!(x.len() == tokens * cols, "{} activations are not {tokens} tokens of {cols}", x.len());
    if cols == 0 || tokens == 0 {
        return vec![0.0; rows * tokens];
    }
    let shape = Shape { tokens, rows, cols };
    if let (Values::BF16(w), Values::BF16(x), Some(pairs)) = (w, x, kernels.pairs()) {
        return by_plan(&Brains { pairs, w, cols }, x, shape);
    }
    let widened;
    let x = match x {
        Values::F32(x) => x,
        Values::F16(x) => {
            widened = x.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
            &widened
        }
        Values::BF16(x) => {
            widened = x.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
            &widened
        }
    };
    match w {
        Values::F32(w) => by_plan(&Widened { kernels, loops: &kernels.f32, w, cols }, x, shape),
        Values::F16(w) => by_plan(&Widened { kernels, loops: &kernels.f16, w, cols }, x, shape),
        Values::BF16(w) => by_plan(&Widened { kernels, loops: &kernels.bf16, w, cols }, x, shape),
    }
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    tokens: usize,
    rows: usize,
    cols: usize,
}

/// How one pair of types is multiplied.
trait Plan: Sync {
    /// Activations.
    type X: Copy + Sync;
    /// What tiles and panels hold: one or two columns.
    type Word: Number + Send + Sync;
    /// Columns of a word.
    const SPAN: usize;

    /// Rows of a panel, most tokens of a tile.
    fn sizes(&self) -> (usize, usize);
    /// A word of up to `SPAN` activations.
    fn word(x: &[Self::X]) -> Self::Word;
    /// Rows from `first` on, times all tokens: `[tokens, rows]`.
    fn rows(&self, first: usize, count: usize, x: &[Self::X], out: &mut [f32]);
    /// Columns from `start` on of rows from `first` on, turned into a panel.
    fn panel(&self, first: usize, count: usize, start: usize, depth: usize, out: &mut [Self::Word]);
    /// `c += a · panel`.
    fn tile(&self, a: &[Self::Word], panel: &[Self::Word], c: &mut [f32]);
}

/// Weights widened to f32.
struct Widened<'a, T: 'static> {
    kernels: &'a Kernels,
    loops: &'a Loops<T>,
    w: &'a [T],
    cols: usize,
}

impl<T: Copy + Sync> Plan for Widened<'_, T> {
    type X = f32;
    type Word = f32;
    const SPAN: usize = 1;

    fn sizes(&self) -> (usize, usize) {
        (self.kernels.lanes, self.kernels.tokens)
    }

    fn word(x: &[f32]) -> f32 {
        x[0]
    }

    fn rows(&self, first: usize, count: usize, x: &[f32], out: &mut [f32]) {
        (self.loops.rows)(&self.w[first * self.cols..(first + count) * self.cols], self.cols, x, out);
    }

    fn panel(&self, first: usize, count: usize, start: usize, depth: usize, out: &mut [f32]) {
        let w = &self.w[first * self.cols + start..(first + count - 1) * self.cols + start + depth];
        (self.loops.panel)(w, self.cols, depth, out);
    }

    fn tile(&self, a: &[f32], panel: &[f32], c: &mut [f32]) {
        (self.kernels.tile)(a, panel, c);
    }
}

/// Pairs of bfloat16.
struct Brains<'a> {
    pairs: &'a Pairs,
    w: &'a [bf16],
    cols: usize,
}

impl Plan for Brains<'_> {
    type X = bf16;
    type Word = u32;
    const SPAN: usize = 2;

    fn sizes(&self) -> (usize, usize) {
        (self.pairs.lanes, self.pairs.tokens)
    }

    fn word(x: &[bf16]) -> u32 {
        u32::from(x[0].to_bits()) | u32::from(x.get(1).map_or(0, |x| x.to_bits())) << 16
    }

    fn rows(&self, first: usize, count: usize, x: &[bf16], out: &mut [f32]) {
        (self.pairs.rows)(&self.w[first * self.cols..(first + count) * self.cols], self.cols, x, out);
    }

    fn panel(&self, first: usize, count: usize, start: usize, depth: usize, out: &mut [u32]) {
        let w = &self.w[first * self.cols + start..(first + count - 1) * self.cols + start + depth];
        (self.pairs.panel)(w, self.cols, depth, out);
    }

    fn tile(&self, a: &[u32], panel: &[u32], c: &mut [f32]) {
        (self.pairs.tile)(a, panel, c);
    }
}

fn by_plan<P: Plan>(plan: &P, x: &[P::X], shape: Shape) -> Vec<f32> {
    let cost = shape.cols * shape.tokens;
    if shape.tokens <= FEW {
        return sheet::fill(shape.tokens, shape.rows, ROWS, cost, |out| by_rows(plan, x, shape.tokens, out));
    }
    let (lanes, most) = plan.sizes();
    let sizes = tiles(shape.tokens, most);
    let a = pack::<P>(x, shape.cols, &sizes);
    let together = together(sizes.len());
    sheet::gather(shape.tokens, shape.rows, [together * lanes, lanes, lanes], cost, |place| {
        panels(plan, &a, &sizes, shape, (place.first, place.len))
    })
}

fn by_rows<P: Plan>(plan: &P, x: &[P::X], tokens: usize, out: &mut Stretch<'_>) {
    let mut block = [0f32; ROWS * FEW];
    for start in (0..out.len).step_by(ROWS) {
        let count = ROWS.min(out.len - start);
        let block = &mut block[..count * tokens];
        plan.rows(out.first + start, count, x, block);
        for (token, values) in block.chunks_exact(count).enumerate() {
            out.of(token)[start..start + count].copy_from_slice(values);
        }
    }
}

/// Tokens of each tile: as even as they can be, so that none is nearly empty.
fn tiles(tokens: usize, most: usize) -> Vec<usize> {
    let count = tokens.div_ceil(most);
    (0..count).map(|i| (i + 1) * tokens / count - i * tokens / count).collect()
}

/// Activations as tiles want them: of each tile `[words, tokens]`.
fn pack<P: Plan>(x: &[P::X], cols: usize, sizes: &[usize]) -> Aligned<P::Word> {
    let words = cols.div_ceil(P::SPAN);
    let mut a = Aligned::zeros(words * sizes.iter().sum::<usize>());
    let (mut rest, mut parts, mut x) = (&mut a[..], vec![], x);
    for &tokens in sizes {
        let (out, more) = rest.split_at_mut(words * tokens);
        let (part, others) = x.split_at(tokens * cols);
        parts.push((part, out));
        (rest, x) = (more, others);
    }
    let one = |(x, out): (&[P::X], &mut [P::Word])| {
        let tokens = x.len() / cols;
        for (word, out) in out.chunks_exact_mut(tokens).enumerate() {
            let (start, end) = (word * P::SPAN, ((word + 1) * P::SPAN).min(cols));
            for (token, out) in out.iter_mut().enumerate() {
                *out = P::word(&x[token * cols + start..token * cols + end]);
            }
        }
    };
    parts.into_par_iter().for_each(one);
    a
}

/// Some panels times all tokens: `[panels, tokens, lanes]`.
fn panels<P: Plan>(
    plan: &P,
    a: &[P::Word],
    sizes: &[usize],
    shape: Shape,
    (first, rows): (usize, usize),
) -> Lent<f32> {
    let (lanes, _) = plan.sizes();
    let (count, tokens, words) = (rows.div_ceil(lanes), shape.tokens, shape.cols.div_ceil(P::SPAN));
    let mut c = Lent::zeros(count * tokens * lanes);
    let mut made = Lent::<P::Word>::new(count * lanes * DEPTH);
    for start in (0..words).step_by(DEPTH) {
        let run = DEPTH.min(words - start);
        let size = run * lanes;
        let columns = (start * P::SPAN, (run * P::SPAN).min(shape.cols - start * P::SPAN));
        for p in 0..count {
            let present = lanes.min(rows - p * lanes);
            plan.panel(first + p * lanes, present, columns.0, columns.1, &mut made[p * size..(p + 1) * size]);
        }
        let mut token = 0;
        for &tile in sizes {
            let a = &a[token * words + start * tile..][..run * tile];
            for (p, panel) in made.chunks_exact(size).take(count).enumerate() {
                let c = &mut c[(p * tokens + token) * lanes..][..tile * lanes];
                plan.tile(a, panel, c);
            }
            token += tile;
        }
    }
    c
}
