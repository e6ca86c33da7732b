//! `taper plan`: a format for each weight within a budget, with what to expect of it.

use serde::Serialize;
use std::{io::Write, num::NonZeroUsize, path::Path};
use taper::{
    Calibration, Checkpoint, Pipeline, Plan, Recipe, Run, Select, WeightPass,
    calibrate::Mode,
    models::calibration,
    plan::{Expected, OnText, Surveyed},
    quant::allocate::{self, Pin},
    recipe::{Budgeted, budget::Fused},
};

use super::compress::opened;
use crate::{
    args,
    bar::Bar,
    failure::Failure,
    table::{Side, Table, thousands},
    terminal::Terminal,
};

/// Rows of the table on the screen; the plan itself has all of them.
const ROWS: usize = 16;

#[derive(Serialize)]
struct Shown<'a> {
    expected: Expected,
    /// Windows (or sentences) of the calibration text that were judged on.
    judged: usize,
    #[serde(skip)]
    of: &'static str,
    weights: Vec<Row<'a>>,
    /// Models with one format throughout, measured.
    uniform: Vec<Uniform<'a>>,
    /// Selected weights that no format could change, and why.
    left: &'a std::collections::BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    out: Option<&'a Path>,
}

#[derive(Serialize)]
struct Row<'a> {
    weight: &'a str,
    format: &'a str,
    bits_per_weight: f64,
    bytes: u64,
    /// The normalised error of the layer's output (of the weight, where no Gram matrix was there).
    error: f64,
    divergence: f64,
}

#[derive(Serialize)]
struct Uniform<'a> {
    format: &'a str,
    bits_per_weight: f64,
    divergence: f64,
}

pub(crate) fn run(args: &args::Plan, terminal: Terminal) -> Result<(), Failure> {
    let budgeted = asked(args)?;
    let Some(budget) = budget(&args.budget).or(budgeted.budget) else {
        return Err(Failure::Usage("say --bits, --bytes or --divergence".into()));
    };
    let checkpoint = taper::open(&args.dir)?;
    let bar = Bar::new(terminal);
    let judged = args.judged.or(budgeted.judged.and_then(NonZeroUsize::new));
    let judge = judge(&checkpoint, &args.calibrate, args.window, args.windows.get(), judged)?;
    let stats = args.stats.as_deref().map(opened).transpose()?;
    let calibration = calibrated(args, &checkpoint)?;
    let run = Run::new().with_progress(&bar);
    let run = match &stats {
        Some(stats) => run.with_stats(stats),
        None => run.with_calibration(&calibration),
    };
    let surveyed = Surveyed::new(&budgeted, &checkpoint, &run, &judge, &bar)?;
    let plan = surveyed.plan(budget)?;
    bar.clear();
    if let Some(out) = &args.out {
        let new = std::fs::File::create_new(out).map_err(Failure::file(out));
        new?.write_all(plan.to_toml().as_bytes()).map_err(Failure::file(out))?;
    }
    let shown = shown(args, &plan, &surveyed, judge.judged());
    terminal.show(&shown, || text(&shown))
}

/// The recipe's formats, with what the arguments pin, leave out and keep together.
fn asked(args: &args::Plan) -> Result<Budgeted, Failure> {
    let recipe = Recipe::find(&args.recipe)?;
    let Some(mut budgeted) = recipe.budgeted().cloned() else {
        return Err(Failure::Usage(format!(
            "recipe `{}` has no formats to choose from; add a `[[candidate]]` for each, or use the shipped `budget`",
            args.recipe.display()
        )));
    };
    for pattern in &args.exclude {
        budgeted.menu.select = budgeted.menu.select.except(pattern)?;
    }
    for (pattern, label) in &args.pin {
        let candidates = &budgeted.menu.candidates;
        let Some(candidate) = candidates.iter().find(|c| c.label == *label) else {
            let known: Vec<String> = candidates.iter().map(|c| format!("`{}`", c.label)).collect();
            return Err(Failure::Usage(format!(
                "no format is called `{label}`; there are {}",
                known.join(", ")
            )));
        };
        budgeted.menu.pins.push(Pin { select: Select::glob(pattern)?, candidate: candidate.clone() });
    }
    if args.fused {
        budgeted.fused = Fused::Together;
    }
    Ok(budgeted)
}

/// The budget that was asked for.
pub(super) fn budget(asked: &args::Budget) -> Option<allocate::Budget> {
    let bits = asked.bits.map(allocate::Budget::Bits);
    bits.or(asked.bytes.map(allocate::Budget::Bytes)).or(asked.divergence.map(allocate::Budget::Divergence))
}

/// Every format on every weight that it may be for: what has to be known for all of them.
pub(super) fn menu(budgeted: &Budgeted) -> Pipeline {
    let menu = &budgeted.menu;
    let on = |pipeline: Pipeline, pass: &std::sync::Arc<dyn WeightPass>| {
        pipeline.then(std::sync::Arc::clone(pass).on(menu.select.clone()))
    };
    let pins = menu.pins.iter().map(|pin| &pin.candidate);
    menu.candidates.iter().chain(pins).fold(Pipeline::new(), |pipeline, c| on(pipeline, &c.pass))
}

/// Who judges, on what comes after the part that statistics see.
pub(super) fn judge(
    checkpoint: &Checkpoint,
    text: &Path,
    window: NonZeroUsize,
    seen: usize,
    count: Option<NonZeroUsize>,
) -> Result<OnText, Failure> {
    judge_if_any(checkpoint, text, window, seen, count)?.ok_or_else(|| {
        Failure::Usage(format!(
            "`{}` has nothing left to judge on after what is calibrated on: give a longer text, or fewer --windows",
            text.display()
        ))
    })
}

/// As [`judge`]; `None` where the text has no more.
pub(super) fn judge_if_any(
    checkpoint: &Checkpoint,
    text: &Path,
    window: NonZeroUsize,
    seen: usize,
    count: Option<NonZeroUsize>,
) -> Result<Option<OnText>, Failure> {
    let text = std::fs::read_to_string(text).map_err(Failure::file(text))?;
    Ok(OnText::after(checkpoint, &text, window.get(), seen, count.map(NonZeroUsize::get))?)
}

fn calibrated(args: &args::Plan, checkpoint: &Checkpoint) -> Result<Calibration, Failure> {
    let text = std::fs::read_to_string(&args.calibrate).map_err(Failure::file(&args.calibrate))?;
    let calibration = calibration::on_text(checkpoint, &text, args.window.get(), args.windows.get())?;
    Ok(match args.calibration {
        Some(args::Mode::Once) => calibration.with_mode(Mode::Once),
        Some(args::Mode::Sequential) => calibration.with_mode(Mode::Sequential),
        None => calibration,
    })
}

fn shown<'a>(
    args: &'a args::Plan,
    plan: &'a Plan,
    surveyed: &'a Surveyed,
    (judged, of): (usize, &'static str),
) -> Shown<'a> {
    let mut weights: Vec<Row<'_>> = plan
        .allotment()
        .weights
        .iter()
        .map(|w| Row {
            weight: &w.weight,
            format: plan.label(w.format),
            bits_per_weight: 8.0 * w.bytes as f64 / w.elements.max(1) as f64,
            bytes: w.bytes,
            error: w.error,
            divergence: w.divergence,
        })
        .collect();
    weights.sort_by(|a, b| b.divergence.total_cmp(&a.divergence));
    let uniform = surveyed.survey().uniform.iter();
    let uniform = uniform.map(|u| Uniform {
        format: &u.label,
        bits_per_weight: u.bits_per_weight(),
        divergence: u.divergence,
    });
    Shown {
        expected: plan.expected(),
        judged,
        of,
        weights,
        uniform: uniform.collect(),
        left: &surveyed.survey().left,
        out: args.out.as_deref(),
    }
}

fn text(shown: &Shown<'_>) -> String {
    let mut table = Table::new([
        ("weight", Side::Left),
        ("format", Side::Left),
        ("bits/weight", Side::Right),
        ("bytes", Side::Right),
        ("error", Side::Right),
        ("divergence", Side::Right),
    ]);
    for row in shown.weights.iter().take(ROWS) {
        table.row([
            row.weight.to_owned(),
            row.format.to_owned(),
            format!("{:.3}", row.bits_per_weight),
            thousands(row.bytes),
            format!("{:.3e}", row.error),
            format!("{:.2e}", row.divergence),
        ]);
    }
    let mut text = table.to_string();
    if shown.weights.len() > ROWS {
        text += &format!("and {} weights with less\n", shown.weights.len() - ROWS);
    }
    for (name, why) in shown.left {
        text += &format!("left {name}: {why}\n");
    }
    let mut formats = Table::new([
        ("one format throughout", Side::Left),
        ("bits/weight", Side::Right),
        ("divergence", Side::Right),
    ]);
    for u in &shown.uniform {
        formats.row([
            u.format.to_owned(),
            format!("{:.3}", u.bits_per_weight),
            format!("{:.5}", u.divergence),
        ]);
    }
    let e = &shown.expected;
    text += &format!(
        "\n{formats}\nplan: {:.3} bits per weight, {} bytes; {} bytes with all other weights\npredicted divergence {:.5}, \
         judged on {} {} of the calibration text",
        e.bits_per_weight,
        thousands(e.bytes),
        thousands(e.total_bytes),
        e.divergence,
        shown.judged,
        shown.of
    );
    if let Some(out) = shown.out {
        text += &format!(
            "\nwrote {}: run it with `taper compress DIR -o OUT --recipe {}`",
            out.display(),
            out.display()
        );
    }
    text
}
