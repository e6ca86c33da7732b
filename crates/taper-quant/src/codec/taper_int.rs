//! `taper-int`: integers that no standard holds, such as short last groups and convolutions.
//!
//! ```text
//! W.codes  U8 [out, ⌈rest·b/8⌉]   code = q + 2^(b−1), low bits first, each row from a fresh byte
//! W.scale  f16 | bf16 | f32       [out, ⌈rest/group⌉], [out, 1] or [1]
//! W.zero   I8, as the scales      asymmetric only
//! ```
//!
//! `rest` is everything after the first dimension, flattened. Attributes as in [`super::integer`]. Only Taper writes it,
//! and always with metadata: there is nothing to recognise in foreign files.

use serde_json::{Map, Value};
use std::sync::Arc;
use taper_core::{Claim, Codec, Parts, Result, SharedWeight, StoredWeight, store::Listing};

use super::integer;
use crate::layout::IntLayout;

/// The codec of `taper-int`.
#[derive(Debug, Clone, Copy, Default)]
pub struct TaperInt;

impl Codec for TaperInt {
    fn id(&self) -> &str {
        IntLayout::Taper.codec()
    }

    fn part_name(&self, weight: &str, role: &str) -> String {
        format!("{weight}.{role}")
    }

    fn claim(&self, _: &Listing, _: &Map<String, Value>) -> Result<Vec<Claim>> {
        Ok(Vec::new())
    }

    fn read(&self, weight: &str, parts: Parts) -> Result<SharedWeight> {
        Ok(Arc::new(integer::read(weight, &parts, IntLayout::Taper)?))
    }

    fn config(&self, _: &[StoredWeight<'_>], _: &[&str]) -> Result<Option<Value>> {
        Ok(None)
    }
}
