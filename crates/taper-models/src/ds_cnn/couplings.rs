//! What may be cut from a DS-CNN: channels, along the chain of convolutions.
//!
//! ```text
//! stem ─▶ [depthwise 0] ─▶ pointwise 0 ─▶ [depthwise 1] ─▶ pointwise 1 ─▶ … ─▶ classifier
//! └──── stage 0: made by stem, carried ────┘└──── stage 1: made by pointwise 0 … ────┘
//!       by depthwise 0, read by pointwise 0
//! ```
//!
//! Each stage is a coupling of its own, with the batch norms and biases on the way. The config has one number of
//! channels for all stages, so all must keep equally many.

use taper_core::{
    Checkpoint, Coupling, Couplings, Result,
    coupling::{Family, Member},
};

use super::DsCnnConfig;

/// Declares the couplings of a checkpoint of a DS-CNN.
#[derive(Debug, Clone, Copy, Default)]
pub struct DsCnnCouplings;

impl Couplings for DsCnnCouplings {
    fn couplings(&self, checkpoint: &Checkpoint) -> Result<Vec<Coupling>> {
        let config = DsCnnConfig::of(checkpoint)?;
        Ok((0..=config.blocks).map(|stage| channels(&config, stage)).collect())
    }
}

fn channels(config: &DsCnnConfig, stage: usize) -> Coupling {
    let maker = if stage == 0 { "stem".to_owned() } else { format!("blocks.{}.pointwise", stage - 1) };
    let mut members = vec![Member::produces(format!("{maker}.conv.weight"), 0, 1)];
    members.extend(companions(&maker));
    if stage < config.blocks {
        let carrier = format!("blocks.{stage}.depthwise");
        members.push(Member::accompanies(format!("{carrier}.conv.weight"), 0, 1));
        members.extend(companions(&carrier));
        members.push(Member::consumes(format!("blocks.{stage}.pointwise.conv.weight"), 1, 1));
    } else {
        members.push(Member::consumes("classifier.weight", 1, 1));
    }
    Coupling {
        name: maker,
        family: Family::Channels,
        units: config.channels,
        members,
        config: vec![("channels".to_owned(), 1)],
    }
}

/// The bias and the batch norm of a convolution.
fn companions(layer: &str) -> impl Iterator<Item = Member> {
    ["conv.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"]
        .map(|name| Member::accompanies(format!("{layer}.{name}"), 0, 1))
        .into_iter()
}
