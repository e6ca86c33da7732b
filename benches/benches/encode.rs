//! How fast weights are quantized: each format with each way to find its scales.
//!
//! The values are N(0, 1), so the error of each is known beforehand: it is checked before anything is timed.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::{hint::black_box, time::Duration};
use taper::quant::{
    Fit, IntLayout, Nf4Scheme, PackedInt, PackedNf4, Result, Scheme, codec::bitsandbytes_nf4::ValueType,
    fit::Search,
};
use taper::weight::rows::dense_slice;
use taper_benches::matrix::{gaussian, measuring, normalised_mse};

/// What is measured: a name, the bounds of its normalised error on Gaussian values, and the work.
struct Case {
    name: &'static str,
    error: std::ops::Range<f64>,
    encode: Encode,
}

/// Values and their shape to a packed weight.
type Encode = Box<dyn Fn(&[f32], &[usize]) -> Result<Packed>>;

enum Packed {
    Int(PackedInt),
    Nf4(PackedNf4),
}

impl Packed {
    fn dense(&self) -> Vec<f32> {
        match self {
            Self::Int(weight) => dense_slice(weight),
            Self::Nf4(weight) => dense_slice(weight),
        }
    }
}

fn int(name: &'static str, scheme: Scheme, fit: Fit, error: std::ops::Range<f64>) -> Case {
    let layout = IntLayout::PackQuantized;
    let encode = move |values: &[f32], shape: &[usize]| {
        PackedInt::encode(values, shape, &scheme, &fit, None, layout).map(Packed::Int)
    };
    Case { name, error, encode: Box::new(encode) }
}

fn nf4(name: &'static str, scheme: Nf4Scheme, fit: Fit, error: std::ops::Range<f64>) -> Case {
    let encode = move |values: &[f32], shape: &[usize]| {
        PackedNf4::encode(values, shape, scheme, &fit, None, ValueType::F32).map(Packed::Nf4)
    };
    Case { name, error, encode: Box::new(encode) }
}

/// Bounds: a few per cent around what an independent computation over 2²⁰ Gaussian values gave.
fn cases() -> Result<Vec<Case>> {
    let search = Fit::Search(Search::default());
    let (int4, int8) = (Scheme::int4(32)?, Scheme::int8());
    Ok(vec![
        int("int4 g32 absmax", int4, Fit::AbsMax, 0.0089..0.0099),
        int("int4 g32 minmax", int4, Fit::MinMax, 0.0086..0.0094),
        int("int4 g32 search", int4, search, 0.0063..0.0072),
        int("int4 g32 asym search", int4.asymmetric(), search, 0.0057..0.0065),
        int("int8 channel absmax", int8, Fit::AbsMax, 5e-5..7e-5),
        int("int8 channel search", int8, search, 4e-5..7e-5),
        nf4("nf4 b64 absmax", Nf4Scheme::new(64)?, Fit::AbsMax, 0.0080..0.0092),
        nf4("nf4 b64 search", Nf4Scheme::new(64)?, search, 0.0070..0.0086),
        nf4("nf4 b64 dq absmax", Nf4Scheme::new(64)?.double_quant(), Fit::AbsMax, 0.0080..0.0092),
    ])
}

fn encode(criterion: &mut Criterion) {
    let shape = if measuring() { [4096, 1024] } else { [256, 1024] };
    let values = gaussian(shape[0] * shape[1], 1);
    let mut group = criterion.benchmark_group("encode");
    group.throughput(Throughput::Bytes(size_of_val(values.as_slice()) as u64));
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    for case in cases().expect("the schemes are valid") {
        let packed = (case.encode)(&values, &shape).expect("finite values can be encoded");
        let error = normalised_mse(&values, &packed.dense());
        assert!(case.error.contains(&error), "{}: error {error}, expected {:?}", case.name, case.error);
        group.bench_function(case.name, |b| b.iter(|| (case.encode)(black_box(&values), &shape)));
    }
    group.finish();
}

criterion_group!(benches, encode);
criterion_main!(benches);
