//! Attention over keys and values of eight or four bits, read as they are packed.
//!
//! ```text
//! scores_j = Σ_i q_i low_i + Σ_i (q_i step_i) code_ij      out_c = Σ_j w_j low_j + Σ_j (w_j step_j) code_jc
//!
//! positions   0 … 31 │ 32 … 63 │ 64 … p
//!             packed │ packed  │ f32        until position 95 makes the block whole
//! ```
//!
//! A query at position p reads a block packed if p ends it or lies behind it. So what a query sees depends on where it is
//! alone: a prompt at one go, in pieces, or token by token gives the same bits. The f32 of a prompt is let go of when the
//! prompt has been attended to. Neighbours: [`super::block`] has the grids; [`super`] is the same over f32.

use rayon::prelude::*;
use std::marker::PhantomData;

use super::{
    ALONE, Heads, POSITIONS, Turn,
    block::{BLOCK, Block, Bytes, CodeBits, Codes, Fresh, Grid, Lanes, Nibbles, Packed},
    folded, turned,
};
use crate::kernel::{smooth::exp, widest};

/// Blocks for which room is made at once: 256 positions.
const GROWTH: usize = 8;

/// Keys and values of the positions so far, all but the newest packed.
#[derive(Debug, Clone)]
pub(crate) struct PackedSeen {
    bits: CodeBits,
    dim: usize,
    heads: Vec<Head>,
    len: usize,
}

/// What one head of keys and values has seen in one text.
#[derive(Debug, Clone, Default)]
struct Head {
    /// Whole blocks.
    codes: Vec<u8>,
    grids: Vec<Grid>,
    /// The block that is not whole; while a prompt is attended to, all blocks from that on: keys and values of each.
    fresh: Vec<f32>,
}

/// A number that no grid can hold: not finite, or too large for f16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutOfRange;

impl PackedSeen {
    /// Nothing seen yet.
    pub(crate) fn new(bits: CodeBits) -> Self {
        Self { bits, dim: 0, heads: Vec::new(), len: 0 }
    }

    /// Positions held.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// True where more positions of an attention of these sizes can follow.
    pub(crate) fn fits(&self, heads: Heads) -> bool {
        self.len == 0 || (self.heads.len() == heads.batch * heads.groups && self.dim == heads.dim)
    }

    /// Forgets them; the memory is kept.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
        for head in &mut self.heads {
            head.codes.clear();
            head.grids.clear();
            head.fresh.clear();
        }
    }

    /// Bytes of memory held.
    pub(crate) fn nbytes(&self) -> usize {
        let head = |h: &Head| {
            h.codes.capacity()
                + h.grids.capacity() * size_of::<Grid>()
                + h.fresh.capacity() * size_of::<f32>()
        };
        self.heads.iter().map(head).sum()
    }

    fn sizes(&self) -> Sizes {
        Sizes { bits: self.bits, dim: self.dim }
    }

    /// Appends `[batch, s, groups · dim]` keys, turned, and values.
    fn append(
        &mut self,
        k: &[f32],
        v: &[f32],
        heads: Heads,
        turn: Option<Turn<'_>>,
    ) -> Result<(), OutOfRange> {
        let Heads { batch, groups, dim, .. } = heads;
        let new = k.len() / (batch * groups * dim);
        if self.heads.len() != batch * groups || self.dim != dim {
            (self.heads, self.dim) = (vec![Head::default(); batch * groups], dim);
        }
        let (sizes, len) = (self.sizes(), self.len);
        let add = |(index, head): (usize, &mut Head)| {
            let (b, g) = (index / groups, index % groups);
            head.extend(sizes, len, new, |i, keys, values, at| {
                let from = ((b * new + i) * groups + g) * dim;
                turned(&k[from..from + dim], turn, i, 1.0, |c, x| keys[c * BLOCK + at] = x);
                for (c, x) in v[from..from + dim].iter().enumerate() {
                    values[(c / BLOCK * BLOCK + at) * BLOCK + c % BLOCK] = *x;
                }
            });
            head.pack(sizes, len / BLOCK, (len + new) / BLOCK)
        };
        let done: Option<()> = if new < BLOCK {
            self.heads.iter_mut().enumerate().map(add).collect()
        } else {
            self.heads.par_iter_mut().enumerate().map(add).collect()
        };
        if done.is_none() {
            self.heads.iter_mut().for_each(|head| head.keep(sizes, len / BLOCK));
            return Err(OutOfRange);
        }
        self.len += new;
        Ok(())
    }

    /// Lets go of the f32 of whole blocks, which began with block `first`.
    fn settle(&mut self, first: usize) {
        let whole = self.len / BLOCK - first;
        let size = self.sizes().fresh();
        if whole > 0 {
            for head in &mut self.heads {
                head.fresh = head.fresh[whole * size..].to_vec();
            }
        }
    }
}

/// What a block takes.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    bits: CodeBits,
    dim: usize,
}

impl Sizes {
    /// Lines of 32 numbers: keys, then values.
    fn lines(self) -> usize {
        self.dim + self.groups() * BLOCK
    }

    /// Lines of the value of one position.
    fn groups(self) -> usize {
        self.dim.div_ceil(BLOCK)
    }

    /// Numbers of a block in f32.
    fn fresh(self) -> usize {
        self.lines() * BLOCK
    }
}

impl Head {
    /// Writes `new` positions after the `len` that are there: `put(i, keys, values, place in the block)`.
    fn extend(
        &mut self,
        sizes: Sizes,
        len: usize,
        new: usize,
        put: impl Fn(usize, &mut [f32], &mut [f32], usize),
    ) {
        let (first, size) = (len / BLOCK, sizes.fresh());
        let blocks = (len + new).div_ceil(BLOCK) - first;
        let wanted = blocks * size;
        self.fresh.reserve_exact(wanted.saturating_sub(self.fresh.len()));
        self.fresh.resize(wanted, 0.0);
        for i in 0..new {
            let at = len + i - first * BLOCK;
            let block = &mut self.fresh[at / BLOCK * size..][..size];
            let (keys, values) = block.split_at_mut(sizes.dim * BLOCK);
            put(i, keys, values, at % BLOCK);
        }
    }

    /// Packs the blocks from `first` to `end`, whose f32 is there.
    fn pack(&mut self, sizes: Sizes, first: usize, end: usize) -> Option<()> {
        let room = end.next_multiple_of(GROWTH);
        let codes = room * sizes.lines() * sizes.bits.line();
        if end > first && self.codes.capacity() < end * sizes.lines() * sizes.bits.line() {
            self.codes.reserve_exact(codes - self.codes.len());
            self.grids.reserve_exact(room * sizes.lines() - self.grids.len());
        }
        for line in self.fresh[..(end - first) * sizes.fresh()].as_chunks::<BLOCK>().0 {
            sizes.bits.pack(line, &mut self.codes, &mut self.grids)?;
        }
        Some(())
    }

    /// Forgets the packed blocks from `blocks` on.
    fn keep(&mut self, sizes: Sizes, blocks: usize) {
        self.codes.truncate(blocks * sizes.lines() * sizes.bits.line());
        self.grids.truncate(blocks * sizes.lines());
    }
}

/// Appends keys and values to what was seen, which [`PackedSeen::fits`], and attends to all of it: `[batch, s, heads · dim]`.
///
/// A query sees itself and what came before, of that the last `window`. Where a key or value is [`OutOfRange`], nothing
/// was appended.
pub(crate) fn attend(
    [q, k, v]: [&[f32]; 3],
    heads: Heads,
    turn: Option<Turn<'_>>,
    window: usize,
    seen: &mut PackedSeen,
) -> Result<Vec<f32>, OutOfRange> {
    let start = seen.len;
    seen.append(k, v, heads, turn)?;
    let row = heads.heads * heads.dim;
    let s = q.len() / (heads.batch * row);
    let job = Job { q, heads, turn, window, seen, s, start };
    let mut out = vec![0f32; q.len()];
    let work = q.len() * seen.len;
    for (b, out) in out.chunks_exact_mut(s * row).enumerate() {
        if work <= ALONE {
            out.chunks_mut(POSITIONS * row)
                .enumerate()
                .for_each(|(i, out)| job.positions(b, i * POSITIONS, out));
        } else {
            let blocks = out.par_chunks_mut(POSITIONS * row).enumerate();
            blocks.for_each(|(i, out)| job.positions(b, i * POSITIONS, out));
        }
    }
    seen.settle(start / BLOCK);
    Ok(out)
}

/// What all tasks share.
struct Job<'a> {
    q: &'a [f32],
    heads: Heads,
    turn: Option<Turn<'a>>,
    window: usize,
    seen: &'a PackedSeen,
    /// New positions, and the first of them.
    s: usize,
    start: usize,
}

impl Job<'_> {
    /// All heads of a few positions from `first` on; `out` is `[positions, heads · dim]`.
    fn positions(&self, b: usize, first: usize, out: &mut [f32]) {
        let Heads { heads, groups, dim, .. } = self.heads;
        let row = heads * dim;
        let scale = (dim as f32).sqrt().recip();
        let (mut q, mut weights) = (vec![0f32; dim], vec![[0f32; BLOCK]; self.seen.len.div_ceil(BLOCK)]);
        for head in 0..heads {
            let store = &self.seen.heads[b * groups + head * groups / heads];
            for (at, out) in (first..).zip(out.chunks_exact_mut(row)) {
                let from = (b * self.s + at) * row + head * dim;
                turned(&self.q[from..from + dim], self.turn, at, scale, |i, x| q[i] = x);
                let end = self.start + at + 1;
                let query = Query {
                    q: &q,
                    store,
                    sizes: self.seen.sizes(),
                    first_fresh: self.start / BLOCK,
                    low: end.saturating_sub(self.window),
                    end,
                };
                let out = &mut out[head * dim..][..dim];
                match self.seen.bits {
                    CodeBits::Eight => answer_bytes(&query, &mut weights, out),
                    CodeBits::Four => answer_nibbles(&query, &mut weights, out),
                }
            }
        }
    }
}

/// One query over what its head has seen.
struct Query<'a> {
    /// Turned and scaled.
    q: &'a [f32],
    store: &'a Head,
    sizes: Sizes,
    /// The block with which the store's f32 begins.
    first_fresh: usize,
    /// The positions that it sees.
    low: usize,
    end: usize,
}

impl Query<'_> {
    #[inline(always)]
    fn packed<C: Codes>(&self, block: usize) -> Packed<'_, C> {
        let (lines, bytes) = (self.sizes.lines(), self.sizes.lines() * C::BITS.line());
        Packed {
            codes: &self.store.codes[block * bytes..][..bytes],
            grids: &self.store.grids[block * lines..][..lines],
            dim: self.sizes.dim,
            form: PhantomData,
        }
    }

    #[inline(always)]
    fn fresh(&self, block: usize) -> Fresh<'_> {
        let size = self.sizes.fresh();
        let (keys, values) =
            self.store.fresh[(block - self.first_fresh) * size..][..size].split_at(self.sizes.dim * BLOCK);
        Fresh { keys, values }
    }
}

widest! {
    /// `weights` has room for a block each, `out` is the head.
    fn answer_bytes = answer::<Bytes>; (query: &Query<'_>, weights: &mut [Lanes], out: &mut [f32])
}
widest! {
    /// As `answer_bytes`.
    fn answer_nibbles = answer::<Nibbles>; (query: &Query<'_>, weights: &mut [Lanes], out: &mut [f32])
}

#[inline(always)]
fn answer<C: Codes>(query: &Query<'_>, weights: &mut [Lanes], out: &mut [f32]) {
    let (first, whole, last) = (query.low / BLOCK, query.end / BLOCK, query.end.div_ceil(BLOCK));
    for (block, scores) in (first..whole).zip(&mut weights[first..whole]) {
        *scores = scored(query.q, &query.packed::<C>(block));
    }
    if whole < last {
        weights[whole] = scored(query.q, &query.fresh(whole));
    }
    let all = weights[first..last].as_flattened_mut();
    let (before, rest) = all.split_at_mut(query.low - first * BLOCK);
    let (seen, behind) = rest.split_at_mut(query.end - query.low);
    before.fill(0.0);
    behind.fill(0.0);
    let most = folded(seen, f32::NEG_INFINITY, f32::max);
    for score in seen.iter_mut() {
        *score = exp(*score - most);
    }
    let total = folded(seen, 0.0, |a, b| a + b);
    for (g, out) in out.chunks_mut(BLOCK).enumerate() {
        let mut sum = [0f32; BLOCK];
        for (block, weights) in (first..whole).zip(&weights[first..whole]) {
            mix(&mut sum, weights, &query.packed::<C>(block), g);
        }
        if whole < last {
            mix(&mut sum, &weights[whole], &query.fresh(whole), g);
        }
        out.iter_mut().zip(sum).for_each(|(out, sum)| *out = sum / total);
    }
}

/// The scores of a block's positions.
#[inline(always)]
fn scored(q: &[f32], block: &impl Block) -> Lanes {
    let mut sum = [0f32; BLOCK];
    let base = add_lines(&mut sum, q, |i| block.key(i));
    sum.map(|sum| sum + base)
}

/// Adds the values of a block's positions, channels `32 g …`.
#[inline(always)]
fn mix(sum: &mut Lanes, weights: &Lanes, block: &impl Block, g: usize) {
    let base = add_lines(sum, weights, |j| block.value(g, j));
    sum.iter_mut().for_each(|sum| *sum += base);
}

/// sum ← sum + Σ factor_i step_i · lanes_i, four lines at a time; the result is Σ factor_i low_i.
#[inline(always)]
fn add_lines(sum: &mut Lanes, factors: &[f32], line: impl Fn(usize) -> super::block::Line) -> f32 {
    let mut base = 0.0;
    let (fours, rest) = factors.as_chunks::<4>();
    for (at, factors) in fours.iter().enumerate() {
        let lines = [0, 1, 2, 3].map(|k| line(at * 4 + k));
        let [a, b, c, d] = [0, 1, 2, 3].map(|k| factors[k] * lines[k].step);
        let [w, x, y, z] = &lines;
        let lanes = w.lanes.iter().zip(&x.lanes).zip(y.lanes.iter().zip(&z.lanes));
        for (sum, ((w, x), (y, z))) in sum.iter_mut().zip(lanes) {
            *sum += (a * w + b * x) + (c * y + d * z);
        }
        let lows = [0, 1, 2, 3].map(|k| factors[k] * lines[k].low);
        base += (lows[0] + lows[1]) + (lows[2] + lows[3]);
    }
    for (at, factor) in (fours.len() * 4..).zip(rest) {
        let line = line(at);
        let step = factor * line.step;
        sum.iter_mut().zip(line.lanes).for_each(|(sum, lane)| *sum += step * lane);
        base += factor * line.low;
    }
    base
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    /// Numbers whose channels differ in size and place.
    fn wave(n: usize, width: usize, phase: f32) -> Vec<f32> {
        let at = |i: usize| ((i as f32 * 0.7 + phase).sin(), (i % width) as f32);
        (0..n).map(|i| at(i).0 * (1.0 + 0.1 * at(i).1) + (at(i).1 * 1.7).cos()).collect()
    }

    /// The grid of a group and its numbers again, in plain code.
    fn through(group: &mut [f64], levels: f64) {
        let most = group.iter().copied().fold(f64::MIN, f64::max) as f32;
        let low = f16::from_f64(group.iter().copied().fold(f64::MAX, f64::min)).to_f32();
        let step = f16::from_f32((most - low).max(0.0) / levels as f32).to_f32();
        for x in group {
            let code = if step > 0.0 { f64::from(((*x as f32 - low) / step).round_ties_even()) } else { 0.0 };
            *x = f64::from(low) + f64::from(step) * code.clamp(0.0, levels);
        }
    }

    /// The definition, one query at a time: every whole block of 32 positions up to the query through its grids, keys by
    /// channel and values by 32 channels, then attention in f64.
    fn plain([q, k, v]: [&[f32]; 3], h: Heads, window: usize, levels: f64) -> Vec<f64> {
        let (row, store) = (h.heads * h.dim, h.groups * h.dim);
        let s = q.len() / (h.batch * row);
        let mut out = vec![0f64; q.len()];
        for (b, p, n) in (0..h.batch * s * h.heads).map(|i| (i / (s * h.heads), i / h.heads % s, i % h.heads))
        {
            let g = n * h.groups / h.heads;
            let side = |x: &[f32]| -> Vec<Vec<f64>> {
                let of =
                    |j| x[(b * s + j) * store + g * h.dim..][..h.dim].iter().map(|&x| x.into()).collect();
                (0..=p).map(of).collect()
            };
            let (mut keys, mut values) = (side(k), side(v));
            for first in (0..(p + 1) / 32 * 32).step_by(32) {
                let block = &mut keys[first..first + 32];
                for c in 0..h.dim {
                    let mut group: Vec<f64> = block.iter().map(|key| key[c]).collect();
                    through(&mut group, levels);
                    block.iter_mut().zip(group).for_each(|(key, x)| key[c] = x);
                }
                for value in &mut values[first..first + 32] {
                    for group in value.chunks_mut(32) {
                        // The line of a short last group is filled with zeros.
                        let mut whole = group.to_vec();
                        whole.resize(32, 0.0);
                        through(&mut whole, levels);
                        group.copy_from_slice(&whole[..group.len()]);
                    }
                }
            }
            let query = &q[(b * s + p) * row + n * h.dim..][..h.dim];
            let weight = |key: &Vec<f64>| {
                let dot: f64 = query.iter().zip(key).map(|(a, b)| f64::from(*a) * b).sum();
                (dot / (h.dim as f64).sqrt()).exp()
            };
            let sees = (p + 1).saturating_sub(window)..p + 1;
            let weights: Vec<f64> = keys[sees.clone()].iter().map(weight).collect();
            let total: f64 = weights.iter().sum();
            for (weight, value) in weights.iter().zip(&values[sees]) {
                for (c, x) in value.iter().enumerate() {
                    out[(b * s + p) * row + n * h.dim + c] += weight / total * x;
                }
            }
        }
        out
    }

    fn close(found: &[f32], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 2e-5, "{found} {expected}");
        }
    }

    const SHAPES: [(usize, usize, usize, usize); 3] = [(6, 2, 8, 50), (4, 4, 40, 1000), (3, 1, 64, 7)];

    fn case(h: Heads, s: usize) -> [Vec<f32>; 3] {
        let side = |heads: usize, phase| wave(h.batch * s * heads * h.dim, h.dim, phase);
        [side(h.heads, 0.0).iter().map(|x| 0.3 * x).collect(), side(h.groups, 1.0), side(h.groups, 2.0)]
    }

    #[test]
    fn whole_blocks_are_seen_through_their_grids() {
        for (heads, groups, dim, window) in SHAPES {
            let h = Heads { batch: 2, heads, groups, dim };
            let [q, k, v] = case(h, 75);
            for (bits, levels) in [(CodeBits::Eight, 255.0), (CodeBits::Four, 15.0)] {
                let found = attend([&q, &k, &v], h, None, window, &mut PackedSeen::new(bits)).unwrap();
                close(&found, &plain([&q, &k, &v], h, window, levels));
            }
        }
    }

    #[test]
    fn neither_threads_nor_how_tokens_arrive_change_a_bit() {
        for (heads, groups, dim, window) in SHAPES {
            let h = Heads { batch: 1, heads, groups, dim };
            let [q, k, v] = case(h, 140);
            let (cos, sin) = (wave(140 * dim / 2, dim, 3.0), wave(140 * dim / 2, dim, 4.0));
            let run = |steps: &[usize]| {
                let (mut seen, mut found, mut from) = (PackedSeen::new(CodeBits::Four), Vec::new(), 0);
                for step in steps {
                    let to = from + step;
                    let part = |x: &'_ [f32], width: usize| x[from * width..to * width].to_vec();
                    let new = [part(&q, heads * dim), part(&k, groups * dim), part(&v, groups * dim)];
                    let half = dim / 2;
                    let turn = Turn { cos: &cos[from * half..to * half], sin: &sin[from * half..to * half] };
                    let new = [&new[0][..], &new[1], &new[2]];
                    found.extend(attend(new, h, Some(turn), window, &mut seen).unwrap());
                    from = to;
                }
                assert!(seen.len() == 140 && seen.fits(h) && !seen.fits(Heads { batch: 2, ..h }));
                found
            };
            let threads = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
            let whole = threads(1).install(|| run(&[140]));
            assert_eq!(whole, threads(3).install(|| run(&[140])));
            assert_eq!(whole, run(&[33, 1, 1, 29, 60, 1, 15]));
            assert_eq!(whole, run(&[1; 140]));
        }
    }

    #[test]
    fn the_cache_takes_its_bits_and_two_halves_a_line() {
        let h = Heads { batch: 1, heads: 4, groups: 2, dim: 64 };
        let s = 1024;
        let [q, k, v] = case(h, s);
        let full = 2 * h.groups * h.dim * s * size_of::<f32>();
        for (bits, per_number) in [(CodeBits::Eight, 9.0), (CodeBits::Four, 5.0)] {
            let mut seen = PackedSeen::new(bits);
            attend([&q, &k, &v], h, None, usize::MAX, &mut seen).unwrap();
            assert_eq!(seen.nbytes() as f64, full as f64 * per_number / 32.0);
            let one = [&q[..256], &k[..128], &v[..128]];
            attend(one, h, None, usize::MAX, &mut seen).unwrap();
            // A block in f32, and room for 256 positions.
            let most =
                full as f64 * per_number / 32.0 + (2 * h.groups * h.dim * BLOCK * size_of::<f32>()) as f64;
            assert!(seen.nbytes() as f64 <= most, "{bits:?}: {} {most}", seen.nbytes());
        }
    }

    #[test]
    fn what_no_grid_can_hold_is_refused_and_leaves_what_was_seen() {
        let h = Heads { batch: 1, heads: 2, groups: 2, dim: 8 };
        let [q, k, v] = case(h, 64);
        let part = |x: &[f32], from: usize, to: usize| x[from * 16..to * 16].to_vec();
        let mut seen = PackedSeen::new(CodeBits::Four);
        let first = [part(&q, 0, 40), part(&k, 0, 40), part(&v, 0, 40)];
        let second = [part(&q, 40, 64), part(&k, 40, 64), part(&v, 40, 64)];
        let run = |seen: &mut PackedSeen, x: &[Vec<f32>; 3]| attend([&x[0], &x[1], &x[2]], h, None, 64, seen);
        run(&mut seen, &first).unwrap();
        let mut wrong = second.clone();
        wrong[2][5] = f32::NAN;
        assert_eq!(run(&mut seen, &wrong), Err(OutOfRange));
        let whole = attend([&q, &k, &v], h, None, 64, &mut PackedSeen::new(CodeBits::Four)).unwrap();
        assert_eq!(run(&mut seen, &second).unwrap(), whole[40 * 16..]);
    }
}
