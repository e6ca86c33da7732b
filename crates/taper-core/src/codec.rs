//! Readers and writers of encodings, found by id.
//!
//! A [`Codec`] knows one stored form: the names of its arrays, how to find such weights in a foreign checkpoint, how to
//! read them (validating once), and what other programs want to see in `config.json`. [`Codecs`] is the set that a
//! checkpoint is opened with. Core itself knows plain tensors only.

use serde_json::{Map, Value};
use std::{collections::BTreeMap, fmt, sync::Arc};

use crate::{
    Result,
    store::Listing,
    weight::{Encoding, Parts, SharedWeight},
};

/// One stored form of weights.
pub trait Codec: Send + Sync + fmt::Debug {
    /// The id that files carry, such as `pack-quantized`.
    fn id(&self) -> &str;

    /// The name of a weight's array in a file: for weight `a.weight` and role `codes` perhaps `a.weight_packed`.
    fn part_name(&self, weight: &str, role: &str) -> String;

    /// The weights in this encoding among a foreign checkpoint's arrays, judged by `config.json` and names.
    ///
    /// Arrays that nobody claims are plain tensors. `config` is the whole `config.json`.
    fn claim(&self, listing: &Listing, config: &Map<String, Value>) -> Result<Vec<Claim>>;

    /// Validates the parts of `weight` once and makes a weight of them.
    fn read(&self, weight: &str, parts: Parts) -> Result<SharedWeight>;

    /// Codecs of one family share a `quantization_config`; by default each is its own.
    fn family(&self) -> &str {
        self.id()
    }

    /// The `quantization_config` by which other programs recognise a checkpoint with these weights (all of this family)
    /// and these other matrices left dense; `None` where no standard exists. Called on one codec per family.
    fn config(&self, stored: &[StoredWeight<'_>], left_dense: &[&str]) -> Result<Option<Value>>;
}

/// What a codec found in a foreign checkpoint: a weight and where its arrays are.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The weight's logical name, such as `a.weight`.
    pub weight: String,
    /// How it is stored.
    pub encoding: Encoding,
    /// The logical shape.
    pub shape: Vec<usize>,
    /// Facts for [`Codec::read`].
    pub attributes: Map<String, Value>,
    /// Stored array names by role.
    pub arrays: BTreeMap<String, String>,
}

/// One stored weight, as [`Codec::config`] sees it.
#[derive(Debug, Clone, Copy)]
pub struct StoredWeight<'a> {
    /// Its name.
    pub name: &'a str,
    /// The id of the codec that stores it.
    pub codec: &'a str,
    /// Its logical shape.
    pub shape: &'a [usize],
    /// The facts that its parts carried.
    pub attributes: &'a Map<String, Value>,
}

/// The codecs that a checkpoint is opened and saved with.
#[derive(Debug, Clone, Default)]
pub struct Codecs(Vec<Arc<dyn Codec>>);

impl Codecs {
    /// No codec: plain tensors only.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a codec; one of the same id is replaced.
    #[must_use]
    pub fn with(mut self, codec: impl Codec + 'static) -> Self {
        self.0.retain(|c| c.id() != codec.id());
        self.0.push(Arc::new(codec));
        self
    }

    /// Adds all codecs of another set.
    #[must_use]
    pub fn and(mut self, others: &Codecs) -> Self {
        for codec in &others.0 {
            self.0.retain(|c| c.id() != codec.id());
            self.0.push(Arc::clone(codec));
        }
        self
    }

    /// The codec of an id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Arc<dyn Codec>> {
        self.0.iter().find(|c| c.id() == id)
    }

    /// All codecs, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Codec>> {
        self.0.iter()
    }

    /// The ids, for messages.
    #[must_use]
    pub fn known(&self) -> String {
        let mut ids = vec!["`dense`".to_owned()];
        ids.extend(self.0.iter().map(|c| format!("`{}`", c.id())));
        ids.join(", ")
    }
}
