//! Keeps the n largest of every m consecutive inputs of each output (Mishra et al. 2021, arXiv:2104.08378).
//!
//! ```text
//! 2:4   row  .3 −.9  .1  .5 | −.2  .7  .8  .1      ▶   0 −.9  0  .5 |  0  .7  .8  0
//! ```
//!
//! Rows run along `in` (a convolution's is `in·kh·kw`, flattened). A short run at the end of a row keeps ⌈n·r/m⌉ of
//! its r weights. The score is |w|; the mask is [`crate::mask::prune_n_of_m`].

use serde::{Deserialize, Serialize};
use serde_json::Value;
use taper_core::{
    Context, Error, Outline, Result, Rewrite, Stage, WeightInfo, WeightPass, weight::SharedWeight,
};

use super::magnitude::scores;
use crate::{
    dense::{self, Zero},
    mask::prune_n_of_m,
};

/// Keeps n of every m consecutive weights. Recipe key `n-of-m`; keys `n` and `m`.
///
/// ```
/// use taper_core::WeightPass;
/// use taper_prune::NOfM;
///
/// let pass = NOfM::new(2, 4)?.on_matrices();
/// assert!(NOfM::new(4, 2).is_err());
/// # Ok::<(), taper_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Settings", into = "Settings")]
pub struct NOfM {
    n: usize,
    m: usize,
}

/// The recipe's form, not yet checked.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Settings {
    n: usize,
    m: usize,
}

impl TryFrom<Settings> for NOfM {
    type Error = Error;

    fn try_from(settings: Settings) -> Result<Self> {
        Self::new(settings.n, settings.m)
    }
}

impl From<NOfM> for Settings {
    fn from(pass: NOfM) -> Self {
        Self { n: pass.n, m: pass.m }
    }
}

impl NOfM {
    /// The recipe key.
    pub const KEY: &'static str = "n-of-m";

    /// Keeps `n` of every `m`; an error unless 1 ≤ n < m.
    pub fn new(n: usize, m: usize) -> Result<Self> {
        if n >= 1 && n < m {
            Ok(Self { n, m })
        } else {
            Err(Error::bad_option(
                "n-of-m",
                format!("{n}:{m}"),
                "n is at least 1 and less than m, such as 2:4",
            ))
        }
    }

    /// How many are kept.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// Of how many.
    #[must_use]
    pub fn m(&self) -> usize {
        self.m
    }
}

impl WeightPass for NOfM {
    fn name(&self) -> &str {
        Self::KEY
    }

    fn stage(&self) -> Stage {
        Stage::Value
    }

    fn settings(&self) -> Value {
        serde_json::json!({ "n": self.n, "m": self.m })
    }

    fn rewrite(&self, name: &str, weight: &SharedWeight, _: &Context<'_>) -> Result<Rewrite> {
        let shape = weight.shape();
        if let Some(why) = dense::reason_to_leave(&WeightInfo::of(weight.as_ref())) {
            return Ok(Rewrite::left(why));
        }
        let scores = scores(name, weight.as_ref())?;
        let keep = prune_n_of_m(&scores, scores.len() / shape[0], self.n, self.m);
        drop(scores);
        if keep.iter().all(|&k| k) {
            return Ok(Rewrite::left(format!(
                "rows of {} are too short for {}:{}: ⌈n·r/m⌉ keeps all of them",
                keep.len() / shape[0],
                self.n,
                self.m
            )));
        }
        Ok(Rewrite::done(dense::edit(&weight.dense()?, shape, &Zero(&keep))?))
    }

    fn outline(&self, _: &str, before: &Outline) -> Option<Outline> {
        Some(before.clone())
    }
}
