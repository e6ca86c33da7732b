//! Rotary positions: each pair of a head's values turns by an angle that grows with the position.
//!
//! ```text
//! θ_i = base^(−2i/d)                                   i = 0 .. d/2
//! y_i       = x_i cos(p θ_i) − x_{i+d/2} sin(p θ_i)
//! y_{i+d/2} = x_{i+d/2} cos(p θ_i) + x_i sin(p θ_i)
//!
//! linear   θ / factor
//! llama3   wavelength λ = 2π/θ, context n:   λ < n/high → θ;   λ > n/low → θ / factor;
//!          between, m = (n/λ − low) / (high − low):   (1 − m) θ / factor + m θ
//! ```
//!
//! Su et al., "RoFormer" (2021); the scaling of Llama 3.1 as published with it.

use candle_core::{DType, Device, Tensor};
use std::f64::consts::TAU;
use taper_core::{Result, nn::tracked};

use crate::{
    config::{Keys, bad},
    kernel::{self, attention::Turn},
};

/// How angles are stretched for longer contexts than the first training's.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All alike.
    Linear {
        /// The stretch.
        factor: f64,
    },
    /// Long wavelengths only, as Llama 3.1.
    Llama3 {
        /// The stretch of long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low` are stretched wholly.
        low: f64,
        /// Wavelengths below `original / high` are left alone.
        high: f64,
        /// The first training's context.
        original: f64,
    },
}

/// The base of the angles and their scaling.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct RopeConfig {
    /// The base, `rope_theta`.
    pub theta: f64,
    /// The scaling.
    pub scaling: RopeScaling,
}

impl RopeConfig {
    /// Reads `rope_theta` and `rope_scaling`, or the newer `rope_parameters` that holds both.
    pub(crate) fn from_keys(keys: Keys<'_>, default_theta: f64) -> Result<Self> {
        let (section, name) = match keys.object("rope_parameters")? {
            Some(newer) => (Some(newer), "rope_parameters"),
            None => (keys.object("rope_scaling")?, "rope_scaling"),
        };
        let mut theta = keys.number_or("rope_theta", default_theta)?;
        let Some(section) = section else {
            return Ok(Self { theta: positive("rope_theta", theta)?, scaling: RopeScaling::None });
        };
        theta = section.number_or("rope_theta", theta)?;
        let original = section.number_or("original_max_position_embeddings", 0.0)?;
        let original =
            if original > 0.0 { original } else { keys.number_or("original_max_position_embeddings", 0.0)? };
        let scaling = scaling(section, name, original)?;
        Ok(Self { theta: positive("rope_theta", theta)?, scaling })
    }

    /// The angle per position of each of the `head_dim / 2` pairs.
    #[must_use]
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        (0..head_dim / 2)
            .map(|i| self.scaling.apply(self.theta.powf(-2.0 * i as f64 / head_dim as f64)))
            .collect()
    }
}

fn scaling(section: Keys<'_>, name: &str, original: f64) -> Result<RopeScaling> {
    let kind = match section.text("rope_type")? {
        Some(kind) => kind,
        None => section.text("type")?.unwrap_or("default"),
    };
    let factor = || positive("factor", section.number("factor")?);
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: factor()? }),
        "llama3" => {
            let low = positive("low_freq_factor", section.number("low_freq_factor")?)?;
            let high = positive("high_freq_factor", section.number("high_freq_factor")?)?;
            if high <= low {
                let message = format!("is {high}; expected more than `low_freq_factor`, {low}");
                return Err(bad("high_freq_factor", message));
            }
            let original = positive("original_max_position_embeddings", original)?;
            Ok(RopeScaling::Llama3 { factor: factor()?, low, high, original })
        }
        other => Err(bad(
            name,
            format!("of type `{other}` is not built; expected `default`, `linear` or `llama3`"),
        )),
    }
}

fn positive(key: &str, value: f64) -> Result<f64> {
    if value > 0.0 { Ok(value) } else { Err(bad(key, format!("is {value}; expected a number above 0"))) }
}

impl RopeScaling {
    /// The scaled frequency.
    fn apply(self, theta: f64) -> f64 {
        match self {
            Self::None => theta,
            Self::Linear { factor } => theta / factor,
            Self::Llama3 { factor, low, high, original } => {
                let turns = original * theta / TAU; // over the first training's context
                // 0 for long wavelengths, 1 for short ones, a ramp between.
                let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - keep) * theta / factor + keep * theta
            }
        }
    }
}

/// The rotation of a model's heads.
#[derive(Debug, Clone)]
pub struct Rope {
    frequencies: Vec<f32>,
    device: Device,
}

impl Rope {
    /// The rotation of heads of `head_dim` values.
    #[must_use]
    pub fn new(config: &RopeConfig, head_dim: usize, device: &Device) -> Self {
        let frequencies = config.frequencies(head_dim).into_iter().map(|f| f as f32).collect();
        Self { frequencies, device: device.clone() }
    }

    /// The rotation of positions `start .. start + len`, for heads of type `dtype`.
    pub fn at(&self, start: usize, len: usize, dtype: DType) -> Result<Rotation> {
        // Angles in f32, as the reference code has them; tables are made per call, because the whole table of a long
        // context would be larger than many layers.
        let angles: Vec<f32> =
            (start..start + len).flat_map(|p| self.frequencies.iter().map(move |f| p as f32 * f)).collect();
        let table = |f: fn(f32) -> f32| -> Result<Tensor> {
            let values: Vec<f32> = angles.iter().map(|&a| f(a)).collect();
            Ok(Tensor::from_vec(values, (len, self.frequencies.len()), &self.device)?.to_dtype(dtype)?)
        };
        Ok(Rotation { cos: table(f32::cos)?, sin: table(f32::sin)? })
    }
}

/// Cosines and sines of a stretch of positions, `[positions, head_dim / 2]`.
#[derive(Debug, Clone)]
pub struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    /// Hands out the angles; `None` where they are not f32 in memory.
    pub(crate) fn with_turn<T>(&self, work: impl FnOnce(Turn<'_>) -> T) -> Option<T> {
        kernel::values(&self.cos, |cos| kernel::values(&self.sin, |sin| work(Turn { cos, sin }))).flatten()
    }

    /// Turns `x` `[batch, heads, positions, head_dim]`.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        // candle's fused rotation ends gradients without a word.
        Ok(if x.track_op() && tracked::serves(x) && tracked::serves(&self.cos) {
            tracked::rotate(x, &self.cos, &self.sin)?
        } else if x.track_op() {
            candle_nn::rotary_emb::rope_slow(x, &self.cos, &self.sin)?
        } else {
            candle_nn::rotary_emb::rope(x, &self.cos, &self.sin)?
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(json: &Value) -> Result<RopeConfig> {
        RopeConfig::from_keys(Keys(json.as_object().unwrap()), 1e4)
    }

    /// The three cases as the formula has them, wavelengths and all.
    fn llama3(theta: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
        let wavelength = 2.0 * std::f64::consts::PI / theta;
        if wavelength < original / high {
            theta
        } else if wavelength > original / low {
            theta / factor
        } else {
            let m = (original / wavelength - low) / (high - low);
            (1.0 - m) * theta / factor + m * theta
        }
    }

    #[test]
    fn llama3_scaling_equals_the_formula_in_all_three_ranges() {
        let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192});
        let scaled =
            read(&json!({"rope_theta": 500_000.0, "rope_scaling": scaling})).unwrap().frequencies(128);
        let plain = read(&json!({"rope_theta": 500_000.0})).unwrap().frequencies(128);
        let mut ranges = [0; 3];
        for (scaled, plain) in scaled.iter().zip(&plain) {
            let expected = llama3(*plain, 8.0, 1.0, 4.0, 8192.0);
            assert!((scaled - expected).abs() <= 1e-15 * expected.abs(), "{scaled} {expected}");
            let ratio = scaled / plain;
            ranges[if ratio > 0.999_999 {
                0
            } else if ratio < 0.125_001 {
                2
            } else {
                1
            }] += 1;
        }
        assert!(ranges.iter().all(|&n| n > 3), "{ranges:?}");
    }

    #[test]
    fn both_spellings_of_the_config_mean_the_same() {
        let body = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6});
        let newer = read(&json!({"rope_parameters": body})).unwrap();
        let older =
            read(&json!({"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 4.0}})).unwrap();
        assert_eq!(newer, older);
        assert_eq!(newer.frequencies(4), [0.25, 0.25 * 1e6f64.powf(-0.5)]);
        assert_eq!(read(&json!({})).unwrap(), RopeConfig { theta: 1e4, scaling: RopeScaling::None });
    }

    #[test]
    fn unknown_and_impossible_scalings_are_refused() {
        let refusal = |section: Value| read(&json!({"rope_scaling": section})).unwrap_err().to_string();
        assert!(refusal(json!({"rope_type": "yarn", "factor": 4.0})).contains("`yarn` is not built"));
        assert!(refusal(json!({"type": "linear"})).contains("`factor`: is missing"));
        assert!(refusal(json!({"type": "linear", "factor": 0.0})).contains("above 0"));
        let flat = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192});
        assert!(refusal(flat).contains("more than `low_freq_factor`"));
    }

    #[test]
    fn rotation_equals_its_definition_and_keeps_lengths() {
        let config = RopeConfig { theta: 100.0, scaling: RopeScaling::None };
        let rope = Rope::new(&config, 4, &Device::Cpu);
        let x = Tensor::new(&[1f32, 2.0, 3.0, 4.0], &Device::Cpu).unwrap().reshape((1, 1, 1, 4)).unwrap();
        let y = rope
            .at(7, 1, DType::F32)
            .unwrap()
            .apply(&x)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        let turned = |a: f64, b: f64, angle: f64| {
            (a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin())
        };
        let ((y0, y2), (y1, y3)) = (turned(1.0, 3.0, 7.0), turned(2.0, 4.0, 0.7));
        for (got, expected) in y.iter().zip([y0, y1, y2, y3]) {
            assert!((f64::from(*got) - expected).abs() < 1e-5, "{y:?}");
        }
    }
}
