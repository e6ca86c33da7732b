//! What goes where in a model directory, from array types and shapes alone.
//!
//! A dry run and a real run walk through the same functions, which is why the predicted size is exact. Weights go into
//! shards in the order of their names; inside a shard, arrays are ordered by falling element size and then by name, so
//! that every array is aligned to its type.

use safetensors::Dtype;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

use super::{METADATA_KEY, METADATA_VERSION};
use crate::{
    Codecs, Encoding, Error, Outline, Parts, Result, StoredWeight, WeightInfo, weight::parts::DENSE_ROLE,
};

/// One array of a file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileArray {
    /// Its name in the file.
    pub name: String,
    /// Its role in its weight.
    pub role: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
    /// Bytes.
    pub nbytes: u64,
}

/// One weight of a file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileWeight {
    /// Its name.
    pub name: String,
    /// How it is stored.
    pub encoding: Encoding,
    /// Its logical shape.
    pub shape: Vec<usize>,
    /// What its codec needs to read it.
    pub attributes: Map<String, Value>,
    /// Its arrays.
    pub arrays: Vec<FileArray>,
}

impl FileWeight {
    /// The place in a file of a weight's parts.
    pub fn of_parts(name: &str, parts: &Parts, codecs: &Codecs) -> Result<Self> {
        let arrays =
            parts.tensors.iter().map(|(role, part)| (role.clone(), (part.dtype, part.shape.clone())));
        Self::of_outline(
            name,
            &Outline {
                encoding: parts.encoding.clone(),
                shape: parts.shape.clone(),
                attributes: parts.attributes.clone(),
                arrays: arrays.collect(),
            },
            codecs,
        )
    }

    /// The place in a file of a weight that is only outlined.
    pub fn of_outline(name: &str, outline: &Outline, codecs: &Codecs) -> Result<Self> {
        let codec = if outline.encoding.is_dense() {
            None
        } else {
            Some(codecs.get(&outline.encoding.codec).ok_or_else(|| Error::UnknownCodec {
                weight: name.to_owned(),
                codec: outline.encoding.codec.to_string(),
                known: codecs.known(),
            })?)
        };
        let arrays = outline
            .arrays
            .iter()
            .map(|(role, (dtype, shape))| FileArray {
                name: codec.map_or_else(|| name.to_owned(), |c| c.part_name(name, role)),
                role: role.clone(),
                dtype: *dtype,
                shape: shape.clone(),
                nbytes: array_bytes(*dtype, shape),
            })
            .collect();
        Ok(Self {
            name: name.to_owned(),
            encoding: outline.encoding.clone(),
            shape: outline.shape.clone(),
            attributes: outline.attributes.clone(),
            arrays,
        })
    }

    /// Bytes of all arrays.
    #[must_use]
    pub fn nbytes(&self) -> u64 {
        self.arrays.iter().map(|a| a.nbytes).sum()
    }
}

impl Outline {
    /// The outline of a dense weight.
    #[must_use]
    pub fn dense(encoding: Encoding, dtype: Dtype, shape: Vec<usize>) -> Self {
        Self {
            encoding,
            shape: shape.clone(),
            attributes: Map::new(),
            arrays: BTreeMap::from([(DENSE_ROLE.to_owned(), (dtype, shape))]),
        }
    }

    /// The outline of parts at hand.
    #[must_use]
    pub fn of_parts(parts: &Parts) -> Self {
        Self {
            encoding: parts.encoding.clone(),
            shape: parts.shape.clone(),
            attributes: parts.attributes.clone(),
            arrays: parts.tensors.iter().map(|(r, p)| (r.clone(), (p.dtype, p.shape.clone()))).collect(),
        }
    }

    /// Bytes of all arrays.
    #[must_use]
    pub fn nbytes(&self) -> u64 {
        self.arrays.values().map(|(dtype, shape)| array_bytes(*dtype, shape)).sum()
    }
}

fn array_bytes(dtype: Dtype, shape: &[usize]) -> u64 {
    let bits = shape.iter().map(|&d| d as u64).product::<u64>() * dtype.bitsize() as u64;
    bits.div_ceil(8)
}

/// Decides where shards end: a weight opens a new one where it would push the open one past the limit.
#[derive(Debug, Clone)]
pub struct Sharding {
    limit: u64,
    shard: usize,
    bytes: u64,
}

impl Sharding {
    /// Shards of at most `limit` bytes of arrays, unless one weight alone is larger.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { limit, shard: 0, bytes: 0 }
    }

    /// The shard of the next weight.
    pub fn place(&mut self, nbytes: u64) -> usize {
        if self.bytes > 0 && self.bytes.saturating_add(nbytes) > self.limit {
            self.shard += 1;
            self.bytes = 0;
        }
        self.bytes += nbytes;
        self.shard
    }
}

/// A shard's arrays in file order, with the index of their weight.
#[must_use]
pub fn file_order(weights: &[FileWeight]) -> Vec<(usize, &FileArray)> {
    let mut arrays: Vec<(usize, &FileArray)> =
        weights.iter().enumerate().flat_map(|(i, w)| w.arrays.iter().map(move |a| (i, a))).collect();
    arrays.sort_by(|(_, a), (_, b)| {
        b.dtype.bitsize().cmp(&a.dtype.bitsize()).then_with(|| a.name.cmp(&b.name))
    });
    arrays
}

/// A shard's header: the length field, JSON, and spaces up to a multiple of eight bytes.
pub fn header(weights: &[FileWeight]) -> Result<Vec<u8>> {
    let mut metadata = Map::new();
    // What loaders of the ecosystem insist on.
    metadata.insert("format".into(), "pt".into());
    let encoded: Map<String, Value> =
        weights.iter().filter(|w| !w.encoding.is_dense()).map(|w| (w.name.clone(), facts(w))).collect();
    if !encoded.is_empty() {
        let ours = json!({ "version": METADATA_VERSION, "weights": encoded });
        metadata.insert(METADATA_KEY.into(), ours.to_string().into());
    }
    let mut object = Map::from_iter([("__metadata__".to_owned(), Value::Object(metadata))]);
    let mut offset = 0u64;
    for (_, array) in file_order(weights) {
        let end = offset + array.nbytes;
        let entry = json!({
            "dtype": array.dtype, "shape": array.shape, "data_offsets": [offset, end],
        });
        if object.insert(array.name.clone(), entry).is_some() {
            return Err(Error::BadParts {
                weight: array.name.clone(),
                codec: "file".into(),
                message: "two weights store an array of this name".into(),
            });
        }
        offset = end;
    }
    let mut text = Value::Object(object).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    Ok(bytes)
}

fn facts(weight: &FileWeight) -> Value {
    let arrays: BTreeMap<&str, &str> =
        weight.arrays.iter().map(|a| (a.role.as_str(), a.name.as_str())).collect();
    json!({
        "codec": weight.encoding.codec,
        "format": weight.encoding.format,
        "shape": weight.shape,
        "attributes": weight.attributes,
        "arrays": arrays,
    })
}

/// The name of shard `index` of `count`.
#[must_use]
pub fn shard_name(index: usize, count: usize) -> String {
    if count == 1 {
        return super::read::SINGLE_FILE.to_owned();
    }
    format!("model-{:05}-of-{count:05}.safetensors", index + 1)
}

/// The index file of a sharded checkpoint.
#[must_use]
pub fn index(shards: &[Vec<FileWeight>]) -> String {
    let mut map = BTreeMap::new();
    let mut total = 0;
    for (i, shard) in shards.iter().enumerate() {
        for array in shard.iter().flat_map(|w| &w.arrays) {
            map.insert(array.name.clone(), shard_name(i, shards.len()));
            total += array.nbytes;
        }
    }
    pretty(&json!({ "metadata": { "total_size": total }, "weight_map": map }))
}

/// The config file: the checkpoint's own, and what tells other programs about encoded weights.
pub fn config(own: &Map<String, Value>, weights: &[FileWeight], codecs: &Codecs) -> Result<String> {
    let mut config = own.clone();
    config.remove("quantization_config");
    if let Some(quantization) = quantization_config(weights, codecs)? {
        config.insert("quantization_config".into(), quantization);
    }
    Ok(pretty(&Value::Object(config)))
}

/// One family of codecs with a standard: its own words. Anything else: a `quant_method` that no other program knows, so
/// that none misreads the file.
fn quantization_config(weights: &[FileWeight], codecs: &Codecs) -> Result<Option<Value>> {
    let mut families = BTreeMap::new();
    let mut ids = Vec::new();
    for weight in weights.iter().filter(|w| !w.encoding.is_dense()) {
        if let Some(codec) = codecs.get(&weight.encoding.codec) {
            families.entry(codec.family()).or_insert(codec);
        }
        ids.push(weight.encoding.codec.as_ref());
    }
    if ids.is_empty() {
        return Ok(None);
    }
    let left: Vec<&str> = weights
        .iter()
        .filter(|w| w.encoding.is_dense() && w.shape.len() >= 2)
        .map(|w| w.name.as_str())
        .collect();
    if families.len() == 1 {
        let stored: Vec<StoredWeight<'_>> = weights
            .iter()
            .filter(|w| !w.encoding.is_dense())
            .map(|w| StoredWeight {
                name: &w.name,
                codec: &w.encoding.codec,
                shape: &w.shape,
                attributes: &w.attributes,
            })
            .collect();
        for codec in families.values() {
            if let Some(config) = codec.config(&stored, &left)? {
                return Ok(Some(config));
            }
        }
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(Some(json!({ "quant_method": "taper", "version": METADATA_VERSION, "codecs": ids })))
}

fn pretty(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

/// The stored element type of a plain tensor; `None` for an encoded weight.
#[must_use]
pub fn dense_type(info: &WeightInfo) -> Option<Dtype> {
    if !info.encoding.is_dense() {
        return None;
    }
    Some(match info.encoding.format.as_str() {
        "f64" => Dtype::F64,
        "f32" => Dtype::F32,
        "f16" => Dtype::F16,
        "bf16" => Dtype::BF16,
        "u8" => Dtype::U8,
        "u32" => Dtype::U32,
        "i64" => Dtype::I64,
        _ => return None,
    })
}
