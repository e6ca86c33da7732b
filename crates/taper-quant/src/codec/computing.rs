//! A codec whose weights are multiplied with an arithmetic of the reader's choice.
//!
//! Files say how weights are stored, and at most how inputs are rounded; what numbers products are computed with is up to
//! whoever runs them. Neighbours: [`super::codecs_with`] makes these.

use serde_json::{Map, Value};
use taper_core::{Claim, Codec, Parts, Result, SharedWeight, StoredWeight, store::Listing};

use crate::kernel::Arithmetic;

/// Reads the parts of a weight.
type Read = fn(&str, &Parts, Arithmetic) -> Result<SharedWeight>;

/// A codec, but for what its weights are multiplied with.
#[derive(Debug)]
pub(super) struct Computing<C> {
    pub(super) codec: C,
    pub(super) arithmetic: Arithmetic,
    pub(super) read: Read,
}

impl<C: Codec> Codec for Computing<C> {
    fn id(&self) -> &str {
        self.codec.id()
    }

    fn part_name(&self, weight: &str, role: &str) -> String {
        self.codec.part_name(weight, role)
    }

    fn claim(&self, listing: &Listing, config: &Map<String, Value>) -> Result<Vec<Claim>> {
        self.codec.claim(listing, config)
    }

    fn read(&self, weight: &str, parts: Parts) -> Result<SharedWeight> {
        (self.read)(weight, &parts, self.arithmetic)
    }

    fn family(&self) -> &str {
        self.codec.family()
    }

    fn config(&self, stored: &[StoredWeight<'_>], left_dense: &[&str]) -> Result<Option<Value>> {
        self.codec.config(stored, left_dense)
    }
}
