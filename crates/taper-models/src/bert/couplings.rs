//! What may be cut from a BERT: feed-forward neurons and whole layers.
//!
//! Heads are left out: a stock config has no head width of its own (it is the hidden size over the number of heads), so
//! no other program could load a model with some heads removed.

use taper_core::{
    Checkpoint, Coupling, Couplings, Result,
    coupling::{Family, Member, Stack},
};

use super::{BertConfig, prefix_of};

/// Declares the couplings of a checkpoint of the BERT family.
#[derive(Debug, Clone, Copy, Default)]
pub struct BertCouplings;

impl Couplings for BertCouplings {
    fn couplings(&self, checkpoint: &Checkpoint) -> Result<Vec<Coupling>> {
        let config = BertConfig::of(checkpoint)?;
        let prefix = prefix_of(|name| checkpoint.contains(name));
        Ok((0..config.num_hidden_layers)
            .map(|i| feed_forward(&config, &format!("{prefix}encoder.layer.{i}")))
            .collect())
    }

    fn stack(&self, checkpoint: &Checkpoint) -> Result<Option<Stack>> {
        let prefix = prefix_of(|name| checkpoint.contains(name));
        Ok(Some(Stack {
            prefix: format!("{prefix}encoder.layer"),
            layers: BertConfig::of(checkpoint)?.num_hidden_layers,
            config: "num_hidden_layers".to_owned(),
        }))
    }
}

fn feed_forward(config: &BertConfig, layer: &str) -> Coupling {
    Coupling {
        name: format!("{layer}.intermediate"),
        family: Family::FeedForward,
        units: config.intermediate_size,
        members: vec![
            Member::produces(format!("{layer}.intermediate.dense.weight"), 0, 1),
            Member::accompanies(format!("{layer}.intermediate.dense.bias"), 0, 1),
            Member::consumes(format!("{layer}.output.dense.weight"), 1, 1),
        ],
        config: vec![("intermediate_size".to_owned(), 1)],
    }
}
