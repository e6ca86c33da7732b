//! Which axes of which weights belong together.
//!
//! ```text
//! feed-forward   gate [d_ff, d] axis 0 ┐
//!                up   [d_ff, d] axis 0 ├ one unit = one neuron (block 1)
//!                down [d, d_ff] axis 1 ┘
//! attention      q [h·dim, d] axis 0, block r·dim ┐
//!                k [kv·dim, d] axis 0, block dim  ├ one unit = one KV group with its r query heads
//!                v [kv·dim, d] axis 0, block dim  │
//!                o [d, h·dim] axis 1, block r·dim ┘
//! ```
//!
//! An architecture declares its couplings once; pruning cuts along them, and equivalence passes scale along them. They
//! stand in core because both need them and siblings never import each other. A user declares them for a model of
//! their own by implementing [`Couplings`], or with a closure.

use std::fmt;

use crate::{Checkpoint, Result};

/// What a coupling's units are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Neurons of a feed-forward block.
    FeedForward,
    /// Key-value groups of attention, each with its query heads.
    AttentionGroups,
    /// Channels between convolutions.
    Channels,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FeedForward => "feed-forward",
            Self::AttentionGroups => "attention-groups",
            Self::Channels => "channels",
        })
    }
}

/// What a member does with the coupled values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It computes them: cutting a unit removes its outputs.
    Produces,
    /// It reads them: cutting a unit removes its inputs.
    Consumes,
    /// It accompanies them, such as a bias or a batch norm.
    Accompanies,
}

/// One axis of one weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The weight's name.
    pub weight: String,
    /// The axis that shrinks.
    pub axis: usize,
    /// Contiguous indices per unit on that axis: unit `u` covers `u·block .. (u+1)·block`.
    pub block: usize,
    /// What it does with the coupled values.
    pub role: Role,
}

impl Member {
    /// A member that computes the coupled values.
    pub fn produces(weight: impl Into<String>, axis: usize, block: usize) -> Self {
        Self { weight: weight.into(), axis, block, role: Role::Produces }
    }

    /// A member that reads the coupled values.
    pub fn consumes(weight: impl Into<String>, axis: usize, block: usize) -> Self {
        Self { weight: weight.into(), axis, block, role: Role::Consumes }
    }

    /// A member that accompanies them.
    pub fn accompanies(weight: impl Into<String>, axis: usize, block: usize) -> Self {
        Self { weight: weight.into(), axis, block, role: Role::Accompanies }
    }
}

/// Axes that shrink together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coupling {
    /// Its name, such as `model.layers.3.mlp`.
    pub name: String,
    /// What its units are.
    pub family: Family,
    /// How many units there are.
    pub units: usize,
    /// The axes.
    pub members: Vec<Member>,
    /// Keys of `config.json` that follow the number of units: key and units' multiple. Couplings that share a key must
    /// keep equally many units.
    pub config: Vec<(String, usize)>,
}

/// A run of identical layers, any of which can be dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// Weights of layer `i` are named `{prefix}.{i}.…`.
    pub prefix: String,
    /// How many layers there are.
    pub layers: usize,
    /// The key of `config.json` that counts them.
    pub config: String,
}

/// Declares the couplings of a checkpoint's architecture.
///
/// Asked anew for each pass, because an earlier pass may have changed the sizes.
pub trait Couplings: Send + Sync {
    /// The couplings of the checkpoint as it is now.
    fn couplings(&self, checkpoint: &Checkpoint) -> Result<Vec<Coupling>>;

    /// The stack of layers, where the architecture has one.
    fn stack(&self, checkpoint: &Checkpoint) -> Result<Option<Stack>> {
        let _ = checkpoint;
        Ok(None)
    }
}

impl<F: Fn(&Checkpoint) -> Result<Vec<Coupling>> + Send + Sync> Couplings for F {
    fn couplings(&self, checkpoint: &Checkpoint) -> Result<Vec<Coupling>> {
        self(checkpoint)
    }
}
