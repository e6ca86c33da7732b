//! The built command, run in a scratch directory with the bundled model in it, and checkpoints made by hand.

#![allow(dead_code)] // every test file uses a part

use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    error::Error,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// What tests end with.
pub(crate) type Tested<T = ()> = Result<T, Box<dyn Error>>;

/// A scratch directory; `model` in it is the bundled model.
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    pub(crate) fn new() -> Tested<Self> {
        let dir = tempfile::tempdir()?;
        taper::bundled::write_to(dir.path().join("model"))?;
        Ok(Self(dir))
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The command with arguments split at blanks, in the scratch directory.
    pub(crate) fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_taper"));
        command.args(arguments.split_whitespace()).current_dir(self.0.path()).stdin(Stdio::null());
        // Messages are compared; a backtrace that the surroundings ask for is none of them.
        command.env_remove("RUST_BACKTRACE").env_remove("RUST_LIB_BACKTRACE");
        command
    }

    pub(crate) fn run(&self, arguments: &str) -> Tested<Ran> {
        Ok(Ran::of(self.command(arguments).output()?))
    }

    /// Names in the scratch directory, sorted.
    pub(crate) fn names(&self) -> Tested<Vec<String>> {
        let mut names = std::fs::read_dir(self.0.path())?
            .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
            .collect::<Tested<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            status: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Standard output as the one JSON object that it must be.
    pub(crate) fn json(&self) -> Tested<Value> {
        let value: Value = serde_json::from_str(&self.out)
            .map_err(|e| format!("{e} in {:?} (and {:?})", self.out, self.err))?;
        if !value.is_object() || self.out.lines().count() != 1 {
            return Err(format!("not one object on one line: {}", self.out).into());
        }
        Ok(value)
    }

    /// Done, with nothing on standard error that looks like an error.
    pub(crate) fn done(self) -> Self {
        assert_eq!(self.status, Some(0), "{self:?}");
        self
    }

    /// Failed with this status and these words on standard error, and did not panic.
    pub(crate) fn refused(self, status: i32, words: &[&str]) -> Self {
        assert_eq!(self.status, Some(status), "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "no {word:?} in {:?}", self.err);
        }
        for bug in ["panicked", "internal error", "RUST_BACKTRACE"] {
            assert!(!self.err.contains(bug), "{:?}", self.err);
        }
        self
    }
}

/// The bytes of every file of a model directory but the report, whose timings differ from run to run.
pub(crate) fn bytes(dir: &Path) -> Tested<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != "taper-report.json" {
            files.insert(name, std::fs::read(entry.path())?);
        }
    }
    Ok(files)
}

/// A safetensors file from a header and data: as the format says, whatever the header claims.
pub(crate) fn safetensors(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

/// A model directory of `count` f32 matrices `[rows, cols]` of seeded noise, under an architecture nobody knows.
pub(crate) fn synthetic(dir: &Path, count: usize, rows: usize, cols: usize) -> Tested {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for index in 0..count {
        let start = data.len();
        for _ in 0..rows * cols {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let uniform = (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
            data.extend(uniform.to_le_bytes());
        }
        let name = format!("blocks.{index:03}.weight");
        header.insert(
            name,
            json!({"dtype": "F32", "shape": [rows, cols], "data_offsets": [start, data.len()]}),
        );
    }
    write_model(dir, &safetensors(&header.into(), &data))
}

/// A model directory with this weight file.
pub(crate) fn write_model(dir: &Path, weights: &[u8]) -> Tested {
    std::fs::create_dir(dir)?;
    std::fs::write(dir.join("config.json"), "{\"model_type\": \"made-up\"}")?;
    std::fs::write(dir.join("model.safetensors"), weights)?;
    Ok(())
}
