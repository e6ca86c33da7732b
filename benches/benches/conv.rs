//! How fast convolutions run, plain and packed, beside candle's: the shapes of a keyword spotter and of a residual network.
//!
//! Every result is compared with candle's convolution of the decoded weight before it is timed.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::{error::Error, hint::black_box, sync::Arc, time::Duration};
use taper::{
    SharedWeight,
    candle::{Device, Tensor},
    nn::{Conv2d, Conv2dConfig},
    quant::{Fit, IntLayout, PackedInt, Scheme},
    weight::to_f32_vec,
};
use taper_benches::matrix::{gaussian, measuring, normalised_mse};

type Failed = Box<dyn Error>;

/// A name, images, channels in and out, groups, height and width, and the kernel.
type Layer = (&'static str, usize, [usize; 2], usize, [usize; 2], [usize; 2]);

const LAYERS: [Layer; 5] = [
    ("stem 10x4", 32, [1, 64], 1, [49, 10], [10, 4]),
    ("depthwise 3x3", 32, [64, 64], 64, [25, 5], [3, 3]),
    ("pointwise", 32, [64, 64], 1, [25, 5], [1, 1]),
    ("3x3", 1, [64, 64], 1, [56, 56], [3, 3]),
    ("depthwise 56", 1, [64, 64], 64, [56, 56], [3, 3]),
];

fn layer(criterion: &mut Criterion, layer: Layer) -> Result<(), Failed> {
    let (name, images, [inputs, outputs], groups, [height, width], [kh, kw]) = layer;
    let mut group = criterion.benchmark_group(format!("conv {name}"));
    group.sample_size(10).measurement_time(Duration::from_secs(1));
    let images = if measuring() { images } else { images.min(2) };
    let x = gaussian(images * inputs * height * width, 1);
    let x = Tensor::from_vec(x, (images, inputs, height, width), &Device::Cpu)?;
    let shape = [outputs, inputs / groups, kh, kw];
    let values = gaussian(shape.iter().product(), 2);
    let dense = Tensor::from_slice(&values, &shape, &Device::Cpu)?;
    let packed = PackedInt::encode(&values, &shape, &Scheme::int8(), &Fit::AbsMax, None, IntLayout::Taper)?;
    let (tall, wide) = (kh / 2, kw / 2);
    let config = Conv2dConfig { padding: (tall, wide, tall, wide), groups, ..Conv2dConfig::default() };
    let padded = |x: &Tensor| x.pad_with_zeros(2, tall, tall)?.pad_with_zeros(3, wide, wide);
    let weights: [(&str, SharedWeight); 2] =
        [("taper f32", Arc::new(dense.clone())), ("taper int8", Arc::new(packed))];
    for (name, weight) in weights {
        let expected = padded(&x)?.conv2d(&weight.dense()?, 0, 1, 1, groups)?;
        let conv = Conv2d::from_weight(weight, None, config);
        let y = conv.forward(&x)?;
        assert_eq!(y.dims(), expected.dims(), "{name}");
        let error = normalised_mse(&to_f32_vec(&expected)?, &to_f32_vec(&y)?);
        assert!(error < 1e-11, "{name}: error {error:e}");
        group.throughput(Throughput::Elements((y.elem_count() * inputs / groups * kh * kw) as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |b| b.iter(|| conv.forward(black_box(&x))));
    }
    group.bench_function(BenchmarkId::from_parameter("candle f32"), |b| {
        b.iter(|| padded(black_box(&x))?.conv2d(&dense, 0, 1, 1, groups));
    });
    group.finish();
    Ok(())
}

fn conv_benches(criterion: &mut Criterion) {
    for shape in LAYERS {
        layer(criterion, shape).expect("every convolution can be made");
    }
}

criterion_group!(benches, conv_benches);
criterion_main!(benches);
