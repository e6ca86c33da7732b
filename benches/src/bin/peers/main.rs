//! Taper beside candle and beside the machine's limits, job by job: the tables of `docs/performance.md`.
//!
//! ```text
//! cargo run --release -p taper-benches --bin peers                        all jobs, with one thread and with two
//! cargo run --release -p taper-benches --bin peers -- --jobs 'int4-*'     some
//! cargo run --release -p taper-benches --bin peers -- --json              one object per row
//! ```
//!
//! Each number of threads is measured in a child process, because candle reads its own once
//! (`RAYON_NUM_THREADS`). In it the limits come first, then job after job: weights are made, every result is compared with
//! a plain product in f64, and the contenders take turns.
//!
//! | file | what |
//! |---|---|
//! | `job.rs`, `clock.rs`, `row.rs` | what a job is, how it is timed, what comes out |
//! | `products.rs`, `cold.rs`, `dense.rs`, `coding.rs` | products, encoding, decoding |
//! | `llama.rs`, `bert.rs`, `candle_bert.rs` | whole models |
//! | `busy.rs`, `memory.rs`, `sweep.rs` | a busy machine, memory held, cost against size |

mod bert;
mod busy;
mod candle_bert;
mod check;
mod clock;
mod coding;
mod cold;
mod dense;
mod job;
mod llama;
mod memory;
mod model;
mod products;
mod row;
mod shelf;
mod sweep;
mod table;

use clap::Parser;
use serde::{Deserialize, Serialize};
use std::{
    error::Error,
    io::{self, BufRead, BufReader},
    process::{Command, ExitCode, Stdio},
};
use taper::Select;
use taper_benches::kernel::{Counted, Limits};

use clock::Effort;
use job::Spec;
use model::Missing;
use row::Row;
use shelf::Shelf;
use table::Style;

/// Whatever goes wrong ends the job.
pub(crate) type Failed = Box<dyn Error>;

#[global_allocator]
static HEAP: Counted = Counted;

/// Taper beside candle and beside the machine's limits.
#[derive(Debug, Parser)]
struct Args {
    /// Numbers of threads, each measured in a process of its own.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    threads: Vec<usize>,
    /// Jobs by name, or by name, size and tokens as `--list` prints them; `*` stands for anything.
    #[arg(long, value_delimiter = ',', default_value = "*")]
    jobs: Vec<String>,
    /// Cost against size as well.
    #[arg(long)]
    sweep: bool,
    /// Fewer and shorter turns.
    #[arg(long)]
    quick: bool,
    /// One JSON object per row.
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// The tables of the page.
    #[arg(long)]
    markdown: bool,
    /// What there is.
    #[arg(long)]
    list: bool,
    /// Measures in this process, with the threads that it has.
    #[arg(long, hide = true)]
    child: bool,
}

/// What a child says, a line each.
#[derive(Debug, Serialize, Deserialize)]
enum Line {
    Limits(Limits),
    Row(Box<Row>),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match (args.list, args.child) {
        (true, _) => list(&args),
        (_, true) => measure(&args),
        _ => supervise(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The jobs that are asked for.
fn specs(args: &Args) -> Result<Vec<Spec>, Failed> {
    let families = [
        cold::specs(),
        products::specs(),
        dense::specs(),
        coding::specs(),
        llama::specs(),
        bert::specs(),
        busy::specs(),
        memory::specs(),
    ];
    let mut specs: Vec<Spec> = families.into_iter().flatten().collect();
    if args.sweep {
        specs.extend(sweep::specs());
    }
    let wanted = Select::any(args.jobs.iter().map(String::as_str))?;
    specs.retain(|spec| wanted.matches(&spec.job, &[]) || wanted.matches(&spec.id(), &[]));
    if specs.is_empty() {
        return Err(format!("no job is called {}; `--list` prints all", args.jobs.join(" or ")).into());
    }
    Ok(specs)
}

fn list(args: &Args) -> Result<(), Failed> {
    specs(args)?.iter().for_each(|spec| println!("{}", spec.id()));
    Ok(())
}

/// A child's work: limits, then every job. A job that fails does not end the others; a model that is not there is an error
/// only where its jobs were asked for.
fn measure(args: &Args) -> Result<(), Failed> {
    let say = |line: &Line| -> Result<(), Failed> {
        println!("{}", serde_json::to_string(line)?);
        Ok(())
    };
    let effort = if args.quick { Effort::QUICK } else { Effort::FULL };
    let limits = Limits::measure();
    say(&Line::Limits(limits))?;
    let shelf = Shelf::default();
    let everything = args.jobs == ["*"];
    let mut failed = Vec::new();
    for spec in specs(args)? {
        match (spec.make)(&shelf).and_then(|race| Row::of(&spec, race, &limits, effort)) {
            Ok(row) => say(&Line::Row(Box::new(row)))?,
            Err(error) if error.is::<Missing>() && everything => eprintln!("left out {}: {error}", spec.id()),
            Err(error) => failed.push(format!("{}: {error}", spec.id())),
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n  ").into()) }
}

/// Runs a child for each number of threads and prints what they say.
fn supervise(args: &Args) -> Result<(), Failed> {
    let style = match (args.json, args.markdown) {
        (true, _) => Style::Json,
        (_, true) => Style::Markdown,
        _ => Style::Plain,
    };
    specs(args)?; // wrong names are an error of this process
    let (mut limits, mut rows) = (Vec::new(), Vec::new());
    let mut failed = Vec::new();
    if style == Style::Plain {
        table::plain(&mut io::stdout(), None)?;
    }
    for &threads in &args.threads {
        let hear = |line: Line| -> Result<(), Failed> {
            match line {
                Line::Limits(line) => limits.push(line),
                Line::Row(row) => {
                    show(style, &row)?;
                    rows.push(*row);
                }
            }
            Ok(())
        };
        if !child(threads, hear)? {
            failed.push(threads.to_string());
        }
    }
    if style == Style::Markdown {
        table::markdown(&mut io::stdout(), &limits, &rows)?;
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(format!("jobs failed with {} threads", failed.join(", ")).into())
    }
}

fn show(style: Style, row: &Row) -> Result<(), Failed> {
    match style {
        Style::Json => println!("{}", serde_json::to_string(row)?),
        Style::Plain => table::plain(&mut io::stdout(), Some(row))?,
        Style::Markdown => eprintln!("{} x{}, {} threads", row.job, row.batch, row.threads),
    }
    Ok(())
}

/// Runs a child and hears it out; false where it failed, which it has explained on stderr.
fn child(threads: usize, mut hear: impl FnMut(Line) -> Result<(), Failed>) -> Result<bool, Failed> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .arg("--child")
        .env("RAYON_NUM_THREADS", threads.to_string())
        .env_remove("CANDLE_NUM_THREADS")
        .stdout(Stdio::piped())
        .spawn()?;
    let out = child.stdout.take().ok_or("the child has no output")?;
    for line in BufReader::new(out).lines() {
        hear(serde_json::from_str(&line?)?)?;
    }
    Ok(child.wait()?.success())
}
