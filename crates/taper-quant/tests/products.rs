//! Products through the public entrance: every layout against its own dense form, and what int8 activations cost.

use candle_core::{Device, Tensor};
use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use taper_core::{Rows, Weight, weight::rows};
use taper_quant::{
    Arithmetic, Bits, Fit, Granularity, IntLayout, Nf4Scheme, PackedInt, PackedNf4, ScaleType, Scheme,
    codec::bitsandbytes_nf4::ValueType,
};

fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| StandardNormal.sample(&mut rng)).collect()
}

/// ‖a − b‖ / ‖b‖.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let off: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(a - b))).sum();
    let size: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    (off / size).sqrt()
}

/// The product, the dense form and row lookup agree with the plain way of decoding a row and adding up.
fn check<W: Weight + Rows>(weight: &W, tokens: usize) {
    let [rows, cols] = weight.shape() else { panic!("a matrix") };
    let x = normal(tokens * cols, 11);
    let plain = rows::matmul_slice(weight, &x, tokens);
    let tensor = Tensor::from_slice(&x, (tokens, *cols), &Device::Cpu).unwrap();
    let y = weight.matmul(&tensor).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(y.len(), tokens * rows);
    assert!(distance(&y, &plain) < 1e-6, "{}: {}", weight.encoding(), distance(&y, &plain));
    let dense = weight.dense().unwrap().matmul(&tensor.t().unwrap()).unwrap().t().unwrap();
    let dense = dense.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(distance(&y, &dense) < 1e-6, "{} dense", weight.encoding());
    let ids = Tensor::new(&[1u32, 0], &Device::Cpu).unwrap();
    let looked_up = weight.gather(&ids).unwrap().to_vec2::<f32>().unwrap();
    let all = weight.dense().unwrap().to_vec2::<f32>().unwrap();
    assert_eq!((&looked_up[0], &looked_up[1]), (&all[1], &all[0]));
}

#[test]
fn every_layout_multiplies_as_its_dense_form() {
    let (rows, cols) = (40, 320);
    let values = normal(rows * cols, 5);
    for bits in 2..=8 {
        let bits = Bits::new(bits).unwrap();
        for granularity in [
            Granularity::Tensor,
            Granularity::Channel,
            Granularity::group(32).unwrap(),
            Granularity::group(100).unwrap(),
        ] {
            let scheme = Scheme { bits, granularity, ..Scheme::int4(32).unwrap() };
            for scheme in [scheme, scheme.asymmetric(), scheme.with_scales(ScaleType::BF16)] {
                for layout in [IntLayout::PackQuantized, IntLayout::IntQuantized, IntLayout::Taper] {
                    if layout.holds(".weight", &[rows, cols], &scheme) {
                        let weight =
                            PackedInt::encode(&values, &[rows, cols], &scheme, &Fit::MinMax, None, layout)
                                .unwrap();
                        check(&weight, 1);
                        check(&weight, 9);
                    }
                }
            }
        }
    }
    let scheme = Scheme { bits: Bits::EIGHT, granularity: Granularity::Channel, ..Scheme::int4(32).unwrap() };
    let scheme = scheme.with_scales(ScaleType::F32);
    let layout = IntLayout::BitsAndBytes;
    let weight = PackedInt::encode(&values, &[rows, cols], &scheme, &Fit::AbsMax, None, layout).unwrap();
    check(&weight, 1);
    check(&weight, 9);
}

#[test]
fn nf4_multiplies_as_its_dense_form_wherever_blocks_fall() {
    for (cols, block) in [(128, 64), (192, 32), (96, 64), (33, 16), (64, 64)] {
        let values = normal(20 * cols, 6);
        for scheme in [Nf4Scheme::new(block).unwrap(), Nf4Scheme::new(block).unwrap().double_quant()] {
            let weight =
                PackedNf4::encode(&values, &[20, cols], scheme, &Fit::AbsMax, None, ValueType::F32).unwrap();
            check(&weight, 1);
            check(&weight, 7);
        }
    }
}

#[test]
fn int8_activations_cost_less_than_a_hundredth() {
    let (rows, cols) = (256, 4096);
    let values = normal(rows * cols, 7);
    let group = |size| Granularity::group(size).unwrap();
    for (bits, granularity, least, most) in [
        (Bits::FOUR, group(32), 0.004, 0.0065),
        (Bits::FOUR, group(128), 0.005, 0.0075),
        (Bits::FOUR, Granularity::Channel, 0.006, 0.010),
        (Bits::EIGHT, Granularity::Channel, 0.006, 0.010),
        (Bits::THREE, group(64), 0.004, 0.007),
    ] {
        let scheme = Scheme { bits, granularity, ..Scheme::int4(32).unwrap() };
        for scheme in [scheme, scheme.asymmetric()] {
            let layout = IntLayout::PackQuantized;
            let exact =
                PackedInt::encode(&values, &[rows, cols], &scheme, &Fit::MinMax, None, layout).unwrap();
            let fast = exact.clone().with_arithmetic(Arithmetic::Int8);
            assert_eq!((exact.arithmetic(), fast.arithmetic()), (Arithmetic::Exact, Arithmetic::Int8));
            for tokens in [1, 8] {
                let x = normal(tokens * cols, 8);
                let off = distance(&fast.product(&x, tokens), &exact.product(&x, tokens));
                assert!(off > least && off < most, "{scheme} adds {off}");
            }
        }
    }
}
