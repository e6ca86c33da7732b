//! `taper demo`: the bundled model compressed in six ways, side by side.
//!
//! It walks the same road as everybody: recipes, `run_to`, reopening what was written, judging that. The
//! recipes are [`taper::bundled::RECIPES`], `chart.rs` draws the picture.

mod chart;

use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    time::Instant,
};
use taper::{
    Flow, Recipe, Run, bundled,
    models::{
        Sampling, Tokenizer,
        eval::{Windows, perplexity},
        generate,
    },
};

use crate::{
    args::Demo,
    failure::Failure,
    interrupt::{self, Quiet},
    model::Language,
    table::{Side, Table, thousands},
    terminal::Terminal,
};

/// What each of the bundled recipes is called in the table.
const TITLES: [&str; 6] = [
    "int8 per row",
    "int4 groups of 32",
    "NF4 blocks of 64",
    "2:4 + int4",
    "magnitude 50 %, bitmask",
    "25 % of the neurons cut",
];
const WINDOW: usize = 256;
/// Tokens for the speed: about a second for the slowest variant.
const SPEED_TOKENS: usize = 128;
const PROMPT: &str = "The old captain looked at the letter, and";
/// Variants that show what they write; the original does too.
const SPEAKERS: [&str; 3] = ["int4", "nf4", "structured-25"];
const WORDS: usize = 48;

/// One line of the table.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    title: String,
    /// Bytes of `model.safetensors`.
    file_bytes: u64,
    bits_per_weight: f64,
    /// The original file over this one.
    ratio: f64,
    perplexity_before: f64,
    perplexity: f64,
    tokens_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

#[derive(Serialize)]
struct Shown<'a> {
    prompt: &'a str,
    rows: &'a [Row],
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<&'a Path>,
}

pub(crate) fn run(args: &Demo, terminal: Terminal) -> Result<(), Failure> {
    let clock = Instant::now();
    let scratch = tempfile::tempdir().map_err(Failure::file(std::env::temp_dir()))?;
    let dir = match &args.keep {
        Some(dir) => {
            std::fs::create_dir(dir).map_err(Failure::file(dir))?;
            dir.clone()
        }
        None => scratch.path().to_owned(),
    };
    let original = dir.join("original");
    bundled::write_to(&original).map_err(Failure::file(&original))?;
    terminal.note("compressing a language model of 1.3 million parameters in six ways ...");
    let mut rows = vec![judge("original", "original, bf16", &original, None)?];
    for ((name, recipe), title) in bundled::RECIPES.into_iter().zip(TITLES) {
        interrupt::check()?;
        let out = dir.join(name);
        let pipeline = Recipe::parse(recipe)?.pipeline();
        pipeline.run_to(taper::open(&original)?, &out, &Run::new().with_progress(&Quiet))?;
        rows.push(judge(name, title, &out, rows.first())?);
    }
    if let Some(file) = &args.svg {
        std::fs::write(file, chart::svg(&rows)).map_err(Failure::file(file))?;
    }
    let seconds = clock.elapsed().as_secs_f64();
    let shown = Shown { prompt: PROMPT, rows: &rows, seconds, kept: args.keep.as_deref() };
    terminal.show(&shown, || text(&shown))
}

/// Opens what was written and measures it.
fn judge(name: &str, title: &str, dir: &Path, original: Option<&Row>) -> Result<Row, Failure> {
    let language = Language::open(dir)?;
    let tokenizer = Tokenizer::of(&language.checkpoint)?;
    let windows = Windows::of_text(&tokenizer, bundled::TEXT, WINDOW)?;
    let perplexity = perplexity(&language, &windows, &Quiet)?.perplexity;
    let file: PathBuf = dir.join("model.safetensors");
    let file_bytes = file.metadata().map_err(Failure::file(&file))?.len();
    let speaks = original.is_none() || SPEAKERS.contains(&name);
    Ok(Row {
        name: name.to_owned(),
        title: title.to_owned(),
        file_bytes,
        bits_per_weight: language.checkpoint.totals()?.bits_per_weight(),
        ratio: original.map_or(1.0, |o| o.file_bytes as f64 / file_bytes as f64),
        perplexity_before: original.map_or(perplexity, |o| o.perplexity),
        perplexity,
        tokens_per_second: speed(&language, &tokenizer)?,
        text: if speaks { Some(words(&language, &tokenizer)?) } else { None },
    })
}

/// Tokens per second of plain generation.
fn speed(language: &Language, tokenizer: &Tokenizer) -> Result<f64, Failure> {
    let clock = Instant::now();
    let sampling = Sampling::at_temperature(1.0);
    let made = generate(&language.model, tokenizer, PROMPT, SPEED_TOKENS, sampling, |_| interrupt::flow())?;
    interrupt::check()?;
    Ok(made.tokens.len() as f64 / clock.elapsed().as_secs_f64())
}

/// What the model makes of the prompt, on one line.
fn words(language: &Language, tokenizer: &Tokenizer) -> Result<String, Failure> {
    let sampling = Sampling::at_temperature(0.7).with_top_k(40).with_seed(7);
    let made = generate(&language.model, tokenizer, PROMPT, WORDS, sampling, |_| Flow::Continue)?;
    Ok(made.text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn text(shown: &Shown<'_>) -> String {
    let mut table = Table::new([
        ("", Side::Left),
        ("file bytes", Side::Right),
        ("bits/weight", Side::Right),
        ("ratio", Side::Right),
        ("perplexity before", Side::Right),
        ("after", Side::Right),
        ("tokens/s", Side::Right),
    ]);
    for row in shown.rows {
        table.row([
            row.title.clone(),
            thousands(row.file_bytes),
            format!("{:.2}", row.bits_per_weight),
            format!("{:.2}×", row.ratio),
            format!("{:.2}", row.perplexity_before),
            format!("{:.2}", row.perplexity),
            format!("{:.0}", row.tokens_per_second),
        ]);
    }
    let mut lines = vec![table.to_string(), format!("{} ...", shown.prompt)];
    for row in shown.rows {
        if let Some(text) = &row.text {
            lines.push(format!("  {}: ... {text}", row.title));
        }
    }
    lines.push(format!("\n{:.1} s", shown.seconds));
    if let Some(dir) = shown.kept {
        lines.push(format!("the models are in {}", dir.display()));
    }
    lines.join("\n")
}
