//! One vector per sentence out of one per token, as `1_Pooling/config.json` of sentence-transformers asks.

use candle_core::Tensor;
use serde_json::{Map, Value};
use std::path::Path;
use taper_core::Result;

use crate::config::{Keys, bad};

/// How token vectors become a sentence vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The mean over the attention mask.
    Mean,
    /// The first token.
    Cls,
}

impl Pooling {
    /// What a model directory asks for; the mean where it does not say.
    ///
    /// Errors where it asks for something that is not built.
    pub fn of_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let path = dir.as_ref().join("1_Pooling").join("config.json");
        if !path.exists() {
            return Ok(Self::Mean);
        }
        let bytes = std::fs::read(&path).map_err(taper_core::Error::io(&path))?;
        let json: Map<String, Value> = serde_json::from_slice(&bytes)
            .map_err(|e| taper_core::Error::Json { path, message: e.to_string() })?;
        Self::from_json(&json)
    }

    fn from_json(json: &Map<String, Value>) -> Result<Self> {
        let keys = Keys(json);
        let mut asked = Vec::new();
        for (key, _) in json.iter().filter(|(key, _)| key.starts_with("pooling_mode_")) {
            if keys.flag_or(key, false)? {
                asked.push(key.as_str());
            }
        }
        match asked[..] {
            [] | ["pooling_mode_mean_tokens"] => Ok(Self::Mean),
            ["pooling_mode_cls_token"] => Ok(Self::Cls),
            _ => Err(bad(
                asked[asked.len() - 1],
                "is not built; expected `pooling_mode_mean_tokens` or `pooling_mode_cls_token` alone",
            )),
        }
    }

    /// `x` `[batch, len, hidden]` and the mask `[batch, len]` (1 for tokens, 0 for padding) to `[batch, hidden]`.
    pub fn forward(self, x: &Tensor, mask: &Tensor) -> Result<Tensor> {
        match self {
            Self::Cls => Ok(x.narrow(1, 0, 1)?.squeeze(1)?),
            Self::Mean => {
                let mask = mask.to_dtype(x.dtype())?.unsqueeze(2)?; // (batch, len, 1)
                let count = mask.sum(1)?.maximum(1e-9)?; // (batch, 1)
                Ok(x.broadcast_mul(&mask)?.sum(1)?.broadcast_div(&count)?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use serde_json::json;

    #[test]
    fn the_mean_ignores_padding_and_the_first_token_is_the_first() {
        let x = Tensor::new(&[[[1f32, 2.0], [3.0, 4.0], [90.0, 90.0]]], &Device::Cpu).unwrap();
        let mask = Tensor::new(&[[1u32, 1, 0]], &Device::Cpu).unwrap();
        assert_eq!(Pooling::Mean.forward(&x, &mask).unwrap().to_vec2::<f32>().unwrap(), [[2.0, 3.0]]);
        assert_eq!(Pooling::Cls.forward(&x, &mask).unwrap().to_vec2::<f32>().unwrap(), [[1.0, 2.0]]);
    }

    #[test]
    fn pooling_modes_that_are_not_built_are_refused() {
        let read = |json: Value| Pooling::from_json(json.as_object().unwrap());
        assert_eq!(read(json!({"pooling_mode_mean_tokens": true})).unwrap(), Pooling::Mean);
        assert_eq!(read(json!({"pooling_mode_cls_token": true})).unwrap(), Pooling::Cls);
        assert!(
            read(json!({"pooling_mode_max_tokens": true})).unwrap_err().to_string().contains("max_tokens")
        );
        assert!(read(json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true})).is_err());
    }
}
