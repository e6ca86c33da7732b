//! Removes whole layers and numbers the rest anew (ShortGPT, Men et al. 2024, arXiv:2403.03853, shows how much that bears).
//!
//! ```text
//! layers 0 1 2 3 4 5   drop 2, 4   ▶   0 1 3 5   ▶   named 0 1 2 3, `num_hidden_layers` 4
//! ```
//!
//! Without data a layer is judged by what it can write to the residual stream: for each of its couplings its path
//! gain ([`crate::structured::path_gain`]), divided by the mean over all layers of the couplings
//! of that family, and added up. It is a stand-in: measured influence needs calibration.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, fmt, sync::Arc};
use taper_core::{
    Checkpoint, Context, Couplings, Error as CoreError, Event, Pass, Result, Stage,
    coupling::{Coupling, Family, Role, Stack},
};

use super::structured::squares;
use crate::{error::Error, structured::path_gain};

/// Lists in `config.json` that have one entry per layer.
const PER_LAYER: [&str; 3] = ["layer_types", "mlp_layer_types", "no_rope_layers"];

/// Which layers go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layers {
    /// These, counted from 0.
    These(Vec<usize>),
    /// This many of those that write least.
    Least(usize),
}

/// Whether [`Layers::Least`] may choose the first and the last layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ends {
    /// They stay: the first reads embeddings and the last feeds the head, and models rarely bear their loss.
    #[default]
    Kept,
    /// They may go.
    Droppable,
}

/// What a recipe step says: `layers = [3, 5]`, or `least = 2` and perhaps `ends = "droppable"`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DropLayersSettings {
    /// These layers, counted from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
    /// This many of those that write least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least: Option<usize>,
    /// Whether `least` may choose the first and the last layer.
    #[serde(default)]
    pub ends: Ends,
}

/// Removes layers. Recipe key `drop-layers`.
#[derive(Clone)]
pub struct DropLayers {
    couplings: Arc<dyn Couplings>,
    layers: Layers,
    ends: Ends,
}

impl fmt::Debug for DropLayers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DropLayers")
            .field("layers", &self.layers)
            .field("ends", &self.ends)
            .finish_non_exhaustive()
    }
}

impl DropLayers {
    /// The recipe key.
    pub const KEY: &'static str = "drop-layers";

    /// Drops layers of the stack that the architecture declares.
    #[must_use]
    pub fn new(couplings: Arc<dyn Couplings>, layers: Layers) -> Self {
        Self { couplings, layers, ends: Ends::default() }
    }

    /// The pass that a recipe step describes; an error unless it says exactly one of `layers` and `least`.
    pub fn from_settings(couplings: Arc<dyn Couplings>, settings: DropLayersSettings) -> Result<Self> {
        let layers = match (settings.layers, settings.least) {
            (Some(layers), None) => Layers::These(layers),
            (None, Some(least)) => Layers::Least(least),
            (both, _) => {
                let value = if both.is_some() { "both" } else { "neither" };
                return Err(CoreError::bad_option("layers or least", value, "say which layers, or how many"));
            }
        };
        Ok(Self::new(couplings, layers).with_ends(settings.ends))
    }

    /// Lets [`Layers::Least`] choose among all layers, or only the inner ones.
    #[must_use]
    pub fn with_ends(self, ends: Ends) -> Self {
        Self { ends, ..self }
    }

    /// The layers that go, ascending.
    fn chosen(&self, checkpoint: &Checkpoint, stack: &Stack, context: &Context<'_>) -> Result<Vec<usize>> {
        match &self.layers {
            Layers::These(layers) => explicit(layers, stack.layers),
            Layers::Least(count) => {
                let candidates: Vec<usize> = match self.ends {
                    Ends::Kept => (1..stack.layers.saturating_sub(1)).collect(),
                    Ends::Droppable => (0..stack.layers).collect(),
                };
                check_count(*count, candidates.len(), stack.layers)?;
                let writes =
                    residual_writes(checkpoint, &self.couplings.couplings(checkpoint)?, stack, context)?;
                let mut order = candidates;
                // Stable: of equal layers the earlier one goes.
                order.sort_by(|&a, &b| writes[a].total_cmp(&writes[b]));
                order.truncate(*count);
                order.sort_unstable();
                Ok(order)
            }
        }
    }
}

fn bad(message: String) -> CoreError {
    Error::BadLayers { message }.into()
}

fn explicit(layers: &[usize], there: usize) -> Result<Vec<usize>> {
    let mut sorted = layers.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    if sorted.len() != layers.len() {
        return Err(bad(format!("{layers:?} names a layer twice; name each once")));
    }
    if let Some(layer) = sorted.iter().find(|&&l| l >= there) {
        return Err(bad(format!("layer {layer} does not exist; there are {there}, counted from 0")));
    }
    check_count(sorted.len(), there, there)?;
    Ok(sorted)
}

/// At least one layer goes and at least one stays.
fn check_count(count: usize, candidates: usize, there: usize) -> Result<()> {
    if count == 0 {
        return Err(bad("none; name at least one".into()));
    }
    if count > candidates || count >= there {
        let most = candidates.min(there.saturating_sub(1));
        return Err(bad(format!("{count} of {there}; at most {most} can go here")));
    }
    Ok(())
}

/// The layer that a name belongs to, and the rest of the name.
fn layer_of<'n>(name: &'n str, stack: &Stack) -> Option<(usize, &'n str)> {
    let (number, rest) = name.strip_prefix(&stack.prefix)?.strip_prefix('.')?.split_once('.')?;
    number.parse().ok().filter(|&layer| layer < stack.layers).map(|layer| (layer, rest))
}

/// The layer of a coupling: that of its first consumer, the weight that writes.
fn layer_of_coupling(coupling: &Coupling, stack: &Stack) -> Option<usize> {
    let writes = coupling.members.iter().find(|m| m.role == Role::Consumes)?;
    layer_of(&writes.weight, stack).map(|(layer, _)| layer)
}

/// How much each layer can write to the residual stream, relative to the other layers.
fn residual_writes(
    checkpoint: &Checkpoint,
    couplings: &[Coupling],
    stack: &Stack,
    context: &Context<'_>,
) -> Result<Vec<f64>> {
    check_covered(couplings, stack)?;
    let mut by_family: BTreeMap<Family, Vec<f64>> = BTreeMap::new();
    for (i, coupling) in couplings.iter().enumerate() {
        let Some(layer) = layer_of_coupling(coupling, stack) else { continue };
        by_family.entry(coupling.family).or_insert_with(|| vec![0.0; stack.layers])[layer] +=
            path_gain(&squares(checkpoint, coupling)?, coupling.units);
        context.progress(&Event::Step { what: "couplings scored", done: i + 1, total: couplings.len() })?;
    }
    let mut writes = vec![0.0; stack.layers];
    for gains in by_family.values() {
        let mean = gains.iter().sum::<f64>() / stack.layers.max(1) as f64;
        for (write, gain) in writes.iter_mut().zip(gains) {
            *write += if mean > 0.0 { gain / mean } else { 0.0 };
        }
    }
    Ok(writes)
}

/// Every layer has a coupling to be judged by.
fn check_covered(couplings: &[Coupling], stack: &Stack) -> Result<()> {
    let covered = |layer: &usize| couplings.iter().any(|c| layer_of_coupling(c, stack) == Some(*layer));
    match (0..stack.layers).find(|layer| !covered(layer)) {
        None => Ok(()),
        Some(layer) => {
            Err(bad(format!("no coupling tells what layer {layer} writes; name the layers to drop instead")))
        }
    }
}

/// Removes, renumbers, and returns the names that went.
fn remove(checkpoint: &mut Checkpoint, stack: &Stack, dropped: &[usize]) -> Result<Vec<String>> {
    let mut names: Vec<(usize, String)> = checkpoint
        .names()
        .into_iter()
        .filter_map(|name| layer_of(&name, stack).map(|(layer, _)| layer).map(|layer| (layer, name)))
        .collect();
    // By number, not by text: 10 comes after 9, so every new name is free by the time that it is taken.
    names.sort();
    let mut gone = Vec::new();
    for (layer, name) in names {
        let before = dropped.partition_point(|&d| d < layer);
        if dropped.get(before) == Some(&layer) {
            checkpoint.remove(&name);
            gone.push(name);
        } else if let (Some((_, rest)), true) = (layer_of(&name, stack), before > 0) {
            checkpoint.rename(&name, format!("{}.{}.{rest}", stack.prefix, layer - before))?;
        }
    }
    Ok(gone)
}

/// The number of layers, and lists that have an entry for each.
fn edit_config(checkpoint: &mut Checkpoint, stack: &Stack, dropped: &[usize]) {
    let config = checkpoint.config_mut();
    config.insert(stack.config.clone(), Value::from(stack.layers - dropped.len()));
    for key in PER_LAYER {
        if let Some(Value::Array(list)) =
            config.get_mut(key).filter(|v| v.as_array().is_some_and(|l| l.len() == stack.layers))
        {
            let mut layer = 0..;
            list.retain(|_| layer.next().is_some_and(|l| dropped.binary_search(&l).is_err()));
        }
    }
}

impl Pass for DropLayers {
    fn name(&self) -> &str {
        Self::KEY
    }

    fn stage(&self) -> Stage {
        Stage::Shape
    }

    fn settings(&self) -> Value {
        serde_json::json!({ "layers": self.layers, "ends": self.ends })
    }

    fn run(&self, mut checkpoint: Checkpoint, context: &Context<'_>) -> Result<Checkpoint> {
        let stack = self.couplings.stack(&checkpoint)?.ok_or(Error::NoStack)?;
        let dropped = self.chosen(&checkpoint, &stack, context)?;
        for name in remove(&mut checkpoint, &stack, &dropped)? {
            context.done(&name);
        }
        edit_config(&mut checkpoint, &stack, &dropped);
        Ok(checkpoint)
    }
}
