//! Files: reading checkpoints lazily, writing them in shards, atomically, with a journal.
//!
//! `mmap` maps files, `read` validates headers once and lists arrays, `layout` decides what goes into which shard,
//! `write` puts shards on disk, `journal` remembers what a run has finished.

pub mod journal;
pub mod layout;
pub mod mmap;
pub mod output;
pub mod read;
pub mod write;

pub use read::{ArrayInfo, Listing};

/// The one metadata key of ours in a safetensors header.
pub const METADATA_KEY: &str = "taper";

/// Version of the value under [`METADATA_KEY`].
pub const METADATA_VERSION: u64 = 1;

/// Bytes after which a new shard begins, unless a run says otherwise.
///
/// 4 GB is what hubs and loaders are used to; smaller shards only cost more files.
pub const DEFAULT_SHARD_BYTES: u64 = 4_000_000_000;
