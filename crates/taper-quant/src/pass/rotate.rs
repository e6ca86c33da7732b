//! Turns the spaces of a model by random Hadamard matrices, so that no coordinate stands out; costs nothing at run time.
//!
//! ```text
//! residual stream (R1)   γ of each norm into its readers, then   embed, o, down: x ↦ xQ      q, k, v, gate, up, head: W ↦ WQ
//! heads (R2)             v: x ↦ xQ in each head                  o: W ↦ WQ in each head
//! ```
//!
//! As in QuaRot (arXiv:2404.00456) and SpinQuant (arXiv:2405.16406) without their online rotations. Which weights lie in a
//! space is declared ([`taper_core::coupling::Rotation`]); the matrix is [`RandomHadamard`], the folding [`Folds`].

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{fmt, num::NonZeroUsize, sync::Arc};
use taper_core::{
    Checkpoint, Context, Coordinates, Couplings, Error as CoreError, Pass, Result, Stage,
    coupling::{Rotation, Space, Tied},
};

use crate::equivalence::{Fold, Folds, RandomHadamard, hadamard::named_seed};

/// Which spaces are turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spaces {
    /// All that the architecture declares.
    #[default]
    All,
    /// The residual stream.
    Stream,
    /// The values of attention heads.
    Heads,
}

impl Spaces {
    fn has(self, space: Space) -> bool {
        match self {
            Self::All => true,
            Self::Stream => space == Space::Stream,
            Self::Heads => space == Space::Heads,
        }
    }
}

/// What happens where embedding and head are one table. They must be turned differently, because the last norm's gain
/// goes into the head alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TiedHead {
    /// It is an error that says what would be right.
    #[default]
    Refuse,
    /// The head becomes a weight of its own: the model grows by one table.
    Untie,
}

/// What a recipe step says: `spaces = "stream"`, `block = 64`, `tied-head = "untie"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RotateSettings {
    /// Which spaces are turned.
    pub spaces: Spaces,
    /// Coordinates that are mixed with each other; the whole space unless it is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<NonZeroUsize>,
    /// What happens where embedding and head are one.
    pub tied_head: TiedHead,
}

/// Turns declared spaces. Recipe key `rotate`.
#[derive(Clone)]
pub struct Rotate {
    couplings: Arc<dyn Couplings>,
    settings: RotateSettings,
}

impl fmt::Debug for Rotate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rotate").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Rotate {
    /// The recipe key.
    pub const KEY: &'static str = "rotate";

    /// Turns every declared space as a whole; a tied head is refused.
    #[must_use]
    pub fn new(couplings: Arc<dyn Couplings>) -> Self {
        Self::from_settings(couplings, RotateSettings::default())
    }

    /// The pass that a recipe step describes.
    #[must_use]
    pub fn from_settings(couplings: Arc<dyn Couplings>, settings: RotateSettings) -> Self {
        Self { couplings, settings }
    }

    /// Turns only these spaces.
    #[must_use]
    pub fn with_spaces(mut self, spaces: Spaces) -> Self {
        self.settings.spaces = spaces;
        self
    }

    /// Mixes blocks of this many coordinates instead of the whole space.
    #[must_use]
    pub fn with_block(mut self, block: NonZeroUsize) -> Self {
        self.settings.block = Some(block);
        self
    }

    /// Does this where embedding and head are one.
    #[must_use]
    pub fn with_tied_head(mut self, tied: TiedHead) -> Self {
        self.settings.tied_head = tied;
        self
    }

    /// The matrix of a space.
    fn matrix(&self, rotation: &Rotation, seed: u64) -> Result<Arc<RandomHadamard>> {
        let width = self.settings.block.map_or(rotation.width, NonZeroUsize::get);
        if width == 0 || !rotation.width.is_multiple_of(width) {
            let expected = format!("a divisor of {}, the width of `{}`", rotation.width, rotation.name);
            return Err(CoreError::bad_option("block", width, expected));
        }
        Ok(Arc::new(RandomHadamard::new(width, named_seed(seed, &rotation.name))))
    }

    /// Makes the head a weight of its own, or says why not.
    fn part(&self, tied: &Tied, checkpoint: &mut Checkpoint, context: &Context<'_>) -> Result<()> {
        if self.settings.tied_head == TiedHead::Refuse {
            let message = format!(
                "is true: `{}` is embedding and head, which a rotation of the residual stream turns differently; set tied-head = \"untie\" (the model grows by one table) or spaces = \"heads\"",
                tied.table
            );
            return Err(CoreError::BadConfig { key: tied.config.clone(), message });
        }
        if !checkpoint.contains(&tied.head) {
            context.added(&tied.head);
        }
        let head = checkpoint.get(&tied.table)?;
        checkpoint.insert(tied.head.clone(), head);
        checkpoint.config_mut().insert(tied.config.clone(), false.into());
        Ok(())
    }
}

/// Moves every gain into its readers.
fn fuse_gains(rotation: &Rotation, checkpoint: &Checkpoint, folds: &mut Folds) -> Result<()> {
    for gain in &rotation.gains {
        let factors: Arc<[f64]> = folds.values(checkpoint, &gain.weight)?.into();
        for reader in &gain.readers {
            folds.add(reader, Fold::Scale { axis: 1, factors: factors.clone() });
        }
        folds.add(&gain.weight, Fold::Ones);
    }
    Ok(())
}

impl Pass for Rotate {
    fn name(&self) -> &str {
        Self::KEY
    }

    fn stage(&self) -> Stage {
        Stage::Value
    }

    fn settings(&self) -> Value {
        serde_json::to_value(self.settings).unwrap_or_default()
    }

    fn coordinates(&self) -> Coordinates {
        Coordinates::Changed
    }

    fn run(&self, mut checkpoint: Checkpoint, context: &Context<'_>) -> Result<Checkpoint> {
        let mut rotations = self.couplings.rotations(&checkpoint)?;
        rotations.retain(|r| self.settings.spaces.has(r.space));
        if rotations.is_empty() {
            return Err(crate::Error::NothingDeclared { what: "spaces to rotate" }.into());
        }
        let mut folds = Folds::new();
        for rotation in &rotations {
            if let Some(tied) = &rotation.tied {
                self.part(tied, &mut checkpoint, context)?;
            }
            fuse_gains(rotation, &checkpoint, &mut folds)?;
            let by = self.matrix(rotation, context.seed())?;
            for side in rotation.writers.iter().chain(&rotation.readers) {
                folds.add(&side.weight, Fold::Rotate { axis: side.axis, by: by.clone() });
            }
        }
        folds.apply(checkpoint)
    }
}
