//! Products of weights that stay unquantized: f32, bf16 and f16, with activations of the same type.
//!
//! candle multiplies numbers of one type only, so it gets activations of the weight's type.

use taper::{
    Weight,
    candle::{DType, Tensor},
    weight::to_f32_vec,
};
use taper_benches::kernel::Unit;

use crate::{
    Failed, check,
    clock::whole,
    job::{Contender, Cost, Race, Spec, Target},
    shelf::{Shape, Shelf},
};

const SHAPE: Shape = [4096, 4096];

pub(crate) fn specs() -> Vec<Spec> {
    let types = [
        (DType::F32, "dense-f32", Unit::F32, 1e-10),
        (DType::BF16, "dense-bf16", Unit::Bf16, 1e-4),
        (DType::F16, "dense-f16", Unit::F32, 2e-5),
    ];
    let batches = [1, 8, 64, 512];
    types.into_iter().flat_map(|kind| batches.map(|batch| spec(kind, batch))).collect()
}

fn spec((dtype, job, unit, bound): (DType, &'static str, Unit, f64), batch: usize) -> Spec {
    Spec::new(job, SHAPE, batch, move |shelf| {
        let weight = shelf.dense(SHAPE, dtype)?;
        let asked = dtype != DType::F32 && matches!(batch, 1 | 512);
        Ok(Race {
            cost: Cost::product(SHAPE, batch, weight.nbytes(), unit),
            reading: None,
            ours: typed(shelf, &weight, dtype, batch, bound)?,
            peers: vec![candle(shelf, dtype, batch)?],
            // torch's bf16 product runs at 99 % of the limit.
            target: if asked { Target::Limit(0.9) } else { Target::None },
            extra: vec![],
            steps: 1,
        })
    })
}

/// Our product, with activations of the weight's type as candle's; results are of that type, so bf16 keeps eight bits.
fn typed(
    shelf: &Shelf,
    weight: &Tensor,
    dtype: DType,
    batch: usize,
    bound: f64,
) -> Result<Contender, Failed> {
    let x = shelf.tokens(batch, SHAPE[1])?.to_dtype(dtype)?;
    let (wide, y) = (x.to_dtype(DType::F32)?, Weight::matmul(weight, &x)?);
    let error = check::of_product("taper", &y, &wide, &to_f32_vec(weight)?, bound)?;
    let weight = weight.clone();
    Ok(Contender { name: "taper".into(), work: whole(move || Ok(Weight::matmul(&weight, &x)?)), error })
}

fn candle(shelf: &Shelf, dtype: DType, batch: usize) -> Result<Contender, Failed> {
    let weight = shelf.dense(SHAPE, dtype)?;
    let x = shelf.tokens(batch, SHAPE[1])?;
    let typed = x.to_dtype(dtype)?;
    let transposed = weight.t()?;
    let name = format!("candle {}", dtype.as_str());
    // Its results are of the weight's type: bf16 keeps eight bits.
    let error = check::of_product(&name, &typed.matmul(&transposed)?, &x, &to_f32_vec(&weight)?, 1e-4)?;
    Ok(Contender { name, work: whole(move || Ok(typed.matmul(&transposed)?)), error })
}
