//! What may be cut from a BERT: feed-forward neurons and whole layers.
//!
//! Heads are left out: a stock config has no head width of its own (it is the hidden size over the number of heads), so
//! no other program could load a model with some heads removed.
//!
//! What may be scaled and turned is the values of each head alone: the norms stand behind the residual sum, so what they
//! give is also the residual stream, and GELU lets no scale through.

use taper_core::{
    Checkpoint, Coupling, Couplings, Result,
    coupling::{Carrier, Family, Member, Rotation, Scaling, Side, Space, Stack},
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

    fn scalings(&self, checkpoint: &Checkpoint) -> Result<Vec<Scaling>> {
        let config = BertConfig::of(checkpoint)?;
        Ok(attentions(&config, checkpoint)
            .map(|at| Scaling {
                name: format!("{at}.output.dense"),
                channels: config.hidden_size,
                producers: vec![
                    Carrier::new(format!("{at}.self.value.weight"), 0),
                    Carrier::new(format!("{at}.self.value.bias"), 0),
                ],
                consumers: vec![Carrier::new(format!("{at}.output.dense.weight"), 1)],
            })
            .collect())
    }

    fn rotations(&self, checkpoint: &Checkpoint) -> Result<Vec<Rotation>> {
        let config = BertConfig::of(checkpoint)?;
        Ok(attentions(&config, checkpoint)
            .map(|at| Rotation {
                name: at.clone(),
                space: Space::Heads,
                width: config.hidden_size / config.num_attention_heads,
                writers: vec![
                    Side::new(format!("{at}.self.value.weight"), 0),
                    Side::new(format!("{at}.self.value.bias"), 0),
                ],
                readers: vec![Side::new(format!("{at}.output.dense.weight"), 1)],
                gains: Vec::new(),
                tied: None,
            })
            .collect())
    }
}

/// The attention of each layer.
fn attentions(config: &BertConfig, checkpoint: &Checkpoint) -> impl Iterator<Item = String> + use<> {
    let prefix = prefix_of(|name| checkpoint.contains(name));
    (0..config.num_hidden_layers).map(move |i| format!("{prefix}encoder.layer.{i}.attention"))
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
