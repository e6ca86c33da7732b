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

/// Larger than any side of features, kernels and paddings: a config that claims more is refused before anything is
/// allocated.
const LONGEST_SIDE: usize = 1 << 10;
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
            return Err(bad(
                "depthwise_kernel",
                "expected odd numbers, so that `same` padding is even on all sides",
            ));
        }
        let blocks = keys.count("blocks")?;
        if blocks > MOST_BLOCKS {
            return Err(bad("blocks", format!("is {blocks}; at most {MOST_BLOCKS} are sensible")));
        }
        let config = Self {
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
        };
        config.check_sides()?;
        Ok(config)
    }

    /// Kernels fit what they slide over, and the pool leaves one value per channel.
    fn check_sides(&self) -> Result<()> {
        let (top, left, bottom, right) = self.stem_padding;
        let padded = (self.input.0 + top + bottom, self.input.1 + left + right);
        let sides = [padded.0, padded.1, self.depthwise_kernel.0, self.depthwise_kernel.1];
        if let Some(side) = sides.into_iter().find(|&side| side > LONGEST_SIDE) {
            return Err(bad(
                "input",
                format!("or a kernel has a side of {side}; at most {LONGEST_SIDE} are sensible"),
            ));
        }
        if padded.0 < self.stem_kernel.0 || padded.1 < self.stem_kernel.1 {
            return Err(bad("stem", format!("has a kernel larger than the padded features, {padded:?}")));
        }
        let height = (padded.0 - self.stem_kernel.0) / self.stem_stride.0 + 1;
        let width = (padded.1 - self.stem_kernel.1) / self.stem_stride.1 + 1;
        if height / self.pool.0 != 1 || width / self.pool.1 != 1 {
            let message = format!(
                "has the kernel {:?}; expected one that fits once into {height} by {width}",
                self.pool
            );
            return Err(bad("pool", message));
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn contradictory_geometry_is_refused_by_its_key() {
        let base = json!({
            "model": "DS-CNN", "input": {"shape": [1, 49, 10], "scale": 0.5, "zero_point": 83},
            "stem": {"kernel": [10, 4], "stride": [2, 2], "padding_tlbr": [4, 1, 5, 1]}, "blocks": 4, "channels": 64,
            "depthwise_kernel": [3, 3], "padding": "same", "batch_norm_eps": 0.001,
            "pool": {"kind": "avg", "kernel": [24, 5]}, "classes": ["Yes"]
        });
        let read = |json: &Value| DsCnnConfig::from_json(json.as_object().unwrap());
        assert_eq!(read(&base).unwrap().pool, (24, 5));
        for (pointer, value, part) in [
            ("/model", json!("MobileNet"), "`model`: expected"),
            ("/stem/kernel", json!([90, 4]), "`stem`: has a kernel larger"),
            ("/stem/stride", json!([0, 2]), "`stride`: expected 2 whole numbers"),
            ("/stem/padding_tlbr", json!([4, 1, 5]), "expected 4 whole numbers"),
            ("/stem/padding_tlbr", json!([4000, 1, 5, 1]), "at most 1024"),
            ("/depthwise_kernel", json!([2, 3]), "odd"),
            ("/pool/kernel", json!([12, 5]), "fits once into 25 by 5"),
            ("/pool/kind", json!("max"), "expected avg"),
            ("/padding", json!("valid"), "expected same"),
            ("/blocks", json!(1 << 20), "sensible"),
            ("/classes", json!([]), "at least one name"),
            ("/input/zero_point", json!(300), "-128 to 127"),
        ] {
            let mut json = base.clone();
            *json.pointer_mut(pointer).unwrap() = value;
            let message = read(&json).unwrap_err().to_string();
            assert!(message.contains(part), "{pointer}: {message}");
        }
    }
}
