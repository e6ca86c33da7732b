//! The keys that a settings type reads, asked of the type itself.
//!
//! A derived `Deserialize` tells its deserializer the names of its fields; this one notes them and stops. So a list of
//! keys can never differ from what is read, and nobody keeps one by hand.

use serde::{
    Deserializer,
    de::{DeserializeOwned, Visitor, value::Error},
    forward_to_deserialize_any,
};

/// The field names of a settings struct, in their order.
pub(super) fn of<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut names: &[&str] = &[];
    // It always stops with an error, after the names are noted.
    drop(T::deserialize(FieldNames(&mut names)));
    names
}

/// Names as a list for people.
pub(super) fn list(names: &[&str]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}

struct FieldNames<'a>(&'a mut &'static [&'static str]);

fn stop<T>() -> Result<T, Error> {
    Err(serde::de::Error::custom("only the names of the fields were wanted"))
}

impl<'de> Deserializer<'de> for FieldNames<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        stop()
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        *self.0 = fields;
        stop()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
