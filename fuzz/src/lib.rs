//! What the fuzz targets share: valid things, ways to damage them, and reading all that is left.
//!
//! Random bytes are refused at the first check and never reach the second. So most targets begin with something valid (a
//! packed weight, a config, an index) and let the fuzzer's bytes damage it, step by step: the damaged thing passes most
//! checks and stands before the one that has to notice. A reader may refuse; it may not panic, and what it accepts must
//! decode, multiply and be written back.

pub mod damage;
pub mod foreign;
pub mod read;
pub mod unfinished;

pub use libfuzzer_sys::arbitrary::{Result, Unstructured};

use std::{path::Path, sync::OnceLock};
use tempfile::TempDir;

/// This process's own directory; in memory where the system has such a place, since targets write in it all the time.
///
/// # Panics
/// Where no directory can be made.
pub fn scratch() -> &'static Path {
    static DIR: OnceLock<TempDir> = OnceLock::new();
    let make = || {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        dir.expect("a directory can be made")
    };
    DIR.get_or_init(make).path()
}

/// Writes a file of the scratch directory.
///
/// # Panics
/// Where it cannot be written.
pub fn put(name: &str, bytes: impl AsRef<[u8]>) {
    std::fs::write(scratch().join(name), bytes).expect("the scratch directory can be written");
}
