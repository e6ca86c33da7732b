//! Products of packed weights, one matrix again and again: x · Wᵀ for 1 to 512 tokens.
//!
//! Neighbours: `cold.rs` has weights that come from memory, `dense.rs` what stays unquantized.

use std::sync::Arc;
use taper::{
    SharedWeight,
    candle::{Module, quantized::GgmlDType},
    quant::Arithmetic,
    weight::to_f32_vec,
};
use taper_benches::kernel::Unit;

use crate::{
    Failed, check,
    clock::whole,
    job::{Contender, Cost, Race, Spec, Target},
    shelf::{Shape, Shelf},
};

/// With what numbers a product is computed: a name, the choice, what computes, and the error it may add.
pub(crate) type Mode = (&'static str, Arithmetic, Unit, f64);

/// Every mode; a new one is a line here.
pub(crate) const MODES: [Mode; 3] = [
    ("exact", Arithmetic::Exact, Unit::F32, 1e-10),
    ("bf16", Arithmetic::Bf16, Unit::Bf16, 1e-4),
    ("int8", Arithmetic::Int8, Unit::Int8, 1e-3),
];

/// The mode of eight-bit activations.
pub(crate) const INT8: Mode = MODES[MODES.len() - 1];

/// Activations of candle's formats are rounded to bytes too, in blocks of up to 256.
pub(crate) const PEER_BOUND: f64 = 1e-3;

/// A format of weights.
#[derive(Clone, Copy)]
pub(crate) enum Format {
    /// Integers of so many bits in groups of so many, 0 for one scale per row.
    Int(u8, usize),
    /// NF4 in blocks of so many.
    Nf4(usize),
}

impl Format {
    /// `int4-g128`, `int8-channel`, `nf4-b64`.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Int(bits, 0) => format!("int{bits}-channel"),
            Self::Int(bits, group) => format!("int{bits}-g{group}"),
            Self::Nf4(block) => format!("nf4-b{block}"),
        }
    }

    pub(crate) fn weight(self, shelf: &Shelf, shape: Shape, mode: Mode) -> Result<SharedWeight, Failed> {
        Ok(match self {
            Self::Int(bits, group) => Arc::new(shelf.int(bits, group, shape)?.with_arithmetic(mode.1)),
            Self::Nf4(block) => Arc::new(shelf.nf4(block, shape)?.with_arithmetic(mode.1)),
        })
    }

    /// candle's formats of as many bits. Q4_0 has no kernel for many tokens, so it takes part where there are few.
    pub(crate) fn peers(self, batch: usize) -> Vec<(&'static str, GgmlDType)> {
        match self {
            Self::Int(8, _) => vec![("candle Q8_0", GgmlDType::Q8_0)],
            Self::Int(4, 32) if batch <= 8 => {
                vec![("candle Q4_K", GgmlDType::Q4K), ("candle Q4_0", GgmlDType::Q4_0)]
            }
            _ => vec![("candle Q4_K", GgmlDType::Q4K)],
        }
    }
}

const SQUARE: Shape = [4096, 4096];
const WIDE: Shape = [11008, 4096];

pub(crate) fn specs() -> Vec<Spec> {
    let (g128, g32) = (Format::Int(4, 128), Format::Int(4, 32));
    let mut specs = Vec::new();
    let mut add = |format: Format, mode: Mode, shape: Shape, batches: &[usize]| {
        specs.extend(batches.iter().map(|&batch| spec(format, mode, shape, batch)));
    };
    for mode in MODES {
        add(g128, mode, SQUARE, &[1, 8, 64, 512]);
        add(g32, mode, SQUARE, &[1, 8, 64, 512]);
    }
    add(g128, INT8, WIDE, &[1, 64, 512]);
    add(g32, INT8, WIDE, &[512]);
    add(Format::Int(8, 0), INT8, SQUARE, &[1, 8, 64, 512]);
    for mode in MODES {
        add(Format::Nf4(64), mode, SQUARE, &[1, 8, 512]);
    }
    specs
}

fn spec(format: Format, mode: Mode, shape: Shape, batch: usize) -> Spec {
    let job = format!("{}-{}", format.name(), mode.0);
    Spec::new(job, shape, batch, move |shelf| {
        Ok(Race { target: target(format, mode, shape, batch), ..race(shelf, format, mode, shape, batch)? })
    })
}

/// A product beside candle's, without a target.
pub(crate) fn race(
    shelf: &Shelf,
    format: Format,
    mode: Mode,
    shape: Shape,
    batch: usize,
) -> Result<Race, Failed> {
    let weight = format.weight(shelf, shape, mode)?;
    let cost = Cost::product(shape, batch, weight.nbytes(), mode.2);
    let peers = format
        .peers(batch)
        .into_iter()
        .filter(|(_, dtype)| shape[1].is_multiple_of(dtype.block_size()))
        .map(|(name, dtype)| candle(shelf, name, dtype, shape, batch))
        .collect::<Result<_, Failed>>()?;
    Ok(Race {
        ours: ours(shelf, weight, shape, batch, mode.3)?,
        peers,
        cost,
        reading: None,
        target: Target::None,
        extra: vec![],
        steps: 1,
    })
}

/// A weight of ours, compared with the product of its own values.
pub(crate) fn ours(
    shelf: &Shelf,
    weight: SharedWeight,
    shape: Shape,
    batch: usize,
    bound: f64,
) -> Result<Contender, Failed> {
    let x = shelf.tokens(batch, shape[1])?;
    let error = check::of_product("taper", &weight.matmul(&x)?, &x, &to_f32_vec(weight.as_ref())?, bound)?;
    let work = whole(move || Ok(weight.matmul(&x)?));
    Ok(Contender { name: "taper".into(), work, error })
}

/// A weight of candle's, compared with the product of its own values.
pub(crate) fn candle(
    shelf: &Shelf,
    name: &str,
    dtype: GgmlDType,
    shape: Shape,
    batch: usize,
) -> Result<Contender, Failed> {
    let (weight, x) = (shelf.candle(dtype, shape)?, shelf.tokens(batch, shape[1])?);
    let values = weight.tensor.dequantize(x.device())?.flatten_all()?.to_vec1::<f32>()?;
    let error = check::of_product(name, &weight.layer.forward(&x)?, &x, &values, PEER_BOUND)?;
    let work = whole(move || Ok(weight.layer.forward(&x)?));
    Ok(Contender { name: name.into(), work, error })
}

/// What is asked, by the best library's time over candle's where both were measured: onnxruntime, ggml, bitsandbytes,
/// torchao, torch.
fn target(format: Format, mode: Mode, shape: Shape, batch: usize) -> Target {
    match (format, mode.0, batch) {
        (Format::Int(4, 128), "int8", 1) if shape == SQUARE => Target::Candle(0.0639 / 0.093 / 1.25),
        (Format::Int(4, 128), "int8", 1) => Target::Candle(0.237 / 0.782 / 1.25),
        (Format::Int(4, _), "int8", 8) => Target::Candle(1.0 / 1.4),
        // onnxruntime took as long as candle.
        (Format::Int(4, 128), "int8", 64) => Target::Candle(1.0 / 1.5),
        (Format::Int(4, 128), "int8", 512) if shape == SQUARE => Target::Candle(858.0 / 965.0 / 1.5),
        (Format::Int(4, 128), "int8", 512) => Target::Candle(910.0 / 1003.0 / 1.5),
        (Format::Int(4, 32), "int8", 64) => Target::Candle(847.0 / 1150.0),
        (Format::Int(4, 32), "int8", 512) => Target::Candle(858.0 / 1150.0),
        (Format::Int(8, _), _, 8) => Target::Candle(0.198 / 0.441),
        (Format::Int(8, _), _, 64) => Target::Candle(1.28 / 3.52),
        (Format::Int(8, _), _, 512) => Target::Limit(0.88),
        (Format::Nf4(_), _, 1) => Target::Candle(0.179 / 0.093 / 2.0),
        (Format::Nf4(_), _, 512) => Target::Candle(26.2 / 20.0 / 1.8),
        (Format::Int(4, 128), _, 1) => Target::Candle(0.237 / 0.093 / 2.0),
        (Format::Int(4, 128), _, 512) => Target::Candle(18.35 / 20.0 / 0.9),
        _ => Target::None,
    }
}
