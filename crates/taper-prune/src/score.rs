//! How much each weight matters: one score per weight, larger is more important.
//!
//! Masks ([`crate::mask`]) and thresholds ([`crate::threshold`]) take any score slice, so a new criterion is a new file
//! here and nothing else.

pub mod magnitude;
