//! Half-quadratic fits: against plain f64 code, the paper's own form, and where they start.

use rand::{Rng, SeedableRng};
use taper_quant::{
    Bits, Fit, Granularity, Hqq, IntLayout, PackedInt, RoundNearest, ScaleType, Scheme,
    fit::{Grid, Sample},
};

const NORM: f64 = 0.7;
const STRENGTH: f64 = 10.0;

/// The paper's generalised shrinkage.
fn shrink(e: f64, strength: f64) -> f64 {
    if e == 0.0 { 0.0 } else { e.signum() * (e.abs() - e.abs().powf(NORM - 1.0) / strength).max(0.0) }
}

/// Groups of sums of `terms` uniform values: flat at 1, near Gaussian at 4; cubed where 0, for heavy tails.
fn group(rng: &mut impl Rng, terms: usize, count: usize) -> Vec<f32> {
    let mut draw = || -> f32 {
        let sum: f32 = (0..if terms == 0 { 4 } else { terms }).map(|_| rng.random_range(-1.0f32..1.0)).sum();
        if terms == 0 { sum * sum * sum } else { sum }
    };
    (0..count).map(|_| 0.05 * draw()).collect()
}

fn scheme(bits: u64, symmetric: bool) -> Scheme {
    let scheme = Scheme::new(Bits::new(bits).unwrap(), Granularity::Channel);
    if symmetric { scheme } else { scheme.asymmetric() }
}

/// Σ |x − x̂|^p of the nearest codes.
fn cost(x: &[f32], scale: f64, zero: f64, bits: Bits) -> f64 {
    let (low, high) = (f64::from(bits.lowest()), f64::from(bits.highest()));
    let each = x.iter().map(|&x| {
        let q = (f64::from(x) / scale + zero).clamp(low, high).round_ties_even();
        (f64::from(x) - scale * (q - zero)).abs().powf(NORM)
    });
    each.sum()
}

/// Split, refit, repeat: as the documentation of the fit has it, in f64 and without any shortcut.
fn plain(x: &[f32], scheme: &Scheme, start: Grid) -> Grid {
    let (low, high) = (f64::from(scheme.bits.lowest()), f64::from(scheme.bits.highest()));
    let unit = f64::from(start.scale);
    let (mut now, mut best, mut least, mut strength) = (start, start, f64::INFINITY, STRENGTH);
    for _ in 0..=20 {
        let (s, z) = (f64::from(now.scale), f64::from(now.zero));
        let here = cost(x, s, z, scheme.bits);
        if here >= least {
            break;
        }
        (best, least) = (now, here);
        let q: Vec<f64> =
            x.iter().map(|&x| (f64::from(x) / s + z).clamp(low, high).round_ties_even()).collect();
        // x − ε
        let kept: Vec<f64> = x
            .iter()
            .zip(&q)
            .map(|(&x, q)| f64::from(x) - unit * shrink((f64::from(x) - s * (q - z)) / unit, strength))
            .collect();
        let n = x.len() as f64;
        let mean = |v: &[f64]| v.iter().sum::<f64>() / n;
        let zero = if scheme.is_symmetric() {
            0.0
        } else {
            (mean(&q) - mean(&kept) / s).round_ties_even().clamp(low, high)
        };
        let above: f64 = kept.iter().zip(&q).map(|(y, q)| y * (q - zero)).sum();
        let below: f64 = q.iter().map(|q| (q - zero).powi(2)).sum();
        let scale = scheme.scales.round((above / below) as f32);
        if !(scale > 0.0 && scale.is_finite()) {
            break;
        }
        now = Grid { scale, zero: zero as i32 };
        strength *= 1.01;
    }
    best
}

#[test]
fn grids_are_those_of_plain_code() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    for (bits, symmetric) in
        [(2, false), (2, true), (3, false), (3, true), (4, false), (4, true), (8, false), (8, true)]
    {
        for scales in [ScaleType::F16, ScaleType::F32] {
            let scheme = scheme(bits, symmetric).with_scales(scales);
            let (mut equal, mut ours, mut theirs) = (0, 0.0, 0.0);
            for round in 0..400 {
                let x = group(&mut rng, round % 5, [32, 64, 128, 31, 2000][round % 5]);
                let sample = Sample::new(&x);
                let start = Fit::MinMax.grid(sample, &scheme).unwrap();
                let got = Fit::Hqq(Hqq::default()).grid(sample, &scheme).unwrap();
                let want = plain(&x, &scheme, start);
                let near = (got.scale / want.scale - 1.0).abs() < 1e-3;
                equal += usize::from(near && got.zero == want.zero);
                ours += cost(&x, f64::from(got.scale), f64::from(got.zero), scheme.bits);
                theirs += cost(&x, f64::from(want.scale), f64::from(want.zero), scheme.bits);
            }
            // A value halfway between two codes may fall either way in f32, and the rest of the path with it.
            assert!(equal >= 360, "{scheme} {scales}: {equal} of 400 grids");
            assert!((ours / theirs - 1.0).abs() < 1e-3, "{scheme} {scales}: {ours} against {theirs}");
        }
    }
}

#[test]
fn no_group_is_worse_than_where_it_starts() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
    for (bits, symmetric) in [(2, false), (3, true), (4, false), (6, true), (8, false)] {
        let scheme = scheme(bits, symmetric);
        for round in 0..2000 {
            let x = group(&mut rng, round % 5, 1 + round % 150);
            let of = |grid: Grid| cost(&x, f64::from(grid.scale), f64::from(grid.zero), scheme.bits);
            let start = of(Fit::MinMax.grid(Sample::new(&x), &scheme).unwrap());
            let ended = of(Fit::Hqq(Hqq::default()).grid(Sample::new(&x), &scheme).unwrap());
            // Powers are good to 6·10⁻⁶.
            assert!(ended <= start * (1.0 + 2e-5) + 1e-7, "{scheme}: {ended} after {start}");
        }
    }
}

/// The paper's iteration: the scale of min–max, a zero point that is a real number.
fn published(x: &[f32], bits: Bits) -> f64 {
    let steps = f64::from(bits.steps());
    let (low, high) = x.iter().fold((0f64, 0f64), |(l, h), &x| (l.min(f64::from(x)), h.max(f64::from(x))));
    let scale = (high - low) / steps;
    let mut zero = -low / scale;
    let (mut strength, mut least) = (STRENGTH, f64::INFINITY);
    for _ in 0..20 {
        let (mut sum, mut error, mut power) = (0.0, 0.0, 0.0);
        for &x in x {
            let x = f64::from(x);
            let q = (x / scale + zero).round_ties_even().clamp(0.0, steps);
            let e = x - scale * (q - zero);
            error += e.abs();
            power += e.abs().powf(NORM);
            sum += q - (x - shrink(e, strength)) / scale;
        }
        if error >= least {
            break;
        }
        least = error;
        if power > 0.0 {
            zero = sum / x.len() as f64;
        }
        strength *= 1.01;
    }
    let each = x.iter().map(|&x| {
        let x = f64::from(x);
        let q = (x / scale + zero).round_ties_even().clamp(0.0, steps);
        (x - scale * (q - zero)).abs().powf(NORM)
    });
    each.sum()
}

#[test]
fn a_scale_that_moves_is_worth_more_than_a_zero_that_is_real() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
    for (bits, count, most) in [(4, 128, 1.0), (3, 128, 0.95), (2, 64, 0.85)] {
        let scheme = scheme(bits, false);
        let (mut ours, mut theirs) = (0.0, 0.0);
        for _ in 0..500 {
            let x = group(&mut rng, 4, count);
            let grid = Fit::Hqq(Hqq::default()).grid(Sample::new(&x), &scheme).unwrap();
            ours += cost(&x, f64::from(grid.scale), f64::from(grid.zero), scheme.bits);
            theirs += published(&x, scheme.bits);
        }
        assert!(ours < most * theirs, "{bits} bits: {ours} against {theirs}");
    }
}

#[test]
fn importances_move_the_grid_towards_what_matters() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
    let scheme = scheme(3, false);
    let (mut weighted, mut alike) = (0.0, 0.0);
    for _ in 0..300 {
        let x = group(&mut rng, 4, 64);
        let w: Vec<f32> = (0..64).map(|i| if i % 8 == 0 { 20.0 } else { 0.1 }).collect();
        let of = |w: Option<&[f32]>| {
            let grid = Fit::Hqq(Hqq::default()).grid(Sample::weighted(&x, w), &scheme).unwrap();
            let loud: Vec<f32> = x.iter().step_by(8).copied().collect();
            cost(&loud, f64::from(grid.scale), f64::from(grid.zero), scheme.bits)
        };
        weighted += of(Some(&w));
        alike += of(None);
    }
    assert!(weighted < 0.95 * alike, "{weighted} against {alike}");
}

#[test]
fn whole_tensors_and_any_number_of_threads_give_the_same_bytes() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
    let x = group(&mut rng, 4, 48 * 700);
    for granularity in [Granularity::Tensor, Granularity::group(64).unwrap()] {
        let scheme = scheme(3, false).with_granularity(granularity);
        let run = |threads: usize| {
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
                let fit = Fit::Hqq(Hqq::default());
                let packed =
                    PackedInt::encode(&x, &[48, 700], &scheme, &fit, None, IntLayout::Taper).unwrap();
                let mut row = vec![0f32; 700];
                (0..48)
                    .map(|r| {
                        taper_core::Rows::decode_row(&packed, r, &mut row);
                        row.clone()
                    })
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(run(1), run(3), "{scheme}");
    }
}

#[test]
fn norms_outside_their_range_are_refused() {
    for norm in [0.0, -0.5, 1.5, f32::NAN] {
        let message = Hqq::default().with_norm(norm).unwrap_err().to_string();
        assert!(message.contains("above 0 and at most 1"), "{message}");
        let fit = Fit::Hqq(Hqq { norm, ..Hqq::default() });
        assert!(RoundNearest::int4(32).unwrap().with_fit(fit).check().is_err());
    }
}
