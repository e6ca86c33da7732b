//! The first product with a weight, and what is held after it.
//!
//! What a kernel prepares once costs time at the first product and memory ever after: bytes held, as the allocator counts
//! them, over bytes of the file.

use std::sync::Arc;
use taper::{
    Weight,
    candle::{Module, quantized::GgmlDType},
};
use taper_benches::kernel::Counted;

use crate::{
    Failed, check,
    clock::Work,
    cold,
    job::{Contender, Cost, Race, Spec, Target},
    products::{Format, INT8, PEER_BOUND},
    shelf::{Shape, Shelf},
};
use std::time::Instant;
use taper::weight::to_f32_vec;

const SHAPE: Shape = [4096, 4096];
/// Tokens after which everything that will ever be prepared is.
const BATCHES: [usize; 3] = [1, 8, 64];

pub(crate) fn specs() -> Vec<Spec> {
    let jobs = [(4, 128, GgmlDType::Q4K), (4, 32, GgmlDType::Q4K), (8, 0, GgmlDType::Q8_0)];
    jobs.into_iter().map(|(bits, group, peer)| spec(bits, group, peer)).collect()
}

fn spec(bits: u8, group: usize, peer: GgmlDType) -> Spec {
    let job = format!("first-{}-{}", Format::Int(bits, group).name(), INT8.0);
    Spec::new(job, SHAPE, 1, move |shelf| {
        let packed = shelf.int(bits, group, SHAPE)?.nbytes() as f64;
        let blocks = shelf.candle(peer, SHAPE)?.tensor.storage_size_in_bytes() as f64;
        let extra = vec![
            ("packed_bytes", packed),
            ("held_over_packed", held(shelf, bits, group)? / packed),
            ("candle_held_over_packed", candle_held(shelf, peer)? / blocks),
        ];
        Ok(Race {
            ours: ours(shelf, bits, group)?,
            peers: vec![candle(shelf, peer)?],
            cost: Cost::NONE,
            reading: None,
            target: Target::None,
            extra,
            steps: 1,
        })
    })
}

/// Bytes that a weight holds after products of all kinds.
fn held(shelf: &Shelf, bits: u8, group: usize) -> Result<f64, Failed> {
    let tokens = BATCHES.map(|batch| shelf.tokens(batch, SHAPE[1]));
    shelf.values(SHAPE)?;
    let before = Counted::live();
    let weight = shelf.another_int(bits, group, SHAPE)?.with_arithmetic(INT8.1);
    for x in tokens {
        weight.matmul(&x?)?;
    }
    Ok((Counted::live() - before) as f64)
}

fn candle_held(shelf: &Shelf, dtype: GgmlDType) -> Result<f64, Failed> {
    let tokens = BATCHES.map(|batch| shelf.tokens(batch, SHAPE[1]));
    let tensor = shelf.candle(dtype, SHAPE)?.tensor;
    let before = Counted::live();
    let layer = cold::another(&tensor)?;
    for x in tokens {
        layer.forward(&x?)?;
    }
    Ok((Counted::live() - before) as f64)
}

fn ours(shelf: &Shelf, bits: u8, group: usize) -> Result<Contender, Failed> {
    let x = shelf.tokens(1, SHAPE[1])?;
    let weight = shelf.int(bits, group, SHAPE)?.with_arithmetic(INT8.1);
    let error = check::of_product("taper", &weight.matmul(&x)?, &x, &to_f32_vec(&weight)?, INT8.3)?;
    let values = shelf.values(SHAPE)?;
    let scheme = *weight.scheme();
    let layout = weight.layout();
    let work: Work = Box::new(move || {
        let fit = taper::quant::Fit::AbsMax;
        let weight = taper::quant::PackedInt::encode(&values, &SHAPE, &scheme, &fit, None, layout)?;
        let weight = weight.with_arithmetic(INT8.1);
        let clock = Instant::now();
        weight.matmul(&x)?;
        Ok(clock.elapsed())
    });
    Ok(Contender { name: "taper".into(), work, error })
}

fn candle(shelf: &Shelf, dtype: GgmlDType) -> Result<Contender, Failed> {
    let x = shelf.tokens(1, SHAPE[1])?;
    let tensor = Arc::clone(&shelf.candle(dtype, SHAPE)?.tensor);
    let values = tensor.dequantize(x.device())?.flatten_all()?.to_vec1::<f32>()?;
    let error = check::of_product("candle", &cold::another(&tensor)?.forward(&x)?, &x, &values, PEER_BOUND)?;
    let work: Work = Box::new(move || {
        let layer = cold::another(&tensor)?;
        let clock = Instant::now();
        layer.forward(&x)?;
        Ok(clock.elapsed())
    });
    Ok(Contender { name: format!("candle {dtype:?}"), work, error })
}
