//! How long a distillation loss and its gradient take on the logits and hidden states of a small language model.
//!
//! Before it is timed, every loss is compared with its formula computed plainly in f64, and its gradient with the slope
//! of the loss along that very gradient.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::{error::Error, time::Duration};
use taper::{
    candle::{Device, Tensor, Var},
    distill::{
        Divergence, FeatureLoss, Features, HiddenMse, Hinton, LogitLoss, Logits, Reduction, Temperature,
    },
};
use taper_benches::matrix::{gaussian, measuring};

type Failed = Box<dyn Error>;
/// One row's loss in f64, from the student's and the teacher's row.
type Row = fn(&[f64], &[f64]) -> f64;
/// The mean of a loss over all rows, in the student's graph.
type Loss = Box<dyn Fn(&Tensor, &Tensor) -> Result<Tensor, Failed>>;

/// The temperature of Hinton's loss.
const T: f64 = 2.0;

fn log_softmax(row: &[f64]) -> Vec<f64> {
    let peak = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total = row.iter().map(|v| (v - peak).exp()).sum::<f64>().ln();
    row.iter().map(|v| v - peak - total).collect()
}

/// Σ e^a (a − b) of log-probabilities.
fn kl(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a.exp() * (a - b)).sum()
}

fn hinton(student: &[f64], teacher: &[f64]) -> f64 {
    let cool = |row: &[f64]| log_softmax(&row.iter().map(|v| v / T).collect::<Vec<_>>());
    T * T * kl(&cool(teacher), &cool(student))
}

fn reverse_kl(student: &[f64], teacher: &[f64]) -> f64 {
    kl(&log_softmax(student), &log_softmax(teacher))
}

fn jensen_shannon(student: &[f64], teacher: &[f64]) -> f64 {
    let (q, p) = (log_softmax(student), log_softmax(teacher));
    let middle: Vec<f64> = q.iter().zip(&p).map(|(q, p)| ((q.exp() + p.exp()) / 2.0).ln()).collect();
    (kl(&p, &middle) + kl(&q, &middle)) / 2.0
}

fn mean_square(student: &[f64], teacher: &[f64]) -> f64 {
    student.iter().zip(teacher).map(|(s, t)| (s - t).powi(2)).sum::<f64>() / student.len() as f64
}

fn over_logits(loss: impl LogitLoss + 'static) -> Loss {
    Box::new(move |student, teacher| {
        let logits = Logits::of(student).teacher(teacher).prepare()?;
        Ok(loss.loss(&logits, Reduction::TokenMean)?)
    })
}

fn losses() -> Result<[(&'static str, Loss, Row); 4], Failed> {
    let hidden = HiddenMse::new();
    let hidden: Loss = Box::new(move |student, teacher| {
        Ok(hidden.loss(&Features::new(student, teacher), Reduction::TokenMean)?)
    });
    Ok([
        ("hinton T=2", over_logits(Hinton::new(Temperature::new(T)?)), hinton),
        ("reverse kl", over_logits(Divergence::reverse_kl()), reverse_kl),
        ("jensen-shannon", over_logits(Divergence::jensen_shannon(0.5)?), jensen_shannon),
        ("hidden mse", hidden, mean_square),
    ])
}

fn scalar(x: &Tensor) -> Result<f64, Failed> {
    Ok(f64::from(x.to_scalar::<f32>()?))
}

/// The value against the formula, and the gradient against a difference of values.
fn check(name: &str, loss: &Loss, row: Row, [student, teacher]: [&Tensor; 2]) -> Result<(), Failed> {
    let wide = |x: &Tensor| -> Result<Vec<Vec<f64>>, Failed> {
        Ok(x.to_vec2::<f32>()?.iter().map(|r| r.iter().map(|&v| f64::from(v)).collect()).collect())
    };
    let (rows, teachers) = (wide(student)?, wide(teacher)?);
    let expected = rows.iter().zip(&teachers).map(|(s, t)| row(s, t)).sum::<f64>() / rows.len() as f64;
    let var = Var::from_tensor(student)?;
    let value = loss(var.as_tensor(), teacher)?;
    let found = scalar(&value)?;
    assert!((found - expected).abs() <= 2e-5 * expected, "{name}: {found}, expected {expected}");

    let grads = value.backward()?;
    let gradient = grads.get(var.as_tensor()).ok_or("the student gets no gradient")?;
    let squared = scalar(&gradient.sqr()?.sum_all()?)?;
    // A step along the gradient that changes the loss by one part in a hundred: well above f32's rounding.
    let step = 0.01 * expected / squared;
    let moved = |sign: f64| -> Result<f64, Failed> {
        scalar(&loss(&(student + (gradient * (sign * step))?)?, teacher)?)
    };
    let slope = (moved(1.0)? - moved(-1.0)?) / (2.0 * step);
    assert!((slope / squared - 1.0).abs() < 0.01, "{name}: slope {slope}, squared gradient {squared}");
    Ok(())
}

fn run(criterion: &mut Criterion) -> Result<(), Failed> {
    let shape = if measuring() { (256, 32_000) } else { (8, 1000) };
    let elements = shape.0 * shape.1;
    let student = Tensor::from_vec(gaussian(elements, 1), shape, &Device::Cpu)?;
    let teacher = Tensor::from_vec(gaussian(elements, 2), shape, &Device::Cpu)?;
    let mut group = criterion.benchmark_group("losses");
    group.throughput(Throughput::Elements(elements as u64));
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    for (name, loss, row) in losses()? {
        check(name, &loss, row, [&student, &teacher])?;
        let var = Var::from_tensor(&student)?;
        let pass = || -> Result<_, Failed> { Ok(loss(var.as_tensor(), &teacher)?.backward()?) };
        group.bench_function(name, |b| b.iter(pass));
    }
    group.finish();
    Ok(())
}

fn losses_and_gradients(criterion: &mut Criterion) {
    run(criterion).expect("every loss can be computed");
}

criterion_group!(benches, losses_and_gradients);
criterion_main!(benches);
