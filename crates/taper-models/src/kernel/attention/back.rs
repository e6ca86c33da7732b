//! Causal attention with its way back, for learning in plain code.
//!
//! ```text
//! S = q kᵀ / √d      P = e^(S − L),  L = log Σ e^S      y = P v
//!
//! ∂v = Pᵀ g      ∂P = g vᵀ      ∂S = P ⊙ (∂P − Σ g y)      ∂q = ∂S k / √d      ∂k = ∂Sᵀ q / √d
//! ```
//!
//! Queries are taken 64 at a time with the keys that one of them sees. Scores are not kept but made again on the way back
//! (Dao et al., arXiv 2205.14135): memory is that of q, k, v and y.
//!
//! Neighbours: [`super`] is attention for inference, [`super::super::back`] has norms and gates.

use rayon::prelude::*;
use std::ops::Range;
use taper_core::kernel::{
    Arithmetic, Operand, Sizes,
    multiply::{add_product, multiply},
};

use super::{Heads, Turn, turned};
use crate::kernel::{back::lanes, smooth::exp, widest};

/// Queries that are multiplied at once.
const QUERIES: usize = 64;

/// What a forward run keeps.
pub(crate) struct Causal {
    heads: Heads,
    window: usize,
    arithmetic: Arithmetic,
    /// Turned and divided by √d, `[batch · heads, s, dim]`.
    q: Vec<f32>,
    /// Turned, `[batch · groups, s, dim]`.
    k: Vec<f32>,
    v: Vec<f32>,
    /// L, `[batch · heads, s]`.
    logs: Vec<f32>,
    /// `[batch · heads, s, dim]`.
    y: Vec<f32>,
}

impl Causal {
    /// Attention of `[batch, s, heads · dim]` queries over keys and values `[batch, s, groups · dim]` of the same texts; the
    /// result is like the queries.
    pub(crate) fn forward(
        [q, k, v]: [&[f32]; 3],
        heads: Heads,
        turn: Option<Turn<'_>>,
        window: usize,
        arithmetic: Arithmetic,
    ) -> (Self, Vec<f32>) {
        let Heads { heads: count, groups, dim, batch } = heads;
        let s = q.len() / (batch * count * dim);
        let scale = (dim as f32).sqrt().recip();
        let mut causal = Self {
            q: apart(q, count, heads, turn, scale),
            k: apart(k, groups, heads, turn, 1.0),
            v: apart(v, groups, heads, None, 1.0),
            logs: vec![0.0; batch * count * s],
            y: vec![0.0; q.len()],
            heads,
            window,
            arithmetic,
        };
        let (mut y, mut logs) = (std::mem::take(&mut causal.y), std::mem::take(&mut causal.logs));
        let parts = y.par_chunks_mut(s * dim).zip(logs.par_chunks_mut(s)).enumerate();
        parts.for_each(|(index, (y, logs))| causal.head(index, y, logs));
        let joined = together(&y, count, heads);
        (causal.y, causal.logs) = (y, logs);
        (causal, joined)
    }

    /// Positions.
    fn len(&self) -> usize {
        self.q.len() / (self.heads.batch * self.heads.heads * self.heads.dim)
    }

    /// The queries of a head, its keys and its values.
    fn of(&self, index: usize) -> [&[f32]; 3] {
        let Heads { heads, groups, dim, .. } = self.heads;
        let (size, group) = (self.len() * dim, index * groups / heads);
        [&self.q[index * size..][..size], &self.k[group * size..][..size], &self.v[group * size..][..size]]
    }

    /// The keys that some queries see between them.
    fn keys(&self, queries: &Range<usize>) -> Range<usize> {
        (queries.start + 1).saturating_sub(self.window)..queries.end
    }

    fn scores(&self, [q, k]: [&[f32]; 2], queries: &Range<usize>, keys: &Range<usize>) -> Vec<f32> {
        let dim = self.heads.dim;
        let (q, k) = (&q[queries.start * dim..queries.end * dim], &k[keys.start * dim..keys.end * dim]);
        let sizes = Sizes { rows: queries.len(), columns: keys.len(), depth: dim };
        multiply(Operand::Along(q), Operand::Along(k), sizes, self.arithmetic)
    }

    fn head(&self, index: usize, y: &mut [f32], logs: &mut [f32]) {
        let ([q, k, v], dim) = (self.of(index), self.heads.dim);
        for queries in blocks(self.len()) {
            let keys = self.keys(&queries);
            let mut scores = self.scores([q, k], &queries, &keys);
            let sight = Sight { first: queries.start, keys: keys.clone(), window: self.window };
            weigh(&mut scores, &sight, &mut logs[queries.clone()]);
            let v = Operand::Across(&v[keys.start * dim..keys.end * dim]);
            let sizes = Sizes { rows: queries.len(), columns: dim, depth: keys.len() };
            let y = &mut y[queries.start * dim..queries.end * dim];
            add_product(Operand::Along(&scores), v, sizes, self.arithmetic, y);
        }
    }

    /// Gradients of what [`Causal::forward`] was given, by that of its result; `turn` as there.
    pub(crate) fn back(&self, gradient: &[f32], turn: Option<Turn<'_>>) -> [Vec<f32>; 3] {
        let Heads { heads: count, groups, dim, .. } = self.heads;
        let (size, each) = (self.len() * dim, count / groups);
        let g = apart(gradient, count, self.heads, None, 1.0);
        let mut dq = vec![0f32; self.q.len()];
        let (mut dk, mut dv) = (vec![0f32; self.k.len()], vec![0f32; self.v.len()]);
        let parts = dk.par_chunks_mut(size).zip(dv.par_chunks_mut(size)).zip(dq.par_chunks_mut(each * size));
        parts.enumerate().for_each(|(group, ((dk, dv), dq))| {
            for (i, dq) in dq.chunks_exact_mut(size).enumerate() {
                let index = group * each + i;
                self.head_back(index, &g[index * size..][..size], [dq, dk, dv]);
            }
        });
        let scale = (dim as f32).sqrt().recip();
        turn_back(&mut dq, self.heads, turn, scale);
        turn_back(&mut dk, self.heads, turn, 1.0);
        [
            together(&dq, count, self.heads),
            together(&dk, groups, self.heads),
            together(&dv, groups, self.heads),
        ]
    }

    fn head_back(&self, index: usize, g: &[f32], [dq, dk, dv]: [&mut [f32]; 3]) {
        let ([q, k, v], dim, size) = (self.of(index), self.heads.dim, g.len());
        let y = &self.y[index * size..][..size];
        let logs = &self.logs[index * self.len()..][..self.len()];
        for queries in blocks(self.len()) {
            let keys = self.keys(&queries);
            let (at, seen) = (queries.start * dim..queries.end * dim, keys.start * dim..keys.end * dim);
            let mut weights = self.scores([q, k], &queries, &keys);
            let g = &g[at.clone()];
            let sizes = Sizes { rows: queries.len(), columns: keys.len(), depth: dim };
            let (gv, vs) = (Operand::Along(g), Operand::Along(&v[seen.clone()]));
            let mut slopes = multiply(gv, vs, sizes, self.arithmetic);
            let sight = Sight { first: queries.start, keys: keys.clone(), window: self.window };
            unweigh(&mut weights, &mut slopes, &sight, [&logs[queries.clone()], g, &y[at.clone()]]);
            let down = Sizes { rows: keys.len(), columns: dim, depth: queries.len() };
            let (weights, across) = (Operand::Across(&weights), Operand::Across(&slopes));
            add_product(weights, Operand::Across(g), down, self.arithmetic, &mut dv[seen.clone()]);
            let queries_here = Operand::Across(&q[at.clone()]);
            add_product(across, queries_here, down, self.arithmetic, &mut dk[seen.clone()]);
            let over = Sizes { rows: queries.len(), columns: dim, depth: keys.len() };
            let keys_here = Operand::Across(&k[seen]);
            add_product(Operand::Along(&slopes), keys_here, over, self.arithmetic, &mut dq[at]);
        }
    }
}

fn blocks(len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(QUERIES).map(move |start| start..(start + QUERIES).min(len))
}

/// `[batch, s, count · dim]` to `[batch · count, s, dim]`, turned and scaled.
fn apart(x: &[f32], count: usize, heads: Heads, turn: Option<Turn<'_>>, scale: f32) -> Vec<f32> {
    let dim = heads.dim;
    let s = x.len() / (heads.batch * count * dim);
    let mut out = vec![0f32; x.len()];
    out.par_chunks_mut(s * dim).enumerate().for_each(|(index, out)| {
        let (b, head) = (index / count, index % count);
        for (at, out) in out.chunks_exact_mut(dim).enumerate() {
            let x = &x[((b * s + at) * count + head) * dim..][..dim];
            turned(x, turn, at, scale, |i, x| out[i] = x);
        }
    });
    out
}

/// The other way round.
fn together(x: &[f32], count: usize, heads: Heads) -> Vec<f32> {
    let dim = heads.dim;
    let s = x.len() / (heads.batch * count * dim);
    let mut out = vec![0f32; x.len()];
    out.par_chunks_mut(count * dim).enumerate().for_each(|(token, out)| {
        let (b, at) = (token / s, token % s);
        for (head, out) in out.chunks_exact_mut(dim).enumerate() {
            out.copy_from_slice(&x[((b * count + head) * s + at) * dim..][..dim]);
        }
    });
    out
}

/// Gradients of `[.., s, dim]` heads from those after turning and scaling.
fn turn_back(x: &mut [f32], heads: Heads, turn: Option<Turn<'_>>, scale: f32) {
    let (dim, half) = (heads.dim, heads.dim / 2);
    let positions = turn.map_or(1, |turn| turn.cos.len() / half.max(1));
    x.par_chunks_mut(dim * positions).for_each(|x| {
        for (at, x) in x.chunks_exact_mut(dim).enumerate() {
            let Some(Turn { cos, sin }) = turn else {
                x.iter_mut().for_each(|x| *x *= scale);
                continue;
            };
            let (first, second) = x.split_at_mut(half);
            for i in 0..half {
                let (c, s) = (cos[at * half + i] * scale, sin[at * half + i] * scale);
                (first[i], second[i]) = (first[i] * c + second[i] * s, second[i] * c - first[i] * s);
            }
        }
    });
}

/// What some queries see of some keys.
struct Sight {
    /// The first query.
    first: usize,
    keys: Range<usize>,
    window: usize,
}

impl Sight {
    /// The keys of the `i`-th query, counted from the first key.
    #[inline(always)]
    fn of(&self, i: usize) -> Range<usize> {
        let end = self.first + i + 1;
        end.saturating_sub(self.window).max(self.keys.start) - self.keys.start..end - self.keys.start
    }
}

widest! {
    /// Scores to P, and L.
    fn weigh = weigh_body; (scores: &mut [f32], sight: &Sight, logs: &mut [f32])
}

widest! {
    /// Scores to P and ∂P to ∂S, by L, g and y.
    fn unweigh = unweigh_body; (scores: &mut [f32], slopes: &mut [f32], sight: &Sight, seen: [&[f32]; 3])
}

#[inline(always)]
fn weigh_body(scores: &mut [f32], sight: &Sight, logs: &mut [f32]) {
    for (i, (row, log)) in scores.chunks_exact_mut(sight.keys.len()).zip(logs).enumerate() {
        let seen = sight.of(i);
        row[..seen.start].fill(0.0);
        row[seen.end..].fill(0.0);
        let row = &mut row[seen];
        let most = row.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        row.iter_mut().for_each(|x| *x = exp(*x - most));
        let total = lanes(row.len(), |i| row[i]);
        let inverse = 1.0 / total;
        row.iter_mut().for_each(|x| *x *= inverse);
        *log = most + total.ln();
    }
}

#[inline(always)]
fn unweigh_body(scores: &mut [f32], slopes: &mut [f32], sight: &Sight, [logs, g, y]: [&[f32]; 3]) {
    let (width, dim) = (sight.keys.len(), g.len() / logs.len());
    for (i, (row, slopes)) in scores.chunks_exact_mut(width).zip(slopes.chunks_exact_mut(width)).enumerate() {
        let (g, y) = (&g[i * dim..][..dim], &y[i * dim..][..dim]);
        let (seen, mean) = (sight.of(i), lanes(dim, |i| g[i] * y[i]));
        for part in [0..seen.start, seen.end..width] {
            row[part.clone()].fill(0.0);
            slopes[part].fill(0.0);
        }
        for (x, slope) in row[seen.clone()].iter_mut().zip(&mut slopes[seen]) {
            *x = exp(*x - logs[i]);
            *slope = *x * (*slope - mean);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::attention::{Seen, Sight as Before, attend};

    fn wave(n: usize, phase: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.7 + phase).sin()).collect()
    }

    fn case(s: usize, h: Heads) -> ([Vec<f32>; 3], Vec<f32>, Vec<f32>) {
        let n = h.batch * s * h.dim;
        let x = [wave(n * h.heads, 0.0), wave(n * h.groups, 1.0), wave(n * h.groups, 2.0)];
        let angles = wave(s * h.dim / 2, 3.0);
        let (cos, sin) = (angles.iter().map(|a| a.cos()).collect(), angles.iter().map(|a| a.sin()).collect());
        (x, cos, sin)
    }

    #[test]
    fn forward_is_the_attention_of_inference() {
        for (h, s, window) in [
            (Heads { batch: 2, heads: 4, groups: 2, dim: 8 }, 150, usize::MAX),
            (Heads { batch: 1, heads: 3, groups: 1, dim: 20 }, 131, 70),
        ] {
            let (x, cos, sin) = case(s, h);
            let (x, turn) = ([&x[0][..], &x[1], &x[2]], Some(Turn { cos: &cos, sin: &sin }));
            let expected = attend(x, h, turn, Before::Before { window }, &mut Seen::default(), 0);
            let (_, y) = Causal::forward(x, h, turn, window, Arithmetic::F32);
            for (y, expected) in y.iter().zip(expected) {
                assert!((y - expected).abs() < 3e-6, "{y} instead of {expected}");
            }
        }
    }

    #[test]
    fn gradients_are_central_differences() {
        let h = Heads { batch: 1, heads: 4, groups: 2, dim: 4 };
        for (s, window, turned) in [(9, usize::MAX, true), (70, 5, false)] {
            let (x, cos, sin) = case(s, h);
            let turn = turned.then_some(Turn { cos: &cos, sin: &sin });
            let g = wave(x[0].len(), 4.0);
            let run =
                |x: &[Vec<f32>; 3]| Causal::forward([&x[0], &x[1], &x[2]], h, turn, window, Arithmetic::F32);
            let loss = |x: &[Vec<f32>; 3]| -> f64 {
                run(x).1.iter().zip(&g).map(|(y, g)| f64::from(*y) * f64::from(*g)).sum()
            };
            let found = run(&x).0.back(&g, turn);
            for (which, found) in found.iter().enumerate() {
                assert_eq!(found.len(), x[which].len());
                for (i, found) in found.iter().enumerate() {
                    let moved = |by: f32| {
                        let mut x = x.clone();
                        x[which][i] += by;
                        loss(&x)
                    };
                    let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
                    assert!(
                        (f64::from(*found) - slope).abs() < 1e-3,
                        "{which} {i}: {found} instead of {slope}"
                    );
                }
            }
        }
    }
}
