//! What the benchmarks share: matrices, synthetic checkpoints, and how processes and directories are watched.
//!
//! | program | what it shows |
//! |---|---|
//! | `cargo bench -p taper-benches --bench encode` | how fast weights are quantized, by format and fit |
//! | `cargo bench -p taper-benches --bench product` | how fast packed weights multiply, beside candle's own products |
//! | `cargo bench -p taper-benches --bench losses` | how long a distillation loss and its gradient take |
//! | `cargo run --release -p taper-benches --bin peers` | Taper beside candle and the machine's limits, job by job |
//! | `cargo run --release -p taper-benches --bin layers -- --time` | the seconds of each job of calibrating one layer |
//! | `cargo run --release -p taper-benches --bin synthetic` | writes a Llama checkpoint of any size |
//! | `cargo run --release -p taper-benches --bin streaming` | peak memory, kill and resume of `taper compress` on one |
//!
//! Every benchmark checks its result before it times it; under `cargo test` it only checks.

pub mod coupled;
pub mod directory;
pub mod kernel;
pub mod matrix;
pub mod size;
pub mod synthetic;
pub mod watch;

/// The README, whose examples are compiled and run as tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
#[derive(Debug)]
pub struct Readme;
