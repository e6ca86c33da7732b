//! Every method at every width on a language model, calibrated, beside what published tools make of the same model.
//!
//! The linear layers of the blocks are compressed, embedding, head and norms stay; statistics and plans see the calibration text
//! only, perplexity, KL and agreement are of the evaluation text. Recipes that are shipped are run as they are where they select that.
//!
//! Neighbours: `peer.rs` has the published tools' figures, `methods.rs` the methods that need no data.

use std::{error::Error, path::PathBuf, sync::Arc, time::Instant};
use taper::{
    Calibration, Pipeline,
    calibrate::Mode,
    models::{
        calibration,
        eval::{Windows, perplexity},
    },
    plan::{OnText, OnWindows, Surveyed},
    prelude::*,
    recipe::shipped,
};

use crate::{peer, table::Table};

type Fallible<T> = Result<T, Box<dyn Error>>;

/// Every method at every width.
#[derive(Debug, clap::Args)]
pub(crate) struct Grid {
    /// The model directory.
    model: PathBuf,
    /// The calibration text.
    calibration: PathBuf,
    /// The evaluation text.
    text: PathBuf,
    /// Only rows whose name contains one of these.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// These recipes (files, or names of shipped ones) in place of the table's rows.
    #[arg(long, value_delimiter = ',')]
    recipe: Vec<PathBuf>,
    /// Tokens per window.
    #[arg(long, default_value_t = 256)]
    window: usize,
    /// Windows of the calibration text that statistics see.
    #[arg(long, default_value_t = 128)]
    windows: usize,
    /// Windows of the evaluation text that are read; all where absent.
    #[arg(long)]
    read: Option<usize>,
    /// Windows of the evaluation text that KL looks at.
    #[arg(long, default_value_t = 64)]
    kl_windows: usize,
    /// Statistics of the original for all layers, in place of calibrating layer after layer.
    #[arg(long)]
    once: bool,
}

/// A row of the table.
pub(crate) struct Entry {
    /// What the table says.
    pub(crate) name: String,
    /// What is run.
    pub(crate) recipe: Recipe,
}

impl Entry {
    /// These recipes where there are any, otherwise the rows whose name contains one of `only`.
    pub(crate) fn asked(recipes: &[PathBuf], only: &[String]) -> Fallible<Vec<Self>> {
        if !recipes.is_empty() {
            let name = |path: &PathBuf| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let entry = |path| Ok(Self { name: name(path), recipe: Recipe::find(path)? });
            return recipes.iter().map(entry).collect();
        }
        let mut entries = entries()?;
        let asked = |name: &str| only.is_empty() || only.iter().any(|o| name.contains(o.as_str()));
        entries.retain(|entry| asked(&entry.name));
        Ok(entries)
    }
}

/// The widths, as recipes name them, with the options of a pass.
const WIDTHS: [(&str, &str); 4] = [
    ("int4-g128", "bits = 4\ngroup = 128"),
    ("int4-g32", "bits = 4\ngroup = 32"),
    ("int3-g128", "bits = 3\ngroup = 128"),
    ("int2-g64", "bits = 2\ngroup = 64"),
];

const NF4: (&str, &str) = ("nf4", "format = 'nf4'\nblock = 64");

/// A step of a recipe, for the matrices of the blocks.
fn step(name: &str, options: &str) -> String {
    format!("[[pass]]\nname = '{name}'\n{options}\nselect = ['*.layers.*', '*.layer.*']\n")
}

/// The rows: shipped recipes where there is one, written out where there is none.
fn entries() -> Fallible<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut add = |name: String, text: Option<String>| -> Fallible<()> {
        let recipe = match text {
            Some(text) => Recipe::parse(&text)?,
            None => Recipe::find(&name)?,
        };
        entries.push(Entry { name, recipe });
        Ok(())
    };
    let rotate = "[[pass]]\nname = 'rotate'\ntied-head = 'untie'\n";
    for (width, options) in WIDTHS {
        // The shipped ones are for every matrix, embeddings too.
        let plain = format!("{options}\nfit = 'minmax'");
        add(format!("rtn-{width}"), Some(step("round-nearest", &plain)))?;
        add(format!("search-{width}"), Some(step("round-nearest", options)))?;
        let weighted = format!("{options}\nweighting = 'input-norms'");
        add(format!("weighted-search-{width}"), Some(step("round-nearest", &weighted)))?;
        let hqq = format!("{options}\nsymmetry = 'asymmetric'\nfit = 'hqq'");
        add(format!("hqq-{width}"), Some(step("round-nearest", &hqq)))?;
        add(format!("awq-{width}"), None)?;
        let natural = format!("{options}\norder = 'natural'");
        add(format!("gptq-natural-order-{width}"), Some(step("gptq", &natural)))?;
        add(format!("gptq-{width}"), None)?;
        add(format!("rotate-gptq-{width}"), Some(format!("{rotate}{}", step("gptq", options))))?;
        add(format!("gptaq-{width}"), None)?;
        add(format!("tuned-{width}"), None)?;
    }
    let (nf4, options) = NF4;
    add(format!("rtn-{nf4}"), Some(step("round-nearest", &format!("{options}\nfit = 'absmax'"))))?;
    add(format!("search-{nf4}"), Some(step("round-nearest", options)))?;
    let weighted = format!("{options}\nweighting = 'input-norms'");
    add(format!("weighted-search-{nf4}"), Some(step("round-nearest", &weighted)))?;
    add(format!("gptq-{nf4}"), None)?;
    add(format!("gptaq-{nf4}"), None)?;
    for name in shipped::ALL.iter().map(|r| r.name).filter(|n| n.starts_with("best-")) {
        add(name.to_owned(), None)?;
    }
    Ok(entries)
}

/// The passes of a recipe; where it leaves formats to a budget, those of a plan that `judge` helps to make.
pub(crate) fn pipeline(
    recipe: &Recipe,
    original: &Checkpoint,
    run: &Run<'_>,
    judge: impl FnOnce(Option<usize>) -> Fallible<OnText>,
) -> Fallible<Pipeline> {
    let Some(budgeted) = recipe.budgeted() else { return Ok(recipe.pipeline()) };
    let budget = budgeted.budget.ok_or("a recipe with a budget must say how many bits")?;
    let judge = judge(budgeted.judged)?;
    Ok(Surveyed::new(budgeted, original, run, &judge, &Silent)?.plan(budget)?.pipeline()?)
}

/// The encoded weights decoded, so that judging is quick, and their bits per weight.
pub(crate) fn decoded(checkpoint: &mut Checkpoint) -> Fallible<f64> {
    let (mut bytes, mut elements) = (0, 0);
    for name in checkpoint.names() {
        let weight = checkpoint.get(&name)?;
        if !weight.encoding().is_dense() {
            bytes += weight.nbytes();
            elements += weight.shape().iter().product::<usize>();
            checkpoint.insert(name, Arc::new(weight.dense()?));
        }
    }
    Ok(8.0 * bytes as f64 / elements.max(1) as f64)
}

pub(crate) fn run(args: &Grid, json: bool) -> Fallible<()> {
    let original = taper::open(&args.model)?;
    let text = std::fs::read_to_string(&args.calibration)?;
    let calibration = calibration::on_text(&original, &text, args.window, args.windows)?;
    let calibration: Calibration = if args.once { calibration.with_mode(Mode::Once) } else { calibration };
    let windows =
        Windows::of_text(&Tokenizer::of(&original)?, &std::fs::read_to_string(&args.text)?, args.window)?;
    let windows = windows.first(args.read.unwrap_or(usize::MAX));
    let against = OnWindows::new(&original, windows.clone().first(args.kl_windows))?;
    let columns = [
        "method",
        "bits per weight",
        "perplexity",
        "KL (nats)",
        "top-1 (%)",
        "compress (s)",
        "peer's bits",
        "peer's perplexity",
        "peer's KL",
    ];
    let table = Table::new(&columns, json);
    let before = perplexity(&taper::build(&original)?.language()?, &windows, &Silent)?.perplexity;
    let nothing = f64::NAN;
    let none = [(nothing, 3), (nothing, 3), (nothing, 5)];
    table.row("original", &[&[(32.0, 3), (before, 3), (0.0, 5), (100.0, 2), (0.0, 1)], &none[..]].concat());
    for entry in Entry::asked(&args.recipe, &args.only)? {
        let run = Run::new().with_calibration(&calibration);
        let clock = Instant::now();
        let judge = |count| {
            OnText::after(&original, &text, args.window, args.windows, count)?
                .ok_or_else(|| "the calibration text has no windows left to judge on".into())
        };
        let pipeline = pipeline(&entry.recipe, &original, &run, judge)?;
        let (mut compressed, _) = pipeline.run(original.clone(), &run)?;
        let seconds = clock.elapsed().as_secs_f64();
        let bits = decoded(&mut compressed)?;
        let judged = perplexity(&taper::build(&compressed)?.language()?, &windows, &Silent)?.perplexity;
        let gap = against.judge(&compressed)?;
        let peer = peer::of(&entry.name);
        let name = peer.map_or(entry.name.clone(), |p| format!("{} ({})", entry.name, p.tool));
        let beside = peer.map_or(none, |p| [(p.bits, 3), (p.perplexity, 3), (p.kl, 5)]);
        let ours = [(bits, 4), (judged, 3), (gap.mean_kl, 5), (100.0 * gap.top1_agreement, 2), (seconds, 1)];
        table.row(&name, &[&ours, &beside[..]].concat());
    }
    Ok(())
}
