//! A checkpoint's arrays, listed from validated headers; values stay in the file until asked for.
//!
//! Limits and checks: the safetensors crate refuses headers over 100 MB, overlapping or lying offsets, and shapes whose
//! size contradicts their bytes; here follow duplicate names across shards, shards that an index names and that are not
//! there, and names that the index puts elsewhere.

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{METADATA_KEY, METADATA_VERSION, mmap::Mapped};
use crate::{Error, Result};

/// Name of a checkpoint's only weight file.
pub const SINGLE_FILE: &str = "model.safetensors";

/// Name of the index of a sharded checkpoint.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// One stored array: its type, shape and size.
#[derive(Debug, Clone, Copy)]
pub struct ArrayInfo<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Shape.
    pub shape: &'a [usize],
    /// Bytes.
    pub nbytes: usize,
}

#[derive(Debug)]
struct Array {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

/// The arrays of a checkpoint's files.
#[derive(Debug, Default)]
pub struct Listing {
    shards: Vec<(PathBuf, Mapped)>,
    arrays: BTreeMap<String, Array>,
    /// What `taper` metadata says of encoded weights, by weight name.
    encoded: BTreeMap<String, Value>,
}

impl Listing {
    /// Lists the arrays of a Hugging Face model directory: the shards of its index, or its single file.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut listing = Self::default();
        let (index, single) = (dir.join(INDEX_FILE), dir.join(SINGLE_FILE));
        if index.is_file() {
            listing.add_indexed(dir, &index)?;
        } else if single.is_file() {
            listing.add_shard(&single)?;
        } else {
            let message = if dir.is_dir() {
                format!("neither `{SINGLE_FILE}` nor `{INDEX_FILE}` is there")
            } else {
                "it is not a directory".to_owned()
            };
            return Err(Error::NoCheckpoint { path: dir.to_owned(), message });
        }
        Ok(listing)
    }

    fn add_indexed(&mut self, dir: &Path, index: &Path) -> Result<()> {
        let bad = |message: String| Error::Json { path: index.to_owned(), message };
        let text = std::fs::read_to_string(index).map_err(Error::io(index))?;
        let json: Value = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
        let map = json
            .get("weight_map")
            .and_then(Value::as_object)
            .ok_or_else(|| bad("has no object `weight_map`".into()))?;
        let mut placed = BTreeMap::new();
        for (name, file) in map {
            let file = file.as_str().ok_or_else(|| bad(format!("the file of `{name}` is not a text")))?;
            // Only plain file names: an index must not reach outside its directory.
            if file.is_empty() || file.contains(['/', '\\']) || file == ".." {
                return Err(bad(format!("the file of `{name}` is `{file}`, which is not a plain file name")));
            }
            placed.insert(name.as_str(), file);
        }
        let mut files: Vec<&str> = placed.values().copied().collect();
        files.sort_unstable();
        files.dedup();
        for file in &files {
            let path = dir.join(file);
            if !path.is_file() {
                return Err(bad(format!("names the shard `{file}`, which is missing")));
            }
            self.add_shard(&path)?;
        }
        for (name, file) in placed {
            let array = self
                .arrays
                .get(name)
                .ok_or_else(|| bad(format!("puts `{name}` into `{file}`, which does not hold it")))?;
            if self.shards[array.shard].0 != dir.join(file) {
                return Err(bad(format!("puts `{name}` into `{file}`, but another shard holds it")));
            }
        }
        Ok(())
    }

    fn add_shard(&mut self, path: &Path) -> Result<()> {
        let map = Mapped::open(path)?;
        self.add_bytes(path, map)
    }

    fn add_bytes(&mut self, path: &Path, map: Mapped) -> Result<()> {
        let bad = |message: String| Error::Malformed { path: path.to_owned(), message };
        let (header, metadata) = SafeTensors::read_metadata(map.bytes()).map_err(|e| bad(e.to_string()))?;
        let data = header.checked_add(8).ok_or_else(|| bad("its header is too long".into()))?;
        if let Some(text) = metadata.metadata().as_ref().and_then(|m| m.get(METADATA_KEY)) {
            self.add_metadata(text).map_err(bad)?;
        }
        let shard = self.shards.len();
        for (name, info) in metadata.tensors() {
            let (start, end) = (data + info.data_offsets.0, data + info.data_offsets.1);
            if end > map.bytes().len() {
                return Err(bad(format!("`{name}` reaches past the end of the file")));
            }
            let array = Array { shard, dtype: info.dtype, shape: info.shape.clone(), start, end };
            if self.arrays.insert(name.clone(), array).is_some() {
                return Err(bad(format!("`{name}` is in another shard too")));
            }
        }
        self.shards.push((path.to_owned(), map));
        Ok(())
    }

    fn add_metadata(&mut self, text: &str) -> std::result::Result<(), String> {
        let json: Value =
            serde_json::from_str(text).map_err(|e| format!("its `{METADATA_KEY}` metadata: {e}"))?;
        match json.get("version").and_then(Value::as_u64) {
            Some(METADATA_VERSION) => {}
            other => {
                return Err(format!(
                    "its `{METADATA_KEY}` metadata has version {other:?}; this build reads {METADATA_VERSION}"
                ));
            }
        }
        let weights = json
            .get("weights")
            .and_then(Value::as_object)
            .ok_or_else(|| format!("its `{METADATA_KEY}` metadata has no object `weights`"))?;
        self.encoded.extend(weights.iter().map(|(k, v)| (k.clone(), v.clone())));
        Ok(())
    }

    /// All array names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.arrays.keys().map(String::as_str)
    }

    /// Type, shape and size of an array.
    #[must_use]
    pub fn array(&self, name: &str) -> Option<ArrayInfo<'_>> {
        self.arrays.get(name).map(|a| ArrayInfo { dtype: a.dtype, shape: &a.shape, nbytes: a.end - a.start })
    }

    /// The bytes of an array, memory-mapped.
    #[must_use]
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        let array = self.arrays.get(name)?;
        self.shards.get(array.shard)?.1.bytes().get(array.start..array.end)
    }

    /// The file that an array is in.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<&Path> {
        Some(self.shards.get(self.arrays.get(name)?.shard)?.0.as_path())
    }

    /// What our metadata says of encoded weights, by name.
    #[must_use]
    pub fn encoded(&self) -> &BTreeMap<String, Value> {
        &self.encoded
    }

    /// The files and their bytes.
    pub(crate) fn shards(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.shards.iter().map(|(path, map)| (path.as_path(), map.bytes()))
    }

    /// A listing of one safetensors file that is already in memory; for tests and fuzzing.
    pub fn from_file(path: &Path) -> Result<Self> {
        let mut listing = Self::default();
        listing.add_shard(path)?;
        Ok(listing)
    }
}
