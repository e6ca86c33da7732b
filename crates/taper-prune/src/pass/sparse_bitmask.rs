//! Stores weights with zeros as a bit per element and the values that are there, where that is smaller.
//!
//! ```text
//! bytes = out·⌈in/8⌉ + nonzero·width      against      out·in·width
//! ```
//!
//! The weight is [`crate::Bitmask`], the file's form [`crate::codec::bitmask`]. Values keep their type, so nothing is
//! lost.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use taper_core::{Context, Result, Rewrite, Stage, WeightInfo, WeightPass, weight::SharedWeight};

use crate::{dense, sparse::Bitmask};

/// Stores a weight as a [`Bitmask`] where that is smaller than dense. Recipe key `sparse-bitmask`; no keys of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SparseBitmask {}

impl SparseBitmask {
    /// The recipe key.
    pub const KEY: &'static str = "sparse-bitmask";

    /// The pass; it has no options.
    #[must_use]
    pub fn new() -> Self {
        Self {}
    }
}

impl WeightPass for SparseBitmask {
    fn name(&self) -> &str {
        Self::KEY
    }

    fn stage(&self) -> Stage {
        Stage::Encode
    }

    fn settings(&self) -> Value {
        serde_json::json!({})
    }

    fn rewrite(&self, name: &str, weight: &SharedWeight, _: &Context<'_>) -> Result<Rewrite> {
        if let Some(why) = dense::reason_to_leave(&WeightInfo::of(weight.as_ref())) {
            return Ok(Rewrite::left(why));
        }
        if weight.encoding().format == "f64" {
            return Ok(Rewrite::left("holds f64; f32, f16 and bf16 weights are stored so"));
        }
        let values = dense::finite_values(name, weight.as_ref())?;
        let (elements, before) = (values.len(), weight.nbytes());
        let nonzero = values.iter().filter(|&&v| v != 0.0).count();
        drop(values);
        match Bitmask::size(weight.shape(), nonzero, before / elements) {
            Some(bytes) if bytes < before => Ok(Rewrite::done(Bitmask::from_dense(&weight.dense()?)?)),
            bytes => Ok(Rewrite::left(format!(
                "{:.1} % of its values are zero: {} bytes as a bitmask, {before} bytes dense",
                100.0 * (elements - nonzero) as f64 / elements as f64,
                bytes.unwrap_or(usize::MAX),
            ))),
        }
    }
}
