//! Real models and data beside the repository.
//!
//! `TAPER_SHARED` names the folder, else it is `../shared` from the repository's root. Where it is absent a test says
//! that it is skipped, and fails where `CI` is set. The sentence encoder is at `TAPER_MINILM`, else it is fetched once
//! into Cargo's target folder by the shelf's own script.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

fn root() -> PathBuf {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::env::var_os("TAPER_SHARED").map_or_else(|| repository.join("../shared"), PathBuf::from)
}

fn skip(what: &str) {
    assert!(std::env::var_os("CI").is_none(), "{what}, and CI must not skip");
    eprintln!("SKIPPED: {what}");
}

/// A file or folder of the shelf.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let found = root().join(path);
    if found.exists() {
        return Some(found);
    }
    skip(&format!("no `{path}` in {}", root().display()));
    None
}

/// The directory of all-MiniLM-L6-v2.
pub(crate) fn minilm() -> Option<PathBuf> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let complete =
            |dir: &Path| dir.join("model.safetensors").exists() && dir.join("tokenizer.json").exists();
        if let Some(dir) = std::env::var_os("TAPER_MINILM").map(PathBuf::from).filter(|dir| complete(dir)) {
            return Some(dir);
        }
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("all-MiniLM-L6-v2");
        if !complete(&dir) {
            let script = root().join("tools/fetch-minilm");
            let fetched = Command::new(script).arg(&dir).status().is_ok_and(|status| status.success());
            return (fetched && complete(&dir)).then_some(dir);
        }
        Some(dir)
    });
    if found.is_none() {
        skip("all-MiniLM-L6-v2 is neither at TAPER_MINILM nor could it be fetched");
    }
    found.clone()
}

/// Whether measurements of many seconds are made: where `CI` or `TAPER_FULL` is set. Each of them has a quick
/// companion that always runs.
pub(crate) fn full() -> bool {
    let wanted = ["CI", "TAPER_FULL"].iter().any(|name| std::env::var_os(name).is_some());
    if !wanted {
        eprintln!("SKIPPED: a measurement of many seconds; set TAPER_FULL for it");
    }
    wanted
}
