//! Every table of encoders against the specification: equal to the last bit.
//!
//! The specification itself is held against sums in f64 and the `half` crate here, and against other programs' vectors where
//! the formats are.

use half::{bf16, f16};
use proptest::prelude::*;
use std::{mem::MaybeUninit, sync::Arc};

use super::{Encoders, Isa, Method, Number, Spread, Spreading, plain, viterbi};
use crate::{
    code::{
        blocks,
        nf4::{Absmax, Nf4Scheme},
        rows::{Filled, Form, Job, Keep},
        trellis::{StateBits, Trellis},
    },
    fit::{Fit, Hqq, Sample, ScaleSign, Search, Tiles},
    kernel::available,
    pack::RowAlign,
    scheme::{Bits, Granularity, ScaleType, Scheme, Symmetry},
    values::Values,
};

fn scalar() -> &'static Encoders {
    Encoders::of(Isa::Scalar).unwrap()
}

/// All tables but the specification.
fn tables() -> Vec<(Isa, &'static Encoders)> {
    let others = available().into_iter().filter(|isa| *isa != Isa::Scalar);
    others.filter_map(|isa| Some((isa, Encoders::of(isa)?))).collect()
}

#[test]
fn a_machine_with_kernels_has_encoders() {
    assert_eq!(tables().len() + 1, available().len());
}

/// What an encoded matrix consists of.
type Parts = (Arc<[u8]>, Vec<f32>, Option<Vec<i8>>);

fn encode(
    encoders: &'static Encoders,
    values: Values<'_>,
    cols: usize,
    (scheme, fit, form, align): (&Scheme, &Fit, Form, RowAlign),
    weights: Option<&[f32]>,
) -> Result<Parts, String> {
    let job = Job { encoders, cols, scheme, fit, form, align, keep: Keep::Scale };
    let filled = job.run::<Arc<[MaybeUninit<u8>]>, f32>(values, weights);
    let Filled { codes, scales, zeros, .. } = filled.map_err(|e| e.to_string())?;
    Ok((codes, scales, zeros))
}

/// Mostly ordinary values; also zeros, denormals, huge ones, and rarely none at all.
fn value() -> impl Strategy<Value = f32> {
    prop_oneof![
        60 => -3f32..3.0,
        6 => Just(0f32),
        1 => Just(-0.0f32),
        2 => -1e-42f32..1e-42,
        2 => (-60i32..60).prop_map(|e| 1.5f32 * 2f32.powi(e)),
        1 => Just(3e38f32),
    ]
}

/// Runs of values of one size, so that some groups are tiny, zero or huge as a whole.
fn values(count: usize) -> impl Strategy<Value = Vec<f32>> {
    let kind =
        prop_oneof![12 => Just(1f32), 1 => Just(0f32), 1 => Just(1e-40), 1 => Just(1e-31), 1 => Just(1e-6)];
    (prop::collection::vec(value(), count), prop::collection::vec(kind, count / 16 + 1), any::<bool>())
        .prop_map(|(values, kinds, plain)| {
            let factor = |i: usize| if plain { 1.0 } else { kinds[i / 16] };
            values.iter().enumerate().map(|(i, x)| x * factor(i)).collect()
        })
}

fn scheme() -> impl Strategy<Value = Scheme> {
    let granularity = prop_oneof![
        1 => Just(Granularity::Tensor),
        2 => Just(Granularity::Channel),
        6 => prop_oneof![Just(16usize), Just(32), Just(64), Just(128), 1usize..150]
            .prop_map(|n| Granularity::group(n).unwrap()),
    ];
    let scales = prop_oneof![Just(ScaleType::F16), Just(ScaleType::BF16), Just(ScaleType::F32)];
    (2u64..=8, granularity, any::<bool>(), scales).prop_map(|(bits, granularity, symmetric, scales)| Scheme {
        bits: Bits::new(bits).unwrap(),
        symmetry: if symmetric { Symmetry::Symmetric } else { Symmetry::Asymmetric },
        ..Scheme::new(Bits::EIGHT, granularity).with_scales(scales)
    })
}

fn fit() -> impl Strategy<Value = Fit> {
    prop_oneof![
        Just(Fit::AbsMax),
        Just(Fit::MinMax),
        Just(Fit::default()),
        Just(Fit::Hqq(Hqq::default())),
        Just(Fit::Search(Search::positive())),
        Just(Fit::Search(Search::default().with_steps(5))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn every_table_encodes_integers_alike(
        (cols, values) in (1usize..300, 1usize..9)
            .prop_flat_map(|(cols, rows)| (Just(cols), values(cols * rows))),
        scheme in scheme(),
        fit in fit(),
        signed in any::<bool>(),
        word in any::<bool>(),
        weighted in any::<bool>(),
        bad in prop::option::weighted(0.05, prop_oneof![Just(f32::NAN), Just(f32::INFINITY)]),
    ) {
        let mut values = values;
        if let Some(bad) = bad {
            let at = values.len() / 2;
            values[at] = bad;
        }
        let scheme = if fit == Fit::AbsMax { Scheme { symmetry: Symmetry::Symmetric, ..scheme } } else { scheme };
        let signed = signed && scheme.bits == Bits::EIGHT;
        let form = if signed { Form::Signed } else { Form::Packed(scheme.bits) };
        let align = if word && !signed { RowAlign::Word } else { RowAlign::Byte };
        let weights: Vec<f32> = (0..cols).map(|i| (i * 7 % 11) as f32 * 0.3).collect();
        let weights = weighted.then_some(&weights[..]);
        let how = (&scheme, &fit, form, align);
        let f16s: Vec<f16> = values.iter().map(|x| f16::from_f32(*x)).collect();
        let bf16s: Vec<bf16> = values.iter().map(|x| bf16::from_f32(*x)).collect();
        for values in [Values::F32(&values), Values::F16(&f16s), Values::BF16(&bf16s)] {
            let want = encode(scalar(), values, cols, how, weights);
            if bad.is_some() {
                prop_assert!(want.as_ref().is_err_and(|e| e.contains("not finite")));
            }
            // Halves are what their f32 are.
            let wide = values.all(scalar());
            prop_assert_eq!(&encode(scalar(), Values::F32(&wide), cols, how, weights), &want);
            for (isa, table) in tables() {
                prop_assert_eq!(&encode(table, values, cols, how, weights), &want, "{}", isa);
            }
        }
    }

    #[test]
    fn the_specification_is_the_rule_for_single_groups(
        (cols, values) in (1usize..100, 1usize..4)
            .prop_flat_map(|(cols, rows)| (Just(cols), values(cols * rows))),
        scheme in scheme(),
        fit in fit(),
    ) {
        let scheme = if fit == Fit::AbsMax { Scheme { symmetry: Symmetry::Symmetric, ..scheme } } else { scheme };
        let span = scheme.granularity.span(cols);
        let how = (&scheme, &fit, Form::Packed(scheme.bits), RowAlign::Byte);
        let found = encode(scalar(), Values::F32(&values), cols, how, None);
        let samples: Vec<&[f32]> = match scheme.granularity {
            Granularity::Tensor => vec![&values],
            _ => values.chunks(cols).flat_map(|row| row.chunks(span)).collect(),
        };
        let grids: Result<Vec<_>, f32> = samples.iter().map(|x| fit.grid(Sample::new(x), &scheme)).collect();
        match (found, grids) {
            (Err(message), Err(_)) => prop_assert!(message.contains("too large"), "{}", message),
            (Ok((_, scales, zeros)), Ok(grids)) => {
                prop_assert_eq!(scales, grids.iter().map(|g| g.scale).collect::<Vec<_>>());
                let codes: Vec<i8> = grids.iter().map(|g| g.zero as i8).collect();
                prop_assert!(zeros.is_none_or(|zeros| zeros == codes));
            }
            (found, grids) => prop_assert!(false, "{found:?} but {grids:?}"),
        }
    }

    #[test]
    fn every_table_encodes_nf4_alike(
        values in (1usize..900).prop_flat_map(values),
        block in prop_oneof![Just(64usize), Just(32), 1usize..130],
        double in any::<bool>(),
        search in any::<bool>(),
        weighted in any::<bool>(),
    ) {
        let cols = values.len();
        let weights: Vec<f32> = (0..cols).map(|i| (i * 5 % 13) as f32).collect();
        let scheme = Nf4Scheme::new(block).unwrap();
        let scheme = if double { scheme.double_quant() } else { scheme };
        let fit = if search { Fit::default() } else { Fit::AbsMax };
        let run = |encoders| -> (Arc<[u8]>, Absmax) {
            let weights = weighted.then_some(&weights[..]);
            blocks::encode::<Arc<[MaybeUninit<u8>]>>(encoders, Values::F32(&values), cols, scheme, &fit, weights)
                .unwrap()
        };
        let want = run(scalar());
        for (isa, table) in tables() {
            prop_assert_eq!(&run(table), &want, "{}", isa);
        }
    }

    #[test]
    fn nf4_codes_are_nearest_in_every_table(u in prop::collection::vec(-1.3f32..1.3, 1..40)) {
        for (isa, table) in tables() {
            let mut codes = vec![0u8; u.len()];
            (table.levels)(&u, 1.0, &mut codes);
            let want: Vec<u8> = u.iter().map(|u| crate::code::nf4::nearest(*u)).collect();
            prop_assert_eq!(codes, want, "{}", isa);
        }
    }

    #[test]
    fn rounding_in_integer_steps_is_that_of_the_types(bits in 0u32..0x7f80_0000) {
        let scale = f32::from_bits(bits);
        for scales in [ScaleType::F16, ScaleType::BF16, ScaleType::F32] {
            let job = Spread { how: Spreading::Peak(1.0), scales, lowest: -1.0, highest: 1.0 };
            let (mut found, want) = ([0f32], crate::fit::stored(scale, scales));
            let fine = plain::grids(&job, &[-scale], &[0.0], &mut found, &mut [0.0]);
            match want {
                Ok(want) if scale > 0.0 => prop_assert!(fine && found[0] == want, "{scale}: {} not {want}", found[0]),
                Ok(_) => prop_assert_eq!(found[0], 1.0),
                Err(_) => prop_assert!(!fine),
            }
        }
    }
}

#[test]
fn ties_of_nf4_fall_alike_in_every_table() {
    let levels = crate::code::nf4::TABLE;
    let middles = levels.windows(2).map(|pair| ((f64::from(pair[0]) + f64::from(pair[1])) / 2.0) as f32);
    let mut u: Vec<f32> = middles.flat_map(|m| [m.next_down(), m, m.next_up()]).collect();
    u.extend([-7.0, 7.0, 0.0, -0.0, 1.0, -1.0, f32::MAX, f32::MIN, 1e-42]);
    u.extend((0..=32).flat_map(|cell| {
        let edge = cell as f32 / 16.0 - 1.0;
        [edge.next_down(), edge, edge.next_up()]
    }));
    let want: Vec<u8> = u.iter().map(|u| crate::code::nf4::nearest(*u)).collect();
    for (isa, table) in tables() {
        let mut codes = vec![0u8; u.len()];
        (table.levels)(&u, 1.0, &mut codes);
        assert_eq!(codes, want, "{isa}");
    }
}

#[test]
fn lanes_do_not_depend_on_their_neighbours() {
    let group = |seed: usize| -> Vec<f32> {
        (0..48).map(|i| ((i * 37 + seed * 101) % 257) as f32 / 64.0 - 2.0 + seed as f32 * 0.01).collect()
    };
    let number = Number::Asymmetric { bits: Bits::THREE, stored: ScaleType::F16 };
    let symmetric = Number::Symmetric { bits: Bits::TWO, sign: ScaleSign::Either, stored: ScaleType::F16 };
    for (isa, table) in tables() {
        for number in [number, symmetric, Number::Quantiles] {
            let mut together = Tiles::new(table, number, Method::Search { steps: 16 }, 48, false);
            let mut found = Vec::new();
            for seed in 0..table.lanes {
                let x = &group(seed)[..48 - seed];
                let (low, high) = Sample::new(x).extremes();
                together.put(seed, x, None, low, high);
            }
            found.extend(together.run());
            for (seed, found) in found.iter().enumerate() {
                let x = &group(seed)[..48 - seed];
                let (low, high) = Sample::new(x).extremes();
                let mut alone = Tiles::new(scalar(), number, Method::Search { steps: 16 }, x.len(), false);
                alone.put(0, x, None, low, high);
                let want = alone.run().next().unwrap();
                assert_eq!(
                    (found.scale, found.zero),
                    (want.scale, want.zero),
                    "{isa} {number:?} lane {seed}"
                );
            }
        }
    }
}

#[test]
fn fits_that_take_the_lanes_of_others_are_those_of_a_lane_of_their_own() {
    let group = |seed: usize| -> Vec<f32> {
        let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0;
        (0..70 - seed % 9).map(|i| value(i).powi(1 + (seed % 3) as i32)).collect()
    };
    let number = Number::Asymmetric { bits: Bits::THREE, stored: ScaleType::F16 };
    let symmetric = Number::Symmetric { bits: Bits::FOUR, sign: ScaleSign::Positive, stored: ScaleType::F32 };
    let weights: Vec<f32> = (0..70).map(|i| 0.5 + (i % 7) as f32).collect();
    for (isa, table) in tables() {
        for (number, weights) in [(number, None), (symmetric, None), (number, Some(&weights))] {
            let of = |x: &[f32]| weights.map(|w| w[..x.len()].to_vec());
            let method = Method::HalfQuadratic(Hqq::default());
            let mut together = Tiles::new(table, number, method, 70, weights.is_some());
            let (mut found, mut early) = (Vec::new(), 0);
            for seed in 0..75 {
                let x = group(seed);
                let (low, high) = Sample::new(&x).extremes();
                together.put(seed, &x, of(&x).as_deref(), low, high);
                if together.full() {
                    found.extend(together.run());
                    early += usize::from(found.len() < seed + 1);
                }
            }
            found.extend(together.finish());
            found.sort_by_key(|found| found.place);
            assert!(
                found.len() == 75 && (early > 0 || table.lanes == 1),
                "{isa}: some are done before others"
            );
            for (seed, found) in found.iter().enumerate() {
                let x = group(seed);
                let (low, high) = Sample::new(&x).extremes();
                let mut alone = Tiles::new(scalar(), number, method, x.len(), weights.is_some());
                alone.put(0, &x, of(&x).as_deref(), low, high);
                let want = alone.finish().next().unwrap();
                assert_eq!((found.scale, found.zero), (want.scale, want.zero), "{isa} {number:?} {seed}");
            }
        }
    }
}

#[test]
fn bytes_do_not_depend_on_threads() {
    let (rows, cols) = (300, 520);
    let values: Vec<f32> =
        (0..rows * cols).map(|i| ((i * 7919 % 10_007) as f32 / 5000.0 - 1.0).powi(3)).collect();
    for granularity in [Granularity::Tensor, Granularity::Channel, Granularity::group(32).unwrap()] {
        for fit in [Fit::MinMax, Fit::default()] {
            let scheme = Scheme::new(Bits::THREE, granularity).asymmetric();
            let run = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let how = (&scheme, &fit, Form::Packed(scheme.bits), RowAlign::Word);
                pool.install(|| encode(Encoders::active(), Values::F32(&values), cols, how, None)).unwrap()
            };
            let alone = run(1);
            for threads in [2, 3, 7] {
                assert!(run(threads) == alone, "{scheme} {fit:?} on {threads} threads");
            }
        }
    }
}

/// Costs as they are in the middle of a stream, and as they are at its beginning: all but one state out of reach.
fn costs(ends: usize) -> impl Strategy<Value = Vec<f32>> {
    let cost = prop_oneof![8 => 0f32..40.0, 1 => Just(f32::INFINITY), 1 => Just(0f32)];
    let begun = prop::collection::vec(cost, ends);
    let fresh =
        (0..ends).prop_map(move |at| (0..ends).map(|j| if j == at { 0.0 } else { f32::INFINITY }).collect());
    prop_oneof![4 => begun, 1 => fresh]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_table_takes_a_step_through_a_trellis_alike(
        (bits, rate, best) in prop::sample::select(vec![StateBits::Eight, StateBits::Ten, StateBits::Twelve])
            .prop_flat_map(|bits| (Just(bits), 1..=bits.most_rate()))
            .prop_flat_map(|(bits, rate)| (Just(bits), Just(rate), costs(1usize << (bits.get() - u32::from(rate))))),
        x in value(),
    ) {
        let (table, ends) = (Trellis::shared(bits).table(rate), best.len());
        // Every predecessor in turn, without a thought for vectors: what is pushed out is its oldest K bits.
        let mut want = vec![f32::INFINITY; ends];
        for (state, level) in table.iter().enumerate() {
            let error = x - level;
            let cost = best[state >> rate] + error * error;
            let left = &mut want[state % ends];
            *left = if cost < *left { cost } else { *left };
        }
        let mut padded = best.clone();
        padded.resize(ends + viterbi::PADDING, f32::NAN);
        let step = viterbi::Step { table, rate, x, best: &padded };
        for encoders in available().into_iter().filter_map(Encoders::of) {
            let mut next = vec![f32::NAN; ends + viterbi::PADDING];
            (encoders.viterbi)(&step, &mut next);
            prop_assert_eq!(&next[..ends], &want[..], "{:?} {} of {}", bits, rate, encoders.lanes);
        }
    }
}

#[test]
fn scales_of_half_steps_are_those_of_the_rule() {
    // Normal, tiny, and about the largest that each type holds; powers of two and their neighbours.
    let powers = (-45i32..128).map(|e| 2f32.powi(e));
    let peaks: Vec<f32> = powers.flat_map(|p| [p, p * 1.3, p * 1.999_9, p * 1.000_1, p * 0.999_9]).collect();
    for stored in [ScaleType::F16, ScaleType::BF16, ScaleType::F32] {
        for bits in [Bits::TWO, Bits::FOUR, Bits::EIGHT] {
            let scheme = Scheme::new(bits, Granularity::Channel).with_scales(stored);
            let how = Spreading::Peak(bits.steps() as f32 / 2.0);
            let job =
                Spread { how, scales: stored, lowest: bits.lowest() as f32, highest: bits.highest() as f32 };
            for &peak in &peaks {
                let (mut scale, mut zero) = ([0.0], [0.0]);
                let fits = plain::grids(&job, &[-peak], &[0.0], &mut scale, &mut zero);
                match Fit::MinMax.grid(Sample::new(&[-peak]), &scheme) {
                    Ok(grid) if fits => assert_eq!(scale[0], grid.scale, "{stored} {bits:?} {peak}"),
                    rule => assert!(!fits || rule.is_ok(), "{stored} {bits:?} {peak}: {rule:?}"),
                }
            }
        }
    }
}
