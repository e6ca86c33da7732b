//! Where weights wait that were rewritten out of the order in which they are written.
//!
//! A calibrated run goes from block to block; a model directory is written in the order of names, in which block 10 stands
//! before block 2. On disk each finished unit (a block, what is outside) is a small model directory of its own inside the
//! partial output, with its rows as its report: it appears whole or not at all, so that a cancelled run goes on after the
//! last whole one, and memory holds none of them. Passes that see the whole checkpoint and go block by block have a shelf of
//! their own, `pass-0` for the first pass ([`crate::Context::finish`]).

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use crate::{
    Checkpoint, Error, Result, SharedWeight,
    report::Row,
    store::{
        DEFAULT_SHARD_BYTES,
        output::{REPORT_FILE, save_with_report},
    },
};

/// The folder inside a partial output.
pub(super) const FOLDER: &str = "calibrated";

/// What passes did to a weight, by the place of the pass.
pub(super) type Rows = Vec<(usize, Row)>;

/// A place for finished units.
#[derive(Debug, Clone, Default)]
pub(crate) enum Shelf {
    #[default]
    Memory,
    Disk {
        dir: PathBuf,
    },
}

/// What is known of a unit besides its weights.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Finished {
    /// The rows of each weight.
    pub(super) rows: BTreeMap<String, Rows>,
    /// Tokens that its layers saw.
    pub(super) seen: BTreeMap<String, u64>,
}

impl Shelf {
    /// The shelf of the pass at `place`.
    pub(super) fn of_pass(&self, place: usize) -> Self {
        match self {
            Self::Memory => Self::Memory,
            Self::Disk { dir } => Self::Disk { dir: dir.join(format!("pass-{place}")) },
        }
    }

    /// Puts a unit's weights in place of those of the checkpoint; on disk, they are read again when asked for.
    pub(crate) fn keep(
        &self,
        unit: &str,
        weights: BTreeMap<String, SharedWeight>,
        finished: &Finished,
        checkpoint: &mut Checkpoint,
    ) -> Result<()> {
        let Self::Disk { dir } = self else {
            weights.into_iter().for_each(|(name, weight)| checkpoint.insert(name, weight));
            return Ok(());
        };
        if weights.is_empty() {
            return Ok(());
        }
        std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let mut part = Checkpoint::new(serde_json::Map::new()).with_codecs(checkpoint.codecs());
        weights.into_iter().for_each(|(name, weight)| part.insert(name, weight));
        let text = serde_json::to_string(finished).map_err(Error::other)?;
        save_with_report(&part, &dir.join(unit), DEFAULT_SHARD_BYTES, Some(&text))?;
        drop(part);
        self.read(unit, checkpoint)
    }

    /// Takes a unit over that an earlier run finished; `None` where it did not.
    pub(crate) fn take(&self, unit: &str, checkpoint: &mut Checkpoint) -> Result<Option<Finished>> {
        let Self::Disk { dir } = self else { return Ok(None) };
        let path = dir.join(unit).join(REPORT_FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let finished = serde_json::from_str(&text)
            .map_err(|e| Error::Json { path: path.clone(), message: e.to_string() })?;
        self.read(unit, checkpoint)?;
        Ok(Some(finished))
    }

    fn read(&self, unit: &str, checkpoint: &mut Checkpoint) -> Result<()> {
        let Self::Disk { dir } = self else { return Ok(()) };
        let part = Arc::new(Checkpoint::open_with(dir.join(unit), checkpoint.codecs())?);
        for name in part.names() {
            let (info, part) = (part.info(&name)?, Arc::clone(&part));
            let key = name.clone();
            checkpoint.derive(name, info, move || part.get(&key));
        }
        Ok(())
    }

    /// Removes everything from the disk.
    pub(super) fn clear(&self) -> Result<()> {
        match self {
            Self::Disk { dir } if dir.exists() => std::fs::remove_dir_all(dir).map_err(Error::io(dir)),
            _ => Ok(()),
        }
    }
}
