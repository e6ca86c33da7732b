//! What every inner loop of the workspace stands on: the instruction set, memory that begins at cache lines, results that
//! several threads fill.
//!
//! ```text
//! available() ─▶ isa() ─▶ a table of functions for that instruction set      dense weights here, packed ones in taper-quant
//! ```
//!
//! Tables differ in the order of f32 sums, so results have the same bits for any number of threads, but not on any
//! machine: [`force`] an instruction set where that matters.
//!
//! # Threads
//!
//! Products run in rayon's current pool. A host that has a pool calls them inside `ThreadPool::install`; one that has none
//! may make [`Threads`]; without either it is rayon's global pool. Nothing waits by spinning: a worker without work sleeps.
//!
//! `unsafe` lives in `kernel/` folders only: calls of functions that need instructions which were detected, and loads and
//! stores through pointers within slices whose length was checked.

#![allow(unsafe_code)]

pub mod aligned;
pub mod conv;
pub mod dense;
pub mod fresh;
pub mod gram;
pub mod isa;
pub mod lent;
pub mod multiply;
pub mod sheet;
pub mod threads;

mod loops;
pub(crate) mod norms;
mod scalar;
pub(crate) mod strided;
mod table;
mod vector;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(test)]
mod conform;

pub use dense::{Values, product};
pub use gram::gram;
pub use isa::{Features, ISA_VARIABLE, Isa, available, features, force, isa, requested};
pub use multiply::{Arithmetic, Operand, Sizes, multiply};
pub(crate) use norms::{Norms, norms};
pub use threads::Threads;
