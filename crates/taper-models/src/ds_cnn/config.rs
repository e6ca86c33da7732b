//! The config of a depthwise-separable convolutional network for keyword spotting.
//!
//! No stock format exists for this family; the keys are those of the reference checkpoint: `model` (begins with
//! `DS-CNN`), `input` (shape, scale, zero point), `stem` (kernel, stride, `padding_tlbr`), `blocks`, `channels`,
//! `depthwise_kernel`, `padding`, `batch_norm_eps`, `pool` (kind, kernel), `classes`.

use serde_json::{Map, Value};
use taper_core::{Checkpoint, Result};

use crate::{
    config::{Keys, bad},
    eval::Quantized,
};

/// More blocks than any such network has.
const MOST_BLOCKS: usize = 1 << 10;

/// The geometry of a DS-CNN.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct DsCnnConfig {
    /// Rows and columns of the features.
    pub input: (usize, usize),
    /// What integer features stand for, where the config says so.
    pub quantized: Option<Quantized>,
    /// The first convolution's kernel.
    pub stem_kernel: (usize, usize),
    /// Its stride.
    pub stem_stride: (usize, usize),
    /// Its padding: top, left, bottom, right.
    pub stem_padding: (usize, usize, usize, usize),
    /// Depthwise-separable blocks.
    pub blocks: usize,
    /// Channels, the same everywhere.
    pub channels: usize,
    /// The depthwise kernels, odd; padded so that the size stays.
    pub depthwise_kernel: (usize, usize),
    /// ε of the batch norms.
    pub batch_norm_eps: f64,
    /// The average pool's kernel and stride; rows that do not fill one are dropped.
    pub pool: (usize, usize),
    /// The names of the classes.
    pub classes: Vec<String>,
}

impl DsCnnConfig {
    /// Reads a checkpoint's config.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        Self::from_json(checkpoint.config())
    }

    /// True where a `config.json` describes such a network.
    #[must_use]
    pub fn recognises(json: &Map<String, Value>) -> bool {
        json.get("model").and_then(Value::as_str).is_some_and(|model| model.starts_with("DS-CNN"))
    }

    /// Reads the contents of a `config.json`.
    pub fn from_json(json: &Map<String, Value>) -> Result<Self> {
        if !Self::recognises(json) {
            return Err(bad("model", "expected a text that begins with DS-CNN"));
        }
        let keys = Keys(json);
        let (input, stem, pool) =
            (keys.required_object("input")?, keys.required_object("stem")?, keys.required_object("pool")?);
        only(keys, "padding", "same")?;
        only(pool, "kind", "avg")?;
        let [_, rows, columns] = input.counts("shape", 1)?;
        let [stem_height, stem_width] = stem.counts("kernel", 1)?;
        let [down, across] = stem.counts("stride", 1)?;
        let [top, left, bottom, right] = stem.counts("padding_tlbr", 0)?;
        let [height, width] = keys.counts("depthwise_kernel", 1)?;
        let [pool_height, pool_width] = pool.counts("kernel", 1)?;
        if height % 2 == 0 || width % 2 == 0 {
            return Err(bad("depthwise_kernel", "expected odd numbers, so that `same` padding is even on all sides"));
        }
        let blocks = keys.count("blocks")?;
        if blocks > MOST_BLOCKS {
            return Err(bad("blocks", format!("is {blocks}; at most {MOST_BLOCKS} are sensible")));
        }
        Ok(Self {
            input: (rows, columns),
            quantized: quantized(input)?,
            stem_kernel: (stem_height, stem_width),
            stem_stride: (down, across),
            stem_padding: (top, left, bottom, right),
            blocks,
            channels: keys.count("channels")?,
            depthwise_kernel: (height, width),
            batch_norm_eps: keys.number("batch_norm_eps")?,
            pool: (pool_height, pool_width),
            classes: classes(keys)?,
        })
    }
}

/// Refuses a key that asks for anything but the one thing that is built.
fn only(keys: Keys<'_>, key: &str, built: &str) -> Result<()> {
    match keys.text(key)? {
        Some(value) if value == built => Ok(()),
        other => Err(bad(key, format!("is {}; expected {built}", other.unwrap_or("missing")))),
    }
}

fn quantized(input: Keys<'_>) -> Result<Option<Quantized>> {
    if input.get("scale").is_none() {
        return Ok(None);
    }
    let zero_point = input
        .get("zero_point")
        .and_then(Value::as_i64)
        .filter(|z| (-128..=127).contains(z))
        .ok_or_else(|| bad("zero_point", "expected a whole number from -128 to 127"))?;
    Ok(Some(Quantized { scale: input.number("scale")?, zero_point }))
}

fn classes(keys: Keys<'_>) -> Result<Vec<String>> {
    let expected = || bad("classes", "expected a list of at least one name");
    let list = keys.list("classes")?.filter(|list| !list.is_empty()).ok_or_else(expected)?;
    list.iter().map(|v| v.as_str().map(str::to_owned).ok_or_else(expected)).collect()
}
