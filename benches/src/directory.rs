//! Directories: what is in them, whether two are alike, and how far an unfinished one has come.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};
use taper::store::output::REPORT_FILE;

/// Bytes compared at a time.
const BLOCK: usize = 1 << 20;

/// The files of a directory and of those below, by relative path, with their sizes; without the report, whose timings
/// no two runs share.
///
/// # Errors
/// A directory that cannot be read.
pub fn files(dir: &Path) -> io::Result<BTreeMap<PathBuf, u64>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(dir.join(&folder))? {
            let entry = entry?;
            let (path, meta) = (folder.join(entry.file_name()), entry.metadata()?);
            if meta.is_dir() {
                folders.push(path);
            } else if entry.file_name() != REPORT_FILE {
                files.insert(path, meta.len());
            }
        }
    }
    Ok(files)
}

/// In what two directories differ first, for people; `None` where every file but the report has the same bytes.
///
/// # Errors
/// A file that cannot be read.
pub fn first_difference(a: &Path, b: &Path) -> io::Result<Option<String>> {
    let (files_a, files_b) = (files(a)?, files(b)?);
    for name in files_a.keys().chain(files_b.keys()) {
        let difference = match (files_a.get(name), files_b.get(name)) {
            (Some(_), Some(_)) => first_different_byte(&a.join(name), &b.join(name))?,
            _ => Some("is in one of them only".to_owned()),
        };
        if let Some(difference) = difference {
            return Ok(Some(format!("`{}` {difference}", name.display())));
        }
    }
    Ok(None)
}

fn first_different_byte(a: &Path, b: &Path) -> io::Result<Option<String>> {
    let (mut a, mut b) = (BufReader::new(File::open(a)?), BufReader::new(File::open(b)?));
    let (mut left, mut right) = (Vec::with_capacity(BLOCK), Vec::with_capacity(BLOCK));
    let mut offset = 0;
    loop {
        left.clear();
        right.clear();
        a.by_ref().take(BLOCK as u64).read_to_end(&mut left)?;
        b.by_ref().take(BLOCK as u64).read_to_end(&mut right)?;
        if left != right {
            let same = left.iter().zip(&right).take_while(|(x, y)| x == y).count();
            return Ok(Some(format!("differs from byte {}", offset + same)));
        }
        if left.is_empty() {
            return Ok(None);
        }
        offset += left.len();
    }
}

/// Bytes of weights in the directory of an unfinished run; 0 where it is not there (yet, or any more).
///
/// While a shard is being sealed it is there twice; it counts once.
#[must_use]
pub fn progress(partial: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(partial) else { return 0 };
    let mut shards: BTreeMap<PathBuf, u64> = BTreeMap::new();
    for entry in entries.flatten() {
        let path = PathBuf::from(entry.file_name());
        let weights = path.extension().is_some_and(|e| e == "data" || e == "safetensors");
        if let (true, Ok(meta)) = (weights, entry.metadata()) {
            let shard = shards.entry(path.with_extension("")).or_default();
            *shard = meta.len().max(*shard);
        }
    }
    shards.values().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_alike_where_all_but_the_report_is() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
        for dir in [&a, &b] {
            std::fs::create_dir_all(dir.join("below"))?;
            std::fs::write(dir.join("below/x"), vec![7; 3 * BLOCK + 5])?;
        }
        std::fs::write(a.join(REPORT_FILE), "one")?;
        assert_eq!(first_difference(&a, &b)?, None);
        assert_eq!(files(&a)?, BTreeMap::from([(PathBuf::from("below/x"), 3 * BLOCK as u64 + 5)]));

        let mut bytes = vec![7; 3 * BLOCK + 5];
        bytes[2 * BLOCK + 3] = 8;
        std::fs::write(b.join("below/x"), &bytes)?;
        let wanted = format!("`below/x` differs from byte {}", 2 * BLOCK + 3);
        assert_eq!(first_difference(&a, &b)?, Some(wanted));

        std::fs::write(b.join("below/x"), vec![7; 3 * BLOCK])?;
        assert!(first_difference(&a, &b)?.is_some_and(|d| d.ends_with(&(3 * BLOCK).to_string())));

        std::fs::write(b.join("y"), "")?;
        std::fs::write(b.join("below/x"), vec![7; 3 * BLOCK + 5])?;
        assert_eq!(first_difference(&a, &b)?.as_deref(), Some("`y` is in one of them only"));
        Ok(())
    }

    #[test]
    fn a_shard_that_is_being_sealed_counts_once() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        assert_eq!(progress(&dir.path().join("gone")), 0);
        let sizes = [
            ("shard-0.safetensors", 110),
            ("shard-0.data", 100),
            ("shard-1.data", 50),
            ("shard-1.sealing", 40),
            ("taper-journal.jsonl", 999),
        ];
        for (name, bytes) in sizes {
            std::fs::write(dir.path().join(name), vec![0; bytes])?;
        }
        assert_eq!(progress(dir.path()), 160);
        Ok(())
    }
}
