//! The linear algebra that second-order methods share.
//!
//! Symmetric matrices are kept as one triangle, in f64: what calibration sums up, and what is factored later.

pub mod symmetric;

pub use symmetric::Symmetric;
