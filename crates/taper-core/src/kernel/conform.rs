//! Every table against plain sums in f64.
//!
//! ```text
//! products   within (cols + 8) · 2⁻²⁴ · Σ |w x| of the sum in f64, for every pair of types
//! Gram       within 264 · 2⁻²⁴ · Σ |x_i x_j|
//! columns    the bits of plain sums in f64, token by token
//! threads    the same bits for 1, 2, 3 and 7
//! ```

use half::{bf16, f16};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use std::num::NonZero;

use super::{
    Isa, Threads, Values, available,
    dense::product_with,
    gram::{CHUNK, cross_with, gram, gram_with, lower},
    norms::{Norms, norms_with},
    table::{self, Kernels},
};

/// Values in each type that they may be stored in.
#[derive(Debug, Clone)]
struct Stored {
    f32: Vec<f32>,
    f16: Vec<f16>,
    bf16: Vec<bf16>,
}

impl Stored {
    fn new(f32: Vec<f32>) -> Self {
        let f16 = f32.iter().map(|v| f16::from_f32(*v)).collect();
        let bf16 = f32.iter().map(|v| bf16::from_f32(*v)).collect();
        Self { f32, f16, bf16 }
    }

    fn random(len: usize, seed: u64) -> Self {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        Self::new((0..len).map(|_| rng.random_range(-2.0..2.0)).collect())
    }

    /// Each type, with the values that it holds in f64.
    fn each(&self) -> [(Values<'_>, Vec<f64>); 3] {
        [
            (Values::F32(&self.f32), self.f32.iter().map(|v| f64::from(*v)).collect()),
            (Values::F16(&self.f16), self.f16.iter().map(|v| v.to_f64()).collect()),
            (Values::BF16(&self.bf16), self.bf16.iter().map(|v| v.to_f64()).collect()),
        ]
    }
}

fn tables() -> Vec<&'static Kernels> {
    available().into_iter().filter_map(table::of).collect()
}

fn check(tokens: usize, rows: usize, cols: usize, seed: u64) {
    let (w, x) = (Stored::random(rows * cols, seed), Stored::random(tokens * cols, seed + 1));
    for ((w, exact_w), (x, exact_x)) in w.each().into_iter().flat_map(|w| x.each().map(|x| (w.clone(), x))) {
        for kernels in tables() {
            let y = product_with(kernels, w, x, (tokens, rows, cols));
            assert_eq!(y.len(), tokens * rows);
            for (i, y) in y.into_iter().enumerate() {
                let (t, o) = (i / rows, i % rows);
                let terms = (0..cols).map(|c| exact_w[o * cols + c] * exact_x[t * cols + c]);
                let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), v| (sum + v, size + v.abs()));
                let bound = (cols as f64 + 8.0) * 2f64.powi(-24) * size + 1e-30;
                let off = (f64::from(y) - sum).abs();
                assert!(off <= bound, "{kernels:?}, {tokens} × {rows} × {cols}, [{t}, {o}]: {y} for {sum}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_table_agrees_with_plain_sums(
        tokens in 0usize..30, rows in 0usize..75, cols in 0usize..150, seed: u64,
    ) {
        check(tokens, rows, cols, seed >> 1);
    }

    #[test]
    fn gram_matrices_agree_with_plain_sums(tokens in 0usize..40, d in 0usize..80, seed: u64) {
        check_gram(tokens, d, seed);
    }
}

#[test]
fn shapes_of_real_layers_agree() {
    for (tokens, rows, cols) in
        [(1, 257, 1031), (8, 130, 2048), (9, 131, 1030), (25, 70, 1100), (64, 200, 513)]
    {
        check(tokens, rows, cols, 7);
    }
}

#[test]
fn values_that_are_not_finite_show_in_their_outputs_alone() {
    let (rows, cols) = (37, 70);
    for tokens in [1, 3, 17] {
        for bad in [f32::NAN, f32::INFINITY] {
            let (mut w, mut x) = (Stored::random(rows * cols, 1).f32, Stored::random(tokens * cols, 2).f32);
            w[5 * cols + 69] = bad;
            x[(tokens - 1) * cols + 3] = bad;
            let (w, x) = (Stored::new(w), Stored::new(x));
            for ((w, _), (x, _)) in w.each().into_iter().flat_map(|w| x.each().map(|x| (w.clone(), x))) {
                for kernels in tables() {
                    let y = product_with(kernels, w, x, (tokens, rows, cols));
                    for (i, y) in y.into_iter().enumerate() {
                        let spoilt = i / rows == tokens - 1 || i % rows == 5;
                        assert_eq!(y.is_finite(), !spoilt, "{kernels:?}, {tokens} tokens, output {i}: {y}");
                    }
                }
            }
        }
    }
}

#[test]
fn products_and_gram_matrices_do_not_depend_on_threads() {
    let (w, x) = (Stored::random(530 * 600, 3), Stored::random(40 * 600, 4));
    let pools: Vec<Threads> =
        [1, 2, 3, 7].into_iter().map(|n| Threads::new(NonZero::new(n).unwrap()).unwrap()).collect();
    for kernels in tables() {
        for tokens in [1, 5, 40] {
            for (w, x) in [
                (Values::F32(&w.f32), Values::F32(&x.f32[..tokens * 600])),
                (Values::F16(&w.f16), Values::F32(&x.f32[..tokens * 600])),
                (Values::BF16(&w.bf16), Values::BF16(&x.bf16[..tokens * 600])),
            ] {
                let run = |threads: &Threads| threads.run(|| product_with(kernels, w, x, (tokens, 530, 600)));
                let first = run(&pools[0]);
                assert!(pools[1..].iter().all(|threads| run(threads) == first), "{kernels:?}, {tokens}");
            }
        }
        let run = |threads: &Threads| {
            let mut g = vec![0f64; 210 * 210];
            threads.run(|| gram_with(kernels, &w.f32[..210 * 700], 210, &mut g));
            g
        };
        let first = run(&pools[0]);
        assert!(pools[1..].iter().all(|threads| run(threads) == first), "{kernels:?}, Gram");
    }
}

fn check_gram(tokens: usize, d: usize, seed: u64) {
    let x = Stored::random(tokens * d, seed).f32;
    let before: Vec<f64> = (0..d * d).map(|at| (at / d).min(at % d) as f64).collect();
    for kernels in tables() {
        let mut g = before.clone();
        gram_with(kernels, &x, d, &mut g);
        for (at, g_ij) in g.iter().enumerate() {
            let (i, j) = (at / d, at % d);
            let terms = x.chunks_exact(d).map(|x| f64::from(x[i]) * f64::from(x[j]));
            let (sum, size) = terms.fold((before[at], 0.0), |(sum, size), v| (sum + v, size + v.abs()));
            let bound = (CHUNK as f64 + 8.0) * 2f64.powi(-24) * size + 1e-12;
            assert!((g_ij - sum).abs() <= bound, "{kernels:?}, {tokens} × {d}, [{i}, {j}]: {g_ij} for {sum}");
            assert_eq!(g_ij.to_bits(), g[j * d + i].to_bits(), "symmetric");
        }
        let mut crossed = before.clone();
        cross_with(kernels, &x, &x, d, &mut crossed);
        let below = (0..d).flat_map(|i| (0..=i).map(move |j| i * d + j));
        assert!(below.into_iter().all(|at| crossed[at] == g[at]), "{kernels:?}: Xᵀ · X is the Gram matrix");
    }
}

/// Sums of d columns, and least and largest values.
#[derive(Debug, Clone, PartialEq)]
struct Columns {
    wide: [Vec<f64>; 3],
    ends: [Vec<f32>; 2],
}

impl Columns {
    fn new(d: usize) -> Self {
        let wide = std::array::from_fn(|k| (0..d).map(|j| (j * k) as f64 / 8.0).collect());
        Self { wide, ends: [vec![f32::INFINITY; d], vec![f32::NEG_INFINITY; d]] }
    }

    fn added(mut self, kernels: &Kernels, x: &[f32]) -> Self {
        let [sum, sum_abs, sum_squares] = &mut self.wide;
        let [min, max] = &mut self.ends;
        norms_with(kernels, x, Norms { sum, sum_abs, sum_squares, min, max });
        self
    }
}

#[test]
fn sums_of_columns_have_the_bits_of_plain_sums_on_every_table() {
    for (tokens, d) in [(0, 3), (1, 1), (70, 15), (64, 16), (129, 131), (200, 300)] {
        let x = Stored::random(tokens * d, 11).f32;
        let mut plain = Columns::new(d);
        for x in x.chunks_exact(d) {
            for (j, &x) in x.iter().enumerate() {
                let terms = [f64::from(x), f64::from(x.abs()), f64::from(x) * f64::from(x)];
                plain.wide.iter_mut().zip(terms).for_each(|(sums, term)| sums[j] += term);
                plain.ends[0][j] = plain.ends[0][j].min(x);
                plain.ends[1][j] = plain.ends[1][j].max(x);
            }
        }
        for kernels in tables() {
            assert_eq!(Columns::new(d).added(kernels, &x), plain, "{kernels:?}, {tokens} × {d}");
        }
    }
}

#[test]
fn gram_matrices_of_many_tokens_agree() {
    check_gram(1300, 100, 9);
    check_gram(257, 301, 10);
}

#[test]
fn two_matrices_multiply_as_plain_sums() {
    let (tokens, d) = (300, 45);
    let (a, b) = (Stored::random(tokens * d, 1).f32, Stored::random(tokens * d, 2).f32);
    for kernels in tables() {
        let mut c = vec![1f64; d * d];
        cross_with(kernels, &a, &b, d, &mut c);
        for (at, c) in c.into_iter().enumerate() {
            let (i, j) = (at / d, at % d);
            let terms = (0..tokens).map(|t| f64::from(a[t * d + i]) * f64::from(b[t * d + j]));
            let (sum, size) = terms.fold((1.0, 0.0), |(sum, size), v| (sum + v, size + v.abs()));
            let bound = (CHUNK as f64 + 8.0) * 2f64.powi(-24) * size;
            assert!((c - sum).abs() <= bound, "{kernels:?}, [{i}, {j}]: {c} for {sum}");
        }
    }
}

#[test]
fn a_packed_triangle_holds_what_the_square_holds() {
    let d = 61;
    let x = Stored::random(500 * d, 3).f32;
    let mut square = vec![0f64; d * d];
    gram(&x, d, &mut square);
    let mut triangle: Vec<Vec<f64>> = (0..d).map(|i| vec![0.0; i + 1]).collect();
    let chunks: Vec<&[f32]> = x.chunks(CHUNK * d).collect();
    lower(&chunks, d, &mut triangle.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>());
    for (i, row) in triangle.iter().enumerate() {
        assert_eq!(row[..], square[i * d..i * d + i + 1]);
    }
}

#[test]
fn whole_chunks_may_come_in_any_number_of_calls() {
    let d = 50;
    let x = Stored::random(4 * CHUNK * d + 30 * d, 5).f32;
    let mut once = vec![0f64; d * d];
    gram(&x, d, &mut once);
    for chunks in [1, 3] {
        let mut several = vec![0f64; d * d];
        x.chunks(chunks * CHUNK * d).for_each(|x| gram(x, d, &mut several));
        let close = once.iter().zip(&several).all(|(a, b)| (a - b).abs() <= 1e-12 * a.abs().max(1.0));
        assert!(close, "{chunks} chunks a call");
    }
}

#[test]
fn every_instruction_set_has_a_table() {
    assert!(tables().iter().map(|kernels| kernels.isa).eq(available()));
    assert!(table::of(Isa::Scalar).is_some_and(|kernels| kernels.pairs().is_none()));
}
