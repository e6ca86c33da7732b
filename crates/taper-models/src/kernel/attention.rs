//! Scaled dot-product attention in one go, over keys and values in an order of its own.
//!
//! ```text
//! q [batch, s, heads · d], k and v [batch, s, groups · d]      as the projections give them; heads are never split apart
//!
//! keys   [batch · groups, d, room]     scores of all keys at once: q₀ keys₀ + q₁ keys₁ + …
//! values [batch · groups, room, d]     out = (w₀ values₀ + w₁ values₁ + …) / Σ w,   w = e^(scores − max)
//! ```
//!
//! A query reads the keys that it may see and no others, so that a causal prompt costs half. Queries are dealt out in blocks
//! of fixed size; each is summed by one thread in one order. Neighbours: [`packed`] is the same over eight or four bits.

pub(crate) mod back;
pub(crate) mod block;
pub(crate) mod packed;

use rayon::prelude::*;

use super::{smooth::exp, widest};

/// Lanes of a sum, and room that is added at least.
const LANES: usize = 32;
/// Rows that are added to a sum at once.
const ROWS: usize = 4;
/// Positions per task.
const POSITIONS: usize = 8;
/// Multiplications below which other threads are not asked to help.
const ALONE: usize = 1 << 18;

/// The sizes of an attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    /// Heads of keys and values, a divisor of `heads`.
    pub(crate) groups: usize,
    /// Values per head.
    pub(crate) dim: usize,
}

/// Cosines and sines of the new positions, `[s, dim / 2]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn<'a> {
    pub(crate) cos: &'a [f32],
    pub(crate) sin: &'a [f32],
}

/// What a query may see.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sight<'a> {
    /// Itself and what came before, of that the last `window`.
    Before { window: usize },
    /// Everything, with `[batch, t]` added to the scores.
    All(&'a [f32]),
}

/// Keys and values of the positions so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    keys: Vec<f32>,
    values: Vec<f32>,
    room: usize,
    len: usize,
}

impl Seen {
    /// Positions held.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// True where more positions of an attention of these sizes can follow.
    pub(crate) fn fits(&self, heads: Heads) -> bool {
        self.len == 0 || self.keys.len() == heads.batch * heads.groups * heads.dim * self.room
    }

    /// Bytes of memory held.
    pub(crate) fn nbytes(&self) -> usize {
        (self.keys.capacity() + self.values.capacity()) * size_of::<f32>()
    }

    /// Forgets them; the memory is kept.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends `[batch, s, groups · dim]` keys, turned, and values.
    fn append(&mut self, k: &[f32], v: &[f32], heads: Heads, turn: Option<Turn<'_>>, growth: usize) {
        let Heads { batch, groups, dim, .. } = heads;
        let new = k.len() / (batch * groups * dim);
        self.grow(heads, self.len + new, growth);
        let (room, start) = (self.room, self.len);
        let stores = self.keys.chunks_exact_mut(dim * room).zip(self.values.chunks_exact_mut(room * dim));
        for (index, (keys, values)) in stores.enumerate() {
            let (b, g) = (index / groups, index % groups);
            for i in 0..new {
                let from = ((b * new + i) * groups + g) * dim;
                let (key, value) = (&k[from..from + dim], &v[from..from + dim]);
                turned(key, turn, i, 1.0, |at, x| keys[at * room + start + i] = x);
                values[(start + i) * dim..][..dim].copy_from_slice(value);
            }
        }
        self.len += new;
    }

    /// Makes room for `wanted` positions.
    fn grow(&mut self, heads: Heads, wanted: usize, growth: usize) {
        let (count, dim) = (heads.batch * heads.groups, heads.dim);
        if wanted <= self.room && self.keys.len() == count * dim * self.room {
            return;
        }
        let room = wanted.max(self.len + growth).next_multiple_of(LANES);
        let mut keys = vec![0f32; count * dim * room];
        for (to, from) in keys.chunks_exact_mut(room).zip(self.keys.chunks_exact(self.room.max(1))) {
            to[..self.len].copy_from_slice(&from[..self.len]);
        }
        let mut values = vec![0f32; count * room * dim];
        let old = self.values.chunks_exact((self.room * dim).max(1));
        for (to, from) in values.chunks_exact_mut(room * dim).zip(old) {
            to[..self.len * dim].copy_from_slice(&from[..self.len * dim]);
        }
        (self.keys, self.values, self.room) = (keys, values, room);
    }
}

/// Hands out the values of a head, turned by the angles of position `at` and multiplied.
#[inline(always)]
fn turned(x: &[f32], turn: Option<Turn<'_>>, at: usize, scale: f32, mut put: impl FnMut(usize, f32)) {
    let Some(Turn { cos, sin }) = turn else {
        x.iter().enumerate().for_each(|(i, x)| put(i, x * scale));
        return;
    };
    let half = x.len() / 2;
    let angles = cos[at * half..(at + 1) * half].iter().zip(&sin[at * half..(at + 1) * half]);
    let (first, second) = x.split_at(half);
    for (i, ((a, b), (cos, sin))) in first.iter().zip(second).zip(angles).enumerate() {
        put(i, (a * cos - b * sin) * scale);
        put(i + half, (b * cos + a * sin) * scale);
    }
}

/// Appends keys and values to what was seen, which [`Seen::fits`], and attends to all of it: `[batch, s, heads · dim]`.
///
/// `growth` is how many positions more storage is made for.
pub(crate) fn attend(
    [q, k, v]: [&[f32]; 3],
    heads: Heads,
    turn: Option<Turn<'_>>,
    sight: Sight<'_>,
    seen: &mut Seen,
    growth: usize,
) -> Vec<f32> {
    seen.append(k, v, heads, turn, growth);
    let row = heads.heads * heads.dim;
    let s = q.len() / (heads.batch * row);
    let job = Job { q, heads, turn, sight, seen, s, start: seen.len - s };
    let mut out = vec![0f32; q.len()];
    let work = q.len() * seen.len;
    // A block never spans two texts.
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
    out
}

/// What all blocks share.
struct Job<'a> {
    q: &'a [f32],
    heads: Heads,
    turn: Option<Turn<'a>>,
    sight: Sight<'a>,
    seen: &'a Seen,
    /// New positions, and the first of them.
    s: usize,
    start: usize,
}

impl Job<'_> {
    /// All heads of a few positions from `first` on; `out` is `[positions, heads · dim]`.
    fn positions(&self, b: usize, first: usize, out: &mut [f32]) {
        let Heads { heads, groups, dim, .. } = self.heads;
        let (row, room) = (heads * dim, self.seen.room);
        let scale = (dim as f32).sqrt().recip();
        let (mut q, mut scores) = (vec![0f32; dim], vec![0f32; room]);
        for head in 0..heads {
            let store = (b * groups + head * groups / heads) * dim * room;
            let keys = &self.seen.keys[store..store + dim * room];
            let values = &self.seen.values[store..store + dim * room];
            for (at, out) in (first..).zip(out.chunks_exact_mut(row)) {
                let from = (b * self.s + at) * row + head * dim;
                turned(&self.q[from..from + dim], self.turn, at, scale, |i, x| q[i] = x);
                let (low, high) = self.range(at);
                let added = match self.sight {
                    Sight::Before { .. } => None,
                    Sight::All(added) => Some(&added[b * self.seen.len..][..self.seen.len]),
                };
                let query = Query { q: &q, keys, values, room, low, added };
                answer(&query, &mut scores[low..high], &mut out[head * dim..][..dim]);
            }
        }
    }

    /// The keys that the `at`-th new position sees.
    fn range(&self, at: usize) -> (usize, usize) {
        let end = self.start + at + 1;
        match self.sight {
            Sight::Before { window } => (end.saturating_sub(window), end),
            Sight::All(_) => (0, self.seen.len),
        }
    }
}

/// One query over the keys of its group.
struct Query<'a> {
    /// Turned and scaled.
    q: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    room: usize,
    /// The first key that it sees.
    low: usize,
    /// Added to the scores of all keys.
    added: Option<&'a [f32]>,
}

widest! {
    /// `scores` has a value for each key that is seen, `out` is the head.
    fn answer = answer_body; (query: &Query<'_>, scores: &mut [f32], out: &mut [f32])
}

#[inline(always)]
fn answer_body(query: &Query<'_>, scores: &mut [f32], out: &mut [f32]) {
    let (low, count, dim) = (query.low, scores.len(), out.len());
    scores.fill(0.0);
    add_rows(scores, query.q, |i| &query.keys[i * query.room + low..][..count]);
    if let Some(added) = query.added {
        for (score, added) in scores.iter_mut().zip(&added[low..]) {
            *score += added;
        }
    }
    let most = folded(scores, f32::NEG_INFINITY, f32::max);
    for score in scores.iter_mut() {
        *score = exp(*score - most);
    }
    let total = folded(scores, 0.0, |a, b| a + b);
    out.fill(0.0);
    add_rows(out, scores, |j| &query.values[(low + j) * dim..][..dim]);
    for out in out {
        *out /= total;
    }
}

/// sum ← sum + Σ factor_i · row_i, a few rows at a time.
#[inline(always)]
fn add_rows<'a>(sum: &mut [f32], factors: &[f32], row: impl Fn(usize) -> &'a [f32]) {
    let (chunks, rest) = factors.as_chunks::<ROWS>();
    for (i, [a, b, c, d]) in chunks.iter().enumerate() {
        let rows = [0, 1, 2, 3].map(|k| row(i * ROWS + k));
        let rows = rows[0].iter().zip(rows[1]).zip(rows[2].iter().zip(rows[3]));
        for (sum, ((w, x), (y, z))) in sum.iter_mut().zip(rows) {
            *sum += (a * w + b * x) + (c * y + d * z);
        }
    }
    for (i, a) in rest.iter().enumerate() {
        for (sum, x) in sum.iter_mut().zip(row(chunks.len() * ROWS + i)) {
            *sum += a * x;
        }
    }
}

/// A fold in fixed lanes.
#[inline(always)]
fn folded(x: &[f32], start: f32, step: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = step(*lane, *x);
        }
    }
    let total = lanes.into_iter().fold(start, &step);
    rest.iter().fold(total, |a, &b| step(a, b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, phase: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.7 + phase).sin()).collect()
    }

    /// The definition, one query at a time, in f64; all positions at once.
    fn plain(
        [q, k, v]: [&[f32]; 3],
        h: Heads,
        turn: Option<Turn<'_>>,
        sees: impl Fn(usize, usize, usize) -> Option<f64>,
    ) -> Vec<f64> {
        let (row, store) = (h.heads * h.dim, h.groups * h.dim);
        let s = q.len() / (h.batch * row);
        let head = |x: &[f32], stride: usize, b: usize, at: usize, head: usize| -> Vec<f64> {
            let x: Vec<f64> =
                x[(b * s + at) * stride + head * h.dim..][..h.dim].iter().map(|&x| x.into()).collect();
            let Some(Turn { cos, sin }) = turn else { return x };
            let half = h.dim / 2;
            let angle = |i: usize| (f64::from(cos[at * half + i]), f64::from(sin[at * half + i]));
            let first = (0..half).map(|i| x[i] * angle(i).0 - x[i + half] * angle(i).1);
            first.chain((0..half).map(|i| x[i + half] * angle(i).0 + x[i] * angle(i).1)).collect()
        };
        let mut out = vec![0f64; q.len()];
        for (b, at, n) in
            (0..h.batch * s * h.heads).map(|i| (i / (s * h.heads), i / h.heads % s, i % h.heads))
        {
            let (query, g) = (head(q, row, b, at, n), n * h.groups / h.heads);
            let weight = |j: usize| {
                let dot: f64 = query.iter().zip(head(k, store, b, j, g)).map(|(a, b)| a * b).sum();
                sees(b, at, j).map_or(0.0, |added| (dot / (h.dim as f64).sqrt() + added).exp())
            };
            let weights: Vec<f64> = (0..s).map(weight).collect();
            let total: f64 = weights.iter().sum();
            for (j, weight) in weights.iter().enumerate() {
                for c in 0..h.dim {
                    let value = f64::from(v[(b * s + j) * store + g * h.dim + c]);
                    out[(b * s + at) * row + n * h.dim + c] += weight / total * value;
                }
            }
        }
        out
    }

    fn close(found: &[f32], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 2e-6, "{found} {expected}");
        }
    }

    #[test]
    fn a_prompt_and_what_follows_equal_the_definition() {
        for (heads, groups, dim, window) in [(6, 2, 8, 5), (4, 4, 40, 64), (3, 1, 64, 7)] {
            let h = Heads { batch: 1, heads, groups, dim };
            let s = 45;
            let (q, k, v) =
                (wave(s * heads * dim, 0.0), wave(s * groups * dim, 1.0), wave(s * groups * dim, 2.0));
            let (cos, sin) = (wave(s * dim / 2, 3.0), wave(s * dim / 2, 4.0));
            let turn = |from: usize, to: usize| {
                let half = dim / 2;
                Some(Turn { cos: &cos[from * half..to * half], sin: &sin[from * half..to * half] })
            };
            let sees = |_: usize, at: usize, j: usize| (j <= at && at - j < window).then_some(0.0);
            let expected = plain([&q, &k, &v], h, turn(0, s), sees);
            let sight = Sight::Before { window };
            close(&attend([&q, &k, &v], h, turn(0, s), sight, &mut Seen::default(), 0), &expected);

            let (mut seen, mut found, mut from) = (Seen::default(), Vec::new(), 0);
            for step in [33, 1, 1, 7, 1, 2] {
                let part = |x: &[f32], width: usize| x[from * width..(from + step) * width].to_vec();
                let new = [part(&q, heads * dim), part(&k, groups * dim), part(&v, groups * dim)];
                let new = [&new[0][..], &new[1], &new[2]];
                found.extend(attend(new, h, turn(from, from + step), sight, &mut seen, 2));
                from += step;
            }
            close(&found, &expected);
            assert!(seen.len() == s && seen.fits(h) && !seen.fits(Heads { batch: 2, ..h }));
        }
    }

    #[test]
    fn padding_is_not_seen_and_threads_change_no_bit() {
        let h = Heads { batch: 3, heads: 4, groups: 2, dim: 36 };
        let s = 50;
        let n = h.batch * s * h.dim;
        let (q, k, v) = (wave(n * 4, 0.0), wave(n * 2, 1.0), wave(n * 2, 2.0));
        let added: Vec<f32> = (0..h.batch * s).map(|i| if i % 7 == 3 { f32::MIN } else { 0.0 }).collect();
        let run = || attend([&q, &k, &v], h, None, Sight::All(&added), &mut Seen::default(), 0);
        let expected = plain([&q, &k, &v], h, None, |b, _, j| (added[b * s + j] == 0.0).then_some(0.0));
        close(&run(), &expected);
        let threads = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        assert_eq!(threads(1).install(run), threads(3).install(run));
    }
}
