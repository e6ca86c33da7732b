//! The bundled model in a scratch directory, and what tests ask of model directories.

#![allow(dead_code)] // every test file uses a part

use std::{
    collections::BTreeMap,
    error::Error,
    path::{Path, PathBuf},
};
use taper::{
    bundled,
    models::{Tokenizer, eval::Windows},
    prelude::*,
};

/// What tests end with.
pub(crate) type Tested<T = ()> = Result<T, Box<dyn Error>>;

/// The bundled model, on disk for as long as this lives.
pub(crate) struct Bundle(tempfile::TempDir);

impl Bundle {
    pub(crate) fn new() -> Tested<Self> {
        let scratch = tempfile::tempdir()?;
        bundled::write_to(scratch.path().join("model"))?;
        Ok(Self(scratch))
    }

    /// A path beside the model.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The model, opened.
    pub(crate) fn open(&self) -> Tested<Checkpoint> {
        Ok(taper::open(self.at("model"))?)
    }
}

/// Perplexity on the first windows of the bundled text.
pub(crate) fn judged(dir: &Path) -> Tested<f64> {
    let checkpoint = taper::open(dir)?;
    let windows = Windows::of_text(&Tokenizer::of(&checkpoint)?, bundled::TEXT, 128)?.first(6);
    Ok(perplexity(&taper::build(&checkpoint)?.language()?, &windows, &Silent)?.perplexity)
}

/// The bytes of every file of a directory but the report, whose timings differ from run to run.
pub(crate) fn bytes(dir: &Path) -> Tested<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != taper::store::output::REPORT_FILE {
            files.insert(name, std::fs::read(entry.path())?);
        }
    }
    Ok(files)
}

/// The values of a weight.
pub(crate) fn values(checkpoint: &Checkpoint, name: &str) -> Tested<Vec<f32>> {
    Ok(taper::weight::to_f32_vec(checkpoint.get(name)?.as_ref())?)
}
