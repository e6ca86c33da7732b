//! `taper compress`: a model directory through passes into a new one.

use serde::Serialize;
use std::{num::NonZeroUsize, path::Path};
use taper::{
    Checkpoint, Pipeline, Plan, Recipe, Report, Run,
    pipeline::Prediction,
    plan::Surveyed,
    recipe,
    store::output::{REPORT_FILE, Resume, partial_path},
};

mod check;
mod statistics;

pub(super) use statistics::opened;

use crate::{
    args::Compress,
    bar::Bar,
    failure::Failure,
    table::{Side, Table, thousands},
    terminal::Terminal,
};
use check::Checked;
use statistics::Statistics;

use super::{plan, rows::table_of};

/// Rows of a pass's table on the screen; the report beside the model has all of them.
const ROWS: usize = 12;
/// int4 groups where nothing is said: half a bit per weight for scales, and the best of the usual sizes.
const INT4_GROUP: usize = 32;
/// NF4 blocks where nothing is said: what the format was published with.
const NF4_BLOCK: usize = 64;

#[derive(Serialize)]
struct Done<'a> {
    out: &'a Path,
    /// Bytes of every file of the directory but the report.
    bytes: u64,
    files: Vec<(String, u64)>,
    /// What became of the plan's prediction.
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<Checked>,
    report: &'a Report,
}

#[derive(Serialize)]
struct Predicted<'a> {
    dry_run: bool,
    #[serde(flatten)]
    prediction: &'a Prediction,
}

pub(crate) fn run(args: &Compress, terminal: Terminal) -> Result<(), Failure> {
    let recipe = args.recipe.as_ref().map(Recipe::find).transpose()?;
    let mut pipeline = pipeline(args, recipe.as_ref())?;
    let checkpoint = taper::open(&args.dir)?;
    if let Some(out) = &args.out {
        check_place(&args.dir, out, args.dry_run)?;
    }
    let bar = Bar::new(terminal);
    let statistics = Statistics::of(args, &checkpoint, &pipeline, &bar)?;
    let mut run = statistics.join(Run::new().with_progress(&bar));
    let mut expected = recipe.as_ref().and_then(Recipe::expected).copied();
    if let (Some(recipe), Some(budgeted)) = (&recipe, recipe.as_ref().and_then(Recipe::budgeted)) {
        let planned = planned(args, budgeted, &checkpoint, &run, &bar)?;
        pipeline = planned.pipeline()?.with_coverage_floor(recipe.coverage_floor());
        expected = Some(planned.expected());
    }
    if let Some(floor) = args.coverage_floor {
        pipeline = pipeline.with_coverage_floor(floor);
    }
    if let Some(bytes) = args.shard_bytes {
        run = run.with_shard_bytes(bytes);
    }
    let Some(out) = args.out.as_deref().filter(|_| !args.dry_run) else {
        let prediction = pipeline.predict(checkpoint, &run)?;
        bar.clear();
        let shown = Predicted { dry_run: true, prediction: &prediction };
        return terminal.show(&shown, || predicted(&prediction));
    };
    if args.resume {
        run = run.with_resume(Resume::Continue);
    }
    let original = checkpoint.clone();
    let report = pipeline.run_to(checkpoint, out, &run).map_err(|e| cancelled(e, out))?;
    let plan = match expected {
        Some(expected) => Some(Checked::of(args, expected, &original, out, &report)?),
        None => None,
    };
    bar.clear();
    let files = files(out)?;
    let shown = Done { out, bytes: files.iter().map(|(_, b)| b).sum(), files, plan, report: &report };
    terminal.show(&shown, || done(&shown))
}

/// A format for each weight, within the budget of the arguments.
fn planned(
    args: &Compress,
    budgeted: &recipe::Budgeted,
    checkpoint: &Checkpoint,
    run: &Run<'_>,
    bar: &Bar,
) -> Result<Plan, Failure> {
    let missing = |what: &str| Failure::Usage(format!("the recipe chooses a format for each weight: {what}"));
    let budget = plan::budget(&args.budget)
        .or(budgeted.budget)
        .ok_or_else(|| missing("say --bits, --bytes or --divergence"))?;
    let Some(path) = &args.calibrate else {
        return Err(missing("give a text with --calibrate FILE to try them on"));
    };
    let (seen, judged) =
        (statistics::windows(args, checkpoint)?, budgeted.judged.and_then(NonZeroUsize::new));
    let judge = plan::judge(checkpoint, path, args.window, seen, judged)?;
    Ok(Surveyed::new(budgeted, checkpoint, run, &judge, bar)?.plan(budget)?)
}

/// The passes asked for; of a recipe with a budget, every format on every weight that it may be for.
fn pipeline(args: &Compress, recipe: Option<&Recipe>) -> Result<Pipeline, Failure> {
    let group = args.group.map(NonZeroUsize::get);
    let budgeted = recipe.and_then(Recipe::budgeted);
    if budgeted.is_none() && plan::budget(&args.budget).is_some() {
        return Err(Failure::Usage(
            "--bits, --bytes and --divergence are for recipes that choose a format for each weight, such as \
             --recipe budget"
                .into(),
        ));
    }
    Ok(match recipe {
        Some(recipe) => budgeted.map_or_else(|| recipe.pipeline(), plan::menu),
        None if args.int8 => recipe::int8(group)?,
        None if args.int4 => recipe::int4(group.unwrap_or(INT4_GROUP))?,
        None => recipe::nf4(group.unwrap_or(NF4_BLOCK))?,
    })
}

/// Refuses an output inside the input (which is only read), and for a dry run one that exists: a real run says so itself.
fn check_place(dir: &Path, out: &Path, dry_run: bool) -> Result<(), Failure> {
    let parent = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // A parent that is not there is reported where the directory is made.
    if let (Ok(dir), Ok(parent)) = (dir.canonicalize(), parent.canonicalize())
        && parent.starts_with(&dir)
    {
        let place = format!("`{}` is inside the model directory, which is only read", out.display());
        return Err(Failure::Usage(format!("{place}; choose a place outside `{}`", dir.display())));
    }
    if dry_run && out.exists() {
        return Err(taper::Error::OutputExists { path: out.to_owned() }.into());
    }
    Ok(())
}

/// What a cancelled run leaves, and how to go on.
fn cancelled(error: taper::Error, out: &Path) -> Failure {
    if !error.is_cancelled() {
        return error.into();
    }
    match partial_path(out) {
        Ok(partial) if partial.exists() => Failure::Cancelled(format!(
            "; `{}` holds what is finished: continue with --resume, or remove it",
            partial.display()
        )),
        _ => Failure::Cancelled(String::new()),
    }
}

/// The files of the new directory (and one folder below), but for the report, whose size is that of its timings.
fn files(out: &Path) -> Result<Vec<(String, u64)>, Failure> {
    let mut files = Vec::new();
    let mut folders = vec![out.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(Failure::file(&folder))? {
            let path = entry.map_err(Failure::file(&folder))?.path();
            let meta = path.metadata().map_err(Failure::file(&path))?;
            let name = path.strip_prefix(out).unwrap_or(&path).to_string_lossy().into_owned();
            if meta.is_dir() {
                folders.push(path);
            } else if name != REPORT_FILE {
                files.push((name, meta.len()));
            }
        }
    }
    files.sort();
    Ok(files)
}

fn predicted(prediction: &Prediction) -> String {
    let mut table = Table::new([("file", Side::Left), ("bytes", Side::Right)]);
    for (name, bytes) in &prediction.files {
        table.row([name.clone(), thousands(*bytes)]);
    }
    table.row(["total".to_owned(), thousands(prediction.bytes)]);
    format!(
        "{table}\nweights: {} -> {} bytes, {:.2}×; nothing written",
        thousands(prediction.input.bytes),
        thousands(prediction.array_bytes),
        prediction.input.bytes as f64 / prediction.array_bytes.max(1) as f64
    )
}

fn done(shown: &Done<'_>) -> String {
    let report = shown.report;
    let mut text = String::new();
    for pass in &report.passes {
        text += &format!("{}\n", table_of(pass, ROWS));
    }
    if let Some(seen) = &report.calibration {
        text += &format!("{seen}\n");
    }
    text += &format!(
        "{} -> {} bytes of weights, {:.3} -> {:.3} bits per weight, {:.2}×\n",
        thousands(report.input.bytes),
        thousands(report.output.bytes),
        report.input.bits_per_weight(),
        report.output.bits_per_weight(),
        report.input.bytes as f64 / report.output.bytes.max(1) as f64
    );
    if let Some(plan) = &shown.plan {
        text += &format!("{plan}\n");
    }
    text += &format!(
        "coverage {:.1} % of the matrices' bytes, {:.2} s\nwrote {}; every weight is in {}",
        100.0 * report.coverage(),
        report.seconds,
        shown.out.display(),
        shown.out.join(REPORT_FILE).display()
    );
    text
}
