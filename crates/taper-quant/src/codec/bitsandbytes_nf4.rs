//! NF4 weights of bitsandbytes.
//!
//! ```text
//! X.weight                    U8 [⌈n/2⌉, 1]   two codes per byte, the first in the high nibble
//! X.weight.absmax             F32 [blocks]; doubly quantized: U8 [blocks]
//! X.weight.quant_map          F32 [16]
//! X.weight.nested_absmax      F32 [⌈blocks/256⌉]      doubly quantized only
//! X.weight.nested_quant_map   F32 [256]               doubly quantized only
//! X.weight.quant_state.bitsandbytes__nf4   U8: JSON of the type, block size, shape and, nested, the offset
//! ```
//!
//! The JSON ends in spaces, so that its length does not depend on the digits of the offset and sizes can be predicted;
//! parsers skip them.

use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::{num::NonZeroUsize, sync::Arc};
use taper_core::{
    Claim, Codec, Error, Part, Parts, Result, SharedWeight, StoredWeight, Weight, store::Listing,
    weight::checked_elements,
};

use super::{array, module};
use crate::{
    code::nf4::{Absmax, BlockScales, Nested, Nf4Scheme},
    kernel::store::Store,
    layout::{Arrays, CODES},
    packed_nf4::{Nf4Rows, PackedNf4, Stored, nested_block},
};

/// The codec's id.
pub const ID: &str = "bitsandbytes-nf4";

const ABSMAX: &str = "absmax";
const TABLE: &str = "table";
const NESTED_ABSMAX: &str = "nested-absmax";
const NESTED_MAP: &str = "nested-map";
const STATE: &str = "state";
const STATE_SUFFIX: &str = ".quant_state.bitsandbytes__nf4";
const FP4_SUFFIX: &str = ".quant_state.bitsandbytes__fp4";

/// Characters that an offset takes at most: sign, 17 digits, point, `e-45` and some room.
const OFFSET_WIDTH: usize = 26;

/// The type to which bitsandbytes decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ValueType {
    /// Single precision.
    #[default]
    #[serde(rename = "float32")]
    F32,
    /// Half precision.
    #[serde(rename = "float16")]
    F16,
    /// bfloat16.
    #[serde(rename = "bfloat16")]
    BF16,
}

impl ValueType {
    /// torch's name of the type.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
        }
    }
}

/// The JSON beside a weight.
#[derive(Debug, Deserialize)]
struct State {
    quant_type: String,
    blocksize: NonZeroUsize,
    #[serde(default)]
    dtype: ValueType,
    shape: Vec<usize>,
    nested_blocksize: Option<NonZeroUsize>,
    nested_offset: Option<f64>,
}

impl State {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let state: Self = serde_json::from_slice(bytes).map_err(|e| format!("its state: {e}"))?;
        if state.quant_type != "nf4" {
            return Err(format!("its state says `{}`, expected `nf4`", state.quant_type));
        }
        Ok(state)
    }

    fn scheme(&self) -> Nf4Scheme {
        let double = self.nested_offset.is_some();
        Nf4Scheme {
            block: self.blocksize,
            scales: if double { BlockScales::Double } else { BlockScales::Plain },
        }
    }
}

/// The codec of bitsandbytes' NF4 weights.
#[derive(Debug, Clone, Copy, Default)]
pub struct BitsAndBytesNf4;

impl Codec for BitsAndBytesNf4 {
    fn id(&self) -> &str {
        ID
    }

    fn part_name(&self, weight: &str, role: &str) -> String {
        match role {
            CODES => weight.to_owned(),
            TABLE => format!("{weight}.quant_map"),
            NESTED_ABSMAX => format!("{weight}.nested_absmax"),
            NESTED_MAP => format!("{weight}.nested_quant_map"),
            STATE => format!("{weight}{STATE_SUFFIX}"),
            other => format!("{weight}.{other}"),
        }
    }

    fn claim(&self, listing: &Listing, _: &Map<String, Value>) -> Result<Vec<Claim>> {
        let bad = |weight: &str, message: String| Error::BadParts {
            weight: weight.to_owned(),
            codec: ID.to_owned(),
            message,
        };
        let mut claims = Vec::new();
        for name in listing.names() {
            if let Some(weight) = name.strip_suffix(FP4_SUFFIX) {
                return Err(bad(
                    weight,
                    "it is stored as bitsandbytes FP4, which is not read yet; NF4 is".into(),
                ));
            }
            let Some(weight) = name.strip_suffix(STATE_SUFFIX) else { continue };
            let state = State::parse(listing.bytes(name).unwrap_or_default()).map_err(|m| bad(weight, m))?;
            let roles: &[&str] = match state.scheme().scales {
                BlockScales::Plain => &[CODES, ABSMAX, TABLE, STATE],
                BlockScales::Double => &[CODES, ABSMAX, TABLE, STATE, NESTED_ABSMAX, NESTED_MAP],
            };
            let arrays = roles.iter().map(|r| ((*r).to_owned(), self.part_name(weight, r))).collect();
            claims.push(Claim {
                weight: weight.to_owned(),
                encoding: taper_core::Encoding::new(ID, state.scheme().to_string()),
                attributes: attributes(state.scheme()),
                shape: state.shape,
                arrays,
            });
        }
        Ok(claims)
    }

    fn read(&self, weight: &str, parts: Parts) -> Result<SharedWeight> {
        Ok(Arc::new(read(weight, &parts)?))
    }

    fn config(&self, stored: &[StoredWeight<'_>], left_dense: &[&str]) -> Result<Option<Value>> {
        let double = stored.iter().any(|w| w.attributes.get("double-quant") == Some(&Value::Bool(true)));
        let four = json!({
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": "float32",
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_use_double_quant": double,
        });
        let Value::Object(four) = four else { return Ok(None) };
        Ok(Some(config_with("load_in_4bit", stored, left_dense, four)))
    }
}

/// The module that language models of the ecosystem call their head.
const HEAD: &str = "lm_head";

/// The `quantization_config` of bitsandbytes, with one of its two modes on.
///
/// A head that shares the embedding's weight is no weight of its own, and loaders would replace its module all the same:
/// it is skipped by name unless it is stored encoded.
pub(super) fn config_with(
    mode: &str,
    stored: &[StoredWeight<'_>],
    left_dense: &[&str],
    more: Map<String, Value>,
) -> Value {
    let mut skipped: Vec<&str> = left_dense.iter().map(|name| module(name)).collect();
    if !skipped.contains(&HEAD) && !stored.iter().any(|w| module(w.name) == HEAD) {
        skipped.push(HEAD);
    }
    let mut config = Map::from_iter([
        ("quant_method".to_owned(), json!("bitsandbytes")),
        ("load_in_4bit".to_owned(), json!(mode == "load_in_4bit")),
        ("load_in_8bit".to_owned(), json!(mode == "load_in_8bit")),
        ("llm_int8_threshold".to_owned(), json!(6.0)),
        ("llm_int8_skip_modules".to_owned(), json!(skipped)),
        ("llm_int8_has_fp16_weight".to_owned(), json!(false)),
        ("llm_int8_enable_fp32_cpu_offload".to_owned(), json!(false)),
    ]);
    config.extend(more);
    Value::Object(config)
}

/// The attributes of a scheme.
#[must_use]
pub fn attributes(scheme: Nf4Scheme) -> Map<String, Value> {
    Map::from_iter([
        ("block".to_owned(), scheme.block.get().into()),
        ("double-quant".to_owned(), (scheme.scales == BlockScales::Double).into()),
    ])
}

/// The state's JSON, spaced as Python spaces it and padded where an offset stands in it.
fn state(shape: &[usize], scheme: Nf4Scheme, decoded: ValueType, nested: Option<(usize, f32)>) -> String {
    let mut text = format!(
        "{{\"quant_type\": \"nf4\", \"blocksize\": {}, \"dtype\": \"{}\", \"shape\": {shape:?}",
        scheme.block,
        decoded.name()
    );
    let Some((block, offset)) = nested else { return text + "}" };
    let offset = json!(f64::from(offset)).to_string();
    let padding = " ".repeat(OFFSET_WIDTH.saturating_sub(offset.len()));
    text += &format!(
        ", \"nested_blocksize\": {block}, \"nested_dtype\": \"float32\", \"nested_offset\": {offset}}}{padding}"
    );
    text
}

/// Every array of a weight, from its shape alone.
#[must_use]
pub fn arrays(shape: &[usize], scheme: Nf4Scheme, nested_block: usize, decoded: ValueType) -> Arrays {
    let elements: usize = shape.iter().product();
    let blocks = elements.div_ceil(scheme.block.get());
    let double = scheme.scales == BlockScales::Double;
    let length = state(shape, scheme, decoded, double.then_some((nested_block, 0.0))).len();
    let mut arrays = Arrays::from([
        (CODES.to_owned(), (Dtype::U8, vec![elements.div_ceil(2), 1])),
        (ABSMAX.to_owned(), (if double { Dtype::U8 } else { Dtype::F32 }, vec![blocks])),
        (TABLE.to_owned(), (Dtype::F32, vec![16])),
        (STATE.to_owned(), (Dtype::U8, vec![length])),
    ]);
    if double {
        arrays.insert(NESTED_ABSMAX.to_owned(), (Dtype::F32, vec![blocks.div_ceil(nested_block.max(1))]));
        arrays.insert(NESTED_MAP.to_owned(), (Dtype::F32, vec![256]));
    }
    arrays
}

/// The parts of a weight.
pub(crate) fn to_parts(weight: &PackedNf4) -> Parts {
    let stored = weight.stored();
    let rows = weight.rows_form();
    let nested = match &*rows.absmax {
        Absmax::Plain(_) => None,
        Absmax::Nested(nested) => Some((nested.block, nested.offset)),
    };
    let text = state(&stored.shape, stored.scheme, stored.decoded, nested);
    let tensors = arrays(&stored.shape, stored.scheme, stored.nested_block, stored.decoded)
        .into_iter()
        .map(|(role, (dtype, shape))| {
            let part = match (role.as_str(), &*rows.absmax) {
                (CODES, _) => Part { dtype, shape, data: rows.codes.clone() },
                (TABLE, _) => Part::from_values(dtype, shape, &stored.table),
                (ABSMAX, Absmax::Plain(absmax)) => Part::from_values(dtype, shape, absmax),
                (ABSMAX, Absmax::Nested(nested)) => Part::from_values(dtype, shape, &nested.codes),
                (NESTED_ABSMAX, Absmax::Nested(nested)) => Part::from_values(dtype, shape, &nested.scales),
                (NESTED_MAP, Absmax::Nested(nested)) => Part::from_values(dtype, shape, &nested.map),
                _ => Part::from_values(dtype, shape, text.as_bytes()),
            };
            (role, part)
        })
        .collect();
    Parts {
        encoding: weight.encoding(),
        shape: stored.shape.clone(),
        attributes: attributes(stored.scheme),
        tensors,
    }
}

pub(super) fn read(weight: &str, parts: &Parts) -> Result<PackedNf4> {
    let bad = |message: String| parts.bad(weight, message);
    let state = State::parse(&parts.part(weight, STATE)?.data).map_err(bad)?;
    if state.shape != parts.shape {
        return Err(bad(format!("its state says shape {:?}, not {:?}", state.shape, parts.shape)));
    }
    let elements = checked_elements(&state.shape)
        .filter(|&n| n > 0)
        .ok_or_else(|| bad(format!("its shape {:?} is empty or overflows", state.shape)))?;
    let blocks = elements.div_ceil(state.blocksize.get());
    // Codes may be stored under any type; what counts is their bytes.
    let codes = parts.part(weight, CODES)?.data.clone();
    if codes.len() != elements.div_ceil(2) {
        let expected = elements.div_ceil(2);
        return Err(bad(format!("it has {} bytes of codes, expected {expected}", codes.len())));
    }
    let mut table = [0f32; 16];
    table.copy_from_slice(&floats(parts, weight, TABLE, 16)?);
    let absmax = match state.nested_offset {
        None => Absmax::Plain(floats(parts, weight, ABSMAX, blocks)?),
        Some(offset) => {
            let block = state.nested_blocksize.map_or(crate::code::nf4::NESTED_BLOCK, NonZeroUsize::get);
            let offset = offset as f32;
            if !offset.is_finite() {
                return Err(bad("its nested offset is not finite".into()));
            }
            Absmax::Nested(Nested {
                codes: array(parts, weight, ABSMAX, Dtype::U8, &[blocks])?.data.to_vec(),
                scales: floats(parts, weight, NESTED_ABSMAX, blocks.div_ceil(block))?,
                map: floats(parts, weight, NESTED_MAP, 256)?,
                block,
                offset,
            })
        }
    };
    Ok(PackedNf4::from_stored(Stored {
        scheme: state.scheme(),
        shape: state.shape,
        decoded: state.dtype,
        table,
        nested_block: nested_block(&absmax),
        store: Store::new(Nf4Rows { codes, absmax: Arc::new(absmax) }),
    }))
}

/// An array of finite f32.
fn floats(parts: &Parts, weight: &str, role: &str, count: usize) -> Result<Vec<f32>> {
    let values = array(parts, weight, role, Dtype::F32, &[count])?.values::<f32>();
    if values.iter().all(|v| v.is_finite()) {
        Ok(values)
    } else {
        Err(parts.bad(weight, format!("`{role}` has a value that is not finite")))
    }
}
