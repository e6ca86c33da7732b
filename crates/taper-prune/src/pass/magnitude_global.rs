//! Magnitude pruning across a whole selection, exact and in bounded memory.
//!
//! ```text
//! sweep 1, 2   histograms of |w|, one weight at a time ──▶ exact threshold     threshold.rs
//! sweep 3      ties at the threshold, in name order, until the count is exact
//! then         each weight is a lazy entry: read, masked when somebody asks
//! ```
//!
//! Nothing but one weight and half a megabyte of counters is ever held. f64 weights are compared as f32.

use serde_json::Value;
use taper_core::{Checkpoint, Context, Error, Event, Pass, Result, Select, Stage};

use super::magnitude::{Magnitude, scores};
use crate::{
    dense::{self, Zero},
    mask::pruned_count,
    threshold::{Coarse, Threshold},
};

/// [`Magnitude`] in the global scope.
#[derive(Debug, Clone)]
pub(super) struct GlobalMagnitude {
    magnitude: Magnitude,
    select: Select,
}

/// What the searches share: where the scores are, and who wants to hear of it.
struct Sweeps<'a> {
    checkpoint: &'a Checkpoint,
    context: &'a Context<'a>,
    names: &'a [String],
}

impl Sweeps<'_> {
    /// Shows every weight's scores, in name order, until `visit` says that it has seen enough.
    fn sweep(&self, number: usize, mut visit: impl FnMut(&str, &[f32]) -> bool) -> Result<()> {
        let total = 3 * self.names.len();
        for (i, name) in self.names.iter().enumerate() {
            let done = number * self.names.len() + i;
            self.context.progress(&Event::Step {
                what: "weights searched for the threshold",
                done,
                total,
            })?;
            if !visit(name, &scores(name, self.checkpoint.get(name)?.as_ref())?) {
                break;
            }
        }
        Ok(())
    }

    /// The threshold that prunes exactly `prune` weights; `None` where that is none.
    fn threshold(&self, prune: u64) -> Result<Option<Threshold>> {
        let Some(mut coarse) = Coarse::new(prune) else { return Ok(None) };
        self.sweep(0, |_, scores| {
            coarse.add(scores);
            true
        })?;
        let Some(mut fine) = coarse.narrow() else { return Ok(None) };
        self.sweep(1, |_, scores| {
            fine.add(scores);
            true
        })?;
        Ok(fine.finish())
    }

    /// How many of the ties at the threshold fall to each weight; weights after the last pruned tie get none.
    fn ties(&self, threshold: Threshold) -> Result<Vec<u64>> {
        let mut left = threshold.ties();
        let mut shares = Vec::with_capacity(self.names.len());
        self.sweep(2, |_, scores| {
            let share = threshold.count_equal(scores).min(left);
            left -= share;
            shares.push(share);
            left > 0
        })?;
        shares.resize(self.names.len(), 0);
        Ok(shares)
    }
}

impl GlobalMagnitude {
    /// The pass over a selection.
    pub(super) fn new(magnitude: Magnitude, select: Select) -> Self {
        Self { magnitude, select }
    }

    /// Selected weights that can be pruned, and how many elements they have; the others are reported as left.
    fn eligible(&self, checkpoint: &Checkpoint, context: &Context<'_>) -> Result<(Vec<String>, usize)> {
        let all = checkpoint.names();
        let (mut names, mut elements, mut selected) = (Vec::new(), 0usize, false);
        for name in &all {
            let info = checkpoint.info(name)?;
            if !self.select.matches(name, &info.shape) {
                continue;
            }
            selected = true;
            match dense::reason_to_leave(&info) {
                Some(why) => context.left(name, why),
                None => {
                    elements += info.elements();
                    names.push(name.clone());
                }
            }
        }
        if selected {
            return Ok((names, elements));
        }
        Err(Error::NothingSelected {
            pass: Magnitude::KEY.into(),
            select: self.select.to_string(),
            weights: all.len(),
            examples: all.iter().take(3).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", "),
        })
    }
}

/// Replaces a weight by a lazy entry that is the weight, masked.
fn mask_lazily(pruned: &mut Checkpoint, source: &Checkpoint, name: &str, threshold: Threshold) -> Result<()> {
    let info = source.info(name)?;
    let (source, owned) = (source.clone(), name.to_owned());
    pruned.derive(name, info, move || {
        let weight = source.get(&owned)?;
        let scores = scores(&owned, weight.as_ref())?;
        let mut keep = vec![true; scores.len()];
        threshold.mask(&scores, &mut keep);
        drop(scores);
        Ok(std::sync::Arc::new(dense::edit(&weight.dense()?, weight.shape(), &Zero(&keep))?))
    });
    Ok(())
}

impl Pass for GlobalMagnitude {
    fn name(&self) -> &str {
        Magnitude::KEY
    }

    fn stage(&self) -> Stage {
        Stage::Value
    }

    fn settings(&self) -> Value {
        let mut settings = self.magnitude.settings();
        if let Value::Object(map) = &mut settings {
            map.insert("select".into(), self.select.to_string().into());
        }
        settings
    }

    fn run(&self, checkpoint: Checkpoint, context: &Context<'_>) -> Result<Checkpoint> {
        let (names, elements) = self.eligible(&checkpoint, context)?;
        let sweeps = Sweeps { checkpoint: &checkpoint, context, names: &names };
        let sparsity = self.magnitude.sparsity();
        let Some(threshold) = sweeps.threshold(pruned_count(elements, sparsity) as u64)? else {
            for name in &names {
                context.left(name, format!("sparsity {sparsity} of {elements} weights rounds to none"));
            }
            return Ok(checkpoint);
        };
        let shares = sweeps.ties(threshold)?;
        let mut pruned = checkpoint.clone();
        for (name, share) in names.iter().zip(shares) {
            mask_lazily(&mut pruned, &checkpoint, name, threshold.with_ties(share))?;
            context.done(name);
        }
        Ok(pruned)
    }
}
