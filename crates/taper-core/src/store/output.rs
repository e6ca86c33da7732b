//! An output directory: it appears whole or not at all.
//!
//! Everything is written into `OUT.partial`, beside `OUT`, which is renamed once it is complete. An error removes the
//! partial directory; a cancelled or killed run leaves it, to be resumed.

use std::path::{Path, PathBuf};

use super::{
    journal::{self, Entry, Identity, Journal},
    layout::{self, FileWeight},
    read::INDEX_FILE,
    write::{ShardWriter, Spooled, parts_of},
};
use crate::{Checkpoint, Error, Parts, Result, report::Row};

/// The report's file name in an output directory.
pub const REPORT_FILE: &str = "taper-report.json";

/// Whether to go on with an unfinished run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resume {
    /// Start from nothing; an unfinished run in the way is an error.
    #[default]
    Fresh,
    /// Continue the unfinished run.
    Continue,
}

/// An output directory being written.
#[derive(Debug)]
pub struct Output {
    out: PathBuf,
    partial: PathBuf,
    journal: Option<Journal>,
    writer: ShardWriter,
}

impl Output {
    /// Begins or resumes the output `out`; returns what an earlier run has finished.
    pub fn open(out: &Path, identity: &Identity, resume: Resume) -> Result<(Self, Vec<Entry>)> {
        let partial = partial_path(out)?;
        refuse_existing(out)?;
        let mut writer = ShardWriter::new(&partial, identity.shard_bytes);
        match resume {
            Resume::Fresh => {
                if partial.exists() {
                    return Err(Error::UnfinishedRun { path: partial });
                }
                create(&partial)?;
                let journal = Journal::create(&partial, identity)
                    .inspect_err(|_| drop(std::fs::remove_dir_all(&partial)))?;
                let output = Self { out: out.to_owned(), partial, journal: Some(journal), writer };
                Ok((output, Vec::new()))
            }
            Resume::Continue => {
                if !partial.join(journal::FILE).is_file() {
                    return Err(Error::NothingToResume { path: partial });
                }
                let (mut journal, mut entries) = Journal::resume(&partial, identity)?;
                let spooled = entries.iter().map(|e| Spooled {
                    weight: e.weight.clone(),
                    shard: e.shard,
                    offset: e.offset,
                    crc: e.crc,
                });
                let good = writer.take_over(spooled.collect::<Vec<_>>())?;
                if good < entries.len() {
                    entries.truncate(good);
                    journal.truncate(good)?;
                }
                let output = Self { out: out.to_owned(), partial, journal: Some(journal), writer };
                Ok((output, entries))
            }
        }
    }

    /// An output without a journal, for a checkpoint that is at hand anyway.
    fn unjournaled(out: &Path, shard_bytes: u64) -> Result<Self> {
        refuse_existing(out)?;
        let mut partial = partial_path(out)?.into_os_string();
        partial.push(format!("-{}", std::process::id()));
        let partial = PathBuf::from(partial);
        create(&partial)?;
        let writer = ShardWriter::new(&partial, shard_bytes);
        Ok(Self { out: out.to_owned(), partial, journal: None, writer })
    }

    /// Writes a weight and records it.
    pub fn add(
        &mut self,
        name: &str,
        parts: &Parts,
        checkpoint: &Checkpoint,
        rows: Vec<(usize, Row)>,
    ) -> Result<()> {
        let Spooled { weight, shard, offset, crc } = self.writer.add(name, parts, checkpoint.codecs())?;
        match &mut self.journal {
            Some(journal) => journal.record(&Entry { weight, shard, offset, crc, rows }),
            None => Ok(()),
        }
    }

    /// Completes the directory and gives it its name. `report` goes beside the model. An error leaves nothing.
    pub fn finish(mut self, checkpoint: &Checkpoint, report: Option<&str>) -> Result<()> {
        self.complete(checkpoint, report).inspect_err(|_| {
            // The error is what matters; what cannot be removed is only a leftover beside the output.
            drop(std::fs::remove_dir_all(&self.partial));
        })
    }

    fn complete(&mut self, checkpoint: &Checkpoint, report: Option<&str>) -> Result<()> {
        let shards = self.writer.finish()?;
        if shards.len() > 1 {
            self.text(INDEX_FILE, &layout::index(&shards))?;
        }
        let weights: Vec<FileWeight> = shards.into_iter().flatten().collect();
        if let Some(dir) = checkpoint.dir() {
            for file in side_files(dir)? {
                let (from, to) = (dir.join(&file), self.partial.join(&file));
                if let Some(parent) = to.parent() {
                    std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
                }
                std::fs::copy(&from, &to).map_err(Error::io(&from))?;
            }
        }
        if let Some(report) = report {
            self.text(REPORT_FILE, report)?;
        }
        self.text("config.json", &layout::config(checkpoint.config(), &weights, checkpoint.codecs())?)?;
        if self.journal.take().is_some() {
            let path = self.partial.join(journal::FILE);
            std::fs::remove_file(&path).map_err(Error::io(&path))?;
        }
        std::fs::rename(&self.partial, &self.out).map_err(Error::io(&self.out))
    }

    /// Removes what was written.
    pub fn discard(self) -> Result<()> {
        std::fs::remove_dir_all(&self.partial).map_err(Error::io(&self.partial))
    }

    fn text(&self, name: &str, text: &str) -> Result<()> {
        let path = self.partial.join(name);
        std::fs::write(&path, text).map_err(Error::io(&path))
    }
}

/// Writes a checkpoint as it is.
pub fn save(checkpoint: &Checkpoint, out: &Path, shard_bytes: u64) -> Result<()> {
    save_with_report(checkpoint, out, shard_bytes, None)
}

/// Writes a checkpoint as it is, and a report beside it.
pub fn save_with_report(
    checkpoint: &Checkpoint,
    out: &Path,
    shard_bytes: u64,
    report: Option<&str>,
) -> Result<()> {
    let mut output = Output::unjournaled(out, shard_bytes)?;
    let written = checkpoint.names().iter().try_for_each(|name| {
        let parts = parts_of(name, checkpoint.get(name)?.as_ref())?;
        output.add(name, &parts, checkpoint, Vec::new())
    });
    match written {
        Ok(()) => output.finish(checkpoint, report),
        Err(error) => {
            output.discard()?;
            Err(error)
        }
    }
}

/// Where an unfinished run of `out` is.
pub fn partial_path(out: &Path) -> Result<PathBuf> {
    let name = out.file_name().ok_or_else(|| {
        Error::bad_option("output", out.display(), "must be the path of a directory to make")
    })?;
    let mut partial = name.to_owned();
    partial.push(".partial");
    Ok(out.with_file_name(partial))
}

fn refuse_existing(out: &Path) -> Result<()> {
    if out.exists() { Err(Error::OutputExists { path: out.to_owned() }) } else { Ok(()) }
}

fn create(dir: &Path) -> Result<()> {
    std::fs::create_dir(dir).map_err(Error::io(dir))
}

/// Endings of files that hold weights; they are not carried along, or a compressed model would drag the original with it.
const WEIGHT_FILES: [&str; 12] =
    ["safetensors", "bin", "pt", "pth", "ckpt", "h5", "msgpack", "onnx", "gguf", "ot", "tflite", "partial"];

/// Files of a model directory that are neither weights nor written anew, down to one folder below, sorted.
pub fn side_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    collect_side_files(dir, Path::new(""), &mut files)?;
    files.sort();
    Ok(files)
}

fn collect_side_files(dir: &Path, below: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let here = dir.join(below);
    for entry in std::fs::read_dir(&here).map_err(Error::io(&here))? {
        let entry = entry.map_err(Error::io(&here))?;
        let (name, path) = (entry.file_name(), below.join(entry.file_name()));
        let text = name.to_string_lossy();
        let kind = std::fs::metadata(entry.path()).map_err(Error::io(entry.path()))?;
        if text.starts_with('.') {
            continue;
        }
        if kind.is_dir() {
            if below.as_os_str().is_empty() {
                collect_side_files(dir, &path, files)?;
            }
            continue;
        }
        let ours = ["config.json", INDEX_FILE, REPORT_FILE, journal::FILE];
        let written_anew = below.as_os_str().is_empty() && ours.contains(&text.as_ref());
        let weights =
            WEIGHT_FILES.iter().any(|e| text.ends_with(&format!(".{e}"))) || text.ends_with(".index.json");
        if kind.is_file() && !written_anew && !weights {
            files.push(path);
        }
    }
    Ok(())
}
