//! `taper report`: what a compression did to each weight, and how far the whole model has moved.

use serde::Serialize;
use std::path::Path;
use taper::{
    Report,
    models::Tokenizer,
    models::eval::{Divergence, Windows, divergence},
    store::output::REPORT_FILE,
};

use super::rows::table_of;
use crate::{args, bar::Bar, failure::Failure, model::Language, table::thousands, terminal::Terminal};

#[derive(Serialize)]
struct Shown<'a> {
    /// How far the model is from its original.
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<Divergence>,
    #[serde(flatten)]
    report: &'a Report,
}

pub(crate) fn run(args: &args::Report, terminal: Terminal) -> Result<(), Failure> {
    let report = opened(&args.dir)?;
    let bar = Bar::new(terminal);
    let against = match (&args.text, &args.against) {
        (Some(text), Some(original)) => Some(distance(args, text, original, &bar)?),
        _ => None,
    };
    bar.clear();
    if let Some(path) = &args.svg {
        std::fs::write(path, report.chart()).map_err(Failure::file(path))?;
    }
    let shown = Shown { against, report: &report };
    terminal.show(&shown, || text(&shown))
}

/// The report of a model directory, or a report by its own path.
fn opened(path: &Path) -> Result<Report, Failure> {
    let path = if path.is_dir() { path.join(REPORT_FILE) } else { path.to_owned() };
    let text = std::fs::read_to_string(&path).map_err(Failure::file(&path))?;
    let wrong = |e: serde_json::Error| taper::Error::Json { path: path.clone(), message: e.to_string() };
    Ok(serde_json::from_str(&text).map_err(wrong)?)
}

fn distance(args: &args::Report, text: &Path, original: &Path, bar: &Bar) -> Result<Divergence, Failure> {
    let dir = if args.dir.is_dir() { &args.dir } else { args.dir.parent().unwrap_or(&args.dir) };
    let (original, compressed) = (Language::open(original)?, Language::open(dir)?);
    let text = std::fs::read_to_string(text).map_err(Failure::file(text))?;
    let windows = Windows::of_text(&Tokenizer::of(&original.checkpoint)?, &text, args.window.get())?;
    Ok(divergence(&original, &compressed, &windows.first(args.windows.get()), bar)?)
}

fn text(shown: &Shown<'_>) -> String {
    let report = shown.report;
    let mut text: String = report.passes.iter().map(|pass| table_of(pass, usize::MAX) + "\n").collect();
    if let Some(seen) = &report.calibration {
        text += &format!("{seen}\n");
    }
    if let Some(d) = &shown.against {
        text += &format!(
            "against the original: mean KL {:.5} nats, top-1 agreement {:.2} % over {} positions\n",
            d.mean_kl,
            100.0 * d.top1_agreement,
            d.positions
        );
    }
    text + &format!(
        "{} -> {} bytes of weights, {:.3} -> {:.3} bits per weight; coverage {:.1} % of the matrices' bytes",
        thousands(report.input.bytes),
        thousands(report.output.bytes),
        report.input.bits_per_weight(),
        report.output.bits_per_weight(),
        100.0 * report.coverage()
    )
}
