//! Encoding and decoding: f32 values to packed weights and back.
//!
//! Decoding is measured twice: into the memory of an earlier decoding (`decode-`), as who decodes again and again does it, and
//! into a new tensor (`tensor-`), where the system's zeroing of fresh pages is most of the time.

use std::sync::Arc;
use taper::{
    SharedWeight, Weight,
    candle::{
        DType, Device,
        quantized::{GgmlDType, QTensor},
    },
    quant::{Fit, IntLayout, Nf4Scheme, PackedInt, PackedNf4, Search, codec::bitsandbytes_nf4::ValueType},
    weight::{
        rows::{dense_into, dense_slice},
        to_f32_vec,
    },
};
use taper_benches::matrix::normalised_mse;

use crate::{
    Failed, check,
    clock::whole,
    job::{Contender, Cost, Race, Spec, Target},
    products::Format,
    shelf::{Shape, Shelf, scheme},
};

const SHAPE: Shape = [4096, 4096];
const VALUES: usize = SHAPE[0] * SHAPE[1];

/// Most normalised error on Gaussian values; an independent computation gave a few per cent less.
fn bound(format: Format) -> f64 {
    match format {
        Format::Int(8, _) => 1e-4,
        Format::Int(_, 32) => 0.0105,
        Format::Int(..) => 0.0140,
        Format::Nf4(_) => 0.0095,
    }
}

pub(crate) fn specs() -> Vec<Spec> {
    let (g128, g32, int8, nf4) =
        (Format::Int(4, 128), Format::Int(4, 32), Format::Int(8, 0), Format::Nf4(64));
    let search = Fit::Search(Search::default());
    let fast = Target::Rate(15e9);
    let (q4_0, q8_0, q4k) = (GgmlDType::Q4_0, GgmlDType::Q8_0, GgmlDType::Q4K);
    let mut specs = Vec::new();
    for (fit, name) in [(Fit::AbsMax, "absmax"), (Fit::MinMax, "minmax")] {
        for (format, peer) in [(g32, q4_0), (g128, q4_0), (int8, q8_0)] {
            specs.push(encode(format, fit, name, peer, fast));
        }
    }
    specs.push(encode(g32, search, "search", q4k, Target::Rate(1.5e9)));
    specs.push(encode(nf4, Fit::AbsMax, "absmax", q4_0, Target::Rate(10e9)));
    for (format, peer) in [(g128, q4k), (g32, q4_0), (int8, q8_0), (nf4, q4_0)] {
        let asked = if matches!(format, Format::Nf4(_)) { Target::Rate(25e9) } else { Target::None };
        specs.push(decode(format, peer, asked));
        specs.push(tensor(format, peer));
    }
    specs
}

/// A packed weight of either kind.
enum Packed {
    Int(PackedInt),
    Nf4(PackedNf4),
}

impl Packed {
    fn encode(values: &[f32], format: Format, fit: &Fit) -> Result<Self, Failed> {
        Ok(match format {
            Format::Int(bits, group) => {
                let scheme = scheme(bits, group)?;
                let layout = IntLayout::PackQuantized;
                Self::Int(PackedInt::encode(values, &SHAPE, &scheme, fit, None, layout)?)
            }
            Format::Nf4(block) => {
                let scheme = Nf4Scheme::new(block)?;
                Self::Nf4(PackedNf4::encode(values, &SHAPE, scheme, fit, None, ValueType::F32)?)
            }
        })
    }

    fn of(shelf: &Shelf, format: Format) -> Result<Self, Failed> {
        Ok(match format {
            Format::Int(bits, group) => Self::Int(shelf.int(bits, group, SHAPE)?),
            Format::Nf4(block) => Self::Nf4(shelf.nf4(block, SHAPE)?),
        })
    }

    fn weight(&self) -> &dyn Weight {
        match self {
            Self::Int(weight) => weight,
            Self::Nf4(weight) => weight,
        }
    }

    fn values(&self) -> Vec<f32> {
        match self {
            Self::Int(weight) => dense_slice(weight),
            Self::Nf4(weight) => dense_slice(weight),
        }
    }

    fn decode(&self, out: &mut [f32]) {
        match self {
            Self::Int(weight) => dense_into(weight, out),
            Self::Nf4(weight) => dense_into(weight, out),
        }
    }
}

fn encode(format: Format, fit: Fit, name: &str, peer: GgmlDType, target: Target) -> Spec {
    Spec::new(format!("encode-{}-{name}", format.name()), SHAPE, 0, move |shelf| {
        let values = shelf.values(SHAPE)?;
        let packed = Packed::encode(&values, format, &fit)?;
        let error = normalised_mse(&values, &to_f32_vec(packed.weight())?);
        let error = check::within("taper", error, bound(format))?;
        let bytes = packed.weight().nbytes();
        let work = whole(move || Packed::encode(&values, format, &fit));
        Ok(Race {
            ours: Contender { name: "taper".into(), work, error },
            peers: vec![quantizer(shelf, peer)?],
            cost: Cost::coding(VALUES, bytes),
            reading: None,
            target,
            extra: vec![],
            steps: 1,
        })
    })
}

fn quantizer(shelf: &Shelf, dtype: GgmlDType) -> Result<Contender, Failed> {
    let dense = shelf.dense(SHAPE, DType::F32)?;
    let work = whole(move || Ok(QTensor::quantize(&dense, dtype)?));
    Ok(Contender { work, ..dequantizer(shelf, dtype)? })
}

/// candle decodes into new tensors only.
fn dequantizer(shelf: &Shelf, dtype: GgmlDType) -> Result<Contender, Failed> {
    let weight = shelf.candle(dtype, SHAPE)?.tensor;
    let decoded = weight.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    let error = check::within("candle", normalised_mse(&shelf.values(SHAPE)?, &decoded), 0.0105)?;
    let work = whole(move || Ok(weight.dequantize(&Device::Cpu)?));
    Ok(Contender { name: format!("candle {dtype:?}"), work, error })
}

fn decode(format: Format, peer: GgmlDType, target: Target) -> Spec {
    Spec::new(format!("decode-{}", format.name()), SHAPE, 0, move |shelf| {
        let packed = Packed::of(shelf, format)?;
        let mut out = packed.values();
        out.fill(f32::NAN);
        packed.decode(&mut out);
        let error = check::within("taper", normalised_mse(&shelf.values(SHAPE)?, &out), bound(format))?;
        let bytes = packed.weight().nbytes();
        let work = whole(move || {
            packed.decode(&mut out);
            Ok(())
        });
        let ours = Contender { name: "taper".into(), work, error };
        decoded(shelf, ours, peer, bytes, target)
    })
}

fn tensor(format: Format, peer: GgmlDType) -> Spec {
    Spec::new(format!("tensor-{}", format.name()), SHAPE, 0, move |shelf| {
        let weight: SharedWeight = match Packed::of(shelf, format)? {
            Packed::Int(weight) => Arc::new(weight),
            Packed::Nf4(weight) => Arc::new(weight),
        };
        let found = to_f32_vec(weight.as_ref())?;
        let error = check::within("taper", normalised_mse(&shelf.values(SHAPE)?, &found), bound(format))?;
        let bytes = weight.nbytes();
        let work = whole(move || Ok(weight.dense()?));
        let ours = Contender { name: "taper".into(), work, error };
        decoded(shelf, ours, peer, bytes, Target::None)
    })
}

fn decoded(
    shelf: &Shelf,
    ours: Contender,
    peer: GgmlDType,
    bytes: usize,
    target: Target,
) -> Result<Race, Failed> {
    let peers = vec![dequantizer(shelf, peer)?];
    let cost = Cost::coding(VALUES, bytes);
    Ok(Race { ours, peers, cost, reading: None, target, extra: vec![], steps: 1 })
}
