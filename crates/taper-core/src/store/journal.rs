//! What a run has finished, one line per weight, so that a killed run can go on.
//!
//! The first line tells which run it is; a run of another identity refuses to continue it. Each further line is one
//! weight, written after its bytes. A torn last line (the process died while writing it) is forgotten.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use super::layout::FileWeight;
use crate::{Error, Result, report::Row, weight::checked_elements};

/// The journal's file name inside a partial directory.
pub const FILE: &str = "taper-journal.jsonl";

/// Which run this is: everything that decides the output's bytes.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    /// Version of Taper.
    pub version: String,
    /// The input checkpoint's fingerprint.
    pub input: String,
    /// The passes and their options.
    pub recipe: serde_json::Value,
    /// Shard limit in bytes.
    pub shard_bytes: u64,
    /// Seed.
    pub seed: u64,
}

impl Identity {
    /// The first thing in which two runs differ.
    fn difference(&self, other: &Self) -> Option<&'static str> {
        if self.version != other.version {
            Some("version of Taper")
        } else if self.input != other.input {
            Some("input checkpoint")
        } else if self.recipe != other.recipe {
            Some("recipe")
        } else if self.shard_bytes != other.shard_bytes {
            Some("shard size")
        } else if self.seed != other.seed {
            Some("seed")
        } else {
            None
        }
    }
}

/// One finished weight.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Entry {
    /// Its arrays, in the order in which their bytes stand in the shard's data file.
    pub weight: FileWeight,
    /// The shard.
    pub shard: usize,
    /// Where its bytes begin in the shard's data file.
    pub offset: u64,
    /// CRC-32 of its bytes.
    pub crc: u32,
    /// What each pass that selected it did, by the pass's place in the pipeline.
    pub rows: Vec<(usize, Row)>,
}

impl Entry {
    /// Whether its sizes follow from its shapes and can be added up.
    fn is_sound(&self) -> bool {
        let end = self.weight.arrays.iter().try_fold(self.offset, |end, array| {
            let elements = checked_elements(&array.shape)?;
            let bits = (elements as u64).checked_mul(array.dtype.bitsize() as u64)?;
            (array.nbytes == bits.div_ceil(8)).then(|| end.checked_add(array.nbytes)).flatten()
        });
        end.is_some() && checked_elements(&self.weight.shape).is_some()
    }
}

/// An open journal; locked, so that two runs never write one output.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Begins a journal.
    pub fn create(dir: &Path, identity: &Identity) -> Result<Self> {
        let path = dir.join(FILE);
        let file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(Error::io(&path))?;
        let mut journal = Self { file, path };
        journal.lock()?;
        journal.line(identity)?;
        Ok(journal)
    }

    /// Opens the journal of an unfinished run and what it holds.
    ///
    /// Errors where the run had another identity or is still going on.
    pub fn resume(dir: &Path, identity: &Identity) -> Result<(Self, Vec<Entry>)> {
        let path = dir.join(FILE);
        let mut file = OpenOptions::new().read(true).write(true).open(&path).map_err(Error::io(&path))?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(Error::io(&path))?;
        let mut journal = Self { file, path };
        journal.lock()?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let bad = |message: String| Error::Json { path: journal.path.clone(), message };
        let mut lines = text[..whole].lines();
        let first = lines.next().ok_or_else(|| bad("has no first line; remove its directory".into()))?;
        let theirs: Identity = serde_json::from_str(first).map_err(|e| bad(e.to_string()))?;
        if let Some(what) = identity.difference(&theirs) {
            return Err(Error::ResumeMismatch { path: dir.to_owned(), what: what.to_owned() });
        }
        let entries = lines
            .map(|line| {
                let entry: Entry = serde_json::from_str(line).map_err(|e| bad(e.to_string()))?;
                let sizes = "has a weight whose sizes contradict each other; remove its directory";
                if entry.is_sound() { Ok(entry) } else { Err(bad(sizes.into())) }
            })
            .collect::<Result<Vec<Entry>>>()?;
        journal.file.set_len(whole as u64).map_err(Error::io(&journal.path))?;
        journal.file.seek(SeekFrom::End(0)).map_err(Error::io(&journal.path))?;
        Ok((journal, entries))
    }

    /// Records a finished weight.
    pub fn record(&mut self, entry: &Entry) -> Result<()> {
        self.line(entry)
    }

    /// Forgets everything after the first `keep` weights.
    pub fn truncate(&mut self, keep: usize) -> Result<()> {
        let text = std::fs::read_to_string(&self.path).map_err(Error::io(&self.path))?;
        let length: usize = text.split_inclusive('\n').take(keep + 1).map(str::len).sum();
        self.file.set_len(length as u64).map_err(Error::io(&self.path))?;
        self.file.seek(SeekFrom::End(0)).map_err(Error::io(&self.path))?;
        Ok(())
    }

    fn line(&mut self, value: &impl serde::Serialize) -> Result<()> {
        let mut text = serde_json::to_string(value)
            .map_err(|e| Error::Json { path: self.path.clone(), message: e.to_string() })?;
        text.push('\n');
        // One write, so that a line is whole or torn at the very end.
        self.file.write_all(text.as_bytes()).map_err(Error::io(&self.path))
    }

    fn lock(&self) -> Result<()> {
        match self.file.try_lock() {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => {
                let busy = std::io::Error::other("another run is writing this output; wait for it to end");
                Err(Error::io(&self.path)(busy))
            }
            Err(TryLockError::Error(source)) => Err(Error::io(&self.path)(source)),
        }
    }
}
