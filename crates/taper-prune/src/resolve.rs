//! From couplings and kept units to a checkpoint: every consequence of a cut, checked before anything changes.
//!
//! ```text
//! couplings + kept units ──Plan::new──▶ checked plan ──cut──▶ smaller stock checkpoint, config.json edited
//!                                                    └masked─▶ the same function, original shapes
//! ```
//!
//! A weight may be cut along several axes by several couplings (a convolution between two others). New entries are
//! lazy: each is read and cut when somebody asks, so memory stays bounded by the largest weight. The arithmetic is
//! [`crate::structured`].

use serde_json::{Map, Value};
use std::{collections::BTreeMap, sync::Arc};
use taper_core::{
    Checkpoint, Error as CoreError, Result, WeightInfo,
    coupling::{Coupling, Family, Member},
    verify,
};

use crate::{
    dense::{self, Edit},
    error::Error,
    structured::{Axis, cut_units, mask_units},
};

/// A coupling and the units of it that stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The coupling.
    pub coupling: Coupling,
    /// The units that stay, ascending.
    pub kept: Vec<usize>,
}

/// One axis of one weight, and what stays of it.
#[derive(Debug, Clone)]
struct AxisCut {
    axis: usize,
    block: usize,
    kept: Arc<[usize]>,
}

/// A checked set of cuts.
#[derive(Debug, Clone)]
pub struct Plan {
    axes: BTreeMap<String, Vec<AxisCut>>,
    config: Vec<(String, Value)>,
}

/// Whether units disappear or become zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Cut,
    Mask,
}

impl Plan {
    /// Checks cuts against a checkpoint and works out what follows from them.
    ///
    /// `declared` are all couplings of the architecture; those that are not cut keep all their units. Errors: members
    /// that are missing, encoded, not floats, or of another size than declared; units that are not ascending or do not
    /// exist; couplings that share a config key and would keep different numbers of units.
    pub fn new(checkpoint: &Checkpoint, declared: &[Coupling], cuts: &[Cut]) -> Result<Self> {
        let mut axes: BTreeMap<String, Vec<AxisCut>> = BTreeMap::new();
        for Cut { coupling, kept } in cuts {
            check_units(coupling, kept)?;
            let kept: Arc<[usize]> = kept.as_slice().into();
            for member in &coupling.members {
                check_member(checkpoint, coupling, member)?;
                let of_weight = axes.entry(member.weight.clone()).or_default();
                if of_weight.iter().any(|a| a.axis == member.axis) {
                    return Err(
                        bad(coupling, member, format!("axis {} is declared twice", member.axis)).into()
                    );
                }
                of_weight.push(AxisCut { axis: member.axis, block: member.block, kept: Arc::clone(&kept) });
            }
        }
        let mut config = config_edits(checkpoint.config(), declared, cuts)?;
        if cuts.iter().any(|c| c.coupling.family == Family::AttentionGroups) {
            config.extend(head_dim(checkpoint.config())?);
        }
        Ok(Self { axes, config })
    }

    /// The weights that change.
    pub fn weights(&self) -> impl Iterator<Item = &str> {
        self.axes.keys().map(String::as_str)
    }

    /// The keys of `config.json` that change, and their new values.
    pub fn config(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.config.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// The smaller checkpoint.
    pub fn cut(&self, checkpoint: &Checkpoint) -> Result<Checkpoint> {
        let mut out = self.derive(checkpoint, How::Cut)?;
        for (key, value) in &self.config {
            out.config_mut().insert(key.clone(), value.clone());
        }
        Ok(out)
    }

    /// The checkpoint with the units zeroed instead of cut: same shapes, same config, and the function of [`Plan::cut`].
    pub fn masked(&self, checkpoint: &Checkpoint) -> Result<Checkpoint> {
        self.derive(checkpoint, How::Mask)
    }

    fn derive(&self, checkpoint: &Checkpoint, how: How) -> Result<Checkpoint> {
        let mut out = checkpoint.clone();
        for (name, axes) in &self.axes {
            let info = checkpoint.info(name)?;
            let change = AxisChange { shape: info.shape.clone(), axes: axes.clone(), how };
            let (source, owned) = (checkpoint.clone(), name.clone());
            out.derive(name.clone(), change.info(&info), move || {
                let tensor = source.get(&owned)?.dense()?;
                Ok(Arc::new(dense::edit(&tensor, &change.new_shape(), &change)?))
            });
        }
        Ok(out)
    }
}

/// The cuts of one weight, as a change of its values.
struct AxisChange {
    shape: Vec<usize>,
    axes: Vec<AxisCut>,
    how: How,
}

impl AxisChange {
    fn new_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if self.how == How::Cut {
            for cut in &self.axes {
                shape[cut.axis] = cut.kept.len() * cut.block;
            }
        }
        shape
    }

    fn info(&self, before: &WeightInfo) -> WeightInfo {
        let elements = |shape: &[usize]| shape.iter().product::<usize>();
        let (shape, old) = (self.new_shape(), elements(&before.shape));
        let nbytes = before.nbytes.checked_div(old).unwrap_or(0) * elements(&shape);
        WeightInfo { shape, encoding: before.encoding.clone(), nbytes }
    }
}

impl Edit for AxisChange {
    fn apply<T: Copy + Default>(&self, mut values: Vec<T>) -> Vec<T> {
        let mut shape = self.shape.clone();
        for cut in &self.axes {
            // `Plan::new` has checked that the axis is whole units, and cutting another axis does not change that.
            let Some(axis) = Axis::of(&shape, cut.axis, cut.block) else { continue };
            match self.how {
                How::Mask => mask_units(&mut values, axis, &cut.kept),
                How::Cut => {
                    values = cut_units(&values, axis, &cut.kept);
                    shape[cut.axis] = cut.kept.len() * cut.block;
                }
            }
        }
        values
    }
}

fn bad(coupling: &Coupling, member: &Member, message: String) -> Error {
    Error::BadCoupling { coupling: coupling.name.clone(), weight: member.weight.clone(), message }
}

/// Units that stay: at least one, ascending, and existing.
fn check_units(coupling: &Coupling, kept: &[usize]) -> Result<()> {
    let message = if kept.is_empty() {
        "none would stay; keep at least one".to_owned()
    } else if !kept.windows(2).all(|w| w[0] < w[1]) {
        "the kept units must be in ascending order, each once".to_owned()
    } else if let Some(unit) = kept.iter().find(|&&u| u >= coupling.units) {
        format!("unit {unit} does not exist; there are {}, counted from 0", coupling.units)
    } else {
        return Ok(());
    };
    Err(Error::BadUnits { coupling: coupling.name.clone(), message }.into())
}

/// A member is a dense float weight whose axis is exactly the coupling's units.
pub(crate) fn check_member(checkpoint: &Checkpoint, coupling: &Coupling, member: &Member) -> Result<Axis> {
    let info = checkpoint.info(&member.weight)?;
    if !info.encoding.is_dense() {
        let message = format!("is stored as {}, which cannot be cut; cut before encoding", info.encoding);
        return Err(bad(coupling, member, message).into());
    }
    if !verify::is_float(&info) {
        return Err(bad(coupling, member, format!("holds {}; only floats are cut", info.encoding)).into());
    }
    match Axis::of(&info.shape, member.axis, member.block) {
        Some(axis) if axis.units == coupling.units => Ok(axis),
        _ => {
            let message = format!(
                "shape {:?} does not hold {} units of {} on axis {}",
                info.shape, coupling.units, member.block, member.axis
            );
            Err(bad(coupling, member, message).into())
        }
    }
}

/// What becomes of the config: each key of a cut coupling follows its units, and all couplings of a key agree.
fn config_edits(
    config: &Map<String, Value>,
    declared: &[Coupling],
    cuts: &[Cut],
) -> Result<Vec<(String, Value)>> {
    let kept: BTreeMap<&str, usize> = cuts.iter().map(|c| (c.coupling.name.as_str(), c.kept.len())).collect();
    let units_of = |coupling: &Coupling| kept.get(coupling.name.as_str()).copied().unwrap_or(coupling.units);
    let mut edits = BTreeMap::new();
    for Cut { coupling, kept } in cuts {
        for (key, multiple) in &coupling.config {
            let sharing = declared.iter().filter(|c| c.config.iter().any(|(k, _)| k == key));
            if let Some(other) = sharing.into_iter().find(|c| units_of(c) != kept.len()) {
                return Err(Error::Uneven {
                    key: key.clone(),
                    first: coupling.name.clone(),
                    first_units: kept.len(),
                    second: other.name.clone(),
                    second_units: units_of(other),
                }
                .into());
            }
            check_config(config, key, coupling.units * multiple)?;
            edits.insert(key.clone(), Value::from(kept.len() * multiple));
        }
    }
    Ok(edits.into_iter().collect())
}

/// A key that is there says what the coupling says; one that is absent will be added.
fn check_config(config: &Map<String, Value>, key: &str, expected: usize) -> Result<()> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(()),
        Some(value) if value.as_u64() == Some(expected as u64) => Ok(()),
        Some(value) => Err(CoreError::BadConfig {
            key: key.to_owned(),
            message: format!("is {value}, but the weights and their couplings say {expected}"),
        }),
    }
}

/// `head_dim`, where the config does not state it: readers derive it from the number of heads, which is about to change.
fn head_dim(config: &Map<String, Value>) -> Result<Option<(String, Value)>> {
    if config.get("head_dim").is_some_and(|v| !v.is_null()) {
        return Ok(None);
    }
    let number = |key: &str| {
        config.get(key).and_then(Value::as_u64).filter(|&v| v > 0).ok_or_else(|| CoreError::BadConfig {
            key: key.to_owned(),
            message:
                "is no positive whole number, and `head_dim` is absent; cutting heads needs one or the other"
                    .into(),
        })
    };
    let (hidden, heads) = (number("hidden_size")?, number("num_attention_heads")?);
    if hidden % heads != 0 {
        return Err(CoreError::BadConfig {
            key: "head_dim".into(),
            message: format!(
                "is absent, and {heads} heads do not divide a hidden size of {hidden}; state it"
            ),
        });
    }
    Ok(Some(("head_dim".into(), Value::from(hidden / heads))))
}
