//! What can be asked of the command. Strings become types here.

use clap::{ArgGroup, Parser, Subcommand, value_parser};
use std::{num::NonZeroUsize, path::PathBuf};
use taper::{models::llama::CacheFormat, quant::Arithmetic};

/// Makes models smaller: quantization and pruning of model directories, and how good the result is.
#[derive(Debug, Parser)]
#[command(name = "taper", version, max_term_width = 110)]
pub(crate) struct Args {
    /// Print one JSON object on standard output and nothing else there.
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Threads to work with, 1 to 1024; all cores where absent. Results do not depend on it.
    #[arg(long, global = true, value_name = "N", value_parser = value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what is in a model directory: shape, encoding, bytes and bits of each weight.
    Inspect(Inspect),
    /// Compress a model directory into a new one.
    Compress(Box<Compress>),
    /// Choose a format for each weight within a budget, and write the choice as a recipe.
    Plan(Box<Plan>),
    /// Show what a compression did to each weight, the most damaged first.
    Report(Report),
    /// List the recipes that come with the command.
    Recipes,
    /// Judge a model: perplexity on a text, agreement with sentence scores, accuracy on features.
    Eval(Eval),
    /// Compare two model directories weight by weight, the most damaged first.
    Diff(Diff),
    /// Continue a prompt.
    Generate(Generate),
    /// Compress the bundled model in six ways and show sizes, perplexities and speeds side by side.
    Demo(Demo),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Inspect {
    /// The model directory.
    pub(crate) dir: PathBuf,
}

#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("how").required(true).args(["recipe", "int8", "int4", "nf4"])))]
pub(crate) struct Compress {
    /// The model directory to compress; it is only read.
    pub(crate) dir: PathBuf,

    /// The model directory to make; it appears whole or not at all.
    #[arg(short, long, value_name = "DIR", required_unless_present = "dry_run")]
    pub(crate) out: Option<PathBuf>,

    /// Passes from a TOML file, or a shipped recipe by its name (`taper recipes` lists them).
    #[arg(long, value_name = "FILE|NAME", visible_alias = "plan")]
    pub(crate) recipe: Option<PathBuf>,

    /// For recipes that choose a format for each weight, such as `budget`.
    #[command(flatten)]
    pub(crate) budget: Budget,

    /// Run the model on this text, so that passes know what its layers read: windows for language models, a sentence a
    /// line for sentence encoders.
    #[arg(long, value_name = "FILE", conflicts_with = "stats")]
    pub(crate) calibrate: Option<PathBuf>,

    /// Tokens per window of the calibration text (language models).
    #[arg(long, value_name = "N", default_value = "256", requires = "calibrate", value_parser = count)]
    pub(crate) window: NonZeroUsize,

    /// The first N windows: 128 where absent; the first N sentences for encoders, all where absent.
    #[arg(long, value_name = "N", requires = "calibrate", value_parser = count)]
    pub(crate) windows: Option<NonZeroUsize>,

    /// Statistics of the model as it is, or of what it became so far; sequential for Gram matrices, else once.
    #[arg(long, value_enum, value_name = "MODE", requires = "calibrate")]
    pub(crate) calibration: Option<Mode>,

    /// Keep the statistics in this new file, to be used again with --stats; for statistics that are taken once.
    #[arg(long, value_name = "FILE", requires = "calibrate")]
    pub(crate) save_stats: Option<PathBuf>,

    /// Statistics that were saved: of --save-stats, or an importance matrix (`.dat`).
    #[arg(long, value_name = "FILE")]
    pub(crate) stats: Option<PathBuf>,

    /// All matrices to 8-bit integers, one scale per row (or per --group).
    #[arg(long)]
    pub(crate) int8: bool,

    /// All matrices to 4-bit integers in groups.
    #[arg(long)]
    pub(crate) int4: bool,

    /// All matrices to 4-bit NormalFloat in blocks.
    #[arg(long)]
    pub(crate) nf4: bool,

    /// Weights that share a scale: 32 for --int4, 64 for --nf4, a row for --int8 where absent.
    #[arg(long, value_name = "N", conflicts_with = "recipe", value_parser = count)]
    pub(crate) group: Option<NonZeroUsize>,

    /// Only tell what would be written, to the byte.
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Continue a run that was cancelled or killed.
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) resume: bool,

    /// Fail where less than this share of the matrices' bytes is compressed, 0 to 1.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub(crate) coverage_floor: Option<f64>,

    /// Begin a new file after this many bytes, such as 4000000000, 500M or 4G.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(crate) shard_bytes: Option<u64>,
}

/// How a language model holds the keys and values of the tokens before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum KvCache {
    /// As they are computed.
    Full,
    /// Eight bits each.
    Int8,
    /// Four bits each.
    Int4,
}

impl From<KvCache> for CacheFormat {
    fn from(format: KvCache) -> Self {
        match format {
            KvCache::Full => Self::Full,
            KvCache::Int8 => Self::Int8,
            KvCache::Int4 => Self::Int4,
        }
    }
}

/// With what numbers packed weights are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Numbers {
    /// Inputs as they are.
    Exact,
    /// Inputs rounded to bf16.
    Bf16,
    /// Inputs rounded to eight bits, by the scale that the file states or else one per token and group.
    Int8,
}

impl From<Numbers> for Arithmetic {
    fn from(numbers: Numbers) -> Self {
        match numbers {
            Numbers::Exact => Self::Exact,
            Numbers::Bf16 => Self::Bf16,
            Numbers::Int8 => Self::Int8,
        }
    }
}

/// What statistics are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// The model as it is.
    Once,
    /// Each layer sees what the layers before it became.
    Sequential,
}

/// What a format for each weight may cost.
#[derive(Debug, clap::Args)]
#[group(id = "asked", multiple = false)]
pub(crate) struct Budget {
    /// Bits per weight on average over the weights that get a format; scales and zero points counted.
    #[arg(long, value_name = "BITS", value_parser = positive)]
    pub(crate) bits: Option<f64>,

    /// Bytes of all weights of the model, such as 4000000000, 500M or 4G.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(crate) bytes: Option<u64>,

    /// Divergence from the original that is predicted at most: nats per token, 1 - cos for sentence encoders.
    #[arg(long, value_name = "KL", value_parser = positive)]
    pub(crate) divergence: Option<f64>,
}

#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("budgeted").required(true).args(["bits", "bytes", "divergence"])))]
pub(crate) struct Plan {
    /// The model directory; it is only read.
    pub(crate) dir: PathBuf,

    #[command(flatten)]
    pub(crate) budget: Budget,

    /// The recipe with the formats to choose from: a TOML file, or a shipped one by its name.
    #[arg(long, value_name = "FILE|NAME", default_value = "budget")]
    pub(crate) recipe: PathBuf,

    /// The text on which formats are tried: windows (sentences, a line each, for encoders) for statistics, then others to
    /// judge on.
    #[arg(long, value_name = "FILE")]
    pub(crate) calibrate: PathBuf,

    /// Tokens per window of the calibration text.
    #[arg(long, value_name = "N", default_value = "256", value_parser = count)]
    pub(crate) window: NonZeroUsize,

    /// The first N windows or sentences are for statistics.
    #[arg(long, value_name = "N", default_value = "128", value_parser = count)]
    pub(crate) windows: NonZeroUsize,

    /// Statistics of the model as it is, or of what it became so far; sequential for Gram matrices, else once.
    #[arg(long, value_enum, value_name = "MODE")]
    pub(crate) calibration: Option<Mode>,

    /// Statistics that were saved, in place of those of the text; the text is judged on all the same.
    #[arg(long, value_name = "FILE", conflicts_with = "calibration")]
    pub(crate) stats: Option<PathBuf>,

    /// N windows or sentences after those of the statistics are judged on: 16 windows, 128 sentences where absent.
    #[arg(long, value_name = "N", value_parser = count)]
    pub(crate) judged: Option<NonZeroUsize>,

    /// Settle the format of the weights that a pattern names: `*.layers.0.*=gptq int8 channel`.
    #[arg(long, value_name = "PATTERN=FORMAT", value_parser = pin)]
    pub(crate) pin: Vec<(String, String)>,

    /// Leave the weights that a pattern names as they are.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) exclude: Vec<String>,

    /// One format for layers that read one input: q, k and v; gate and up.
    #[arg(long)]
    pub(crate) fused: bool,

    /// Write the plan to this new file: a recipe for `taper compress --recipe FILE`.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Report {
    /// A model directory that `taper compress` made, or its report.
    pub(crate) dir: PathBuf,

    /// Draw bits and damage of each weight.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,

    /// Measure how far the model is from its original on this text (language models).
    #[arg(long, value_name = "FILE", requires = "against")]
    pub(crate) text: Option<PathBuf>,

    /// The original.
    #[arg(long, value_name = "DIR", requires = "text")]
    pub(crate) against: Option<PathBuf>,

    /// Tokens per window of the text.
    #[arg(long, value_name = "N", default_value = "256", requires = "text", value_parser = count)]
    pub(crate) window: NonZeroUsize,

    /// Only the first N windows.
    #[arg(long, value_name = "N", default_value = "64", requires = "text", value_parser = count)]
    pub(crate) windows: NonZeroUsize,
}

#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("what").required(true).multiple(true).args(["text", "sts", "features"])))]
pub(crate) struct Eval {
    /// The model directory.
    pub(crate) dir: PathBuf,

    /// Perplexity on this text (language models).
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,

    /// Tokens per window; windows do not overlap, an incomplete last one is dropped.
    #[arg(long, value_name = "N", default_value = "256", requires = "text", value_parser = count)]
    pub(crate) window: NonZeroUsize,

    /// Only the first N windows; all for the perplexity and 64 for the divergence where absent.
    #[arg(long, value_name = "N", requires = "text", value_parser = count)]
    pub(crate) windows: Option<NonZeroUsize>,

    /// Read the text through a cache of keys and values in this format, as generating does; without one where absent.
    #[arg(long, value_enum, value_name = "FORMAT", requires = "text")]
    pub(crate) kv_cache: Option<KvCache>,

    /// Multiply packed weights with these numbers; where absent as the files say, which is exact unless they round inputs
    /// (W8A8).
    #[arg(long, value_enum, value_name = "NUMBERS")]
    pub(crate) arithmetic: Option<Numbers>,

    /// Mean KL divergence from this original, and how often both find the same token likeliest.
    #[arg(long, value_name = "DIR", requires = "text")]
    pub(crate) against: Option<PathBuf>,

    /// Correlation with the scores of sentence pairs, per file of score, sentence, sentence (sentence encoders).
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(crate) sts: Vec<PathBuf>,

    /// Accuracy on labelled features in a safetensors file (classifiers).
    #[arg(long, value_name = "FILE")]
    pub(crate) features: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Diff {
    /// The original.
    pub(crate) a: PathBuf,
    /// What was made of it.
    pub(crate) b: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Generate {
    /// The model directory (a language model).
    pub(crate) dir: PathBuf,

    /// The text to continue.
    #[arg(long)]
    pub(crate) prompt: String,

    /// At most this many tokens.
    #[arg(long, value_name = "N", default_value = "128", value_parser = count)]
    pub(crate) max_tokens: NonZeroUsize,

    /// 0 always takes the likeliest token, 1 draws from the model's own distribution.
    #[arg(long, value_name = "T", default_value = "0.8", value_parser = temperature)]
    pub(crate) temperature: f64,

    /// Draw among the K likeliest tokens only.
    #[arg(long, value_name = "K", value_parser = count)]
    pub(crate) top_k: Option<NonZeroUsize>,

    /// Draw among the fewest tokens that together have this probability.
    #[arg(long, value_name = "P", value_parser = probability)]
    pub(crate) top_p: Option<f64>,

    /// How the keys and values of the tokens before are held.
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "full")]
    pub(crate) kv_cache: KvCache,

    /// The same seed draws the same text.
    #[arg(long, default_value = "0")]
    pub(crate) seed: u64,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Demo {
    /// Keep the original and the compressed models in this new directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,

    /// Write a chart of size against perplexity.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

fn count(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "expected a whole number of at least 1".to_owned())
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|v: &f64| v.is_finite() && *v > 0.0)
        .ok_or_else(|| "expected a number above 0, such as 3.0".to_owned())
}

/// A pattern and the format that it is pinned to.
fn pin(text: &str) -> Result<(String, String), String> {
    match text.rsplit_once('=') {
        Some((pattern, format)) if !pattern.is_empty() && !format.is_empty() => {
            Ok((pattern.to_owned(), format.to_owned()))
        }
        _ => Err("expected a pattern and a format, such as `*.layers.0.*=gptq int8 channel`".to_owned()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|v| (0.0..=1.0).contains(v))
        .ok_or_else(|| "expected a share from 0 to 1, such as 0.9".to_owned())
}

fn probability(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|v| *v > 0.0 && *v <= 1.0)
        .ok_or_else(|| "expected a probability above 0 and at most 1, such as 0.95".to_owned())
}

fn temperature(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|v: &f64| v.is_finite() && *v >= 0.0)
        .ok_or_else(|| "expected a number of at least 0, such as 0.8".to_owned())
}

/// Whole bytes, with K, M or G for their thousands.
fn bytes(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.to_ascii_uppercase().chars().last() {
        Some('K') => (&text[..text.len() - 1], 1_000),
        Some('M') => (&text[..text.len() - 1], 1_000_000),
        Some('G') => (&text[..text.len() - 1], 1_000_000_000),
        _ => (text, 1),
    };
    let number: Option<u64> = digits.parse().ok().filter(|n| *n > 0);
    number
        .and_then(|n| n.checked_mul(unit))
        .ok_or_else(|| "expected bytes, such as 4000000000, 500M or 4G".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_well_formed() {
        <Args as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn sizes_have_units_and_bounds() {
        assert_eq!(bytes("500M"), Ok(500_000_000));
        assert_eq!(bytes("4g"), Ok(4_000_000_000));
        assert_eq!(bytes("12"), Ok(12));
        for wrong in ["", "0", "-1", "G", "1.5G", "99999999999999999999", "99999999999G", "µ"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
