//! Models and judges against independent implementations and the published figures.
//!
//! `shelf` finds real models and data, `tiny` makes random checkpoints; the other files are the tests.

mod blocks;
mod candle;
mod couplings;
mod generation;
mod real;
mod shelf;
mod structure;
mod tiny;
