//! How recipes spell [`Gptq`]: the keys of `round-nearest` but `weighting`, and three of its own.
//!
//! ```toml
//! name = "gptq"
//! bits = 3
//! group = 128
//! order = "groups"              # or "natural", "columns"
//! shrinkage = "cross-validated" # or a share from 0 to 1
//! asymmetric-calibration = 1.0  # a share above 0: make up for the layers before; needs sequential calibration; off without it
//! ```

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::{Map, Value};
use taper_core::linalg::Shrinkage;

use super::{
    Asymmetry, Gptq, RoundNearest, RoundNearestSettings, asymmetric::KEY as ASYMMETRIC, shrinkage as spelt,
};
use crate::settle::Order;

/// The options of [`Gptq`] as a recipe has them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GptqSettings {
    /// Numbers, fit and file.
    pub numbers: RoundNearestSettings,
    /// The order in which columns are settled.
    pub order: Order,
    /// How far correlations are shrunk.
    pub shrinkage: Shrinkage,
    /// How much of what the layers before changed is made up for.
    pub asymmetry: Asymmetry,
}

/// The keys, which readers of recipes ask a deserialization for; a test compares them with what is read.
const KEYS: &[&str] = &[
    "format",
    "bits",
    "group",
    "granularity",
    "block",
    "symmetry",
    "scales",
    "double-quant",
    "fit",
    "steps",
    "norm",
    "scale-sign",
    "weighting",
    "stored-as",
    "activations",
    "order",
    "shrinkage",
    ASYMMETRIC,
];

/// Collects what is written, to be told apart afterwards.
struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the options of `gptq`")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        Map::deserialize(MapAccessDeserializer::new(map))
    }
}

impl Serialize for GptqSettings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let numbers = serde_json::to_value(self.numbers).map_err(serde::ser::Error::custom)?;
        let mut map = match numbers {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        map.remove("weighting");
        let order = serde_json::to_value(self.order).map_err(serde::ser::Error::custom)?;
        map.insert("order".into(), order);
        let shrinkage = spelt::serialize(&self.shrinkage, serde_json::value::Serializer);
        map.insert("shrinkage".into(), shrinkage.map_err(serde::ser::Error::custom)?);
        // Off is left out: settings of plain GPTQ read as they always did.
        if !self.asymmetry.is_off() {
            let share = serde_json::to_value(self.asymmetry).map_err(serde::ser::Error::custom)?;
            map.insert(ASYMMETRIC.into(), share);
        }
        map.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for GptqSettings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut map = deserializer.deserialize_struct("GptqSettings", KEYS, Entries)?;
        let order = match map.remove("order") {
            None => Order::default(),
            Some(order) => Order::deserialize(order).map_err(D::Error::custom)?,
        };
        let shrinkage = match map.remove("shrinkage") {
            None => Shrinkage::default(),
            Some(shrinkage) => spelt::deserialize(shrinkage).map_err(D::Error::custom)?,
        };
        let asymmetry = match map.remove(ASYMMETRIC) {
            None => Asymmetry::Off,
            Some(share) => Asymmetry::deserialize(share).map_err(D::Error::custom)?,
        };
        let numbers = RoundNearestSettings::deserialize(Value::Object(map)).map_err(D::Error::custom)?;
        Ok(Self { numbers, order, shrinkage, asymmetry })
    }
}

impl TryFrom<GptqSettings> for Gptq {
    type Error = crate::Error;

    fn try_from(settings: GptqSettings) -> crate::Result<Self> {
        let numbers = RoundNearest::try_from(settings.numbers)?;
        let pass = Self::new(numbers)
            .in_order(settings.order)
            .shrunk(settings.shrinkage)
            .asymmetric_calibration(settings.asymmetry);
        pass.check()?;
        Ok(pass)
    }
}

impl From<Gptq> for GptqSettings {
    fn from(pass: Gptq) -> Self {
        Self {
            numbers: (*pass.numbers()).into(),
            order: pass.order(),
            shrinkage: pass.shrinkage(),
            asymmetry: pass.asymmetry(),
        }
    }
}

impl<'de> Deserialize<'de> for Gptq {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        GptqSettings::deserialize(deserializer)?.try_into().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: Value) -> Result<Gptq, String> {
        serde_json::from_value(value).map_err(|e| e.to_string())
    }

    #[test]
    fn settings_and_passes_convert_both_ways() {
        for value in [
            json!({}),
            json!({ "bits": 3, "symmetry": "asymmetric", "order": "columns", "shrinkage": 0.25 }),
            json!({ "bits": 2, "asymmetric-calibration": 0.5 }),
            json!({ "format": "nf4", "block": 32, "order": "natural" }),
        ] {
            let pass = parse(value.clone()).unwrap();
            assert_eq!(pass, parse(serde_json::to_value(pass).unwrap()).unwrap(), "{value}");
        }
    }

    #[test]
    fn every_key_that_is_read_is_listed_and_no_other() {
        let unknown = parse(json!({ "gruop": 32 })).unwrap_err();
        let read: Vec<&str> =
            unknown.split('`').skip(3).step_by(2).chain(["order", "shrinkage", ASYMMETRIC]).collect();
        assert_eq!(read, KEYS);
    }

    #[test]
    fn wrong_settings_say_what_would_be_right() {
        for (value, expected) in [
            (json!({ "shrinkage": 1.5 }), "a share"),
            (json!({ "shrinkage": "much" }), "cross-validated"),
            (json!({ "asymmetric-calibration": 1.5 }), "a share"),
            (json!({ "asymmetric-calibration": 0.0 }), "leave it out"),
            (json!({ "order": "random" }), "unknown variant"),
            (json!({ "weighting": "input-norms" }), "Gram matrix"),
            (json!({ "gruop": 32 }), "unknown field `gruop`"),
        ] {
            let message = parse(value.clone()).unwrap_err();
            assert!(message.contains(expected), "{value}: {message}");
        }
    }
}
