//! Damage: small changes to something valid, as the fuzzer's bytes say.

use super::{Result, Unstructured};
use safetensors::Dtype;
use serde_json::{Map, Value};
use std::sync::Arc;
use taper::{Part, Parts};

/// Sizes around which arithmetic goes wrong.
const SIZES: [usize; 20] = [
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    9,
    16,
    31,
    32,
    33,
    64,
    255,
    256,
    1 << 31,
    1 << 32,
    i64::MAX as usize,
    usize::MAX,
];

/// Types of stored arrays, among them some that no reader expects.
const DTYPES: [Dtype; 12] = [
    Dtype::U8,
    Dtype::I8,
    Dtype::I32,
    Dtype::I64,
    Dtype::U64,
    Dtype::F16,
    Dtype::BF16,
    Dtype::F32,
    Dtype::F64,
    Dtype::BOOL,
    Dtype::F8_E4M3,
    Dtype::F4,
];

/// Arrays are resized to what their shapes say up to this many bytes.
const LARGEST: usize = 1 << 16;

/// Steps of damage to one thing.
const STEPS: usize = 8;

/// Changes types, shapes, bytes, attributes and the logical shape; takes arrays away.
pub fn parts(parts: &mut Parts, input: &mut Unstructured<'_>) -> Result<()> {
    for _ in 0..STEPS {
        if input.is_empty() {
            return Ok(());
        }
        match input.int_in_range(0..=4)? {
            0 => shape(&mut parts.shape, input)?,
            1 => object(&mut parts.attributes, input)?,
            2 => {
                let role = input.choose_iter(parts.tensors.keys().cloned().collect::<Vec<_>>());
                if let Ok(role) = role {
                    parts.tensors.remove(&role);
                }
            }
            _ => {
                let count = parts.tensors.len();
                if count > 0
                    && let Some(part) = parts.tensors.values_mut().nth(input.choose_index(count)?)
                {
                    array(part, input)?;
                }
            }
        }
    }
    Ok(())
}

/// Changes an array's type, shape or bytes.
fn array(part: &mut Part, input: &mut Unstructured<'_>) -> Result<()> {
    match input.int_in_range(0..=3)? {
        0 => part.dtype = *input.choose(&DTYPES)?,
        1 => shape(&mut part.shape, input)?,
        2 => {
            let mut data = part.data.to_vec();
            if !data.is_empty() {
                let at = input.choose_index(data.len())?;
                let end = data.len().min(at + input.int_in_range(1..=8)?);
                input.fill_buffer(&mut data[at..end])?;
            }
            part.data = Arc::from(data);
        }
        // As many bytes as type and shape say: a lie that is consistent.
        _ => {
            let elements = part.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
            let bytes = elements.and_then(|n| n.checked_mul(part.dtype.bitsize())).map(|bits| bits / 8);
            if let Some(bytes) = bytes.filter(|&n| n <= LARGEST) {
                let mut data = part.data.to_vec();
                data.resize(bytes, 0);
                part.data = Arc::from(data);
            }
        }
    }
    Ok(())
}

fn shape(shape: &mut Vec<usize>, input: &mut Unstructured<'_>) -> Result<()> {
    match input.int_in_range(0..=3)? {
        0 => drop(shape.pop()),
        1 => shape.push(*input.choose(&SIZES)?),
        _ if shape.is_empty() => {}
        _ => {
            let at = input.choose_index(shape.len())?;
            shape[at] = *input.choose(&SIZES)?;
        }
    }
    Ok(())
}

/// Changes JSON at a place that the input chooses: another value, or nothing.
pub fn json(value: &mut Value, input: &mut Unstructured<'_>) -> Result<()> {
    let deeper = match value {
        Value::Object(map) if !map.is_empty() => return object(map, input),
        Value::Array(items) if !items.is_empty() && input.ratio(3, 4)? => {
            let at = input.choose_index(items.len())?;
            Some(&mut items[at])
        }
        _ => None,
    };
    match deeper {
        Some(deeper) => json(deeper, input),
        None => {
            *value = leaf(input)?;
            Ok(())
        }
    }
}

/// Changes, adds or removes a key of an object.
fn object(map: &mut Map<String, Value>, input: &mut Unstructured<'_>) -> Result<()> {
    if map.is_empty() || input.ratio(1, 16)? {
        map.insert(text(input)?, leaf(input)?);
        return Ok(());
    }
    let keys: Vec<String> = map.keys().cloned().collect();
    let key = input.choose(&keys)?;
    match map.get_mut(key) {
        _ if input.ratio(1, 8)? => drop(map.remove(key)),
        Some(value) if value.is_object() || value.is_array() => json(value, input)?,
        Some(value) => *value = leaf(input)?,
        None => {}
    }
    Ok(())
}

fn leaf(input: &mut Unstructured<'_>) -> Result<Value> {
    Ok(match input.int_in_range(0..=7)? {
        0 => Value::Null,
        1 => input.arbitrary::<bool>()?.into(),
        2 => (*input.choose(&SIZES)?).into(),
        3 => input.arbitrary::<i64>()?.into(),
        4 => Value::from(input.arbitrary::<f64>()?), // null where it is not finite
        5 => Value::Array(vec![(*input.choose(&SIZES)?).into(); input.int_in_range(0..=3)?]),
        6 => Value::Object(Map::new()),
        _ => text(input)?.into(),
    })
}

/// A short text.
fn text(input: &mut Unstructured<'_>) -> Result<String> {
    let length = input.int_in_range(0..=24)?.min(input.len());
    Ok(String::from_utf8_lossy(input.bytes(length)?).into_owned())
}
