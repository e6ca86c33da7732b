//! Every way to multiply against plain sums in f64.
//!
//! ```text
//! f32    within (depth + 8) · 2⁻²⁴ · Σ |a b|        bf16   the same, of the rounded values
//! ```

use half::bf16;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use std::num::NonZero;

use super::{Arithmetic, Operand, Sizes, multiply_with};
use crate::kernel::{Threads, available, table};

fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-2.0..2.0)).collect()
}

/// The same matrix, `[side, depth]` and `[depth, side]`.
fn both_ways(side: usize, depth: usize, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let along = random(side * depth, seed);
    let across = (0..side * depth).map(|i| along[i % side.max(1) * depth + i / side.max(1)]).collect();
    (along, across)
}

fn seen(x: f32, arithmetic: Arithmetic) -> f64 {
    match arithmetic {
        Arithmetic::F32 => x.into(),
        Arithmetic::BF16 => bf16::from_f32(x).to_f64(),
    }
}

fn check(sizes: Sizes, seed: u64) {
    let Sizes { rows, columns, depth } = sizes;
    let ((a, a_across), (b, b_across)) = (both_ways(rows, depth, seed), both_ways(columns, depth, seed + 1));
    for arithmetic in [Arithmetic::F32, Arithmetic::BF16] {
        let expected = |row: usize, column: usize| {
            let terms = (0..depth)
                .map(|k| seen(a[row * depth + k], arithmetic) * seen(b[column * depth + k], arithmetic));
            terms.fold((1.0, 0.0), |(sum, size), v| (sum + v, size + v.abs()))
        };
        let expected: Vec<(f64, f64)> =
            (0..rows * columns).map(|i| expected(i / columns, i % columns)).collect();
        for kernels in available().into_iter().filter_map(table::of) {
            for a in [Operand::Along(&a), Operand::Across(&a_across)] {
                for b in [Operand::Along(&b), Operand::Across(&b_across)] {
                    let mut c = vec![1f32; rows * columns];
                    multiply_with(kernels, a, b, sizes, arithmetic, &mut c);
                    for (i, (c, (sum, size))) in c.into_iter().zip(&expected).enumerate() {
                        let bound = (depth as f64 + 8.0) * 2f64.powi(-24) * (size + 1.0);
                        let off = (f64::from(c) - sum).abs();
                        assert!(off <= bound, "{kernels:?}, {arithmetic:?}, {sizes:?}, {i}: {c} for {sum}");
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn operands_that_lie_either_way_agree_with_plain_sums(
        rows in 0usize..40, columns in 0usize..70, depth in 0usize..90, seed: u64,
    ) {
        check(Sizes { rows, columns, depth }, seed >> 1);
    }
}

#[test]
fn several_stretches_of_depth_and_of_rows_agree() {
    for (rows, columns, depth) in [(110, 33, 1031), (200, 40, 130), (97, 64, 1100)] {
        check(Sizes { rows, columns, depth }, 7);
    }
}

#[test]
fn threads_change_no_bit() {
    let sizes = Sizes { rows: 150, columns: 70, depth: 300 };
    let ((a, _), (_, b)) = (both_ways(150, 300, 1), both_ways(70, 300, 2));
    for kernels in available().into_iter().filter_map(table::of) {
        for arithmetic in [Arithmetic::F32, Arithmetic::BF16] {
            let run = |threads: usize| {
                let mut c = vec![0f32; 150 * 70];
                let (a, b) = (Operand::Along(&a), Operand::Across(&b));
                let threads = Threads::new(NonZero::new(threads).unwrap()).unwrap();
                threads.run(|| multiply_with(kernels, a, b, sizes, arithmetic, &mut c));
                c
            };
            let one = run(1);
            assert!([2, 3, 7].into_iter().all(|threads| run(threads) == one), "{kernels:?}, {arithmetic:?}");
        }
    }
}
