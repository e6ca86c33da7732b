//! What passes are told of the inputs of layers: a calibration text to run, or statistics from a file.

use std::path::Path;
use taper::{
    Calibration, Checkpoint, Needs, Pipeline, Progress, Run, Stats,
    calibrate::Mode,
    models::{Family, calibration, llama::gguf},
    stats::{file, importance::Importance},
};

use crate::{
    args::{self, Compress},
    failure::Failure,
};

/// Windows of calibration text where nothing is said: 32,768 tokens of the usual 256, beyond which four bits gain little.
const WINDOWS: usize = 128;

/// Calibration or statistics, or neither.
#[derive(Default)]
pub(super) struct Statistics {
    calibration: Option<Calibration>,
    stats: Option<Stats>,
}

impl Statistics {
    /// What the arguments ask for; gathers and saves statistics where they are to be kept.
    pub(super) fn of(
        args: &Compress,
        checkpoint: &Checkpoint,
        pipeline: &Pipeline,
        progress: &dyn Progress,
    ) -> Result<Self, Failure> {
        if let Some(path) = &args.stats {
            let stats = opened(path)?;
            return Ok(Self { stats: Some(stats), ..Self::default() });
        }
        let Some(path) = &args.calibrate else {
            return match pipeline.passes().iter().find(|p| p.needs() != Needs::Nothing && !args.dry_run) {
                Some(pass) => Err(Failure::Usage(format!(
                    "pass `{}` needs {}: give a text with --calibrate FILE, or saved statistics with --stats FILE",
                    pass.name(),
                    pass.needs()
                ))),
                None => Ok(Self::default()),
            };
        };
        let calibration = calibrated(args, path, checkpoint)?;
        let Some(save) = args.save_stats.as_deref().filter(|_| !args.dry_run) else {
            return Ok(Self { calibration: Some(calibration), stats: None });
        };
        let stats = saved(&calibration, checkpoint, pipeline, save, progress)?;
        Ok(Self { calibration: Some(calibration), stats: Some(stats) })
    }

    /// The run with them.
    pub(super) fn join<'a>(&'a self, mut run: Run<'a>) -> Run<'a> {
        if let Some(calibration) = &self.calibration {
            run = run.with_calibration(calibration);
        }
        if let Some(stats) = &self.stats {
            run = run.with_stats(stats);
        }
        run
    }
}

/// Saved statistics, or an importance matrix under the names of a Llama's weights.
pub(in crate::cmd) fn opened(path: &Path) -> Result<Stats, Failure> {
    if path.extension().is_none_or(|e| e != "dat") {
        return Ok(file::open(path)?);
    }
    let stats = Importance::open(path)?.stats(gguf::to_hugging_face);
    if stats.is_empty() {
        let names = "no tensor of it is named as in a Llama (`blk.0.attn_q.weight`)";
        return Err(Failure::Usage(format!("`{}`: {names}", path.display())));
    }
    Ok(stats)
}

/// Windows of a language model's calibration text, or sentences of an encoder's, that are calibrated on.
pub(super) fn windows(args: &Compress, checkpoint: &Checkpoint) -> Result<usize, Failure> {
    let all = if Family::of(checkpoint)? == Family::Llama { WINDOWS } else { usize::MAX };
    Ok(args.windows.map_or(all, std::num::NonZeroUsize::get))
}

fn calibrated(args: &Compress, path: &Path, checkpoint: &Checkpoint) -> Result<Calibration, Failure> {
    let text = std::fs::read_to_string(path).map_err(Failure::file(path))?;
    let count = windows(args, checkpoint)?;
    let calibration = calibration::on_text(checkpoint, &text, args.window.get(), count)?;
    Ok(match args.calibration {
        Some(args::Mode::Once) => calibration.with_mode(Mode::Once),
        Some(args::Mode::Sequential) => calibration.with_mode(Mode::Sequential),
        None => calibration,
    })
}

/// Statistics of the model as it is, written to a new file.
fn saved(
    calibration: &Calibration,
    checkpoint: &Checkpoint,
    pipeline: &Pipeline,
    path: &Path,
    progress: &dyn Progress,
) -> Result<Stats, Failure> {
    let needs = pipeline.passes().iter().map(|p| p.needs()).max().unwrap_or(Needs::Nothing);
    let needs = needs.clamp(Needs::InputNorms, Needs::Gram);
    if calibration.mode(needs) == Mode::Sequential {
        return Err(Failure::Usage(
            "--save-stats keeps statistics of the model as it is; say --calibration once (sequential ones belong to \
             one recipe and one run)"
                .into(),
        ));
    }
    let stats = calibration.stats(checkpoint, needs, progress)?;
    file::save(&stats, path)?;
    Ok(stats)
}
