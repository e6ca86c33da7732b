//! What may be cut from a Llama: feed-forward neurons, key-value groups with their queries, whole layers; and what may
//! be scaled and turned (`equivalence.rs`).
//!
//! See [`taper_core::coupling`] for the picture. A cut is only declared where a stock `config.json` can express it.

mod equivalence;

use taper_core::{
    Checkpoint, Coupling, Couplings, Result,
    coupling::{Family, Member, Rotation, Scaling, Stack},
};

use super::{LayerKind, LlamaConfig, Reach};
use crate::config::bad;

/// Declares the couplings of a checkpoint of the Llama family.
///
/// A pass that cuts attention groups must leave a `head_dim` in the config: without it other programs divide the
/// hidden size by the new number of heads.
#[derive(Debug, Clone, Copy, Default)]
pub struct LlamaCouplings;

impl Couplings for LlamaCouplings {
    fn couplings(&self, checkpoint: &Checkpoint) -> Result<Vec<Coupling>> {
        let config = LlamaConfig::of(checkpoint)?;
        let layers = (0..config.layers.len()).map(|i| format!("model.layers.{i}"));
        Ok(layers
            .flat_map(|layer| [feed_forward(&config, &layer), attention_groups(&config, &layer)])
            .collect())
    }

    /// The stack of layers. Errors where layers differ by their place and no list in the config (`layer_types`,
    /// `no_rope_layers`) says so: the others would change their nature when one is dropped.
    fn stack(&self, checkpoint: &Checkpoint) -> Result<Option<Stack>> {
        let config = LlamaConfig::of(checkpoint)?;
        let lists = |key: &str| checkpoint.config().get(key).is_some_and(|v| !v.is_null());
        let differ = |f: fn(&LayerKind) -> (Option<Reach>, bool)| {
            config.layers.windows(2).any(|p| f(&p[0]) != f(&p[1]))
        };
        for (list, differs) in [
            ("layer_types", differ(|l| (Some(l.reach), false))),
            ("no_rope_layers", differ(|l| (None, l.rotated))),
        ] {
            if differs && !lists(list) {
                let message =
                    "is missing although layers differ by their place; list them before dropping any";
                return Err(bad(list, message));
            }
        }
        Ok(Some(Stack {
            prefix: "model.layers".to_owned(),
            layers: config.layers.len(),
            config: "num_hidden_layers".to_owned(),
        }))
    }

    fn scalings(&self, checkpoint: &Checkpoint) -> Result<Vec<Scaling>> {
        let config = LlamaConfig::of(checkpoint)?;
        Ok((0..config.layers.len()).flat_map(|i| equivalence::scalings(&config, i)).collect())
    }

    fn rotations(&self, checkpoint: &Checkpoint) -> Result<Vec<Rotation>> {
        let config = LlamaConfig::of(checkpoint)?;
        let heads = (0..config.layers.len()).map(|i| equivalence::heads(&config, i));
        let stream = equivalence::stream(&config, checkpoint);
        Ok(std::iter::once(stream).chain(heads).collect())
    }
}

fn feed_forward(config: &LlamaConfig, layer: &str) -> Coupling {
    let name = format!("{layer}.mlp");
    let mut members = vec![
        Member::produces(format!("{name}.gate_proj.weight"), 0, 1),
        Member::produces(format!("{name}.up_proj.weight"), 0, 1),
        Member::consumes(format!("{name}.down_proj.weight"), 1, 1),
    ];
    if config.mlp_bias {
        members.push(Member::accompanies(format!("{name}.gate_proj.bias"), 0, 1));
        members.push(Member::accompanies(format!("{name}.up_proj.bias"), 0, 1));
    }
    Coupling {
        name,
        family: Family::FeedForward,
        units: config.intermediate_size,
        members,
        config: vec![("intermediate_size".to_owned(), 1)],
    }
}

fn attention_groups(config: &LlamaConfig, layer: &str) -> Coupling {
    let name = format!("{layer}.self_attn");
    let (dim, r) = (config.head_dim, config.queries_per_group());
    let mut members = vec![
        Member::produces(format!("{name}.q_proj.weight"), 0, r * dim),
        Member::produces(format!("{name}.k_proj.weight"), 0, dim),
        Member::produces(format!("{name}.v_proj.weight"), 0, dim),
        Member::consumes(format!("{name}.o_proj.weight"), 1, r * dim),
    ];
    if config.qkv_bias {
        members.push(Member::accompanies(format!("{name}.q_proj.bias"), 0, r * dim));
        members.push(Member::accompanies(format!("{name}.k_proj.bias"), 0, dim));
        members.push(Member::accompanies(format!("{name}.v_proj.bias"), 0, dim));
    }
    Coupling {
        name,
        family: Family::AttentionGroups,
        units: config.num_key_value_heads,
        members,
        config: vec![("num_key_value_heads".to_owned(), 1), ("num_attention_heads".to_owned(), r)],
    }
}
