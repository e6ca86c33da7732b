//! How fast packed weights multiply, beside candle's dense product and its own quantized ones.
//!
//! Every product is compared with a plain one in f64 over the decoded weight before it is timed. Taper's exact products and
//! candle's dense ones differ from it by rounding only; Taper's eight-bit arithmetic and candle's quantized products round
//! the activations to 8 bits too. The program `peers` measures the same side by side, on larger matrices.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::{error::Error, hint::black_box, sync::Arc, time::Duration};
use taper::{
    SharedWeight,
    candle::{
        DType, Device, Module, Tensor,
        quantized::{GgmlDType, QMatMul, QTensor},
    },
    prune::{
        Bitmask,
        slice::{magnitudes, prune_n_of_m, zero_pruned},
    },
    quant::{
        Arithmetic, Bits, Fit, Granularity, IntLayout, Nf4Scheme, PackedInt, PackedNf4, Scheme,
        codec::bitsandbytes_nf4::ValueType,
    },
    weight::to_f32_vec,
};
use taper_benches::matrix::{gaussian, measuring, normalised_mse, product};

type Failed = Box<dyn Error>;

/// What multiplies: a name, the decoded weight, the most that the result may be off (normalised MSE), and the product.
struct Case {
    name: &'static str,
    dense: Vec<f32>,
    bound: f64,
    product: Product,
}

/// Activations `[rows, in]` to `[rows, out]`.
type Product = Box<dyn Fn(&Tensor) -> Result<Tensor, Failed>>;

/// f32 sums of a few thousand terms: about √n · 2⁻²⁴ each, squared, with room.
const ROUNDING: f64 = 1e-11;
/// Activations rounded to 8 bits in blocks of 32 to whole rows: a normalised error of some 4e-5 to 1e-4.
const ACTIVATIONS: f64 = 2e-4;

/// Activations rounded to bf16 or f16 where the weight is: eight bits, a normalised error of some 3e-6.
const NARROW: f64 = 2e-5;

fn weight(name: &'static str, weight: SharedWeight, bound: f64) -> Result<Case, Failed> {
    let dense = to_f32_vec(weight.as_ref())?;
    Ok(Case { name, dense, bound, product: Box::new(move |x| Ok(weight.matmul(x)?)) })
}

/// Every family of integers, exactly and with eight-bit activations.
fn integers(values: &[f32], shape: [usize; 2]) -> Result<Vec<Case>, Failed> {
    let (int4, int8) = (Scheme::int4(128)?, Scheme::int8());
    let three = Scheme::new(Bits::new(3)?, Granularity::group(64)?);
    let families = [
        ("taper int4 g128", "taper int4 g128, int8 activations", int4),
        ("taper int4 g128 asym", "taper int4 g128 asym, int8 activations", int4.asymmetric()),
        ("taper int4 g32", "taper int4 g32, int8 activations", Scheme::int4(32)?),
        ("taper int8 channel", "taper int8 channel, int8 activations", int8),
        ("taper int3 g64", "taper int3 g64, int8 activations", three),
    ];
    let mut cases = Vec::new();
    for (exact, bytes, scheme) in families {
        let fit = if scheme.is_symmetric() { Fit::AbsMax } else { Fit::MinMax };
        let packed = PackedInt::encode(values, &shape, &scheme, &fit, None, IntLayout::Taper)?;
        let rounded = packed.clone().with_arithmetic(Arithmetic::Int8);
        cases.push(weight(exact, Arc::new(packed), ROUNDING)?);
        cases.push(weight(bytes, Arc::new(rounded), ACTIVATIONS)?);
    }
    Ok(cases)
}

fn candle(name: &'static str, w: &Tensor, dtype: GgmlDType) -> Result<Case, Failed> {
    let quantized = QTensor::quantize(w, dtype)?;
    let dense = quantized.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()?;
    let layer = QMatMul::from_qtensor(quantized)?;
    Ok(Case { name, dense, bound: ACTIVATIONS, product: Box::new(move |x| Ok(layer.forward(x)?)) })
}

fn cases(out: usize, inner: usize) -> Result<Vec<Case>, Failed> {
    let (values, shape) = (gaussian(out * inner, 1), [out, inner]);
    let w = Tensor::from_slice(&values, &shape, &Device::Cpu)?;
    let nf4 = PackedNf4::encode(&values, &shape, Nf4Scheme::new(64)?, &Fit::AbsMax, None, ValueType::F32)?;
    let (mut pruned, mut scores) = (values.clone(), values.clone());
    magnitudes(&mut scores);
    zero_pruned(&mut pruned, &prune_n_of_m(&scores, inner, 2, 4));
    let sparse = Bitmask::from_dense(&Tensor::from_slice(&pruned, &shape, &Device::Cpu)?)?;
    let dense = Case {
        name: "candle f32",
        dense: values.clone(),
        bound: ROUNDING,
        product: {
            let w = w.clone();
            Box::new(move |x| Ok(x.matmul(&w.t()?)?))
        },
    };
    let mut cases = vec![dense, candle("candle Q4_0", &w, GgmlDType::Q4_0)?];
    cases.push(candle("candle Q4_K", &w, GgmlDType::Q4K)?);
    cases.push(candle("candle Q8_0", &w, GgmlDType::Q8_0)?);
    cases.extend(integers(&values, shape)?);
    cases.push(weight("taper nf4 b64", Arc::new(nf4), ROUNDING)?);
    cases.push(weight("taper 2:4 bitmask", Arc::new(sparse), ROUNDING)?);
    for (name, dtype) in [("taper bf16", DType::BF16), ("taper f16", DType::F16)] {
        cases.push(weight(name, Arc::new(w.to_dtype(dtype)?), NARROW)?);
    }
    Ok(cases)
}

/// Compares a product with a plain one over the first rows of the result.
fn check(case: &Case, x: &Tensor, shape: [usize; 2]) -> Result<(), Failed> {
    let [out, inner] = shape;
    let rows = x.dim(0)?.min(4);
    let y: Vec<f32> = (case.product)(x)?.flatten_all()?.to_vec1()?;
    assert_eq!(y.len(), x.dim(0)? * out, "{}", case.name);
    let x: Vec<f32> = x.flatten_all()?.to_vec1()?;
    let error = normalised_mse(&product(&x[..rows * inner], &case.dense, inner), &y[..rows * out]);
    assert!(error <= case.bound, "{} with {rows} rows: error {error:e}, at most {:e}", case.name, case.bound);
    Ok(())
}

fn products(criterion: &mut Criterion) -> Result<(), Failed> {
    let shape = if measuring() { [4096, 1024] } else { [256, 512] };
    let [out, inner] = shape;
    let mut group = criterion.benchmark_group("product");
    group.sample_size(20).measurement_time(Duration::from_secs(3));
    let cases = cases(out, inner)?;
    for rows in [1, 8, 64] {
        let x = Tensor::from_vec(gaussian(rows * inner, 2), (rows, inner), &Device::Cpu)?;
        group.throughput(Throughput::Elements((rows * out * inner) as u64));
        for case in &cases {
            check(case, &x, shape)?;
            let id = BenchmarkId::new(case.name, rows);
            group.bench_function(id, |b| b.iter(|| (case.product)(black_box(&x))));
        }
    }
    group.finish();
    Ok(())
}

fn product_benches(criterion: &mut Criterion) {
    products(criterion).expect("every product can be made");
}

criterion_group!(benches, product_benches);
criterion_main!(benches);
