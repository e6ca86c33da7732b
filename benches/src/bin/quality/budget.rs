//! The curve of perplexity and divergence against bits per weight under a bit budget, beside the formats it chooses from.
//!
//! Formats are surveyed once, on the calibration text only; every budget is then planned, run and judged on the evaluation
//! text. `hull` is the lower convex hull of the uniform formats at a plan's own bits: what mixing whole models would give.

use std::{cell::RefCell, error::Error, path::PathBuf};
use taper::{
    Needs,
    calibrate::Mode,
    models::{
        calibration,
        eval::{Perplexity, Windows, perplexity},
    },
    plan::{OnWindows, Plan, Surveyed},
    prelude::*,
    quant::allocate::{Budget, Judge},
};

use crate::{chart, table::Table};

type Fallible<T> = Result<T, Box<dyn Error>>;

/// The bits per weight that the curve is asked for.
const BITS: [f64; 9] = [2.25, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 8.0];

/// The bit budget of a language model.
#[derive(Debug, clap::Args)]
pub(crate) struct Curve {
    /// The model directory.
    model: PathBuf,
    /// The calibration text.
    calibration: PathBuf,
    /// The evaluation text.
    text: PathBuf,
    /// The recipe with the formats to choose from.
    #[arg(long, default_value = "budget")]
    recipe: PathBuf,
    /// Bits per weight to plan for.
    #[arg(long, value_delimiter = ',', default_values_t = BITS)]
    bits: Vec<f64>,
    /// Tokens per window.
    #[arg(long, default_value_t = 256)]
    window: usize,
    /// Windows of the calibration text that statistics see.
    #[arg(long, default_value_t = 128)]
    windows: usize,
    /// Windows of the calibration text, after those, on which the survey judges.
    #[arg(long, default_value_t = 16)]
    judged: usize,
    /// Windows of the evaluation text that KL looks at.
    #[arg(long, default_value_t = 64)]
    kl_windows: usize,
    /// Statistics of the original for all formats and plans, in place of calibrating layer after layer: quicker, and coarser.
    #[arg(long)]
    once: bool,
    /// Draw the curve.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// A model on the evaluation text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Point {
    pub(crate) bits: f64,
    pub(crate) perplexity: f64,
    pub(crate) kl: f64,
    agreement: f64,
}

/// Who judges on the evaluation text.
struct Evaluation {
    windows: Windows,
    against: OnWindows,
}

impl Evaluation {
    fn perplexity(&self, checkpoint: &Checkpoint) -> Fallible<Perplexity> {
        Ok(perplexity(&taper::build(checkpoint)?.language()?, &self.windows, &Silent)?)
    }

    fn point(&self, checkpoint: &Checkpoint, bits: f64) -> Fallible<Point> {
        let divergence = self.against.judge(checkpoint)?;
        let perplexity = self.perplexity(checkpoint)?.perplexity;
        Ok(Point { bits, perplexity, kl: divergence.mean_kl, agreement: divergence.top1_agreement })
    }
}

pub(crate) fn run(args: &Curve, json: bool) -> Fallible<()> {
    let original = taper::open(&args.model)?;
    let text = std::fs::read_to_string(&args.calibration)?;
    let calibration = calibration::on_text(&original, &text, args.window, args.windows)?;
    let judge = OnWindows::after(&original, &text, args.window, args.windows, args.judged)?
        .ok_or("the calibration text has no windows left to judge on")?;
    let windows =
        Windows::of_text(&Tokenizer::of(&original)?, &std::fs::read_to_string(&args.text)?, args.window)?;
    let against = OnWindows::new(&original, windows.clone().first(args.kl_windows))?;
    let evaluation = Evaluation { windows, against };
    let calibration = if args.once { calibration.with_mode(Mode::Once) } else { calibration };
    let stats = if args.once { Some(calibration.stats(&original, Needs::Gram, &Silent)?) } else { None };
    let run = match &stats {
        Some(stats) => Run::new().with_stats(stats),
        None => Run::new().with_calibration(&calibration),
    };
    let columns = [
        "budget",
        "bits per weight",
        "perplexity",
        "hull",
        "KL (nats)",
        "hull",
        "predicted KL",
        "predicted / measured",
        "top-1 (%)",
    ];
    let table = Table::new(&columns, json);
    let before = evaluation.perplexity(&original)?.perplexity;
    table.row(
        "original",
        &[(32.0, 3), (before, 3), (before, 3), (0.0, 5), (0.0, 5), (0.0, 5), (1.0, 2), (100.0, 2)],
    );
    let (surveyed, uniform) = survey(args, &original, &run, &judge, &evaluation)?;
    for (point, format) in uniform.iter().zip(&surveyed.survey().uniform) {
        row(&table, &format.label, point, &uniform, format.divergence);
    }
    let mut planned = Vec::new();
    for &bits in &args.bits {
        let plan = surveyed.plan(Budget::Bits(bits))?;
        let point = planned_point(&plan, &original, &run, &evaluation)?;
        row(&table, &format!("budget {bits}"), &point, &uniform, plan.expected().divergence);
        planned.push(point);
    }
    if let Some(path) = &args.svg {
        std::fs::write(path, chart::svg(&uniform, &planned))?;
    }
    Ok(())
}

/// The survey, and every uniform model on the evaluation text.
fn survey(
    args: &Curve,
    original: &Checkpoint,
    run: &Run<'_>,
    judge: &OnWindows,
    evaluation: &Evaluation,
) -> Fallible<(Surveyed, Vec<Point>)> {
    let recipe = Recipe::find(&args.recipe)?;
    let budgeted = recipe.budgeted().ok_or("the recipe has no formats to choose from")?;
    // The survey shows each whole model once: a model with packed weights (single weights come decoded).
    let seen = RefCell::new(Vec::new());
    let both = |checkpoint: &Checkpoint| -> taper::Result<f64> {
        let packed =
            checkpoint.names().iter().any(|n| checkpoint.info(n).is_ok_and(|i| !i.encoding.is_dense()));
        if packed {
            let point = evaluation.point(checkpoint, 0.0).map_err(|e| std::io::Error::other(e.to_string()));
            seen.borrow_mut().push(point.map_err(taper::Error::other)?);
        }
        judge.divergence(checkpoint)
    };
    let surveyed = Surveyed::new(budgeted, original, run, &both, &Silent)?;
    let mut points = seen.into_inner();
    for (point, format) in points.iter_mut().zip(&surveyed.survey().uniform) {
        point.bits = format.bits_per_weight();
    }
    Ok((surveyed, points))
}

fn planned_point(
    plan: &Plan,
    original: &Checkpoint,
    run: &Run<'_>,
    evaluation: &Evaluation,
) -> Fallible<Point> {
    let (compressed, report) = plan.pipeline()?.run(original.clone(), run)?;
    if report.output.bytes != plan.expected().total_bytes {
        let (found, expected) = (report.output.bytes, plan.expected().total_bytes);
        return Err(format!("{found} bytes, planned were {expected}").into());
    }
    evaluation.point(&compressed, plan.expected().bits_per_weight)
}

fn row(table: &Table, name: &str, point: &Point, uniform: &[Point], predicted: f64) {
    let hull = |of: fn(&Point) -> f64| hull_at(uniform.iter().map(|p| (p.bits, of(p))).collect(), point.bits);
    table.row(
        name,
        &[
            (point.bits, 3),
            (point.perplexity, 3),
            (hull(|p| p.perplexity), 3),
            (point.kl, 5),
            (hull(|p| p.kl), 5),
            (predicted, 5),
            (predicted / point.kl, 2),
            (100.0 * point.agreement, 2),
        ],
    );
}

/// The lower convex hull of points at `x`: the least height of any chord (or point) there.
fn hull_at(points: Vec<(f64, f64)>, x: f64) -> f64 {
    let mut least = f64::INFINITY;
    for &(x0, y0) in &points {
        for &(x1, y1) in &points {
            if x0 <= x && x <= x1 {
                let share = if x1 > x0 { (x - x0) / (x1 - x0) } else { 0.0 };
                least = least.min(y0 + share * (y1 - y0));
            }
        }
    }
    least
}
