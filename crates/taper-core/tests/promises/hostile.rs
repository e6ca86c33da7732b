//! Promise 7: hostile files are errors, never panics.

use crate::toy::{Halve, codecs, error_of, on_disk};
use proptest::prelude::*;
use std::path::Path;
use taper_core::{Checkpoint, Pipeline, Run, WeightPass};

/// Writes a model directory with this `model.safetensors`.
fn directory(dir: &Path, bytes: &[u8]) {
    std::fs::write(dir.join("config.json"), "{}").unwrap();
    std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// Opens and reads everything there is.
fn read_all(dir: &Path) -> taper_core::Result<()> {
    let checkpoint = Checkpoint::open_with(dir, &codecs())?;
    for name in checkpoint.names() {
        checkpoint.info(&name)?;
        checkpoint.get(&name)?.dense()?;
    }
    Ok(())
}

fn refused(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    directory(dir.path(), bytes);
    error_of(read_all(dir.path()))
}

#[test]
fn lying_headers_are_refused() {
    assert!(refused(b"").contains("not a valid safetensors file"));
    assert!(refused(&u64::MAX.to_le_bytes()).contains("not a valid"));
    assert!(refused(&with_header("not json", &[])).contains("not a valid"));
    let one = |shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    for (shape, offsets) in [
        ("[2]", "[0,16]"),
        ("[4]", "[8,24]"),
        ("[4]", "[16,0]"),
        ("[4]", "[0,1000]"),
        ("[4294967296,4294967296,4294967296]", "[0,16]"),
        ("[18446744073709551615,2]", "[0,16]"),
        ("[-1]", "[0,16]"),
    ] {
        let message = refused(&with_header(&one(shape, offsets), &[0; 16]));
        assert!(message.contains("not a valid safetensors file"), "{shape} {offsets}: {message}");
    }
    let unknown = r#"{"a":{"dtype":"Q7","shape":[4],"data_offsets":[0,16]}}"#;
    assert!(refused(&with_header(unknown, &[0; 16])).contains("not a valid"));
    let integers = r#"{"a":{"dtype":"I8","shape":[16],"data_offsets":[0,16]}}"#;
    assert!(refused(&with_header(integers, &[0; 16])).contains("no codec claims it"));
}

#[test]
fn truncated_files_are_refused_at_every_length() {
    let dir = tempfile::tempdir().unwrap();
    on_disk(&dir.path().join("in"), 1);
    let bytes = std::fs::read(dir.path().join("in/model.safetensors")).unwrap();
    for end in (0..bytes.len()).step_by(97) {
        refused(&bytes[..end]);
    }
}

#[test]
fn our_metadata_is_not_believed_blindly() {
    let with = |taper: &str| {
        let header = serde_json::json!({
            "__metadata__": { "taper": taper },
            "a_halves": { "dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8] },
        });
        refused(&with_header(&header.to_string(), &[0; 8]))
    };
    assert!(with("nonsense").contains("`taper` metadata"));
    assert!(with(r#"{"version":9,"weights":{}}"#).contains("version"));
    assert!(with(r#"{"version":1}"#).contains("`weights`"));
    assert!(with(r#"{"version":1,"weights":{"a":{}}}"#).contains("no valid"));
    let facts = |codec: &str, shape: &str, array: &str| {
        format!(
            r#"{{"version":1,"weights":{{"a":{{"codec":"{codec}","format":"x","shape":{shape},"attributes":{{}},"arrays":{{"halves":"{array}"}}}}}}}}"#
        )
    };
    assert!(with(&facts("who", "[2,2]", "a_halves")).contains("no registered codec"));
    assert!(with(&facts("test-half", "[2,2]", "gone")).contains("is missing"));
    assert!(with(&facts("test-half", "[2,3]", "a_halves")).contains("expected F16 [2, 3]"));
    assert!(with(&facts("test-half", "[9223372036854775807,9]", "a_halves")).contains("overflows"));
}

#[test]
fn a_sharded_checkpoint_with_a_hole_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let input = on_disk(&dir.path().join("in"), 4);
    let out = dir.path().join("out");
    let options = Run::new().with_shard_bytes(1000);
    Pipeline::new().then(Halve.on_matrices()).run_to(input, &out, &options).unwrap();
    read_all(&out).unwrap();
    let index = out.join("model.safetensors.index.json");
    let good = std::fs::read_to_string(&index).unwrap();
    let with_index = |text: &str| {
        std::fs::write(&index, text).unwrap();
        error_of(read_all(&out))
    };
    assert!(with_index("{}").contains("no object `weight_map`"));
    assert!(with_index("[").contains("index.json"));
    let moved = good.replacen("model-00001", "model-00002", 1);
    assert!(with_index(&moved).contains("holds it") || with_index(&moved).contains("does not hold"));
    assert!(with_index(r#"{"weight_map":{"a":"../../etc/passwd"}}"#).contains("not a plain file name"));
    std::fs::write(&index, &good).unwrap();
    let shard = std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().path());
    let shard = shard.filter(|p| p.extension().is_some_and(|e| e == "safetensors")).min().unwrap();
    std::fs::remove_file(shard).unwrap();
    assert!(error_of(read_all(&out)).contains("which is missing"));
}

#[test]
fn directories_without_a_checkpoint_say_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    assert!(error_of(Checkpoint::open(dir.path())).contains("`config.json` is not there"));
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    assert!(error_of(Checkpoint::open(dir.path())).contains("neither `model.safetensors`"));
    std::fs::write(dir.path().join("config.json"), "[]").unwrap();
    assert!(error_of(Checkpoint::open(dir.path())).contains("not an object"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn flipped_bytes_never_panic(at in 0usize..3000, value in any::<u8>()) {
        let dir = tempfile::tempdir().unwrap();
        let file = {
            let source = tempfile::tempdir().unwrap();
            on_disk(&source.path().join("in"), 1);
            std::fs::read(source.path().join("in/model.safetensors")).unwrap()
        };
        let mut bytes = file;
        let at = at % bytes.len();
        bytes[at] = value;
        directory(dir.path(), &bytes);
        let _ = read_all(dir.path());
    }

    #[test]
    fn arbitrary_headers_never_panic(text in "\\PC{0,200}") {
        let dir = tempfile::tempdir().unwrap();
        directory(dir.path(), &with_header(&text, &[0; 32]));
        let _ = read_all(dir.path());
    }
}
