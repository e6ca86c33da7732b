//! One token against weights that come from memory: some 300 MB of distinct matrices in turn, which predicts the speed of
//! writing tokens.

use std::{borrow::Cow, sync::Arc};
use taper::{
    Weight,
    candle::{
        Device, Module,
        quantized::{GgmlDType, QMatMul, QStorage, QTensor},
    },
    weight::to_f32_vec,
};
use taper_benches::kernel::{Unit, read_together};

use crate::{
    Failed, check,
    clock::{Work, whole},
    job::{Contender, Cost, Race, Source, Spec, Target},
    products::{Format, INT8, MODES, Mode, PEER_BOUND},
    shelf::{Shape, Shelf},
};

const SHAPE: Shape = [4096, 4096];
/// Bytes of all matrices together.
const TOGETHER: usize = 300 << 20;

pub(crate) fn specs() -> Vec<Spec> {
    let mut jobs = vec![(Format::Int(4, 32), INT8), (Format::Int(8, 0), INT8)];
    jobs.extend(MODES.map(|mode| (Format::Int(4, 128), mode)));
    jobs.into_iter().map(|(format, mode)| spec(format, mode)).collect()
}

fn spec(format: Format, mode: Mode) -> Spec {
    Spec::new(format!("{}-{}-cold", format.name(), mode.0), SHAPE, 1, move |shelf| {
        let Format::Int(bits, group) = format else { return Err("only integers are measured cold".into()) };
        let bytes = shelf.int(bits, group, SHAPE)?.nbytes();
        let peer = if bits == 8 { ("candle Q8_0", GgmlDType::Q8_0) } else { ("candle Q4_K", GgmlDType::Q4K) };
        // 95 % of what memory gives; on one thread 1.3 times as fast as onnxruntime, by its time over Q4_K's.
        let asked = Target::LimitOrCandle(0.95, 0.354 / 0.793 / 1.3);
        let target = if (bits, group, mode.0) == (4, 128, "int8") { asked } else { Target::None };
        Ok(Race {
            ours: ours(shelf, bits, group, mode)?,
            peers: vec![candle(shelf, peer.0, peer.1)?],
            cost: Cost { source: Source::Memory, ..Cost::product(SHAPE, 1, bytes, Unit::Int8) },
            reading: Some(reading(bytes)),
            target,
            extra: vec![("weights", TOGETHER.div_ceil(bytes) as f64)],
            steps: 1,
        })
    })
}

/// Reads as much as a matrix takes, each time from another place.
fn reading(bytes: usize) -> Work {
    let memory = vec![1u64; TOGETHER / 8];
    let (each, mut at) = (bytes / 8, 0);
    whole(move || {
        at = if at + 2 * each > memory.len() { 0 } else { at + each };
        read_together(&memory[at..at + each]);
        Ok(())
    })
}

fn ours(shelf: &Shelf, bits: u8, group: usize, mode: Mode) -> Result<Contender, Failed> {
    let x = shelf.tokens(1, SHAPE[1])?;
    let first = shelf.another_int(bits, group, SHAPE)?.with_arithmetic(mode.1);
    let error = check::of_product("taper", &first.matmul(&x)?, &x, &to_f32_vec(&first)?, mode.3)?;
    let mut weights = Vec::new();
    for _ in 0..TOGETHER.div_ceil(first.nbytes()) {
        let weight = shelf.another_int(bits, group, SHAPE)?.with_arithmetic(mode.1);
        weight.matmul(&x)?; // whatever is prepared once
        weights.push(weight);
    }
    let mut turn = 0;
    let work = whole(move || {
        turn = (turn + 1) % weights.len();
        Ok(weights[turn].matmul(&x)?)
    });
    Ok(Contender { name: "taper".into(), work, error })
}

fn candle(shelf: &Shelf, name: &str, dtype: GgmlDType) -> Result<Contender, Failed> {
    let x = shelf.tokens(1, SHAPE[1])?;
    let first = shelf.candle(dtype, SHAPE)?.tensor;
    let values = first.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    let error = check::of_product(name, &another(&first)?.forward(&x)?, &x, &values, PEER_BOUND)?;
    let mut layers = Vec::new();
    for _ in 0..TOGETHER.div_ceil(first.storage_size_in_bytes()) {
        let layer = another(&first)?;
        layer.forward(&x)?;
        layers.push(layer);
    }
    let mut turn = 0;
    let work = whole(move || {
        turn = (turn + 1) % layers.len();
        Ok(layers[turn].forward(&x)?)
    });
    Ok(Contender { name: name.into(), work, error })
}

/// The same weight in memory of its own.
pub(crate) fn another(weight: &QTensor) -> Result<QMatMul, Failed> {
    let bytes = Cow::Owned(weight.data()?.into_owned());
    let storage = QStorage::from_data(bytes, &Device::Cpu, weight.dtype())?;
    Ok(QMatMul::from_arc(Arc::new(QTensor::new(storage, weight.shape())?))?)
}
