//! `int-quantized` of compressed-tensors: one signed byte per code.
//!
//! ```text
//! X.weight             I8 [out, in]
//! X.weight_scale       f16 | bf16 | f32 [out, groups], [out, 1] or [1]
//! X.weight_zero_point  I8, as the scales; asymmetric only
//! X.input_scale        f16 | bf16 | f32 [1]: the scale by which inputs are rounded, where that is static (W8A8)
//! ```

use serde_json::{Map, Value};
use std::sync::Arc;
use taper_core::{Claim, Codec, Parts, Result, SharedWeight, StoredWeight, store::Listing};

use super::{compressed_tensors, integer, module};
use crate::layout::{CODES, INPUT, IntLayout, SCALE, ZERO};

/// The codec of `int-quantized`.
#[derive(Debug, Clone, Copy, Default)]
pub struct IntQuantized;

impl Codec for IntQuantized {
    fn id(&self) -> &str {
        IntLayout::IntQuantized.codec()
    }

    fn part_name(&self, weight: &str, role: &str) -> String {
        match role {
            CODES => weight.to_owned(),
            SCALE => format!("{weight}_scale"),
            ZERO => format!("{weight}_zero_point"),
            INPUT => format!("{}.input_scale", module(weight)),
            other => format!("{weight}_{other}"),
        }
    }

    fn claim(&self, listing: &Listing, config: &Map<String, Value>) -> Result<Vec<Claim>> {
        compressed_tensors::claim(self, IntLayout::IntQuantized, listing, config)
    }

    fn read(&self, weight: &str, parts: Parts) -> Result<SharedWeight> {
        Ok(Arc::new(integer::read(weight, &parts, IntLayout::IntQuantized)?))
    }

    fn family(&self) -> &str {
        compressed_tensors::FAMILY
    }

    fn config(&self, stored: &[StoredWeight<'_>], left_dense: &[&str]) -> Result<Option<Value>> {
        compressed_tensors::config(stored, left_dense)
    }
}
