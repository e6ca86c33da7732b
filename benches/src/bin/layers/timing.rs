//! Seconds of the jobs of calibrated quantization on one square layer.
//!
//! ```text
//! tokens ─▶ Gram ─▶ factor (α given, α found) ─▶ GPTQ g128          AWQ's 20 points          HQQ g128
//! ```
//!
//! Results are checked before anything is timed: sums against f64, the factor by multiplying it back, GPTQ against
//! rounding on tokens that it has not seen, AWQ by the scale of a loud input, HQQ by its error. Threads are rayon's.

use std::{num::NonZeroUsize, sync::Arc, time::Instant};
use taper::{
    Context, Pass, Silent, Stats,
    candle::{DType, Device, Tensor},
    core::{
        InputStats, Needs,
        linalg::{Factor, Shrinkage},
        stats::Accumulator,
    },
    prelude::*,
    quant::{
        Awq, Fit, Gptq, Granularity, Hqq, IntLayout, PackedInt, Scheme,
        settle::{Order, Plan},
    },
};
use taper_benches::{coupled::NormAndLinear, matrix::normalised_mse};

use crate::{methods::decoded, output_energy};

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Runs of each job, after one that is not counted.
const RUNS: usize = 5;

/// A layer and what its inputs are like.
pub(crate) struct Job<'a> {
    pub(crate) width: usize,
    pub(crate) group: usize,
    pub(crate) weights: &'a [f32],
    pub(crate) seen: &'a [f32],
    pub(crate) fresh: &'a [f32],
}

impl Job<'_> {
    /// Checks and times everything.
    pub(crate) fn run(&self) -> Fallible {
        let d = self.width;
        println!("| job, {d} x {d} | median s | least s |\n|---|---|---|");
        let stats = self.stats()?;
        self.check_gram(&stats)?;
        time("gram of the tokens", || self.stats())?;
        let gram = stats.gram.as_ref().ok_or("no gram matrix")?;
        let loudness: Vec<f32> = (0..d).map(|i| gram.get(i, i) as f32).collect();
        let order = Plan::new(&loudness, self.group, Order::Groups).order;
        let factor = |shrinkage| Factor::new(gram, &order, shrinkage).ok_or("no factor");
        self.check_factor(&stats, &order, &factor(Shrinkage::Fixed(0.1))?)?;
        time("factor, shrinkage given", || Ok(factor(Shrinkage::Fixed(0.1))?))?;
        time("factor, shrinkage cross-validated", || Ok(factor(Shrinkage::CrossValidated)?))?;
        let gptq = || self.gptq(&stats);
        self.check_gptq(&gptq()?)?;
        time("gptq int4, asymmetric", gptq)?;
        self.awq(&stats)?;
        let hqq = || self.rounded(Fit::Hqq(Hqq::default()));
        let error = normalised_mse(self.weights, &decoded(&hqq()?));
        check((0.005..0.02).contains(&error), "hqq", error)?;
        time("hqq int4, asymmetric", hqq)
    }

    fn stats(&self) -> Fallible<InputStats> {
        let mut sums = Accumulator::new(self.width, Needs::Gram);
        sums.add("layer", self.seen)?;
        Ok(sums.into_stats("layer")?)
    }

    fn scheme(&self) -> Fallible<Scheme> {
        Ok(Scheme::new(taper::quant::Bits::FOUR, Granularity::group(self.group)?).asymmetric())
    }

    fn rounded(&self, fit: Fit) -> Fallible<PackedInt> {
        let shape = [self.weights.len() / self.width, self.width];
        Ok(PackedInt::encode(self.weights, &shape, &self.scheme()?, &fit, None, IntLayout::Taper)?)
    }

    fn gptq(&self, stats: &InputStats) -> Fallible<PackedInt> {
        let shape = [self.weights.len() / self.width, self.width];
        let gram = stats.gram.as_ref().ok_or("no gram matrix")?;
        let pass = Gptq::new(RoundNearest::int(4, Granularity::group(self.group)?)?);
        Ok(pass.ints(self.weights, &shape, gram, &self.scheme()?, IntLayout::Taper)?.weight)
    }

    /// Entries all over the matrix against f64.
    fn check_gram(&self, stats: &InputStats) -> Fallible {
        let (d, gram) = (self.width, stats.gram.as_ref().ok_or("no gram matrix")?);
        for k in 0..200 {
            let (i, j) = (k * 7919 % d, k * 104_729 % d);
            let terms = self.seen.chunks_exact(d).map(|x| f64::from(x[i]) * f64::from(x[j]));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), v| (sum + v, size + v.abs()));
            check((gram.get(i, j) - sum).abs() <= 264.0 * 2f64.powi(-24) * size, "gram", gram.get(i, j))?;
        }
        Ok(())
    }

    /// Entries of L D Lᵀ against (1 − α) G / n.
    fn check_factor(&self, stats: &InputStats, order: &[usize], factor: &Factor) -> Fallible {
        let (d, gram) = (self.width, stats.gram.as_ref().ok_or("no gram matrix")?);
        let (lower, pivots) = (factor.ldl.lower(), factor.ldl.pivots());
        for k in 0..200 {
            let (i, j) = (k * 7919 % d, k * 104_729 % d);
            let (left, right) = (&lower[i * d..][..d], &lower[j * d..][..d]);
            let terms =
                left.iter().zip(right).zip(pivots).map(|((a, b), d)| f64::from(*a) * f64::from(*b) * d);
            let of = |i: usize| order[d - 1 - i];
            let share = if i == j { 1.0 } else { 1.0 - factor.damped.factor };
            let n = gram.count() as f64;
            let expected = share * gram.get(of(i), of(j)) / n;
            let size = (gram.get(of(i), of(i)) * gram.get(of(j), of(j))).sqrt() / n;
            check((terms.sum::<f64>() - expected).abs() <= 1e-4 * size, "factor", expected)?;
        }
        Ok(())
    }

    /// Better than rounding on fresh tokens.
    fn check_gptq(&self, fed: &PackedInt) -> Fallible {
        let rows = 256.min(self.weights.len() / self.width);
        let of = |packed: &PackedInt| {
            let errors: Vec<f32> = self
                .weights
                .iter()
                .zip(decoded(packed))
                .take(rows * self.width)
                .map(|(w, q)| w - q)
                .collect();
            output_energy(&errors, self.fresh, self.width)
        };
        let ratio = of(fed) / of(&self.rounded(Fit::MinMax)?);
        check(ratio < 1.0, "gptq over rounding", ratio)
    }

    /// The search over 20 scales, scored through the Gram matrix, for two fits.
    fn awq(&self, stats: &InputStats) -> Fallible {
        let d = self.width;
        let mut checkpoint = Checkpoint::new(Default::default());
        checkpoint.insert("norm.weight", Arc::new(Tensor::ones(d, DType::F32, &Device::Cpu)?));
        let shape = (self.weights.len() / d, d);
        checkpoint.insert("linear.weight", Arc::new(Tensor::from_slice(self.weights, shape, &Device::Cpu)?));
        let stats: Stats = [("linear.weight".to_owned(), Arc::new(stats.clone()))].into_iter().collect();
        let twenty = NonZeroUsize::new(20).ok_or("20 is not 0")?;
        for (name, fit) in [("minmax", Fit::MinMax), ("search", Fit::default())] {
            let rounding = RoundNearest::int4(self.group)?.asymmetric().with_fit(fit);
            let awq = Awq::new(Arc::new(NormAndLinear(d)), rounding).with_points(twenty);
            let run = || Ok(awq.run(checkpoint.clone(), &Context::new(Some(&stats), 0, &Silent))?);
            let scaled = run()?.get("norm.weight")?.dense()?.to_vec1::<f32>()?;
            let loudest = (0..d).min_by(|&a, &b| scaled[a].total_cmp(&scaled[b])).unwrap_or(0);
            let seen = stats.get("linear.weight").ok_or("no statistics")?;
            let mean = seen.mean_abs.iter().sum::<f32>() / d as f32;
            // The producer of a loud input is divided by the most.
            check(seen.mean_abs[loudest] >= mean, "awq's largest scale", f64::from(scaled[loudest]))?;
            time(&format!("awq, 20 points, {name}"), run)?;
        }
        Ok(())
    }
}

fn check(fine: bool, what: &str, value: f64) -> Fallible {
    if fine { Ok(()) } else { Err(format!("{what} is wrong: {value}").into()) }
}

fn time<T>(name: &str, job: impl Fn() -> Fallible<T>) -> Fallible {
    drop(job()?);
    let mut seconds = Vec::new();
    for _ in 0..RUNS {
        let clock = Instant::now();
        let done = job()?;
        seconds.push(clock.elapsed().as_secs_f64());
        drop(done);
    }
    seconds.sort_by(f64::total_cmp);
    println!("| {name} | {:.3} | {:.3} |", seconds[RUNS / 2], seconds[0]);
    Ok(())
}
