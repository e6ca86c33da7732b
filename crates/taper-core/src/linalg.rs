//! The linear algebra that second-order methods share.
//!
//! ```text
//! calibration ─▶ Gram in two halves ─▶ shrink: how far to trust it ─▶ ldl: the factor ─▶ whatever a pass rounds or removes
//! ```
//!
//! Symmetric matrices are kept as one triangle, in f64: what calibration sums up. They are factored in f32 after their
//! diagonal was made 1, in f64 where f32 does not suffice, and with more shrinkage where that does not either; which it
//! was is part of the result.
//!
//! Neighbours: [`crate::stats`] sums Gram matrices. Products of f32 are those of `kernel/`, of f64 those of the `gemm` crate.

mod kernel;

pub mod factor;
pub mod ldl;
pub mod shrink;
pub mod symmetric;

pub use factor::{Damped, Factor, Factors, Precision, Shrinkage};
pub use kernel::{Real, View, product};
pub use ldl::Ldl;
pub use symmetric::Symmetric;
