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
//!
//! Two more declarations change values and not the function. A [`Scaling`] divides channels where they are made and
//! multiplies them where they are read; a [`Rotation`] turns a space that is only ever written to and read from linearly:
//!
//! ```text
//! scaling    γ/s ─▶ q·s, k·s, v·s        v/s ─▶ o·s        γ/s ─▶ gate·s, up·s        up/s ─▶ down·s
//! rotation   embed, o, down write xQ ─▶ norms without gains ─▶ q, k, v, gate, up, head read it back (W Q)
//! ```

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

/// How the channels of a [`Scaling`] lie along an axis: runs of `width` channels, each run `times` times in a row.
///
/// ```text
/// width 2, times 3     axis     0 1 2 3 4 5 6 7 8 9 …
///                      channel  0 1 0 1 0 1 2 3 2 3 …
/// ```
///
/// It is how grouped queries read: every key-value head's values reach the columns of all of its query heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    /// Channels per run; at least 1.
    pub width: usize,
    /// How often each run stands on the axis; at least 1.
    pub times: usize,
}

impl Spread {
    /// Index and channel are the same.
    pub const EVEN: Self = Self { width: 1, times: 1 };

    /// The channel of an index.
    #[must_use]
    pub fn channel(&self, index: usize) -> usize {
        index / (self.width * self.times) * self.width + index % self.width
    }
}

/// One axis of one weight that carries the channels of a [`Scaling`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carrier {
    /// The weight's name.
    pub weight: String,
    /// The axis.
    pub axis: usize,
    /// Where on the axis which channel is.
    pub spread: Spread,
}

impl Carrier {
    /// The channels, one after the other.
    pub fn new(weight: impl Into<String>, axis: usize) -> Self {
        Self { weight: weight.into(), axis, spread: Spread::EVEN }
    }

    /// The channels in runs that repeat.
    #[must_use]
    pub fn spread(mut self, width: usize, times: usize) -> Self {
        self.spread = Spread { width, times };
        self
    }
}

/// Channels that may be scaled freely: dividing channel c by s_c in all producers and multiplying it in all consumers
/// leaves the function as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scaling {
    /// Its name, such as `model.layers.3.mlp.down_proj`.
    pub name: String,
    /// How many channels there are.
    pub channels: usize,
    /// Divided by s: a norm's gain (and shift), or the rows of a linear (and its bias).
    pub producers: Vec<Carrier>,
    /// Multiplied by s: every weight that reads the channels, all of them seeing the same input.
    pub consumers: Vec<Carrier>,
}

/// Which space a [`Rotation`] turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Space {
    /// The residual stream of the whole model (R1 in the literature).
    Stream,
    /// The values of each attention head (R2).
    Heads,
}

/// One axis of one weight that lies in a rotated space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side {
    /// The weight's name.
    pub weight: String,
    /// The axis; a multiple of the rotation's width, each run of it turned alike.
    pub axis: usize,
}

impl Side {
    /// An axis of a weight.
    pub fn new(weight: impl Into<String>, axis: usize) -> Self {
        Self { weight: weight.into(), axis }
    }
}

/// A norm's gain, which a rotation cannot pass: it goes into the columns of its readers first and becomes 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gain {
    /// The gain's name.
    pub weight: String,
    /// Every matrix that reads what the norm gives.
    pub readers: Vec<String>,
}

/// One table that serves as embedding and as head. They are turned differently, so a rotation must part them first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tied {
    /// The weight there is.
    pub table: String,
    /// The name of the head that is to be: a copy of the table, named among the rotation's readers already.
    pub head: String,
    /// The key of `config.json` that must become false.
    pub config: String,
}

/// A space that may be rotated freely: with x ↦ xQ for every vector written and W ↦ WQ for every matrix that reads, the
/// function stays as it is for any orthogonal Q.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// Its name, such as `model.layers.3.self_attn`.
    pub name: String,
    /// Which space.
    pub space: Space,
    /// Its dimensions.
    pub width: usize,
    /// What writes vectors of the space: rows of an embedding (axis 1), outputs of linears (axis 0), their biases.
    pub writers: Vec<Side>,
    /// What reads them: inputs of linears (axis 1).
    pub readers: Vec<Side>,
    /// The gains on the way.
    pub gains: Vec<Gain>,
    /// Where embedding and head are one.
    pub tied: Option<Tied>,
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

    /// The channels that may be scaled freely; none unless the architecture says so.
    fn scalings(&self, checkpoint: &Checkpoint) -> Result<Vec<Scaling>> {
        let _ = checkpoint;
        Ok(Vec::new())
    }

    /// The spaces that may be rotated freely; none unless the architecture says so.
    fn rotations(&self, checkpoint: &Checkpoint) -> Result<Vec<Rotation>> {
        let _ = checkpoint;
        Ok(Vec::new())
    }
}

impl<F: Fn(&Checkpoint) -> Result<Vec<Coupling>> + Send + Sync> Couplings for F {
    fn couplings(&self, checkpoint: &Checkpoint) -> Result<Vec<Coupling>> {
        self(checkpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grouped_queries_read_a_run_of_channels_several_times() {
        let spread = Spread { width: 2, times: 3 };
        let channels: Vec<usize> = (0..12).map(|i| spread.channel(i)).collect();
        assert_eq!(channels, [0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3]);
        assert!((0..9).all(|i| Spread::EVEN.channel(i) == i));
    }
}
