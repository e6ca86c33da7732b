//! How fast calibration sums up Gram matrices.
//!
//! The result is compared with sums in f64 at places all over the matrix before it is timed.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::{hint::black_box, time::Duration};
use taper::kernel;
use taper_benches::matrix::{gaussian, measuring};

/// Compares every 97th entry.
fn check(x: &[f32], d: usize, gram: &[f64]) {
    for at in (0..d * d).step_by(97) {
        let (i, j) = (at / d, at % d);
        let terms = x.chunks_exact(d).map(|x| f64::from(x[i]) * f64::from(x[j]));
        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), v| (sum + v, size + v.abs()));
        let off = (gram[at] - sum).abs();
        assert!(off <= 264.0 * 2f64.powi(-24) * size, "[{i}, {j}]: {} for {sum}", gram[at]);
    }
}

fn gram_benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("gram");
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    let (tokens, sizes) = if measuring() { (2048, vec![1024, 4096]) } else { (300, vec![200]) };
    for d in sizes {
        let x = gaussian(tokens * d, 1);
        let mut sums = vec![0f64; d * d];
        kernel::gram(&x, d, &mut sums);
        // Few of many tokens, so that the plain sums do not take longer than the rest.
        let mut few = vec![0f64; d * d];
        kernel::gram(&x[..tokens.min(300) * d], d, &mut few);
        check(&x[..tokens.min(300) * d], d, &few);
        // One triangle: half of the products of the whole matrix.
        group.throughput(Throughput::Elements((tokens * d * (d + 1) / 2) as u64));
        group.bench_function(BenchmarkId::new("taper", d), |b| {
            b.iter(|| kernel::gram(black_box(&x), d, &mut sums));
        });
    }
    group.finish();
}

criterion_group!(benches, gram_benches);
criterion_main!(benches);
