//! LLM.int8 weights of bitsandbytes: one signed byte per code, one maximum per row.
//!
//! ```text
//! X.weight         I8 [out, in]
//! X.SCB            F32 [out]       max |x| of the row
//! X.weight_format  U8 []           0: row-major
//! x̂ = q · SCB / 127
//! ```

use safetensors::Dtype;
use serde_json::{Map, Value};
use std::{collections::BTreeMap, sync::Arc};
use taper_core::{Claim, Codec, Error, Parts, Result, SharedWeight, StoredWeight, store::Listing};

use super::{bitsandbytes_nf4::config_with, integer, module};
use crate::{
    layout::{CODES, IntLayout, ORDER, SCALE},
    scheme::{ScaleType, Scheme},
};

/// The codec of bitsandbytes' 8-bit weights.
#[derive(Debug, Clone, Copy, Default)]
pub struct BitsAndBytesInt8;

impl Codec for BitsAndBytesInt8 {
    fn id(&self) -> &str {
        IntLayout::BitsAndBytes.codec()
    }

    fn part_name(&self, weight: &str, role: &str) -> String {
        match role {
            SCALE => format!("{}.SCB", module(weight)),
            ORDER => format!("{}.weight_format", module(weight)),
            _ => weight.to_owned(),
        }
    }

    fn claim(&self, listing: &Listing, _: &Map<String, Value>) -> Result<Vec<Claim>> {
        let scheme = Scheme::int8().with_scales(ScaleType::F32);
        let mut claims = Vec::new();
        for scale in listing.names().filter(|name| name.ends_with(".SCB")) {
            let weight = format!("{}.weight", scale.trim_end_matches(".SCB"));
            let Some(codes) = listing.array(&weight).filter(|a| a.dtype == Dtype::I8) else { continue };
            if codes.shape.len() != 2 {
                return Err(Error::BadParts {
                    weight,
                    codec: self.id().to_owned(),
                    message: format!("it has shape {:?}, expected a matrix", codes.shape),
                });
            }
            let mut arrays =
                BTreeMap::from([(CODES.to_owned(), weight.clone()), (SCALE.to_owned(), scale.to_owned())]);
            let order = self.part_name(&weight, ORDER);
            if listing.array(&order).is_some() {
                arrays.insert(ORDER.to_owned(), order);
            }
            claims.push(Claim {
                encoding: integer::encoding(IntLayout::BitsAndBytes, &scheme),
                shape: codes.shape.to_vec(),
                attributes: integer::attributes(&scheme),
                arrays,
                weight,
            });
        }
        Ok(claims)
    }

    fn read(&self, weight: &str, parts: Parts) -> Result<SharedWeight> {
        Ok(Arc::new(integer::read(weight, &parts, IntLayout::BitsAndBytes)?))
    }

    fn config(&self, stored: &[StoredWeight<'_>], left_dense: &[&str]) -> Result<Option<Value>> {
        Ok(Some(config_with("load_in_8bit", stored, left_dense, Map::new())))
    }
}
