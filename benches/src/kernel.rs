//! Loops that run into the limits of the machine, which every benchmark is compared with, and a heap that counts.
//!
//! `unsafe` lives in this folder only: vector loads and stores within slices, calls of what was detected
//! before, and the allocator's contract passed on.

#![allow(unsafe_code)]

mod heap;
mod limits;

pub use heap::Counted;
pub use limits::{Limits, Unit, read_together};
