//! Memory-mapped files, read-only.
//!
//! The one `unsafe` of this crate. A mapped file must not change while it is mapped; nothing here writes to files it
//! reads, and outputs are new files that appear by renaming.

use std::{fs::File, path::Path, sync::Arc};

use crate::{Error, Result};

/// A whole file, mapped.
#[derive(Debug, Clone)]
pub struct Mapped {
    map: Option<Arc<memmap2::Mmap>>,
}

impl Mapped {
    /// Maps a file; an empty file is empty bytes.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        let metadata = file.metadata().map_err(Error::io(path))?;
        if !metadata.is_file() {
            let kind = std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file");
            return Err(Error::io(path)(kind));
        }
        if metadata.len() == 0 {
            return Ok(Self { map: None });
        }
        #[allow(unsafe_code)]
        // SAFETY: the mapping is read-only and private to this process's view; the file is not written by us while it
        // is mapped (outputs are new files). Another process truncating it is outside what a program can guard against,
        // as for every memory-mapped loader.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path))?;
        Ok(Self { map: Some(Arc::new(map)) })
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().map_or(&[], |m| m)
    }
}
