//! Shows that `taper compress` streams: peak memory, kill, resume, and the same bytes in the end.
//!
//! ```text
//! synthetic checkpoint ──▶ whole run ─────────────────────────▶ WHOLE ─┐
//!                     └──▶ run, SIGKILL at a share ──▶ resume ─▶ AGAIN ┴─▶ byte for byte (but for the report)
//! ```
//!
//! With `--recipe NAME` the runs are calibrated on the bundled text, block by block. Exit status 1 where memory passes the
//! limit, the bytes differ, or a run fails.

use clap::Parser;
use serde::Serialize;
use std::{
    error::Error,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};
use taper::{
    bundled,
    store::{journal, output::partial_path},
};
use taper_benches::{
    directory,
    size::{megabytes, parse},
    synthetic::{self, Spec, Written},
    watch::{Watched, watch},
};

/// Compresses a synthetic checkpoint with `taper compress`, once at a stretch and once killed and resumed.
#[derive(Debug, Parser)]
struct Args {
    /// The `taper` command; the one beside this program where absent.
    #[arg(long, value_name = "FILE")]
    taper: Option<PathBuf>,
    /// An existing checkpoint instead of a synthetic one.
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// At least this many bytes of weights.
    #[arg(long, default_value = "8G", value_parser = parse)]
    bytes: u64,
    /// Bytes of the files of the checkpoint and of the results.
    #[arg(long, default_value = "2G", value_parser = parse)]
    shard_bytes: u64,
    /// The seed of all values.
    #[arg(long, default_value = "0")]
    seed: u64,
    /// Weights that share a scale.
    #[arg(long, default_value = "32", conflicts_with = "recipe")]
    group: u32,
    /// A calibrated recipe, file or name, instead of rounding to nearest.
    #[arg(long)]
    recipe: Option<String>,
    /// Windows of 128 tokens of the bundled text to calibrate on.
    #[arg(long, default_value = "8", requires = "recipe")]
    windows: u32,
    /// When to kill: this share of the weights' bytes being written, above 0 and below 1.
    #[arg(long, default_value = "0.5", value_parser = share)]
    kill_at: f64,
    /// The most memory beyond the page cache that is allowed.
    #[arg(long, default_value = "1G", value_parser = parse)]
    memory_limit: u64,
    /// Threads for `taper`; all cores where absent.
    #[arg(long)]
    threads: Option<u16>,
    /// Where the files go (they are removed at the end); the system's temporary directory where absent.
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Print one JSON object on standard output instead of a table.
    #[arg(long)]
    json: bool,
}

/// Everything that was seen.
#[derive(Debug, Serialize)]
struct Trial {
    /// The synthetic checkpoint; none where one was given.
    checkpoint: Option<Written>,
    /// Bytes of the result's files but for the report.
    output_bytes: u64,
    whole: Watched,
    killed: Watched,
    /// Bytes of weights on disk when the run was killed.
    killed_at_bytes: u64,
    /// Weights that the killed run had finished.
    finished_weights: usize,
    resumed: Watched,
    memory_limit: u64,
    /// In what the resumed result differs from the whole one.
    difference: Option<String>,
}

impl Trial {
    fn peak(&self) -> u64 {
        [&self.whole, &self.killed, &self.resumed].map(|w| w.peak.anonymous).into_iter().max().unwrap_or(0)
    }

    fn passed(&self) -> bool {
        self.difference.is_none() && self.peak() <= self.memory_limit
    }

    fn table(&self) -> String {
        let mut text = match &self.checkpoint {
            Some(c) => format!(
                "checkpoint: {} weights, {} in {} files, the largest weight {}\n\n",
                c.weights,
                megabytes(c.bytes),
                c.shards,
                megabytes(c.largest)
            ),
            None => String::new(),
        };
        text += &format!(
            "{:<14}{:>10}{:>18}{:>18}{:>10}\n",
            "run", "seconds", "peak RssAnon", "peak RssFile", "samples"
        );
        for (name, seen) in
            [("uninterrupted", &self.whole), ("killed", &self.killed), ("resumed", &self.resumed)]
        {
            let (anonymous, file) = (megabytes(seen.peak.anonymous), megabytes(seen.peak.file));
            text +=
                &format!("{name:<14}{:>10.2}{anonymous:>18}{file:>18}{:>10}\n", seen.seconds, seen.samples);
        }
        text += &format!(
            "\nkilled with {} written and {} weights finished; result {}\n",
            megabytes(self.killed_at_bytes),
            self.finished_weights,
            megabytes(self.output_bytes)
        );
        text += &match &self.difference {
            None => "resumed and uninterrupted results are the same, byte for byte\n".to_owned(),
            Some(difference) => format!("DIFFERENT: {difference}\n"),
        };
        let verdict = if self.peak() <= self.memory_limit { "within" } else { "ABOVE" };
        text + &format!(
            "peak memory {} is {verdict} the limit of {}",
            megabytes(self.peak()),
            megabytes(self.memory_limit)
        )
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let trial = match trial(&args) {
        Ok(trial) => trial,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    if args.json {
        println!("{}", serde_json::json!({ "passed": trial.passed(), "trial": trial }));
    } else {
        println!("{}", trial.table());
    }
    if trial.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn trial(args: &Args) -> Result<Trial, Box<dyn Error>> {
    let taper = taper(args)?;
    let work = match &args.work {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let (input, checkpoint) = input(args, work.path())?;
    let [whole_dir, again_dir] = ["whole", "again"].map(|name| work.path().join(name));

    eprintln!("uninterrupted run ...");
    let whole = compress(&taper, args, &input, &whole_dir, &[], &mut || false)?;
    succeeded("the uninterrupted run", &whole)?;
    let weights = |(name, _): &(PathBuf, u64)| name.extension().is_some_and(|e| e == "safetensors");
    let files: Vec<_> = directory::files(&whole_dir)?.into_iter().collect();
    let weight_bytes: u64 = files.iter().filter(|f| weights(f)).map(|(_, bytes)| bytes).sum();

    eprintln!("run to be killed ...");
    let partial = partial_path(&again_dir)?;
    let target = (weight_bytes as f64 * args.kill_at) as u64;
    let killed =
        compress(&taper, args, &input, &again_dir, &[], &mut || directory::progress(&partial) >= target)?;
    if !killed.killed || killed.status.code().is_some() {
        return Err(format!(
            "the run to be killed ended before ({}); choose a larger checkpoint",
            killed.status
        )
        .into());
    }
    if again_dir.exists() {
        return Err("a killed run left an output directory under its final name".into());
    }
    let killed_at_bytes = directory::progress(&partial);
    let journal = std::fs::read_to_string(partial.join(journal::FILE))?;
    let finished_weights = journal.matches('\n').count().saturating_sub(1);

    eprintln!("resumed run ...");
    let resumed = compress(&taper, args, &input, &again_dir, &["--resume"], &mut || false)?;
    succeeded("the resumed run", &resumed)?;
    Ok(Trial {
        checkpoint,
        output_bytes: files.iter().map(|(_, bytes)| bytes).sum(),
        whole,
        killed,
        killed_at_bytes,
        finished_weights,
        resumed,
        memory_limit: args.memory_limit,
        difference: directory::first_difference(&whole_dir, &again_dir)?,
    })
}

/// The command to run.
fn taper(args: &Args) -> Result<PathBuf, Box<dyn Error>> {
    let path = match &args.taper {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name(format!("taper{}", std::env::consts::EXE_SUFFIX)),
    };
    if path.is_file() {
        return Ok(path);
    }
    let advice = "build it with `cargo build --release -p taper-cli` or name it with --taper";
    Err(format!("`{}` is not there; {advice}", path.display()).into())
}

/// The checkpoint to compress.
fn input(args: &Args, work: &Path) -> Result<(PathBuf, Option<Written>), Box<dyn Error>> {
    if let Some(dir) = &args.checkpoint {
        return Ok((dir.clone(), None));
    }
    eprintln!("writing a checkpoint of {} ...", megabytes(args.bytes));
    let out = work.join("checkpoint");
    let spec = Spec { bytes: args.bytes, shard_bytes: args.shard_bytes, seed: args.seed };
    let written = synthetic::write(&out, &spec)?;
    for (name, bytes) in bundled::FILES.iter().filter(|(name, _)| name.starts_with("tokenizer")) {
        std::fs::write(out.join(name), bytes)?;
    }
    Ok((out, Some(written)))
}

/// Runs `taper compress` and watches it; `stop` is asked again and again whether to kill it.
fn compress(
    taper: &Path,
    args: &Args,
    input: &Path,
    out: &Path,
    more: &[&str],
    stop: &mut dyn FnMut() -> bool,
) -> Result<Watched, Box<dyn Error>> {
    let mut command = Command::new(taper);
    command.arg("compress").arg(input).arg("-o").arg(out).args(["--json", "--shard-bytes"]);
    command.arg(args.shard_bytes.to_string()).args(more);
    match &args.recipe {
        None => command.args(["--int4", "--group", &args.group.to_string()]),
        Some(recipe) => {
            let text = out.with_extension("txt");
            std::fs::write(&text, bundled::TEXT)?;
            command.args(["--recipe", recipe, "--window", "128", "--windows", &args.windows.to_string()]);
            command.arg("--calibrate").arg(text)
        }
    };
    if let Some(threads) = args.threads {
        command.arg("--threads").arg(threads.to_string());
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.spawn().map_err(|e| format!("`{}`: {e}", taper.display()))?;
    Ok(watch(&mut child, stop)?)
}

fn succeeded(what: &str, seen: &Watched) -> Result<(), Box<dyn Error>> {
    if seen.status.success() { Ok(()) } else { Err(format!("{what} failed: {}", seen.status).into()) }
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|v: &f64| *v > 0.0 && *v < 1.0);
    share.ok_or_else(|| "expected a share above 0 and below 1, such as 0.5".to_owned())
}
