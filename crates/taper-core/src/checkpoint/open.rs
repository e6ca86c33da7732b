//! Opening a model directory: config, listing, who claims which arrays, and one lazy entry per weight.
//!
//! Encoded weights are recognised by our own metadata first, then by the codecs' claims on foreign files; what nobody
//! claims is a plain tensor.

use candle_core::{Device, Tensor};
use safetensors::Dtype;
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex},
};

use super::{Checkpoint, Entry, Lazy, Load, WeightInfo};
use crate::{
    Claim, Codecs, Encoding, Error, Part, Parts, Result, SharedWeight,
    store::{Listing, METADATA_KEY},
    weight::checked_elements,
};

impl Checkpoint {
    /// Opens a Hugging Face model directory of plain tensors.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(dir, &Codecs::new())
    }

    /// Opens a Hugging Face model directory whose weights may be in any of these encodings.
    ///
    /// Only headers are read now. Errors where the directory holds no checkpoint, a file is malformed, a shard is
    /// missing, or a weight is in an encoding that none of `codecs` reads.
    pub fn open_with(dir: impl AsRef<Path>, codecs: &Codecs) -> Result<Self> {
        let dir = dir.as_ref();
        let mut config = read_config(dir)?;
        let listing = Arc::new(Listing::open(dir)?);
        let mut entries = BTreeMap::new();
        let mut taken = BTreeSet::new();
        for claim in claims(&listing, codecs, &config)? {
            for array in claim.arrays.values() {
                if !taken.insert(array.clone()) {
                    return Err(claim_error(
                        &claim,
                        format!("its array `{array}` belongs to another weight too"),
                    ));
                }
            }
            let name = claim.weight.clone();
            let entry = encoded_entry(claim, &listing, codecs)?;
            if entries.insert(name.clone(), entry).is_some() {
                return Err(Error::BadParts {
                    weight: name,
                    codec: "?".into(),
                    message: "it is claimed twice".into(),
                });
            }
        }
        for name in listing.names().filter(|n| !taken.contains(*n)) {
            if entries.contains_key(name) {
                return Err(Error::BadParts {
                    weight: name.to_owned(),
                    codec: "dense".into(),
                    message: "it is stored plainly and encoded at once".into(),
                });
            }
            entries.insert(name.to_owned(), dense_entry(name, &listing)?);
        }
        config.remove("quantization_config");
        let fingerprint = fingerprint(&listing, &config);
        Ok(Self { config, entries, codecs: codecs.clone(), dir: Some(dir.to_owned()), fingerprint })
    }
}

fn read_config(dir: &Path) -> Result<Map<String, Value>> {
    let path = dir.join("config.json");
    if !path.is_file() {
        let message = "`config.json` is not there; a checkpoint is a model directory".to_owned();
        return Err(Error::NoCheckpoint { path: dir.to_owned(), message });
    }
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::Json { path, message: "is not an object".into() }),
        Err(e) => Err(Error::Json { path, message: e.to_string() }),
    }
}

fn claims(listing: &Listing, codecs: &Codecs, config: &Map<String, Value>) -> Result<Vec<Claim>> {
    let own = listing.encoded();
    let mut claims = Vec::new();
    for (weight, facts) in own {
        claims.push(own_claim(weight, facts)?);
    }
    for codec in codecs.iter() {
        claims.extend(codec.claim(listing, config)?.into_iter().filter(|c| !own.contains_key(&c.weight)));
    }
    Ok(claims)
}

/// A claim from our own metadata.
fn own_claim(weight: &str, facts: &Value) -> Result<Claim> {
    let bad = |key: &str| Error::BadParts {
        weight: weight.to_owned(),
        codec: METADATA_KEY.to_owned(),
        message: format!("its metadata has no valid `{key}`"),
    };
    let text = |key: &str| facts.get(key).and_then(Value::as_str).ok_or_else(|| bad(key));
    let shape = facts
        .get("shape")
        .and_then(|v| serde_json::from_value::<Vec<usize>>(v.clone()).ok())
        .ok_or_else(|| bad("shape"))?;
    let arrays = facts
        .get("arrays")
        .and_then(|v| serde_json::from_value::<BTreeMap<String, String>>(v.clone()).ok())
        .ok_or_else(|| bad("arrays"))?;
    let attributes = facts.get("attributes").and_then(Value::as_object).ok_or_else(|| bad("attributes"))?;
    Ok(Claim {
        weight: weight.to_owned(),
        encoding: Encoding::new(text("codec")?.to_owned(), text("format")?),
        shape,
        attributes: attributes.clone(),
        arrays,
    })
}

fn claim_error(claim: &Claim, message: String) -> Error {
    Error::BadParts { weight: claim.weight.clone(), codec: claim.encoding.codec.to_string(), message }
}

fn lazy(info: WeightInfo, load: Box<Load>) -> Entry {
    Entry::Lazy(Arc::new(Lazy { info, load, held: Mutex::new(None) }))
}

fn encoded_entry(claim: Claim, listing: &Arc<Listing>, codecs: &Codecs) -> Result<Entry> {
    let codec = Arc::clone(codecs.get(&claim.encoding.codec).ok_or_else(|| Error::UnknownCodec {
        weight: claim.weight.clone(),
        codec: claim.encoding.codec.to_string(),
        known: codecs.known(),
    })?);
    if checked_elements(&claim.shape).is_none() {
        return Err(claim_error(&claim, format!("its shape {:?} overflows", claim.shape)));
    }
    let mut nbytes = 0;
    for array in claim.arrays.values() {
        nbytes += listing
            .array(array)
            .ok_or_else(|| claim_error(&claim, format!("its array `{array}` is missing")))?
            .nbytes;
    }
    let info = WeightInfo { shape: claim.shape.clone(), encoding: claim.encoding.clone(), nbytes };
    let listing = Arc::clone(listing);
    Ok(lazy(info, Box::new(move || codec.read(&claim.weight, parts_of(&claim, &listing)?))))
}

/// Copies a claimed weight's arrays out of the files.
fn parts_of(claim: &Claim, listing: &Listing) -> Result<Parts> {
    let mut tensors = BTreeMap::new();
    for (role, array) in &claim.arrays {
        let missing = || claim_error(claim, format!("its array `{array}` is missing"));
        let info = listing.array(array).ok_or_else(missing)?;
        let data = Arc::from(listing.bytes(array).ok_or_else(missing)?);
        tensors.insert(role.clone(), Part { dtype: info.dtype, shape: info.shape.to_vec(), data });
    }
    Ok(Parts {
        encoding: claim.encoding.clone(),
        shape: claim.shape.clone(),
        attributes: claim.attributes.clone(),
        tensors,
    })
}

fn dense_entry(name: &str, listing: &Arc<Listing>) -> Result<Entry> {
    let Some(array) = listing.array(name) else {
        return Err(Error::MissingWeight { name: name.to_owned(), nearest: Vec::new() });
    };
    let Some(dtype) = candle_dtype(array.dtype) else {
        return Err(Error::BadParts {
            weight: name.to_owned(),
            codec: "dense".into(),
            message: format!(
                "its type {:?} is not one of f64, f32, f16, bf16, u8, u32, i64, and no codec claims it; open the checkpoint with the codecs of its encoding",
                array.dtype
            ),
        });
    };
    let info =
        WeightInfo { shape: array.shape.to_vec(), encoding: Encoding::dense(dtype), nbytes: array.nbytes };
    let (listing, name, shape) = (Arc::clone(listing), name.to_owned(), array.shape.to_vec());
    Ok(lazy(
        info,
        Box::new(move || {
            let bytes = listing.bytes(&name).unwrap_or_default();
            let tensor = Tensor::from_raw_buffer(bytes, dtype, &shape, &Device::Cpu)?;
            Ok(Arc::new(tensor) as SharedWeight)
        }),
    ))
}

/// The candle type of a stored plain array.
fn candle_dtype(dtype: Dtype) -> Option<candle_core::DType> {
    use candle_core::DType as D;
    Some(match dtype {
        Dtype::F64 => D::F64,
        Dtype::F32 => D::F32,
        Dtype::F16 => D::F16,
        Dtype::BF16 => D::BF16,
        Dtype::U8 => D::U8,
        Dtype::U32 => D::U32,
        Dtype::I64 => D::I64,
        _ => return None,
    })
}

/// Every 16 MiB of a file, one block of 64 KiB goes into the fingerprint: 1/256 of the data, so that opening stays
/// quick for large checkpoints while a swapped file does not pass.
const SAMPLE_STRIDE: usize = 16 << 20;
const SAMPLE_BLOCK: usize = 64 << 10;

fn fingerprint(listing: &Listing, config: &Map<String, Value>) -> String {
    let mut hash = crc32fast::Hasher::new();
    hash.update(serde_json::to_string(config).unwrap_or_default().as_bytes());
    let mut total = 0;
    for (path, bytes) in listing.shards() {
        total += bytes.len();
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(&bytes.len().to_le_bytes());
        let modified = path.metadata().and_then(|m| m.modified()).ok();
        let age = modified.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        hash.update(&age.map_or(0, |d| d.as_nanos()).to_le_bytes());
        for block in bytes.chunks(SAMPLE_STRIDE) {
            hash.update(&block[..block.len().min(SAMPLE_BLOCK)]);
        }
        hash.update(&bytes[bytes.len().saturating_sub(SAMPLE_BLOCK)..]);
    }
    format!("{total}-{:08x}", hash.finalize())
}
