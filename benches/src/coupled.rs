//! The smallest architecture with a coupling: what passes that move scales are timed on.
//!
//! Neighbours: `couplings --layer` and `layers --time` fill its two tensors.

use taper::{
    Coupling,
    core::coupling::{Carrier, Scaling},
    prelude::*,
};

/// A norm, `norm.weight`, before one linear, `linear.weight`.
#[derive(Debug)]
pub struct NormAndLinear(
    /// Channels between them.
    pub usize,
);

impl Couplings for NormAndLinear {
    fn couplings(&self, _: &Checkpoint) -> taper::Result<Vec<Coupling>> {
        Ok(Vec::new())
    }

    fn scalings(&self, _: &Checkpoint) -> taper::Result<Vec<Scaling>> {
        Ok(vec![Scaling {
            name: "norm".into(),
            channels: self.0,
            producers: vec![Carrier::new("norm.weight", 0)],
            consumers: vec![Carrier::new("linear.weight", 1)],
        }])
    }
}
