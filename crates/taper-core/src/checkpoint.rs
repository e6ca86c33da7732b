//! All weights by name, with the model's config and side files.
//!
//! A checkpoint is a map of entries. An entry is read lazily from a memory-mapped file, computed when asked for
//! ([`Checkpoint::derive`]), or held. Cloning shares everything. While somebody holds a weight, asking again gives the
//! same one, so tied weights exist once.

mod open;

use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use crate::{
    Codecs, Encoding, Error, Result, SharedWeight, Weight,
    report::Totals,
    weight::{bits_per_weight, checked_elements},
};

/// What is known of a weight without reading its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightInfo {
    /// The logical shape.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub encoding: Encoding,
    /// Bytes it takes in a file.
    pub nbytes: usize,
}

impl WeightInfo {
    /// What is known of a weight at hand.
    #[must_use]
    pub fn of(weight: &dyn Weight) -> Self {
        Self { shape: weight.shape().to_vec(), encoding: weight.encoding(), nbytes: weight.nbytes() }
    }

    /// The number of elements; 0 where the shape overflows.
    #[must_use]
    pub fn elements(&self) -> usize {
        checked_elements(&self.shape).unwrap_or(0)
    }

    /// Stored bits per weight.
    #[must_use]
    pub fn bits_per_weight(&self) -> f64 {
        bits_per_weight(self.nbytes, self.elements())
    }
}

type Load = dyn Fn() -> Result<SharedWeight> + Send + Sync;

/// An entry whose weight is loaded or computed when asked for and forgotten when nobody holds it.
struct Lazy {
    info: WeightInfo,
    load: Box<Load>,
    held: Mutex<Option<Weak<dyn Weight>>>,
}

#[derive(Clone)]
enum Entry {
    Held(SharedWeight),
    Lazy(Arc<Lazy>),
}

impl Entry {
    /// Tells entries apart; clones of a checkpoint share entries and so addresses.
    fn address(&self) -> usize {
        match self {
            Entry::Held(weight) => Arc::as_ptr(weight).cast::<()>() as usize,
            Entry::Lazy(lazy) => Arc::as_ptr(lazy) as usize,
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Entry::Held(weight) => weight.fmt(f),
            Entry::Lazy(lazy) => lazy.info.fmt(f),
        }
    }
}

/// All weights by name, with the model's config and side files.
#[derive(Debug, Clone, Default)]
pub struct Checkpoint {
    config: Map<String, Value>,
    entries: BTreeMap<String, Entry>,
    codecs: Codecs,
    dir: Option<PathBuf>,
    fingerprint: String,
}

impl Checkpoint {
    /// An empty checkpoint in memory, with the contents of a `config.json`.
    #[must_use]
    pub fn new(config: Map<String, Value>) -> Self {
        Self { config, ..Self::default() }
    }

    /// The same checkpoint, written and read with these codecs as well.
    #[must_use]
    pub fn with_codecs(mut self, codecs: &Codecs) -> Self {
        self.codecs = self.codecs.and(codecs);
        self
    }

    /// The codecs it is written with.
    #[must_use]
    pub fn codecs(&self) -> &Codecs {
        &self.codecs
    }

    /// The names of all weights, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    /// How many weights there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True where there is no weight.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// True where there is a weight of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// What is known of a weight without reading its values.
    pub fn info(&self, name: &str) -> Result<WeightInfo> {
        Ok(match self.entry(name)? {
            Entry::Held(weight) => WeightInfo::of(weight.as_ref()),
            Entry::Lazy(lazy) => lazy.info.clone(),
        })
    }

    /// Weights, elements and bytes of the whole, without reading values.
    pub fn totals(&self) -> Result<Totals> {
        let mut totals = Totals::default();
        for name in self.entries.keys() {
            totals.add(&self.info(name)?);
        }
        Ok(totals)
    }

    /// A weight; read or computed now, unless somebody still holds it.
    pub fn get(&self, name: &str) -> Result<SharedWeight> {
        let lazy = match self.entry(name)? {
            Entry::Held(weight) => return Ok(Arc::clone(weight)),
            Entry::Lazy(lazy) => lazy,
        };
        let mut held = lazy.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(weight) = held.as_ref().and_then(Weak::upgrade) {
            return Ok(weight);
        }
        let weight = (lazy.load)()?;
        if weight.shape() != lazy.info.shape {
            return Err(Error::ShapeMismatch {
                name: name.to_owned(),
                expected: lazy.info.shape.clone(),
                found: weight.shape().to_vec(),
            });
        }
        *held = Some(Arc::downgrade(&weight));
        Ok(weight)
    }

    /// Puts a weight under a name, in place of what was there.
    pub fn insert(&mut self, name: impl Into<String>, weight: SharedWeight) {
        self.entries.insert(name.into(), Entry::Held(weight));
    }

    /// Puts a weight under a name that is computed when asked for, in place of what was there.
    ///
    /// Passes that touch the whole checkpoint use it to stay in bounded memory. `info` must be what `compute` will give.
    pub fn derive(
        &mut self,
        name: impl Into<String>,
        info: WeightInfo,
        compute: impl Fn() -> Result<SharedWeight> + Send + Sync + 'static,
    ) {
        let lazy = Lazy { info, load: Box::new(compute), held: Mutex::new(None) };
        self.entries.insert(name.into(), Entry::Lazy(Arc::new(lazy)));
    }

    /// Removes a weight; false where there was none.
    pub fn remove(&mut self, name: &str) -> bool {
        self.entries.remove(name).is_some()
    }

    /// Gives a weight another name, in place of what was there.
    pub fn rename(&mut self, from: &str, to: impl Into<String>) -> Result<()> {
        let entry = self.entry(from)?.clone();
        self.entries.remove(from);
        self.entries.insert(to.into(), entry);
        Ok(())
    }

    /// The contents of `config.json`, less `quantization_config`, which is written anew from the weights.
    #[must_use]
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// The contents of `config.json`, to change.
    pub fn config_mut(&mut self) -> &mut Map<String, Value> {
        &mut self.config
    }

    /// The directory it was opened from; tokenizer and other side files are there.
    #[must_use]
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// Tells checkpoints read from different files apart; empty for one made in memory.
    ///
    /// It covers file names, sizes, times of change, headers and a sample of the data.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Writes a model directory: it appears whole or not at all.
    ///
    /// Errors where `out` exists already, where a weight's codec is not registered, or where the disk is full.
    pub fn save(&self, out: impl AsRef<Path>) -> Result<()> {
        crate::store::output::save(self, out.as_ref(), crate::store::DEFAULT_SHARD_BYTES)
    }

    /// True where both hold the very same weight under `name`, so that nothing needs to be compared.
    pub(crate) fn shares(&self, other: &Self, name: &str) -> bool {
        let entry = |checkpoint: &Self| checkpoint.entries.get(name).map(Entry::address);
        entry(self).is_some_and(|address| Some(address) == entry(other))
    }

    /// Where the very same weights are found: address of the entry to name.
    pub(crate) fn addresses(&self) -> BTreeMap<usize, &str> {
        self.entries.iter().map(|(name, entry)| (entry.address(), name.as_str())).collect()
    }

    /// The name under which `other` holds the very same weight as this checkpoint under `name`.
    pub(crate) fn moved_to<'a>(&self, name: &str, other: &BTreeMap<usize, &'a str>) -> Option<&'a str> {
        self.entries.get(name).and_then(|entry| other.get(&entry.address()).copied())
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.entries.get(name).ok_or_else(|| Error::MissingWeight {
            name: name.to_owned(),
            nearest: nearest(name, self.entries.keys()),
        })
    }
}

/// Up to three names that share most with the one asked for: the longest common end, then the longest common start.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let common = |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    let reverse = |s: &str| s.bytes().rev().collect::<Vec<_>>();
    let tail = reverse(name);
    let mut scored: Vec<(usize, &String)> = names
        .map(|other| {
            let end = reverse(other).iter().zip(&tail).take_while(|(x, y)| x == y).count();
            (end + common(name, other), other)
        })
        .filter(|(score, other)| *score * 2 >= other.len().min(name.len()))
        .collect();
    scored.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    scored.into_iter().take(3).map(|(_, name)| name.clone()).collect()
}
