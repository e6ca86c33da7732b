//! A run that was stopped half way, to be resumed again and again with another journal.

use super::{Result, Unstructured, damage, read, scratch};
use serde_json::Value;
use std::{
    fs,
    path::PathBuf,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};
use taper::{
    Checkpoint, Event, Flow, Pipeline, Run, WeightPass,
    candle::{Device, Tensor},
    quant::RoundNearest,
    store::{journal, output::Resume},
};

/// Weights of the checkpoint.
const WEIGHTS: usize = 6;
/// Small enough for several shards.
const SHARD_BYTES: u64 = 600;

/// A stopped run: its input and every file of its partial directory.
#[derive(Debug)]
pub struct Unfinished {
    input: Checkpoint,
    files: Vec<(PathBuf, Vec<u8>)>,
    journal: Vec<u8>,
}

fn pipeline() -> Pipeline {
    Pipeline::new().then(RoundNearest::int4(8).expect("a group").on_matrices())
}

fn out() -> PathBuf {
    scratch().join("out")
}

fn partial() -> PathBuf {
    scratch().join("out.partial")
}

impl Unfinished {
    /// The one stopped run of this process.
    pub fn get() -> &'static Self {
        static UNFINISHED: OnceLock<Unfinished> = OnceLock::new();
        UNFINISHED.get_or_init(Self::stop)
    }

    fn stop() -> Self {
        let mut model = Checkpoint::new(serde_json::Map::new()).with_codecs(&taper::codecs());
        for i in 0..WEIGHTS {
            let w = Tensor::ones((8, 16), taper::candle::DType::F32, &Device::Cpu).expect("a small tensor");
            model.insert(format!("{i}.weight"), std::sync::Arc::new(w));
        }
        let dir = scratch().join("in");
        model.save(&dir).expect("the checkpoint can be written");
        let input = taper::open(&dir).expect("the checkpoint can be read");
        let seen = AtomicUsize::new(0);
        let stop = |event: &Event<'_>| match event {
            Event::Weight { .. } if seen.fetch_add(1, Ordering::Relaxed) + 2 == WEIGHTS => Flow::Cancel,
            _ => Flow::Continue,
        };
        let run = Run::new().with_shard_bytes(SHARD_BYTES).with_progress(&stop);
        let stopped = pipeline().run_to(input.clone(), out(), &run);
        assert!(stopped.is_err_and(|e| e.is_cancelled()));
        let entries = fs::read_dir(partial()).expect("a cancelled run leaves its directory");
        let mut files: Vec<_> = entries
            .map(|entry| {
                let path = entry.expect("a readable directory").path();
                let bytes = fs::read(&path).expect("a readable file");
                (path, bytes)
            })
            .collect();
        let at = files.iter().position(|(path, _)| path.ends_with(journal::FILE)).expect("a journal");
        let (_, journal) = files.remove(at);
        Self { input, files, journal }
    }

    /// The journal's line that tells which run it is.
    pub fn first_line(&self) -> &[u8] {
        self.journal.split_inclusive(|&b| b == b'\n').next().unwrap_or_default()
    }

    /// The journal with some of its lines damaged, dropped or repeated.
    pub fn damaged_journal(&self, input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
        let lines = self.journal.split(|&b| b == b'\n').filter(|line| !line.is_empty());
        let mut lines: Vec<Value> =
            lines.map(|line| serde_json::from_slice(line).expect("a valid journal")).collect();
        while !input.is_empty() && !lines.is_empty() {
            let at = input.choose_index(lines.len())?;
            match input.int_in_range(0..=9)? {
                0 => drop(lines.remove(at)),
                1 => lines.insert(at, lines[at].clone()),
                _ => damage::json(&mut lines[at], input)?,
            }
        }
        Ok(lines.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect())
    }

    /// Resumes the run with this journal and reads the output, if one appears.
    ///
    /// # Panics
    /// Where the scratch directory cannot be written.
    pub fn resume(&self, journal: &[u8]) {
        for leftover in [partial(), out()] {
            if leftover.exists() {
                fs::remove_dir_all(leftover).expect("the scratch directory can be written");
            }
        }
        fs::create_dir(partial()).expect("the scratch directory can be written");
        for (path, bytes) in &self.files {
            fs::write(path, bytes).expect("the scratch directory can be written");
        }
        fs::write(partial().join(journal::FILE), journal).expect("the scratch directory can be written");
        let run = Run::new().with_shard_bytes(SHARD_BYTES).with_resume(Resume::Continue);
        if pipeline().run_to(self.input.clone(), out(), &run).is_ok() {
            // A journal that lies within reason may lead to an output that is refused, not to a panic.
            read::directory(&out());
        }
    }
}
