//! `taper compress`: a model directory through passes into a new one.

use serde::Serialize;
use std::path::Path;
use taper::{
    Outcome, Pipeline, Recipe, Report, Run,
    pipeline::Prediction,
    recipe,
    report::Row,
    store::output::{REPORT_FILE, Resume, partial_path},
};

mod statistics;

use crate::{
    args::Compress,
    bar::Bar,
    failure::Failure,
    table::{Side, Table, shape, thousands},
    terminal::Terminal,
};
use statistics::Statistics;

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
    report: &'a Report,
}

#[derive(Serialize)]
struct Predicted<'a> {
    dry_run: bool,
    #[serde(flatten)]
    prediction: &'a Prediction,
}

pub(crate) fn run(args: &Compress, terminal: Terminal) -> Result<(), Failure> {
    let mut pipeline = pipeline(args)?;
    if let Some(floor) = args.coverage_floor {
        pipeline = pipeline.with_coverage_floor(floor);
    }
    let checkpoint = taper::open(&args.dir)?;
    if let Some(out) = &args.out {
        check_place(&args.dir, out, args.dry_run)?;
    }
    let bar = Bar::new(terminal);
    let statistics = Statistics::of(args, &checkpoint, &pipeline, &bar)?;
    let mut run = statistics.join(Run::new().with_progress(&bar));
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
    let report = pipeline.run_to(checkpoint, out, &run).map_err(|e| cancelled(e, out))?;
    bar.clear();
    let files = files(out)?;
    let shown = Done { out, bytes: files.iter().map(|(_, b)| b).sum(), files, report: &report };
    terminal.show(&shown, || done(&shown))
}

/// The passes asked for.
fn pipeline(args: &Compress) -> Result<Pipeline, Failure> {
    let group = args.group.map(std::num::NonZeroUsize::get);
    Ok(match &args.recipe {
        Some(path) => Recipe::find(path)?.pipeline(),
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
        text += &format!("{} ({}), {:.2} s\n{}", pass.name, pass.stage, pass.seconds, rows(&pass.rows));
        text.push('\n');
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
    text += &format!(
        "coverage {:.1} % of the matrices' bytes, {:.2} s\nwrote {}; every weight is in {}",
        100.0 * report.coverage(),
        report.seconds,
        shown.out.display(),
        shown.out.join(REPORT_FILE).display()
    );
    text
}

/// The most damaged weights of a pass, and a line for each other outcome.
fn rows(rows: &[Row]) -> String {
    let damage = |row: &Row| row.damage.map_or(f64::NEG_INFINITY, |d| d.normalised_mse);
    let mut changed: Vec<&Row> = rows.iter().filter(|r| r.outcome == Outcome::Done).collect();
    changed.sort_by(|a, b| damage(b).total_cmp(&damage(a)));
    let mut table = Table::new([
        ("  weight", Side::Left),
        ("shape", Side::Right),
        ("from", Side::Left),
        ("to", Side::Left),
        ("bytes", Side::Right),
        ("bits/weight", Side::Right),
        ("nMSE", Side::Right),
    ]);
    for row in changed.iter().take(ROWS) {
        let Some(after) = &row.after else { continue };
        table.row([
            format!("  {}", row.weight),
            shape(&after.shape),
            row.before.format.clone(),
            after.format.clone(),
            thousands(after.bytes),
            format!("{:.3}", after.bits_per_weight),
            row.damage.map_or_else(|| "-".to_owned(), |d| format!("{:.3e}", d.normalised_mse)),
        ]);
    }
    let mut text = table.to_string();
    if changed.len() > ROWS {
        text += &format!("  and {} weights with less damage\n", changed.len() - ROWS);
    }
    let removed = rows.iter().filter(|r| r.outcome == Outcome::Removed).count();
    if removed > 0 {
        text += &format!("  removed {removed} weights\n");
    }
    for row in rows {
        if let Outcome::Left { why } = &row.outcome {
            text += &format!("  left {}: {why}\n", row.weight);
        }
    }
    text
}
