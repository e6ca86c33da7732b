//! Shards on disk.
//!
//! ```text
//! weights ──append──▶ shard-0.data ──seal──▶ shard-0.safetensors ──finish──▶ model-00001-of-0000N.safetensors
//! ```
//!
//! A safetensors header stands before the data and names every offset, so a shard's arrays are first appended to a data
//! file and sealed (header, then arrays in file order) once the shard is full. At most one shard is on disk twice.

use std::{
    fs::{File, OpenOptions},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use super::{
    layout::{self, FileWeight, Sharding},
    mmap::Mapped,
};
use crate::{Codecs, Error, Parts, Result, verify};

/// A weight whose bytes are in a data file.
#[derive(Debug, Clone)]
pub struct Spooled {
    /// Its arrays.
    pub weight: FileWeight,
    /// Its shard.
    pub shard: usize,
    /// Where its bytes begin in the shard's data file.
    pub offset: u64,
    /// CRC-32 of its bytes.
    pub crc: u32,
}

/// Writes weights, in the order of their names, into the shards of a partial directory.
#[derive(Debug)]
pub struct ShardWriter {
    dir: PathBuf,
    sharding: Sharding,
    done: Vec<Spooled>,
    open: Option<(usize, File, u64)>,
    sealed: usize,
}

impl ShardWriter {
    /// A writer into an existing directory.
    #[must_use]
    pub fn new(dir: &Path, shard_bytes: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            sharding: Sharding::new(shard_bytes),
            done: Vec::new(),
            open: None,
            sealed: 0,
        }
    }

    /// Takes over weights that an earlier run wrote; returns how many of them are really there.
    ///
    /// The bytes of shards that are not sealed are checked against their CRC; the first that fails ends the list.
    pub fn take_over(&mut self, entries: impl IntoIterator<Item = Spooled>) -> Result<usize> {
        let mut data: Option<(usize, Mapped)> = None;
        for entry in entries {
            let shard = self.sharding.clone().place(entry.weight.nbytes());
            if shard != entry.shard {
                break;
            }
            if !self.sealed_path(shard).is_file() {
                if data.as_ref().is_none_or(|(open, _)| *open != shard) {
                    let path = self.data_path(shard);
                    if !path.is_file() {
                        break;
                    }
                    data = Some((shard, Mapped::open(&path)?));
                }
                let whole = data.as_ref().and_then(|(_, map)| {
                    let start = usize::try_from(entry.offset).ok()?;
                    let end = start.checked_add(usize::try_from(entry.weight.nbytes()).ok()?)?;
                    map.bytes().get(start..end)
                });
                if whole.map(crc32fast::hash) != Some(entry.crc) {
                    break;
                }
            }
            self.sharding.place(entry.weight.nbytes());
            self.done.push(entry);
        }
        drop(data);
        self.reopen()?;
        Ok(self.done.len())
    }

    /// Cuts the open shard's data file back to what is known to be good and seals what is full.
    fn reopen(&mut self) -> Result<()> {
        let Some(last) = self.done.last() else { return Ok(()) };
        let (shard, end) = (last.shard, last.offset + last.weight.nbytes());
        while self.sealed < shard {
            self.seal(self.sealed)?;
        }
        if self.sealed_path(shard).is_file() {
            self.sealed = shard + 1;
            return Ok(());
        }
        let path = self.data_path(shard);
        let file = OpenOptions::new().append(true).open(&path).map_err(Error::io(&path))?;
        file.set_len(end).map_err(Error::io(&path))?;
        self.open = Some((shard, file, end));
        Ok(())
    }

    /// Appends a weight's arrays.
    pub fn add(&mut self, name: &str, parts: &Parts, codecs: &Codecs) -> Result<Spooled> {
        let weight = FileWeight::of_parts(name, parts, codecs)?;
        let shard = self.sharding.place(weight.nbytes());
        while self.sealed < shard {
            self.seal(self.sealed)?;
        }
        let path = self.data_path(shard);
        if self.open.as_ref().is_none_or(|(open, ..)| *open != shard) {
            let file = File::create(&path).map_err(Error::io(&path))?;
            self.open = Some((shard, file, 0));
        }
        let Some((_, file, position)) = &mut self.open else { unreachable!("opened above") };
        let mut crc = crc32fast::Hasher::new();
        for array in &weight.arrays {
            let part = parts.part(name, &array.role)?;
            if part.data.len() as u64 != array.nbytes {
                return Err(parts.bad(name, format!("`{}` has another size than its shape", array.role)));
            }
            file.write_all(&part.data).map_err(Error::io(&path))?;
            crc.update(&part.data);
        }
        let entry = Spooled { offset: *position, shard, crc: crc.finalize(), weight };
        *position += entry.weight.nbytes();
        self.done.push(entry.clone());
        Ok(entry)
    }

    /// Seals the last shard and gives all shards their final names; returns what is in each.
    pub fn finish(&mut self) -> Result<Vec<Vec<FileWeight>>> {
        let count = self.done.last().map_or(0, |last| last.shard + 1);
        while self.sealed < count {
            self.seal(self.sealed)?;
        }
        let mut shards = vec![Vec::new(); count];
        for entry in &self.done {
            shards[entry.shard].push(entry.weight.clone());
        }
        if shards.is_empty() {
            shards.push(Vec::new());
            let path = self.sealed_path(0);
            std::fs::write(&path, layout::header(&[])?).map_err(Error::io(&path))?;
        }
        for index in 0..shards.len() {
            let (from, to) =
                (self.sealed_path(index), self.dir.join(layout::shard_name(index, shards.len())));
            // Where an earlier run died between two renamings, some shards have their final names.
            if from.is_file() {
                std::fs::rename(&from, &to).map_err(Error::io(&to))?;
            }
        }
        Ok(shards)
    }

    fn data_path(&self, shard: usize) -> PathBuf {
        self.dir.join(format!("shard-{shard}.data"))
    }

    fn sealed_path(&self, shard: usize) -> PathBuf {
        self.dir.join(format!("shard-{shard}.safetensors"))
    }

    fn seal(&mut self, shard: usize) -> Result<()> {
        self.open = None;
        self.sealed = shard + 1;
        let (data, sealed) = (self.data_path(shard), self.sealed_path(shard));
        if !data.is_file() {
            return Ok(()); // sealed by the run that is being resumed
        }
        let entries: Vec<&Spooled> = self.done.iter().filter(|e| e.shard == shard).collect();
        let weights: Vec<FileWeight> = entries.iter().map(|e| e.weight.clone()).collect();
        let temporary = sealed.with_extension("sealing");
        let map = Mapped::open(&data)?;
        let file = File::create(&temporary).map_err(Error::io(&temporary))?;
        let mut out = BufWriter::new(file);
        out.write_all(&layout::header(&weights)?).map_err(Error::io(&temporary))?;
        for (weight, array) in layout::file_order(&weights) {
            let before: u64 =
                weights[weight].arrays.iter().take_while(|a| a.role != array.role).map(|a| a.nbytes).sum();
            let start = (entries[weight].offset + before) as usize;
            let bytes = map.bytes().get(start..start + array.nbytes as usize).unwrap_or_default();
            out.write_all(bytes).map_err(Error::io(&temporary))?;
        }
        let file = out.into_inner().map_err(|e| Error::io(&temporary)(e.into_error()))?;
        file.sync_all().map_err(Error::io(&temporary))?;
        drop(map);
        std::fs::rename(&temporary, &sealed).map_err(Error::io(&sealed))?;
        std::fs::remove_file(&data).map_err(Error::io(&data))
    }
}

/// The parts of a weight, checked to be as large as the weight says.
pub fn parts_of(name: &str, weight: &dyn crate::Weight) -> Result<Parts> {
    let parts = weight.to_parts()?;
    verify::honest_size(name, weight, &parts)?;
    Ok(parts)
}
