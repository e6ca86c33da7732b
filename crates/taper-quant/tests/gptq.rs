//! Rounding with feedback: against plain f64 code, and under inputs that break other tools.

use candle_core::{Device, Tensor};
use std::sync::Arc;
use taper_core::{
    Context, Gram, Needs, Rewrite, Rows, SharedWeight, Silent, Stats, WeightPass,
    linalg::{Precision, Shrinkage, Symmetric},
    stats::Accumulator,
};
use taper_quant::{
    Error, Fit, Gptq, Granularity, IntLayout, PackedInt, RoundNearest, Scheme,
    codec::bitsandbytes_nf4::ValueType, pass::Asymmetry, settle::Order,
};

/// Numbers that look random, roughly normal.
fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..n).map(|_| uniform() + uniform() + uniform() + uniform()).collect()
}

/// Tokens whose inputs are correlated: each a mixture of `rank` factors, and a little of its own.
fn tokens(count: usize, d: usize, rank: usize, own: f32) -> Vec<f32> {
    let (mixing, factors, noise) = (values(rank * d, 5), values(count * rank, 6), values(count * d, 7));
    let mut x = vec![0f32; count * d];
    for t in 0..count {
        for i in 0..d {
            let mixed: f32 = (0..rank).map(|r| factors[t * rank + r] * mixing[r * d + i]).sum();
            x[t * d + i] = mixed + own * noise[t * d + i];
        }
    }
    x
}

fn gram(x: &[f32], d: usize) -> Gram {
    let mut sums = Accumulator::new(d, Needs::Gram);
    sums.add("x", x).unwrap();
    sums.finish("x").unwrap().gram.unwrap()
}

fn decoded(packed: &impl Rows) -> Vec<f32> {
    let mut all = vec![0f32; packed.rows() * packed.cols()];
    for (row, out) in all.chunks_exact_mut(packed.cols()).enumerate() {
        packed.decode_row(row, out);
    }
    all
}

fn output_error(w: &[f32], q: &[f32], x: &[f32], d: usize) -> f64 {
    let mut sum = 0.0;
    for (w, q) in w.chunks_exact(d).zip(q.chunks_exact(d)) {
        for x in x.chunks_exact(d) {
            let y: f64 = w.iter().zip(q).zip(x).map(|((w, q), x)| f64::from(w - q) * f64::from(*x)).sum();
            sum += y * y;
        }
    }
    sum
}

fn scheme(bits: u64, group: usize) -> Scheme {
    Scheme::new(taper_quant::Bits::new(bits).unwrap(), Granularity::group(group).unwrap())
}

fn pass(bits: u64, group: usize) -> Gptq {
    Gptq::new(RoundNearest::int(bits, Granularity::group(group).unwrap()).unwrap())
}

/// GPTQ as published: the Cholesky factor of the inverse, column by column, in f64, with grids given.
fn published(w: &[f32], h: &[Vec<f64>], grids: &PackedInt, group: usize, low: f64, high: f64) -> Vec<f64> {
    let d = h.len();
    let inverse = inverse(h);
    // Upper triangular U with inverse = Uᵀ U.
    let mut u = vec![vec![0f64; d]; d];
    for i in 0..d {
        for j in i..d {
            let dot: f64 = (0..i).map(|k| u[k][i] * u[k][j]).sum();
            let rest = inverse[i][j] - dot;
            u[i][j] = if i == j { rest.sqrt() } else { rest / u[i][i] };
        }
    }
    let mut out = Vec::new();
    for (r, row) in w.chunks_exact(d).enumerate() {
        let mut row: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
        for i in 0..d {
            let grid = grids.grid(r, i / group);
            let (scale, zero) = (f64::from(grid.scale), f64::from(grid.zero));
            let q = ((row[i] / scale + zero).clamp(low, high).round_ties_even() - zero) * scale;
            let error = (row[i] - q) / u[i][i];
            for j in i + 1..d {
                row[j] -= error * u[i][j];
            }
            out.push(q);
        }
    }
    out
}

fn inverse(h: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let d = h.len();
    let mut a: Vec<Vec<f64>> = (0..d)
        .map(|i| h[i].iter().copied().chain((0..d).map(|j| if i == j { 1.0 } else { 0.0 })).collect())
        .collect();
    for i in 0..d {
        let pivot = a[i][i];
        a[i].iter_mut().for_each(|x| *x /= pivot);
        for r in 0..d {
            if r != i {
                let (factor, from) = (a[r][i], a[i].clone());
                a[r].iter_mut().zip(from).for_each(|(x, y)| *x -= factor * y);
            }
        }
    }
    a.into_iter().map(|row| row[d..].to_vec()).collect()
}

#[test]
fn codes_are_those_of_the_published_algorithm() {
    let (rows, d, group) = (24, 48, 16);
    let (w, x) = (values(rows * d, 1), tokens(300, d, 6, 0.5));
    let gram = gram(&x, d);
    let alpha = 0.1;
    for bits in [3, 4] {
        let scheme = scheme(bits, group).asymmetric();
        let numbers = RoundNearest::int(bits, scheme.granularity).unwrap();
        let gptq = Gptq::new(numbers).in_order(Order::Natural).shrunk(Shrinkage::Fixed(alpha));
        let fed = gptq.ints(&w, &[rows, d], &gram, &scheme, IntLayout::Taper).unwrap();
        let total = gram.total();
        let h: Vec<Vec<f64>> = (0..d)
            .map(|i| (0..d).map(|j| total.get(i, j) * if i == j { 1.0 } else { 1.0 - alpha }).collect())
            .collect();
        let (low, high) = (f64::from(scheme.bits.lowest()), f64::from(scheme.bits.highest()));
        let expected = published(&w, &h, &fed.weight, group, low, high);
        let got = decoded(&fed.weight);
        let equal = got.iter().zip(&expected).filter(|(a, b)| (f64::from(**a) - **b).abs() < 1e-5).count();
        // A value halfway between two codes may fall either way in f32, and its row with it.
        assert!(equal * 100 >= got.len() * 98, "{equal} of {} codes", got.len());
    }
}

#[test]
fn without_correlations_it_is_the_weighted_search() {
    let (rows, d) = (20, 70);
    let w = values(rows * d, 2);
    let mut identity = Symmetric::zeros(d);
    identity.rows_mut().into_iter().enumerate().for_each(|(i, row)| row[i] = 1.0);
    let gram = Gram { counts: [10, 10], halves: [identity.clone(), identity] };
    for group in [16, 32, 70] {
        for order in [Order::Natural, Order::Groups, Order::Columns] {
            for scheme in [scheme(3, group), scheme(4, group).asymmetric()] {
                let fed = pass(3, group).in_order(order);
                let fed = fed.ints(&w, &[rows, d], &gram, &scheme, IntLayout::Taper).unwrap();
                let plain =
                    PackedInt::encode(&w, &[rows, d], &scheme, &Fit::default(), None, IntLayout::Taper);
                let (fed, plain) = (decoded(&fed.weight), decoded(&plain.unwrap()));
                // Sums of equal weights and of no weights differ in their last bits, so a scale may now and then.
                let differing = fed.iter().zip(&plain).filter(|(a, b)| a != b).count();
                assert!(differing * 50 <= fed.len(), "{differing} differ: {scheme} {order:?}");
                let squared = |q: &[f32]| w.iter().zip(q).map(|(w, q)| (w - q).powi(2)).sum::<f32>();
                assert!((squared(&fed) / squared(&plain) - 1.0).abs() < 2e-3, "{scheme} {order:?}");
            }
        }
    }
}

#[test]
fn every_format_does_better_than_rounding_on_fresh_tokens() {
    let (rows, d) = (64, 128);
    let (w, all) = (values(rows * d, 3), tokens(2048, d, 20, 0.3));
    let (seen, fresh) = all.split_at(1024 * d);
    let gram = gram(seen, d);
    let better = |name: &str, fed: Vec<f32>, plain: Vec<f32>| {
        let (fed, plain) = (output_error(&w, &fed, fresh, d), output_error(&w, &plain, fresh, d));
        assert!(fed < 0.7 * plain, "{name}: {fed} against {plain}");
    };
    for bits in [2, 3, 4, 8] {
        for scheme in [scheme(bits, 48), scheme(bits, 32).asymmetric(), scheme(bits, 128)] {
            let fed = pass(bits, 32).ints(&w, &[rows, d], &gram, &scheme, IntLayout::Taper).unwrap();
            let plain = PackedInt::encode(&w, &[rows, d], &scheme, &Fit::default(), None, IntLayout::Taper);
            better(&scheme.to_string(), decoded(&fed.weight), decoded(&plain.unwrap()));
        }
    }
    for double in [false, true] {
        let numbers = RoundNearest::nf4(32).unwrap();
        let numbers = if double { numbers.double_quant() } else { numbers };
        let taper_quant::Number::Nf4(scheme) = numbers.number() else { panic!("nf4") };
        let fed = Gptq::new(numbers).nf4(&w, &[rows, d], &gram, scheme, ValueType::F32).unwrap();
        let plain =
            taper_quant::PackedNf4::encode(&w, &[rows, d], scheme, &Fit::default(), None, ValueType::F32);
        better("nf4", decoded(&fed.weight), decoded(&plain.unwrap()));
    }
}

#[test]
fn a_gram_matrix_of_few_tokens_is_trusted_little_and_never_rounded_away() {
    let (rows, d) = (16, 96);
    let w = values(rows * d, 4);
    let scheme = scheme(4, 32);
    for count in [1, 2, 20, 300] {
        let x = tokens(count, d, 3, 0.0);
        let fed = pass(4, 32).ints(&w, &[rows, d], &gram(&x, d), &scheme, IntLayout::Taper).unwrap();
        assert!(decoded(&fed.weight).iter().all(|x| x.is_finite()), "{count} tokens");
        if count <= 20 {
            assert_eq!((fed.damped.factor, fed.damped.tries), (0.9, 1), "one half saw nothing");
        }
    }
    // Rank 3, no shrinkage wished: the ladder is climbed, and says so.
    let stubborn = pass(4, 32).shrunk(Shrinkage::Fixed(0.0));
    let x = tokens(300, d, 3, 0.0);
    let fed = stubborn.ints(&w, &[rows, d], &gram(&x, d), &scheme, IntLayout::Taper).unwrap();
    assert!(fed.damped.tries > 1 && fed.damped.factor > 0.0 && fed.damped.wished == 0.0, "{:?}", fed.damped);
}

#[test]
fn dead_columns_and_loud_ones_do_no_harm() {
    let (rows, d) = (16, 64);
    let w = values(rows * d, 8);
    let mut x = tokens(1024, d, 8, 0.5);
    for token in x.chunks_exact_mut(d) {
        token[5] = 0.0;
        token[40] *= 1e4;
    }
    let scheme = scheme(4, 32);
    let fed = pass(4, 32).ints(&w, &[rows, d], &gram(&x, d), &scheme, IntLayout::Taper).unwrap();
    assert_eq!((fed.damped.dead, fed.damped.precision), (1, Precision::Single));
    let plain = PackedInt::encode(&w, &[rows, d], &scheme, &Fit::default(), None, IntLayout::Taper).unwrap();
    let (fed, plain) = (decoded(&fed.weight), decoded(&plain));
    assert!(output_error(&w, &fed, &x, d) < 0.1 * output_error(&w, &plain, &x, d));
    for row in 0..rows {
        let largest = w[row * d..row * d + 32].iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(
            (w[row * d + 5] - fed[row * d + 5]).abs() < largest / 4.0,
            "a dead column is still its weight"
        );
    }
}

#[test]
fn numbers_that_are_not_finite_are_errors() {
    let mut bad = Symmetric::zeros(32);
    bad.rows_mut()[3][1] = f64::NAN;
    bad.rows_mut().into_iter().enumerate().for_each(|(i, row)| row[i] = 1.0);
    let gram = Gram { counts: [100, 100], halves: [bad, Symmetric::zeros(32)] };
    let scheme = scheme(4, 32);
    let error = pass(4, 32).ints(&values(64, 1), &[2, 32], &gram, &scheme, IntLayout::Taper).unwrap_err();
    assert!(error.to_string().contains("not finite"), "{error}");
    let mut w = values(64, 1);
    w[7] = f32::NAN;
    let error = pass(4, 32).ints(&w, &[2, 32], &gram, &scheme, IntLayout::Taper).unwrap_err();
    assert_eq!(error, Error::NotFinite { count: 1, first: 7 });
}

#[test]
fn one_thread_and_three_give_the_same_bytes() {
    let (rows, d) = (300, 192);
    let (w, x) = (values(rows * d, 9), tokens(700, d, 12, 0.4));
    let run = |threads: usize| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let gram = gram(&x, d);
            let fed = pass(3, 64).ints(&w, &[rows, d], &gram, &scheme(3, 64), IntLayout::Taper).unwrap();
            (decoded(&fed.weight), fed.damped, fed.loss.to_bits())
        })
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn the_pass_leaves_what_calibration_did_not_see_and_says_so() {
    let (rows, d) = (8, 64);
    let weight: SharedWeight =
        Arc::new(Tensor::from_vec(values(rows * d, 1), (rows, d), &Device::Cpu).unwrap());
    let mut sums = Accumulator::new(d, Needs::Gram);
    sums.add("a.weight", &tokens(600, d, 8, 0.5)).unwrap();
    let stats: Stats = [("a.weight".to_owned(), Arc::new(sums.finish("a").unwrap()))].into_iter().collect();
    let context = Context::new(Some(&stats), 0, &Silent);
    let pass = pass(4, 32);
    assert_eq!((pass.needs(), pass.name()), (Needs::Gram, "gptq"));
    assert!(matches!(pass.rewrite("a.weight", &weight, &context).unwrap(), Rewrite::Done(_)));
    match pass.rewrite("b.weight", &weight, &context).unwrap() {
        Rewrite::Left { why } => assert!(why.contains("saw no input"), "{why}"),
        Rewrite::Done(_) => panic!("b.weight was not calibrated"),
    }
}

/// Inputs that the layers before changed (x) and those of the original (x̃), with the statistics of both.
fn drifted(count: usize, d: usize) -> (Vec<f32>, Vec<f32>, taper_core::InputStats) {
    let original = tokens(count, d, d / 2, 0.3);
    // A change that depends on the inputs, as that of a rounded layer does, and a little chance.
    let (turn, chance) = (values(d * d, 21), values(count * d, 22));
    let mut x = original.clone();
    for (t, x) in x.chunks_exact_mut(d).enumerate() {
        let from = &original[t * d..(t + 1) * d];
        for (i, x) in x.iter_mut().enumerate() {
            let moved: f32 = from.iter().zip(&turn[i * d..]).map(|(a, b)| a * b).sum();
            *x += 0.05 * moved + 0.02 * chance[t * d + i];
        }
    }
    let mut sums = Accumulator::new(d, Needs::CrossGram);
    sums.add_beside("x", &x, &original).unwrap();
    let stats = sums.finish("x").unwrap();
    (x, original, stats)
}

/// ‖W X̃ − V X‖².
fn distance(w: &[f32], original: &[f32], v: &[f64], x: &[f32], d: usize) -> f64 {
    let mut sum = 0.0;
    for (w, v) in w.chunks_exact(d).zip(v.chunks_exact(d)) {
        for (original, x) in original.chunks_exact(d).zip(x.chunks_exact(d)) {
            let wished: f64 = w.iter().zip(original).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            let found: f64 = v.iter().zip(x).map(|(v, x)| v * f64::from(*x)).sum();
            sum += (wished - found).powi(2);
        }
    }
    sum
}

#[test]
fn asymmetric_calibration_nears_the_least_squares_answer_to_the_original_output() {
    let (rows, d, count) = (24, 96, 1200);
    let (x, original, stats) = drifted(count, d);
    let w = values(rows * d, 3);
    let wide = |i: usize, j: usize| {
        (0..count)
            .map(|t| (f64::from(x[t * d + i]), f64::from(x[t * d + j]), f64::from(original[t * d + i])))
            .fold((0.0, 0.0), |(g, c), (a, b, o)| (g + a * b, c + o * b))
    };
    let sums: Vec<Vec<(f64, f64)>> = (0..d).map(|i| (0..d).map(|j| wide(i, j)).collect()).collect();
    let g: Vec<Vec<f64>> = sums.iter().map(|row| row.iter().map(|s| s.0).collect()).collect();
    let inverse = inverse(&g);
    let mut best = vec![0f64; rows * d];
    for (w, best) in w.chunks_exact(d).zip(best.chunks_exact_mut(d)) {
        let wc: Vec<f64> = (0..d).map(|j| (0..d).map(|i| f64::from(w[i]) * sums[i][j].1).sum()).collect();
        for (j, best) in best.iter_mut().enumerate() {
            *best = (0..d).map(|i| wc[i] * inverse[i][j]).sum();
        }
    }
    let gram = stats.gram.as_ref().unwrap();
    let inputs = taper_quant::pass::Inputs { gram, cross: stats.cross.as_deref() };
    let distance_at = |share: Asymmetry| {
        let pass = pass(8, 32).shrunk(Shrinkage::Fixed(0.0)).asymmetric_calibration(share);
        let fed = pass.ints(&w, &[rows, d], inputs, &scheme(8, 32), IntLayout::Taper).unwrap();
        let v: Vec<f64> = decoded(&fed.weight).into_iter().map(f64::from).collect();
        distance(&w, &original, &v, &x, d)
    };
    let least = distance(&w, &original, &best, &x, d);
    let [off, half, on] = [Asymmetry::Off, Asymmetry::Share(0.5), Asymmetry::Share(1.0)].map(distance_at);
    assert!(least < 0.1 * off, "the closed form {least} should be far below {off}");
    // What is left above the closed form is the rounding to 8 bits; half the step leaves a quarter of the rest.
    assert!(on < least + 0.01 * (off - least), "{on} against {least} of the closed form and {off} without");
    let left = (half - least) / (off - least);
    assert!((left - 0.25).abs() < 0.02, "half the share leaves {left} of the distance");
}

#[test]
fn no_share_of_asymmetric_calibration_is_plain_feedback_bit_for_bit() {
    let (rows, d) = (16, 64);
    let (_, _, stats) = drifted(900, d);
    let w = values(rows * d, 3);
    let gram = stats.gram.as_ref().unwrap();
    let run = |pass: Gptq, inputs: taper_quant::pass::Inputs<'_>| {
        let fed = pass.ints(&w, &[rows, d], inputs, &scheme(3, 32), IntLayout::Taper).unwrap();
        (decoded(&fed.weight), fed.loss.to_bits())
    };
    let both = taper_quant::pass::Inputs { gram, cross: stats.cross.as_deref() };
    let plain = run(pass(3, 32), gram.into());
    assert_eq!(plain, run(pass(3, 32).asymmetric_calibration(Asymmetry::Off), both));
    assert_ne!(plain, run(pass(3, 32).asymmetric_calibration(Asymmetry::Share(1.0)), both));
    assert_eq!(pass(3, 32).asymmetric_calibration(Asymmetry::Off).needs(), Needs::Gram);
    assert_eq!(pass(3, 32).asymmetric_calibration(Asymmetry::Share(1.0)).needs(), Needs::CrossGram);
}

#[test]
fn asymmetric_calibration_does_not_depend_on_threads() {
    let (rows, d) = (150, 160);
    let (_, _, stats) = drifted(700, d);
    let w = values(rows * d, 3);
    let run = |threads: usize| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let inputs = taper_quant::pass::Inputs {
                gram: stats.gram.as_ref().unwrap(),
                cross: stats.cross.as_deref(),
            };
            let pass = pass(3, 32).asymmetric_calibration(Asymmetry::Share(1.0));
            let fed = pass.ints(&w, &[rows, d], inputs, &scheme(3, 32), IntLayout::Taper).unwrap();
            (decoded(&fed.weight), fed.loss.to_bits())
        })
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn asymmetric_calibration_without_the_original_inputs_is_an_error() {
    let (rows, d) = (8, 64);
    let w = values(rows * d, 3);
    let gram = gram(&tokens(600, d, 8, 0.5), d);
    let run = |share: f64, cross: Option<&[f64]>| {
        let inputs = taper_quant::pass::Inputs { gram: &gram, cross };
        let pass = pass(4, 32).asymmetric_calibration(Asymmetry::Share(share));
        pass.ints(&w, &[rows, d], inputs, &scheme(4, 32), IntLayout::Taper).unwrap_err()
    };
    let error = run(1.0, None);
    assert!(matches!(error, Error::Conflict { option: "asymmetric-calibration", .. }), "{error}");
    assert!(error.to_string().contains("calibrate sequentially"), "{error}");
    assert!(matches!(run(1.0, Some(&[0.0; 9])), Error::Length { what: "cross", found: 9, .. }));
    let mut broken = vec![0.0; d * d];
    broken[70] = f64::NAN;
    assert!(matches!(run(0.5, Some(&broken)), Error::NotFinite { count: 1, first: 70 }));
    let refused = pass(4, 32).asymmetric_calibration(Asymmetry::Share(1.5)).check().unwrap_err();
    assert!(refused.to_string().contains("choose a share"), "{refused}");
}
