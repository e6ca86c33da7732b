//! What a run would write, to the byte.
//!
//! The same layout functions as the real run, fed with outlines: what the passes say of shapes alone, and where they
//! cannot (a sparse weight's size depends on its zeros), the weight itself, computed and thrown away.

use serde_json::Value;
use std::{collections::BTreeSet, sync::Arc};

use super::{Pipeline, Run, memory, shelf::Shelf, stream};
use crate::{
    Checkpoint, Context, Coordinates, Needs, Outline, Pass, Result, Stage,
    pass::{Reading, Weightwise},
    report::{Row, Totals},
    store::{
        layout::{self, FileWeight, Sharding},
        output::side_files,
        read::INDEX_FILE,
        write::parts_of,
    },
};

/// The files that a run would write.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Prediction {
    /// File names and bytes, sorted; the report (whose timings vary) is not among them.
    pub files: Vec<(String, u64)>,
    /// Bytes of all of them.
    pub bytes: u64,
    /// The checkpoint that goes in.
    pub input: Totals,
    /// Bytes of all arrays that come out.
    pub array_bytes: u64,
    /// Weights whose values had to be read, because shapes alone do not decide their size.
    pub computed: usize,
}

pub(super) fn predict(pipeline: &Pipeline, input: Checkpoint, run: &Run<'_>) -> Result<Prediction> {
    let before = input.totals()?;
    let passes = &pipeline.passes;
    let (first, streamed) = passes.split_at(stream::whole_passes(passes));
    Pipeline::check_needs(first, run)?;
    let first: Vec<Arc<dyn Pass>> =
        first.iter().map(|pass| Arc::new(Rehearsed(Arc::clone(pass))) as _).collect();
    let memory::Ran { checkpoint, reports, .. } = memory::run(&first, input.clone(), run, &Shelf::Memory)?;
    let mut fate = Fate::default();
    reports.iter().flat_map(|report| &report.rows).for_each(|row| fate.note(row));
    let steps = stream::Steps::new(streamed, &checkpoint)?;
    let context = run.context(run.stats);
    let mut sharding = Sharding::new(run.shard_bytes);
    let mut shards: Vec<Vec<FileWeight>> = Vec::new();
    let mut computed = 0;
    for name in checkpoint.names() {
        let outline = match outlined(&steps, &name, &checkpoint, &mut fate)? {
            Some(outline) => outline,
            None => {
                computed += 1;
                // Its values decide its size; they cannot be told without statistics, and none are gathered here.
                let given = Run { stats: run.stats, ..Run::new() };
                Pipeline::check_needs(streamed, &given)?;
                let (weight, rows) = stream::through(&steps, &name, &checkpoint, &context)?;
                rows.iter().for_each(|(_, row)| fate.note(row));
                Outline::of_parts(&parts_of(&name, weight.as_ref())?)
            }
        };
        let weight = FileWeight::of_outline(&name, &outline, checkpoint.codecs())?;
        let shard = sharding.place(weight.nbytes());
        shards.resize_with(shards.len().max(shard + 1), Vec::new);
        shards[shard].push(weight);
    }
    Pipeline::check_changed(!fate.changed.is_empty(), &fate.left)?;
    pipeline.coverage(&input, &fate.changed.iter().map(String::as_str).collect(), &fate.left)?;
    shards.resize_with(shards.len().max(1), Vec::new);
    let files = files(&checkpoint, &shards)?;
    Ok(Prediction {
        bytes: files.iter().map(|(_, bytes)| bytes).sum(),
        files,
        input: before,
        array_bytes: shards.iter().flatten().map(FileWeight::nbytes).sum(),
        computed,
    })
}

/// A pass that only shows what it would leave behind.
#[derive(Debug)]
struct Rehearsed(Arc<dyn Pass>);

impl Pass for Rehearsed {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn stage(&self) -> Stage {
        self.0.stage()
    }

    fn needs(&self) -> Needs {
        self.0.needs()
    }

    fn settings(&self) -> Value {
        self.0.settings()
    }

    fn run(&self, checkpoint: Checkpoint, context: &Context<'_>) -> Result<Checkpoint> {
        self.0.rehearse(checkpoint, context)
    }

    fn coordinates(&self) -> Coordinates {
        self.0.coordinates()
    }

    fn reading(&self) -> Reading {
        self.0.reading()
    }

    fn weightwise(&self) -> Option<Weightwise<'_>> {
        self.0.weightwise()
    }
}

/// What would become of weights, as far as shapes tell.
#[derive(Default)]
struct Fate {
    changed: BTreeSet<String>,
    left: Vec<String>,
}

impl Fate {
    fn note(&mut self, row: &Row) {
        match super::left(row) {
            Some(left) => self.left.push(left),
            None => {
                self.changed.insert(row.weight.clone());
            }
        }
    }
}

/// The outline of a weight after all steps, where every step can tell.
///
/// An encoder that leaves the outline as it is leaves the weight; what other passes change need not show in it.
fn outlined(
    steps: &stream::Steps<'_>,
    name: &str,
    checkpoint: &Checkpoint,
    fate: &mut Fate,
) -> Result<Option<Outline>> {
    let mut changed = false;
    let info = checkpoint.info(name)?;
    let mut outline = match layout::dense_type(&info) {
        Some(dtype) => Outline::dense(info.encoding, dtype, info.shape),
        None => Outline::of_parts(&parts_of(name, checkpoint.get(name)?.as_ref())?),
    };
    for (_, step) in steps.of(name) {
        match step.pass.outline(name, &outline) {
            Some(after) => {
                changed |= step.pass.stage() != Stage::Encode || after != outline;
                outline = after;
            }
            None => return Ok(None),
        }
    }
    if changed {
        fate.changed.insert(name.to_owned());
    } else if steps.of(name).next().is_some() {
        fate.left.push(format!("`{name}`: stays {}", outline.encoding));
    }
    Ok(Some(outline))
}

fn files(checkpoint: &Checkpoint, shards: &[Vec<FileWeight>]) -> Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    for (index, shard) in shards.iter().enumerate() {
        let data: u64 = shard.iter().map(FileWeight::nbytes).sum();
        files.push((layout::shard_name(index, shards.len()), layout::header(shard)?.len() as u64 + data));
    }
    if shards.len() > 1 {
        files.push((INDEX_FILE.to_owned(), layout::index(shards).len() as u64));
    }
    let weights = shards.concat();
    let config = layout::config(checkpoint.config(), &weights, checkpoint.codecs())?;
    files.push(("config.json".to_owned(), config.len() as u64));
    if let Some(dir) = checkpoint.dir() {
        for file in side_files(dir)? {
            let path = dir.join(&file);
            let bytes = path.metadata().map_err(crate::Error::io(&path))?.len();
            files.push((file.to_string_lossy().into_owned(), bytes));
        }
    }
    files.sort();
    Ok(files)
}
