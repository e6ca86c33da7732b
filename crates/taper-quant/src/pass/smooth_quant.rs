//! Moves what is hard to quantize from activations to weights (SmoothQuant, Xiao et al., arXiv:2211.10438).
//!
//! ```text
//! s_j = max |x_j|^α / max |W_·j|^(1−α)      x / s folded into what makes x, W · s
//! ```
//!
//! For products that quantize activations too: outliers of single channels become smaller there and larger in the weights.
//! The formula is [`scale::smooth`]; the couplings are those of AWQ ([`super::awq`]).

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{fmt, sync::Arc};
use taper_core::{
    Checkpoint, Context, Coordinates, Couplings, Error as CoreError, Needs, Pass, Reading, Result, Stage,
    Stats,
    coupling::{Carrier, Scaling},
    weight::to_f32_vec,
};

use super::awq::{check, fold_scales, statistics, unseen};
use crate::equivalence::{
    Folds,
    proxy::{bad_stats, max_abs},
    scale,
};

/// What a recipe step says: `alpha = 0.5`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct SmoothQuantSettings {
    /// How much of the range goes to the weights: 0 none, 1 all of it.
    pub alpha: f64,
}

impl Default for SmoothQuantSettings {
    /// α = 0.5: the paper's choice for most models.
    fn default() -> Self {
        Self { alpha: 0.5 }
    }
}

/// Scales every declared channel by the ranges of what it carries and what reads it. Recipe key `smooth-quant`.
#[derive(Clone)]
pub struct SmoothQuant {
    couplings: Arc<dyn Couplings>,
    settings: SmoothQuantSettings,
}

impl fmt::Debug for SmoothQuant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmoothQuant").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl SmoothQuant {
    /// The recipe key.
    pub const KEY: &'static str = "smooth-quant";

    /// With α, in `[0, 1]`.
    ///
    /// # Errors
    /// Any other α.
    pub fn new(couplings: Arc<dyn Couplings>, alpha: f64) -> Result<Self> {
        Self::from_settings(couplings, SmoothQuantSettings { alpha })
    }

    /// The pass that a recipe step describes.
    ///
    /// # Errors
    /// An α outside `[0, 1]`.
    pub fn from_settings(couplings: Arc<dyn Couplings>, settings: SmoothQuantSettings) -> Result<Self> {
        if !(0.0..=1.0).contains(&settings.alpha) {
            let expected = "from 0 (activations stay) to 1 (all goes to the weights), 0.5 usually";
            return Err(CoreError::bad_option("alpha", settings.alpha, expected));
        }
        Ok(Self { couplings, settings })
    }

    fn scales(&self, scaling: &Scaling, checkpoint: &Checkpoint, seen: &Stats) -> Result<Vec<f64>> {
        let (site, stats) = statistics(scaling, seen)?;
        let (mut act, mut weight) = (vec![0f64; scaling.channels], vec![0f64; scaling.channels]);
        for consumer in &scaling.consumers {
            for (i, &x) in max_abs(stats).iter().enumerate() {
                if !x.is_finite() {
                    return Err(bad_stats(site, format!("the maximum of input {i} is {x}")));
                }
                let channel = consumer.spread.channel(i);
                act[channel] = act[channel].max(f64::from(x));
            }
            let largest = column_peaks(checkpoint, consumer, stats.inputs())?;
            for (i, w) in largest.into_iter().enumerate() {
                let channel = consumer.spread.channel(i);
                weight[channel] = weight[channel].max(f64::from(w));
            }
        }
        Ok(scale::smooth(&act, &weight, self.settings.alpha))
    }
}

/// max |W_oj| per column.
fn column_peaks(checkpoint: &Checkpoint, consumer: &Carrier, inputs: usize) -> Result<Vec<f32>> {
    let values = to_f32_vec(checkpoint.get(&consumer.weight)?.as_ref())?;
    let mut peaks = vec![0f32; inputs];
    for row in values.chunks(inputs.max(1)) {
        peaks.iter_mut().zip(row).for_each(|(peak, w)| *peak = peak.max(w.abs()));
    }
    Ok(peaks)
}

impl Pass for SmoothQuant {
    fn name(&self) -> &str {
        Self::KEY
    }

    fn stage(&self) -> Stage {
        Stage::Value
    }

    fn needs(&self) -> Needs {
        Needs::InputNorms
    }

    fn settings(&self) -> Value {
        serde_json::to_value(self.settings).unwrap_or_default()
    }

    fn coordinates(&self) -> Coordinates {
        Coordinates::Changed
    }

    fn reading(&self) -> Reading {
        Reading::ByBlock
    }

    fn run(&self, checkpoint: Checkpoint, context: &Context<'_>) -> Result<Checkpoint> {
        let scalings = self.couplings.scalings(&checkpoint)?;
        if scalings.is_empty() {
            return Err(crate::Error::NothingDeclared { what: "channels to scale" }.into());
        }
        scalings.iter().try_for_each(|scaling| check(scaling, &checkpoint))?;
        let mut found: Vec<Option<Vec<f64>>> = vec![None; scalings.len()];
        context.visit_stats(&checkpoint, &mut |seen| {
            let here = |scaling: &Scaling| scaling.consumers.iter().any(|c| seen.get(&c.weight).is_some());
            let scales: Vec<Option<Result<Vec<f64>>>> = found
                .par_iter()
                .zip(&scalings)
                .map(|(found, scaling)| {
                    (found.is_none() && here(scaling)).then(|| self.scales(scaling, &checkpoint, seen))
                })
                .collect();
            for (found, scales) in found.iter_mut().zip(scales) {
                if let Some(scales) = scales {
                    *found = Some(scales?);
                }
            }
            Ok(())
        })?;
        let mut folds = Folds::new();
        for (scaling, scales) in scalings.iter().zip(found) {
            fold_scales(scaling, &scales.ok_or_else(|| unseen(scaling))?, &checkpoint, &mut folds)?;
        }
        folds.apply(checkpoint)
    }
}
