//! Seconds of one layer: AWQ's search, the encoding of a trellis, and its product.

use std::{num::NonZeroUsize, sync::Arc, time::Instant};
use taper::{
    Context, InputStats, Needs, Pass, Silent, Stats,
    candle::{Device, Tensor},
    core::stats::Accumulator,
    prelude::*,
    quant::{Awq, Fit, PackedTrellis, code::trellis::StateBits, packed_trellis::TrellisScheme, pass::Score},
};
use taper_benches::{coupled::NormAndLinear, matrix::gaussian};

use crate::Fallible;

/// Tokens behind the Gram matrix; the search does not depend on them.
const TOKENS: usize = 256;

/// Statistics of correlated inputs with a few loud channels.
fn stats(size: usize) -> Fallible<InputStats> {
    let mut x = gaussian(TOKENS * size, 1);
    for row in x.chunks_mut(size) {
        for i in 1..size {
            row[i] += 0.5 * row[i - 1];
        }
        row.iter_mut().step_by(97).for_each(|v| *v *= 20.0);
    }
    let mut sums = Accumulator::new(size, Needs::Gram);
    sums.add("linear.weight", &x)?;
    Ok(sums.finish("linear.weight")?)
}

/// Prints the seconds of one `[size, size]` layer.
pub(crate) fn run(size: usize) -> Fallible {
    let (values, seen) = (gaussian(size * size, 2), stats(size)?);
    let mut checkpoint = Checkpoint::new(Default::default());
    checkpoint.insert("norm.weight", Arc::new(Tensor::ones(size, taper::candle::DType::F32, &Device::Cpu)?));
    checkpoint.insert("linear.weight", Arc::new(Tensor::from_slice(&values, (size, size), &Device::Cpu)?));
    let stats: Stats = [("linear.weight".to_owned(), Arc::new(seen))].into_iter().collect();
    let twenty = NonZeroUsize::new(20).ok_or("20 is not 0")?;
    for (fit_name, fit) in [("minmax", Fit::MinMax), ("search", Fit::default())] {
        for score in [Score::Gram, Score::InputNorms] {
            let rounding = RoundNearest::int4(128)?.asymmetric().with_fit(fit);
            let awq = Awq::new(Arc::new(NormAndLinear(size)), rounding).with_points(twenty).scored_by(score);
            let clock = Instant::now();
            drop(awq.run(checkpoint.clone(), &Context::new(Some(&stats), 0, &Silent))?);
            println!("awq 20 points, {fit_name}, {score:?}: {:.3} s", clock.elapsed().as_secs_f64());
        }
    }
    for state in [StateBits::Eight, StateBits::Ten] {
        let scheme = TrellisScheme { state, ..TrellisScheme::default() };
        let clock = Instant::now();
        let packed = PackedTrellis::encode(&values, [size, size], &scheme, None, 0)?;
        let encoded = clock.elapsed().as_secs_f64();
        for tokens in [1, 32] {
            let x = Tensor::from_vec(gaussian(tokens * size, 3), (tokens, size), &Device::Cpu)?;
            drop(packed.matmul(&x)?);
            let clock = Instant::now();
            drop(packed.matmul(&x)?);
            let product = 1e3 * clock.elapsed().as_secs_f64();
            println!("trellis {state:?}: encode {encoded:.2} s, product of {tokens} tokens {product:.2} ms");
        }
    }
    Ok(())
}
