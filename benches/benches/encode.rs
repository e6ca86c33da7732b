//! How fast weights are quantized and decoded: each format with each way to find its scales, beside candle's quantizers.
//!
//! The values are N(0, 1), so the error of each is known beforehand: it is checked before anything is timed. Throughput
//! counts f32 bytes, those read when encoding and those written when decoding, whatever the type of the input. `read` is what
//! the machine reads from memory with the same threads, and so the limit of all encoders.
//!
//! `RAYON_NUM_THREADS=1` measures one thread; candle's quantizers have no more than one in any case.

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use half::bf16;
use rayon::prelude::*;
use std::{hint::black_box, ops::Range, time::Duration};
use taper::quant::{
    Bits, Fit, Granularity, IntLayout, Nf4Scheme, PackedInt, PackedNf4, Result, Scheme, Values,
    codec::bitsandbytes_nf4::ValueType,
    fit::{Hqq, Search},
};
use taper::weight::rows::{dense_into, dense_slice};
use taper_benches::matrix::{gaussian, measuring, normalised_mse};

/// What is measured: a name, the bounds of its normalised error on Gaussian values, and the work.
struct Case {
    name: &'static str,
    error: Range<f64>,
    encode: Encode,
}

/// Values and their shape to a packed weight.
type Encode = Box<dyn Fn(Values<'_>, &[usize]) -> Result<Packed>>;

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

    fn dense_into(&self, out: &mut [f32]) {
        match self {
            Self::Int(weight) => dense_into(weight, out),
            Self::Nf4(weight) => dense_into(weight, out),
        }
    }
}

fn int(name: &'static str, scheme: Scheme, fit: Fit, error: Range<f64>) -> Case {
    weighted(name, scheme, fit, None, error)
}

fn weighted(
    name: &'static str,
    scheme: Scheme,
    fit: Fit,
    weights: Option<Vec<f32>>,
    error: Range<f64>,
) -> Case {
    let layout = IntLayout::PackQuantized;
    let encode = move |values: Values<'_>, shape: &[usize]| {
        PackedInt::encode_values(values, shape, &scheme, &fit, weights.as_deref(), layout).map(Packed::Int)
    };
    Case { name, error, encode: Box::new(encode) }
}

fn nf4(name: &'static str, scheme: Nf4Scheme, fit: Fit, error: Range<f64>) -> Case {
    let encode = move |values: Values<'_>, shape: &[usize]| {
        PackedNf4::encode_values(values, shape, scheme, &fit, None, ValueType::F32).map(Packed::Nf4)
    };
    Case { name, error, encode: Box::new(encode) }
}

/// Columns of the matrix: what weights of columns need.
const COLS: usize = 4096;

/// Bounds: a few per cent around what an independent computation over 2²⁰ Gaussian values gave.
fn cases() -> Result<Vec<Case>> {
    let search = Fit::Search(Search::default());
    let hqq = Fit::Hqq(Hqq::default());
    let (int4, wide, int8) = (Scheme::int4(32)?, Scheme::int4(128)?, Scheme::int8());
    let groups = Granularity::group(32)?;
    let bits = |bits| Ok::<_, taper::quant::Error>(Scheme::new(Bits::new(bits)?, groups));
    let weights: Vec<f32> = (0..COLS).map(|i| 0.5 + (i % 7) as f32 / 4.0).collect();
    Ok(vec![
        int("int4 g32 absmax", int4, Fit::AbsMax, 0.0089..0.0099),
        int("int4 g32 minmax", int4, Fit::MinMax, 0.0086..0.0094),
        int("int4 g32 asym minmax", int4.asymmetric(), Fit::MinMax, 0.0060..0.0075),
        int("int4 g128 absmax", wide, Fit::AbsMax, 0.0130..0.0146),
        int("int4 g128 minmax", wide, Fit::MinMax, 0.0117..0.0129),
        int("int4 g128 asym minmax", wide.asymmetric(), Fit::MinMax, 0.0095..0.0107),
        int("int8 g32 absmax", bits(8)?, Fit::AbsMax, 2.6e-5..3.1e-5),
        int("int8 channel absmax", int8, Fit::AbsMax, 5e-5..8e-5),
        int("int8 channel asym minmax", int8.asymmetric(), Fit::MinMax, 5e-5..8e-5),
        int("int4 g32 search", int4, search, 0.0063..0.0072),
        int("int4 g128 search", wide, search, 0.0090..0.0098),
        int("int4 g128 asym hqq", wide.asymmetric(), hqq, 0.0090..0.0100),
        int("int4 g32 asym hqq", int4.asymmetric(), hqq, 0.0057..0.0066),
        int("int4 g32 asym search", int4.asymmetric(), search, 0.0057..0.0065),
        weighted("int4 g32 search weighted", int4, search, Some(weights), 0.0063..0.0078),
        int("int2 g32 search", bits(2)?, search, 0.09..0.13),
        int("int3 g32 search", bits(3)?, search, 0.022..0.032),
        int("int5 g32 search", bits(5)?, search, 0.0015..0.0019),
        int("int6 g32 search", bits(6)?, search, 0.00036..0.00046),
        int("int8 g32 search", bits(8)?, search, 2.2e-5..2.9e-5),
        int("int8 channel search", int8, search, 4e-5..8e-5),
        nf4("nf4 b64 absmax", Nf4Scheme::new(64)?, Fit::AbsMax, 0.0080..0.0092),
        nf4("nf4 b64 search", Nf4Scheme::new(64)?, search, 0.0070..0.0086),
        nf4("nf4 b64 dq absmax", Nf4Scheme::new(64)?.double_quant(), Fit::AbsMax, 0.0080..0.0092),
    ])
}

/// candle's, with its error on the same values.
const PEERS: [(&str, GgmlDType, Range<f64>); 3] = [
    ("candle Q4_0", GgmlDType::Q4_0, 0.0070..0.0078),
    ("candle Q8_0", GgmlDType::Q8_0, 2.6e-5..3.1e-5),
    ("candle Q4_K", GgmlDType::Q4K, 0.0050..0.0060),
];

fn shape() -> [usize; 2] {
    [if measuring() { 4096 } else { 64 }, COLS]
}

fn group<'a>(criterion: &'a mut Criterion, name: &str, bytes: usize) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Bytes(bytes as u64));
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    group
}

fn encode(criterion: &mut Criterion) {
    let shape = shape();
    let values = gaussian(shape[0] * shape[1], 1);
    let halves: Vec<bf16> = values.iter().map(|x| bf16::from_f32(*x)).collect();
    let mut group = group(criterion, "encode", size_of_val(&values[..]));
    group.bench_function("read", |b| b.iter(|| read(black_box(&values))));
    for case in cases().expect("the schemes are valid") {
        let packed = (case.encode)(Values::F32(&values), &shape).expect("finite values can be encoded");
        let error = normalised_mse(&values, &packed.dense());
        assert!(case.error.contains(&error), "{}: error {error}, expected {:?}", case.name, case.error);
        group
            .bench_function(case.name, |b| b.iter(|| (case.encode)(black_box(Values::F32(&values)), &shape)));
        if case.name.ends_with("absmax") {
            let name = format!("{} bf16", case.name);
            group
                .bench_function(name, |b| b.iter(|| (case.encode)(black_box(Values::BF16(&halves)), &shape)));
        }
    }
    let tensor = Tensor::from_slice(&values, &shape, &Device::Cpu).expect("a matrix");
    for (name, dtype, bounds) in PEERS {
        let quantize = || QTensor::quantize(&tensor, dtype).expect("blocks divide the columns");
        let error = normalised_mse(&values, &dense(&quantize()));
        assert!(bounds.contains(&error), "{name}: error {error}, expected {bounds:?}");
        group.bench_function(name, |b| b.iter(|| black_box(quantize())));
    }
    group.finish();
}

/// As fast as values can be looked at: the largest bit pattern.
fn read(values: &[f32]) -> u32 {
    values.par_chunks(1 << 14).map(|x| x.iter().fold(0, |most, x| most.max(x.to_bits()))).max().unwrap_or(0)
}

fn dense(weight: &QTensor) -> Vec<f32> {
    let dense = weight.dequantize(&Device::Cpu).and_then(|t| t.flatten_all()).and_then(|t| t.to_vec1());
    dense.expect("a matrix")
}

fn decode(criterion: &mut Criterion) {
    let shape = shape();
    let values = gaussian(shape[0] * shape[1], 1);
    let mut group = group(criterion, "decode", size_of_val(&values[..]));
    let mut out = vec![0f32; values.len()];
    group.bench_function("write", |b| {
        b.iter(|| out.par_chunks_mut(1 << 14).for_each(|out| out.fill(black_box(1.0))));
    });
    for case in cases().expect("the schemes are valid") {
        if !case.name.ends_with("absmax") {
            continue;
        }
        let packed = (case.encode)(Values::F32(&values), &shape).expect("finite values can be encoded");
        out.fill(f32::NAN);
        packed.dense_into(&mut out);
        let error = normalised_mse(&values, &out);
        assert!(case.error.contains(&error), "{}: error {error}, expected {:?}", case.name, case.error);
        group.bench_function(case.name, |b| b.iter(|| packed.dense_into(black_box(&mut out))));
        let name = format!("{} to new memory", case.name);
        group.bench_function(name, |b| b.iter(|| black_box(packed.dense())));
    }
    let tensor = Tensor::from_slice(&values, &shape, &Device::Cpu).expect("a matrix");
    for (name, dtype, bounds) in PEERS {
        let weight = QTensor::quantize(&tensor, dtype).expect("blocks divide the columns");
        let error = normalised_mse(&values, &dense(&weight));
        assert!(bounds.contains(&error), "{name}: error {error}, expected {bounds:?}");
        let name = format!("{name} to new memory");
        group.bench_function(name, |b| b.iter(|| black_box(weight.dequantize(&Device::Cpu))));
    }
    group.finish();
}

criterion_group!(benches, encode, decode);
criterion_main!(benches);
