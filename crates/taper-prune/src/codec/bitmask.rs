//! The stored form of [`Bitmask`], and the reader of legacy `sparse-bitmask` checkpoints.
//!
//! ```text
//! a.weight.compressed    [nonzero]          f32, f16 or bf16     values, row by row
//! a.weight.bitmask       [out, ⌈in/8⌉]      u8                   bit c%8 of byte c/8 is column c
//! a.weight.shape         [rank]             i64                  legacy only
//! a.weight.row_offsets   [out]              i64                  legacy only: where each row's values begin
//! ```
//!
//! The names and layout are those that compressed-tensors used for `sparse-bitmask` before it gave that format up.
//! Shape and row offsets follow from elsewhere, so Taper does not write them, which saves eight bytes per row; where
//! they are present they must agree. Legacy files come in two manners, `a.weight.bitmask` and `a.bitmask`; both are the
//! weight `a.weight`.

use candle_core::DType;
use safetensors::Dtype;
use serde_json::{Map, Value};
use std::{borrow::Cow, collections::BTreeMap, sync::Arc};
use taper_core::{
    Claim, Codec, Encoding, Part, Parts, Result, StoredWeight,
    store::Listing,
    weight::{SharedWeight, checked_elements},
};

use crate::sparse::{Bitmask, Values, row_offsets};

/// The codec's id.
pub const ID: &str = "taper-bitmask";

/// The role of the values.
const VALUES: &str = "compressed";
/// The role of the bits.
const MASK: &str = "bitmask";
/// The role of the logical shape.
const SHAPE: &str = "shape";
/// The role of the row offsets.
const OFFSETS: &str = "row_offsets";

/// Most dimensions that a stored shape may have; convolutions over volumes have five.
const MAX_RANK: usize = 8;

/// Reads and writes [`Bitmask`] weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BitmaskCodec;

/// The encoding of values of a type.
pub(crate) fn encoding(dtype: DType) -> Encoding {
    Encoding { codec: Cow::Borrowed(ID), format: format!("bitmask {}", dtype.as_str()) }
}

/// What a file holds of a bitmask weight.
pub(crate) fn parts(encoding: Encoding, shape: Vec<usize>, values: Part, mask: Part) -> Parts {
    let tensors = BTreeMap::from([(VALUES.to_owned(), values), (MASK.to_owned(), mask)]);
    Parts { encoding, shape, attributes: Map::new(), tensors }
}

impl Codec for BitmaskCodec {
    fn id(&self) -> &str {
        ID
    }

    fn part_name(&self, weight: &str, role: &str) -> String {
        format!("{weight}.{role}")
    }

    fn claim(&self, listing: &Listing, config: &Map<String, Value>) -> Result<Vec<Claim>> {
        if !declares_bitmask(config) {
            return Ok(Vec::new());
        }
        let stems = listing.names().filter_map(|name| name.strip_suffix(".bitmask"));
        Ok(stems.filter_map(|stem| claim_one(listing, stem)).collect())
    }

    fn read(&self, weight: &str, parts: Parts) -> Result<SharedWeight> {
        let bad = |message: String| parts.bad(weight, message);
        let mask = parts.part(weight, MASK)?;
        let values = read_values(parts.part(weight, VALUES)?).map_err(bad)?;
        check_mask(mask, &parts.shape).map_err(bad)?;
        let read = Bitmask::new(parts.shape.clone(), mask.data.to_vec(), values).map_err(bad)?;
        check_legacy(&parts, mask).map_err(bad)?;
        Ok(Arc::new(read))
    }

    fn config(&self, _: &[StoredWeight<'_>], _: &[&str]) -> Result<Option<Value>> {
        Ok(None)
    }
}

/// True where `config.json` says that the checkpoint is stored as legacy `sparse-bitmask`.
fn declares_bitmask(config: &Map<String, Value>) -> bool {
    let says = |value: Option<&Value>| {
        value.and_then(|v| v.get("format")).and_then(Value::as_str) == Some("sparse-bitmask")
    };
    says(config.get("sparsity_config"))
        || ["quantization_config", "compression_config"].iter().any(|&key| {
            let section = config.get(key);
            says(section) || says(section.and_then(|s| s.get("sparsity_config")))
        })
}

/// The weight whose arrays are named `{stem}.…`, where they are all there and the shape makes sense; arrays that do
/// not are left to be plain tensors.
fn claim_one(listing: &Listing, stem: &str) -> Option<Claim> {
    let array = |role: &str| format!("{stem}.{role}");
    let format = match listing.array(&array(VALUES))?.dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        _ => return None,
    };
    let stored = listing.array(&array(SHAPE))?;
    let rank = listing.bytes(&array(SHAPE))?.len() / size_of::<i64>();
    if stored.dtype != Dtype::I64 || rank > MAX_RANK {
        return None;
    }
    let shape = listing.bytes(&array(SHAPE))?.chunks_exact(8).map(dimension).collect::<Option<Vec<_>>>()?;
    checked_elements(&shape)?;
    let roles = [VALUES, MASK, SHAPE, OFFSETS];
    let present = roles.iter().filter(|role| listing.array(&array(role)).is_some());
    Some(Claim {
        weight: if stem.ends_with(".weight") { stem.to_owned() } else { format!("{stem}.weight") },
        encoding: encoding(format),
        shape,
        attributes: Map::new(),
        arrays: present.map(|role| ((*role).to_owned(), array(role))).collect(),
    })
}

/// One stored dimension.
fn dimension(bytes: &[u8]) -> Option<usize> {
    usize::try_from(i64::from_le_bytes(bytes.try_into().ok()?)).ok()
}

/// The values, of whichever type; a sentence says what is wrong.
fn read_values(part: &Part) -> Result<Values, String> {
    let (values, width) = match part.dtype {
        Dtype::F32 => (Values::F32(part.values()), 4),
        Dtype::F16 => (Values::F16(part.values()), 2),
        Dtype::BF16 => (Values::Bf16(part.values()), 2),
        other => return Err(format!("`{VALUES}` is {other:?}, expected F32, F16 or BF16")),
    };
    let [count] = part.shape[..] else {
        return Err(format!("`{VALUES}` has shape {:?}, expected one dimension", part.shape));
    };
    if count != values.len() || part.data.len() != values.len() * width {
        return Err(format!("`{VALUES}` has {} bytes for {count} values", part.data.len()));
    }
    Ok(values)
}

/// The mask's stated type and shape; its bytes are checked by [`Bitmask::new`].
fn check_mask(mask: &Part, shape: &[usize]) -> Result<(), String> {
    let (rows, cols) = crate::dense::as_matrix(shape).ok_or_else(|| format!("shape {shape:?} overflows"))?;
    let expected = [rows, cols.div_ceil(8)];
    if mask.dtype == Dtype::U8 && mask.shape == expected {
        return Ok(());
    }
    Err(format!("`{MASK}` is {:?} {:?}, expected U8 {expected:?}", mask.dtype, mask.shape))
}

/// Shape and row offsets, where the file states them, agree with what follows from the other arrays.
fn check_legacy(parts: &Parts, mask: &Part) -> Result<(), String> {
    let integers = |role: &str, expected: &[usize]| -> Result<(), String> {
        let Some(part) = parts.tensors.get(role) else { return Ok(()) };
        let stated: Vec<i64> = part.values();
        let agrees = part.dtype == Dtype::I64
            && part.data.len() == expected.len() * size_of::<i64>()
            && stated.iter().zip(expected).all(|(&s, &e)| usize::try_from(s) == Ok(e));
        if agrees { Ok(()) } else { Err(format!("`{role}` does not agree with the other arrays")) }
    };
    integers(SHAPE, &parts.shape)?;
    let offsets = row_offsets(&mask.data, mask.shape.last().copied().unwrap_or(1));
    integers(OFFSETS, &offsets[..offsets.len() - 1])
}
