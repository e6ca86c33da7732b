//! Reading a stock `config.json` with errors that say what would be right.
//!
//! A key that is `null` counts as absent, as in the files that Hugging Face writes.

use serde_json::{Map, Value};
use taper_core::{Error, Result};

/// No count in a sane config reaches this; it keeps products of two of them within 64 bits.
const LARGEST_COUNT: u64 = 1 << 31;

/// A config's keys, or those of an object inside it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keys<'a>(pub(crate) &'a Map<String, Value>);

impl<'a> Keys<'a> {
    /// The value of a key; `null` is none.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    /// A whole number of at least one.
    pub(crate) fn count(&self, key: &str) -> Result<usize> {
        self.optional_count(key)?.ok_or_else(|| bad(key, "is missing; expected a whole number of at least 1"))
    }

    /// A whole number of at least one, if the key is there.
    pub(crate) fn optional_count(&self, key: &str) -> Result<Option<usize>> {
        self.get(key).map(|value| whole(key, value)).transpose()
    }

    /// A number, or `default`.
    pub(crate) fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        self.get(key).map_or(Ok(default), |v| number(key, v))
    }

    /// A number.
    pub(crate) fn number(&self, key: &str) -> Result<f64> {
        self.get(key).map_or_else(|| Err(bad(key, "is missing; expected a number")), |v| number(key, v))
    }

    /// True or false, or `default`.
    pub(crate) fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.optional_flag(key)?.unwrap_or(default))
    }

    /// True or false, if the key is there.
    pub(crate) fn optional_flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key)
            .map(|v| v.as_bool().ok_or_else(|| bad(key, format!("is {v}; expected true or false"))))
            .transpose()
    }

    /// A text, if the key is there.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key)
            .map(|v| v.as_str().ok_or_else(|| bad(key, format!("is {v}; expected a text"))))
            .transpose()
    }

    /// An object, if the key is there.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Keys<'a>>> {
        self.get(key)
            .map(|v| v.as_object().map(Keys).ok_or_else(|| bad(key, format!("is {v}; expected an object"))))
            .transpose()
    }

    /// An object that must be there.
    pub(crate) fn required_object(&self, key: &str) -> Result<Keys<'a>> {
        self.object(key)?.ok_or_else(|| bad(key, "is missing; expected an object"))
    }

    /// An array, if the key is there.
    pub(crate) fn list(&self, key: &str) -> Result<Option<&'a [Value]>> {
        self.get(key)
            .map(|v| {
                v.as_array().map(Vec::as_slice).ok_or_else(|| bad(key, format!("is {v}; expected a list")))
            })
            .transpose()
    }

    /// `N` whole numbers of at least `least`.
    pub(crate) fn counts<const N: usize>(&self, key: &str, least: u64) -> Result<[usize; N]> {
        let expected = || bad(key, format!("expected {N} whole numbers of at least {least}"));
        let values = self.list(key)?.ok_or_else(expected)?;
        let numbers = values
            .iter()
            .map(|v| v.as_u64().filter(|n| (least..LARGEST_COUNT).contains(n)).map(|n| n as usize))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(expected)?;
        numbers.try_into().map_err(|_| expected())
    }

    /// Token ids: one number, a list, or none.
    pub(crate) fn tokens(&self, key: &str) -> Result<Vec<u32>> {
        let id = |v: &Value| {
            v.as_u64()
                .and_then(|n| u32::try_from(n).ok())
                .ok_or_else(|| bad(key, format!("is {v}; expected a token id or a list of them")))
        };
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(many)) => many.iter().map(id).collect(),
            Some(one) => Ok(vec![id(one)?]),
        }
    }
}

/// An error about a key of the config.
pub(crate) fn bad(key: &str, message: impl Into<String>) -> Error {
    Error::BadConfig { key: key.to_owned(), message: message.into() }
}

fn whole(key: &str, value: &Value) -> Result<usize> {
    value.as_u64().filter(|n| (1..LARGEST_COUNT).contains(n)).map(|n| n as usize).ok_or_else(|| {
        bad(key, format!("is {value}; expected a whole number from 1 to {}", LARGEST_COUNT - 1))
    })
}

fn number(key: &str, value: &Value) -> Result<f64> {
    value.as_f64().filter(|n| n.is_finite()).ok_or_else(|| bad(key, format!("is {value}; expected a number")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn null_counts_as_absent() {
        let json = json!({"a": null});
        let keys = Keys(json.as_object().unwrap());
        assert_eq!(keys.optional_count("a").unwrap(), None);
        assert!(message(keys.count("a")).contains("`a`: is missing"));
    }

    #[test]
    fn counts_are_whole_positive_and_bounded() {
        let json = json!({"zero": 0, "minus": -1, "half": 0.5, "text": "8", "huge": 1u64 << 40, "fine": 7});
        let keys = Keys(json.as_object().unwrap());
        for key in ["zero", "minus", "half", "text", "huge"] {
            assert!(message(keys.count(key)).contains("expected a whole number"), "{key}");
        }
        assert_eq!(keys.count("fine").unwrap(), 7);
    }

    #[test]
    fn token_ids_are_one_or_many() {
        let json = json!({"one": 2, "many": [2, 3], "wrong": "</s>"});
        let keys = Keys(json.as_object().unwrap());
        assert_eq!(keys.tokens("one").unwrap(), [2]);
        assert_eq!(keys.tokens("many").unwrap(), [2, 3]);
        assert_eq!(keys.tokens("none").unwrap(), [0u32; 0]);
        assert!(message(keys.tokens("wrong")).contains("expected a token id"));
    }
}
