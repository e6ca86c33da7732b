//! Changing weights without changing the function: the mathematics of AWQ, SmoothQuant and rotations.
//!
//! ```text
//! fold        what happens to one weight: scales along an axis, a rotation of an axis, a gain that becomes 1, clipping
//! hadamard    Q = D·(H ⊗ O)/√n, a random orthogonal matrix that is applied in n log n
//! scale       s from activations and weights: act^a / w^b
//! proxy       what an error costs at a layer's output: tr(E G Eᵀ), or its diagonal
//! ```
//!
//! Which weights belong together is declared by architectures ([`taper_core::coupling`]); the passes are
//! [`crate::pass::Awq`], [`crate::pass::SmoothQuant`] and [`crate::pass::Rotate`]. Folding is done in f64 and rounded once, to
//! the type that the weight has.

pub mod fold;
pub mod hadamard;
pub mod proxy;
pub mod scale;

pub use fold::{Fold, Folds};
pub use hadamard::RandomHadamard;
pub use proxy::Proxy;
