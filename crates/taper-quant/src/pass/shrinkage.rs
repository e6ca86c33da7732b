//! How recipes spell [`Shrinkage`]: `"cross-validated"`, or a share from 0 to 1.
//!
//! For `#[serde(with = "shrinkage")]`. Neighbours: `taper_core::linalg::factor` is what it decides.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use taper_core::linalg::Shrinkage;

/// The word for [`Shrinkage::CrossValidated`].
const CROSS_VALIDATED: &str = "cross-validated";

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Spelt {
    Share(f64),
    Word(String),
}

pub(super) fn serialize<S: Serializer>(shrinkage: &Shrinkage, serializer: S) -> Result<S::Ok, S::Error> {
    match shrinkage {
        Shrinkage::CrossValidated => Spelt::Word(CROSS_VALIDATED.into()),
        Shrinkage::Fixed(alpha) => Spelt::Share(*alpha),
    }
    .serialize(serializer)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Shrinkage, D::Error> {
    let expected = || format!("expected \"{CROSS_VALIDATED}\" or a share from 0 to 1");
    match Spelt::deserialize(deserializer) {
        Ok(Spelt::Share(alpha)) if (0.0..=1.0).contains(&alpha) => Ok(Shrinkage::Fixed(alpha)),
        Ok(Spelt::Word(word)) if word == CROSS_VALIDATED => Ok(Shrinkage::CrossValidated),
        Ok(Spelt::Share(other)) => Err(D::Error::custom(format!("{other} is no shrinkage; {}", expected()))),
        Ok(Spelt::Word(other)) => Err(D::Error::custom(format!("`{other}` is no shrinkage; {}", expected()))),
        Err(_) => Err(D::Error::custom(expected())),
    }
}
