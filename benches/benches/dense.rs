//! How fast plain weights multiply: f32, f16 and bfloat16, beside candle's product of the same tensors.
//!
//! Every product is compared with a plain one in f64 over the stored values before it is timed.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::{error::Error, hint::black_box, time::Duration};
use taper::{
    Weight,
    candle::{DType, Device, Tensor},
    weight::to_f32_vec,
};
use taper_benches::matrix::{gaussian, measuring, normalised_mse, product};

type Failed = Box<dyn Error>;

/// Types of the weight and of the activations, and the most that the result may be off (normalised MSE): f32 sums, and
/// for the half types one rounding of the result, of at most 2⁻¹² and 2⁻⁹ of it.
const TYPES: [(DType, DType, f64); 5] = [
    (DType::F32, DType::F32, 1e-11),
    (DType::F16, DType::F32, 1e-11),
    (DType::BF16, DType::F32, 1e-11),
    (DType::F16, DType::F16, 6e-8),
    (DType::BF16, DType::BF16, 4e-6),
];

fn check(w: &Tensor, x: &Tensor, y: &Tensor, inner: usize, bound: f64) -> Result<(), Failed> {
    let rows = x.dim(0)?.min(4);
    let expected = product(&to_f32_vec(&x.narrow(0, 0, rows)?)?, &to_f32_vec(w)?, inner);
    let error = normalised_mse(&expected, &to_f32_vec(&y.narrow(0, 0, rows)?)?);
    assert!(error <= bound, "{:?} × {:?}: error {error:e}, at most {bound:e}", w.dtype(), x.dtype());
    Ok(())
}

fn products(criterion: &mut Criterion) -> Result<(), Failed> {
    let [out, inner] = if measuring() { [4096, 4096] } else { [256, 512] };
    let mut group = criterion.benchmark_group("dense");
    group.sample_size(10).measurement_time(Duration::from_secs(2));
    let w = Tensor::from_vec(gaussian(out * inner, 1), (out, inner), &Device::Cpu)?;
    for rows in [1, 8, 64, 512] {
        let x = Tensor::from_vec(gaussian(rows * inner, 2), (rows, inner), &Device::Cpu)?;
        group.throughput(Throughput::Elements((rows * out * inner) as u64));
        for (stored, activations, bound) in TYPES {
            let (w, x) = (w.to_dtype(stored)?, x.to_dtype(activations)?);
            check(&w, &x, &Weight::matmul(&w, &x)?, inner, bound)?;
            let name = format!("{} x {}", stored.as_str(), activations.as_str());
            let id = BenchmarkId::new(format!("taper {name}"), rows);
            group.bench_function(id, |b| b.iter(|| Weight::matmul(&w, black_box(&x))));
            if stored == activations {
                let id = BenchmarkId::new(format!("candle {name}"), rows);
                group.bench_function(id, |b| b.iter(|| black_box(&x).matmul(&w.t()?)));
            }
        }
    }
    group.finish();
    Ok(())
}

fn dense_benches(criterion: &mut Criterion) {
    products(criterion).expect("every product can be made");
}

criterion_group!(benches, dense_benches);
criterion_main!(benches);
