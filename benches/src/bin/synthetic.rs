//! Writes a synthetic Llama checkpoint of any size, in bf16 and in shards.

use clap::Parser;
use std::{path::PathBuf, process::ExitCode, time::Instant};
use taper_benches::{
    size::{megabytes, parse},
    synthetic::{Spec, write},
};

/// Writes a synthetic Llama checkpoint: stock names and shapes, Gaussian values, the same bytes for the same seed.
#[derive(Debug, Parser)]
struct Args {
    /// The model directory to make.
    out: PathBuf,
    /// At least this many bytes of weights.
    #[arg(long, default_value = "8G", value_parser = parse)]
    bytes: u64,
    /// Begin a new file after this many bytes.
    #[arg(long, default_value = "2G", value_parser = parse)]
    shard_bytes: u64,
    /// The seed of all values.
    #[arg(long, default_value = "0")]
    seed: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let clock = Instant::now();
    let spec = Spec { bytes: args.bytes, shard_bytes: args.shard_bytes, seed: args.seed };
    match write(&args.out, &spec) {
        Ok(done) => {
            let seconds = clock.elapsed().as_secs_f64();
            println!(
                "wrote {}: {} weights, {} in {} files, the largest weight {}; {seconds:.1} s, {:.0} MB/s",
                args.out.display(),
                done.weights,
                megabytes(done.bytes),
                done.shards,
                megabytes(done.largest),
                done.bytes as f64 / 1e6 / seconds
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: `{}`: {error}", args.out.display());
            ExitCode::FAILURE
        }
    }
}
