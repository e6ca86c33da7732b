//! `taper-trellis`: matrices of trellis codes.
//!
//! ```text
//! W.codes   U8  [bytes]       segment after segment of rows; in each, column after column, a stream of rate·height bits,
//!                             most significant first, from a fresh byte
//! W.scale   F16 [out]
//! W.rates   U8  [in]          bits per weight of each column, 1 to L / 2
//! W.signs   U8  [⌈in/8⌉]      bit i%8 of byte i/8: input i changes its sign; only where `block` is given
//! ```
//!
//! Attributes: `state-bits` (8, 10 or 12), `segment` (rows per segment) and, where inputs are turned, `block`. Only Taper writes
//! it, and always with metadata: there is nothing to recognise in foreign files.

use half::f16;
use safetensors::Dtype;
use serde_json::{Map, Value};
use std::{collections::BTreeMap, sync::Arc};
use taper_core::{
    Claim, Codec, Part, Parts, Result, SharedWeight, StoredWeight, Weight, store::Listing,
    weight::checked_elements,
};

use super::array;
use crate::{
    code::trellis::StateBits,
    packed_trellis::{PackedTrellis, Stored},
};

/// The codec's id.
pub const ID: &str = "taper-trellis";

const CODES: &str = "codes";
const SCALE: &str = "scale";
const RATES: &str = "rates";
const SIGNS: &str = "signs";
const STATE_BITS: &str = "state-bits";
const SEGMENT: &str = "segment";
const BLOCK: &str = "block";

/// The codec of `taper-trellis`.
#[derive(Debug, Clone, Copy, Default)]
pub struct TaperTrellis;

/// For people: mean bits per weight and state bits.
pub(crate) fn format(state: StateBits, rates: &[u8]) -> String {
    let bits: usize = rates.iter().map(|&r| usize::from(r)).sum();
    format!("trellis {:.2} L{}", bits as f64 / rates.len().max(1) as f64, state.get())
}

/// The parts of a weight.
pub(crate) fn to_parts(weight: &PackedTrellis) -> Parts {
    let stored = weight.stored();
    let bytes = |data: &[u8]| Part::from_values(Dtype::U8, vec![data.len()], data);
    let mut attributes = Map::new();
    attributes.insert(STATE_BITS.into(), stored.state.get().into());
    attributes.insert(SEGMENT.into(), stored.segment.into());
    let mut tensors = BTreeMap::from([
        (
            CODES.to_owned(),
            Part { dtype: Dtype::U8, shape: vec![stored.codes.len()], data: stored.codes.clone() },
        ),
        (SCALE.to_owned(), Part::from_values(Dtype::F16, vec![stored.scales.len()], &stored.scales)),
        (RATES.to_owned(), bytes(&stored.rates)),
    ]);
    if let Some((block, signs)) = &stored.turn {
        attributes.insert(BLOCK.into(), (*block).into());
        tensors.insert(SIGNS.to_owned(), bytes(signs));
    }
    Parts { encoding: weight.encoding(), shape: stored.shape.to_vec(), attributes, tensors }
}

/// Bytes of the streams of a matrix; `None` where that overflows.
fn code_bytes(rows: usize, segment: usize, rates: &[u8]) -> Option<usize> {
    let streams = |height: usize| -> Option<usize> {
        rates.iter().try_fold(0usize, |sum, &rate| {
            sum.checked_add(height.checked_mul(usize::from(rate))?.div_ceil(8))
        })
    };
    let (whole, rest) = (rows / segment, rows % segment);
    streams(segment)?.checked_mul(whole)?.checked_add(streams(rest)?)
}

/// Validates the parts of a weight and makes it.
fn read(weight: &str, parts: &Parts) -> Result<PackedTrellis> {
    let bad = |message: String| parts.bad(weight, message);
    let &[rows, cols] = parts.shape.as_slice() else {
        return Err(bad(format!("it has shape {:?}, expected a matrix", parts.shape)));
    };
    if checked_elements(&parts.shape).is_none_or(|n| n == 0) {
        return Err(bad(format!("a matrix of shape {:?} cannot be stored", parts.shape)));
    }
    let state =
        StateBits::try_from(parts.unsigned(weight, STATE_BITS)? as u64).map_err(|e| bad(e.to_string()))?;
    let segment = parts.unsigned(weight, SEGMENT)?;
    // A segment of more rows than there are is the same as one of all; it must not make sizes overflow.
    if segment == 0 || segment > rows.max(crate::packed_trellis::SEGMENT) {
        return Err(bad(format!("`{SEGMENT}` is {segment}, expected 1 to {rows}")));
    }
    let rates = array(parts, weight, RATES, Dtype::U8, &[cols])?.values::<u8>();
    let most = state.most_rate();
    if let Some(column) = rates.iter().position(|rate| !(1..=most).contains(rate)) {
        return Err(bad(format!(
            "column {column} has {} bits per weight, expected 1 to {most}",
            rates[column]
        )));
    }
    let scales = array(parts, weight, SCALE, Dtype::F16, &[rows])?.values::<f16>();
    if !scales.iter().all(|s| s.is_finite()) {
        return Err(bad("a scale is not finite".into()));
    }
    let bytes = code_bytes(rows, segment, &rates).ok_or_else(|| bad("its sizes overflow".into()))?;
    let codes = array(parts, weight, CODES, Dtype::U8, &[bytes])?.data.clone();
    let turn = turn(weight, parts, cols)?;
    Ok(PackedTrellis::from_stored(Stored { shape: [rows, cols], state, segment, codes, scales, rates, turn }))
}

/// Blocks and signs, where inputs are turned.
fn turn(weight: &str, parts: &Parts, cols: usize) -> Result<Option<(usize, Vec<u8>)>> {
    if !parts.attributes.contains_key(BLOCK) {
        return match parts.tensors.contains_key(SIGNS) {
            true => Err(parts.bad(weight, format!("it has `{SIGNS}` and no `{BLOCK}`"))),
            false => Ok(None),
        };
    }
    let block = parts.unsigned(weight, BLOCK)?;
    if !block.is_power_of_two() || !cols.is_multiple_of(block) {
        let message = format!("`{BLOCK}` is {block}, expected a power of two that divides {cols}");
        return Err(parts.bad(weight, message));
    }
    let signs = array(parts, weight, SIGNS, Dtype::U8, &[cols.div_ceil(8)])?.values::<u8>();
    Ok(Some((block, signs)))
}

impl Codec for TaperTrellis {
    fn id(&self) -> &str {
        ID
    }

    fn part_name(&self, weight: &str, role: &str) -> String {
        format!("{weight}.{role}")
    }

    fn claim(&self, _: &Listing, _: &Map<String, Value>) -> Result<Vec<Claim>> {
        Ok(Vec::new())
    }

    fn read(&self, weight: &str, parts: Parts) -> Result<SharedWeight> {
        Ok(Arc::new(read(weight, &parts)?))
    }

    fn config(&self, _: &[StoredWeight<'_>], _: &[&str]) -> Result<Option<Value>> {
        Ok(None)
    }
}
