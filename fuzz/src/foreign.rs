//! Valid weights, and a checkpoint of them as other programs write it: without Taper's own metadata.

use super::{Result, Unstructured};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use taper::{
    Codec, Part, Parts, StoredWeight, Weight,
    candle::{DType, Device, Tensor},
    codecs,
    prune::Bitmask,
    quant::{
        Bits, Fit, Granularity, IntLayout, Nf4Scheme, PackedInt, PackedNf4, PackedTrellis, Scheme,
        code::trellis::StateBits, codec::bitsandbytes_nf4::ValueType, packed_trellis::TrellisScheme,
    },
};

/// Values that are neither regular nor zero.
fn values(elements: usize) -> Vec<f32> {
    (0..elements).map(|i| (i as f32 * 0.7).sin() + 0.01).collect()
}

/// A valid weight of integers as `layout` holds them, of a size and scheme that the input chooses.
pub fn int(layout: IntLayout, input: &mut Unstructured<'_>) -> Result<Parts> {
    let (rows, cols) = (input.int_in_range(1..=9)?, 8 * input.int_in_range(1..=6)?);
    let group = [2, 4, 8, 5][input.int_in_range(0..=3)?];
    let granularity = match input.int_in_range(0..=3)? {
        0 => Granularity::Tensor,
        1 => Granularity::Channel,
        _ => Granularity::group(group).unwrap_or(Granularity::Channel),
    };
    let bits = Bits::new(input.int_in_range(2..=8)?).unwrap_or(Bits::FOUR);
    let mut scheme = Scheme::new(bits, granularity);
    if input.arbitrary()? {
        scheme = scheme.asymmetric();
    }
    let shape = if layout == IntLayout::Taper { vec![rows, cols / 4, 2, 2] } else { vec![rows, cols] };
    Ok(packed_int(&shape, &scheme, layout))
}

/// The parts of an integer weight; of the simplest scheme where the layout cannot hold the one asked for.
pub fn packed_int(shape: &[usize], scheme: &Scheme, layout: IntLayout) -> Parts {
    let values = values(shape.iter().product());
    let encode = |scheme: &Scheme| PackedInt::encode(&values, shape, scheme, &Fit::MinMax, None, layout);
    let simplest = Scheme::int8().with_scales(taper::quant::ScaleType::F32);
    let weight = encode(scheme).or_else(|_| encode(&simplest)).expect("every layout holds int8 per channel");
    weight.to_parts().expect("a packed weight has parts")
}

/// The parts of an NF4 weight.
pub fn nf4(shape: &[usize], scheme: Nf4Scheme) -> Parts {
    let values = values(shape.iter().product());
    let weight = PackedNf4::encode(&values, shape, scheme, &Fit::AbsMax, None, ValueType::BF16);
    weight.expect("finite values can be encoded").to_parts().expect("a packed weight has parts")
}

/// A valid weight of trellis codes, of a size and scheme that the input chooses.
///
/// # Errors
/// Input that ends early.
///
/// # Panics
/// Never: finite values can be encoded.
pub fn trellis(input: &mut Unstructured<'_>) -> Result<Parts> {
    let (rows, cols) = (input.int_in_range(1..=20)?, input.int_in_range(1..=40)?);
    let scheme = TrellisScheme {
        state: [StateBits::Eight, StateBits::Ten][input.int_in_range(0..=1)?],
        bits: f64::from(input.int_in_range(4..=16u8)?) / 4.0,
        block: 1 << input.int_in_range(0..=4)?,
        ..TrellisScheme::default()
    };
    let weight = PackedTrellis::encode(&values(rows * cols), [rows, cols], &scheme, None, 1);
    Ok(weight.expect("finite values can be encoded").to_parts().expect("a packed weight has parts"))
}

/// The parts of a sparse weight whose values have this type.
pub fn bitmask(shape: &[usize], dtype: DType) -> Parts {
    let mut values = values(shape.iter().product());
    values.iter_mut().step_by(3).for_each(|v| *v = 0.0);
    let dense = Tensor::from_vec(values, shape, &Device::Cpu).and_then(|t| t.to_dtype(dtype));
    let weight = Bitmask::from_dense(&dense.expect("a small tensor")).expect("floats can be sparse");
    weight.to_parts().expect("a sparse weight has parts")
}

/// The data of [`header`].
pub const DATA: &[u8] = &[1; 40];

/// A valid safetensors header over [`DATA`], and the `taper` metadata that belongs into it as a text.
#[must_use]
pub fn header() -> (Value, Value) {
    let header = json!({
        "__metadata__": { "format": "pt", "taper": "" },
        "a.weight.scale": { "dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8] },
        "b.weight": { "dtype": "BF16", "shape": [2, 6], "data_offsets": [8, 32] },
        "a.weight.codes": { "dtype": "U8", "shape": [2, 4], "data_offsets": [32, 40] },
    });
    let weight = json!({
        "codec": "taper-int", "format": "int4 g4", "shape": [2, 8],
        "attributes": { "bits": 4, "symmetric": true, "granularity": "group", "group": 4 },
        "arrays": { "codes": "a.weight.codes", "scale": "a.weight.scale" },
    });
    (header, json!({ "version": 1, "weights": { "a.weight": weight } }))
}

/// A safetensors file of [`DATA`] under a header with this `taper` metadata.
#[must_use]
pub fn file(mut header: Value, ours: &Value) -> Vec<u8> {
    if let Some(text) = header.pointer_mut("/__metadata__/taper") {
        *text = ours.to_string().into();
    }
    framed(header.to_string().as_bytes(), DATA)
}

/// A valid safetensors file of an encoded weight and a dense one.
#[must_use]
pub fn valid_file() -> Vec<u8> {
    let (header, ours) = header();
    file(header, &ours)
}

/// A safetensors file: the length of the header, the header, the data.
#[must_use]
pub fn framed(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// The codec of an id.
pub fn codec(id: &str) -> std::sync::Arc<dyn Codec> {
    std::sync::Arc::clone(codecs().get(id).expect("all codecs are registered"))
}

/// A model directory as another program writes it.
#[derive(Debug)]
pub struct Foreign {
    /// Its `model.safetensors`.
    pub file: Vec<u8>,
    /// Its `quantization_config`.
    pub config: Value,
}

/// One model directory of one weight, `a.weight`, for each foreign encoding.
#[must_use]
pub fn checkpoints() -> Vec<Foreign> {
    let group = Scheme::int4(8).expect("a group").asymmetric();
    let double = Nf4Scheme::new(16).expect("a block").double_quant();
    let int8 = Scheme::int8();
    [
        packed_int(&[4, 16], &group, IntLayout::PackQuantized),
        packed_int(&[4, 16], &int8, IntLayout::IntQuantized),
        nf4(&[4, 16], double),
        packed_int(&[4, 16], &int8, IntLayout::BitsAndBytes),
        bitmask(&[4, 16], DType::F16),
    ]
    .map(checkpoint)
    .into()
}

fn checkpoint(mut parts: Parts) -> Foreign {
    const NAME: &str = "a.weight";
    let codec = codec(&parts.encoding.codec);
    let stored =
        StoredWeight { name: NAME, codec: codec.id(), shape: &parts.shape, attributes: &parts.attributes };
    let config = codec.config(&[stored], &[]).expect("a codec describes what it wrote");
    if config.is_none() {
        // A legacy sparse weight states its shape.
        let shape: Vec<i64> = parts.shape.iter().map(|&d| d as i64).collect();
        parts.tensors.insert("shape".into(), Part::from_values(Dtype::I64, vec![2], &shape));
    }
    let arrays: BTreeMap<String, TensorView<'_>> = parts
        .tensors
        .iter()
        .map(|(role, part)| {
            let view = TensorView::new(part.dtype, part.shape.clone(), &part.data);
            (codec.part_name(NAME, role), view.expect("a part agrees with itself"))
        })
        .collect();
    Foreign {
        file: safetensors::serialize(arrays, None).expect("arrays can be written"),
        config: config.unwrap_or_else(|| json!({ "format": "sparse-bitmask" })),
    }
}
