//! The passes that recipes know: one arm each.
//!
//! A new pass needs its name in [`PASSES`] and an arm in [`pass`]; a test checks that they agree with what passes call
//! themselves.

use serde::de::DeserializeOwned;
use std::fmt::Display;
use std::sync::Arc;
use taper_core::{Couplings, Pass, WeightPass};
use taper_prune::{DropLayers, Magnitude, NOfM, SparseBitmask, Structured};
use taper_quant::{
    Awq, Gptq, Rotate, RoundNearest, SmoothQuant, Trellis, Tuned,
    allocate::{Candidate, Pin},
};

use super::{RecipeError, keys, spelling::nearest, step::Step};

const ROUND_NEAREST: &str = "round-nearest";

/// The names of all passes, as recipes spell them.
pub const PASSES: [&str; 12] = [
    Structured::KEY,
    DropLayers::KEY,
    Magnitude::KEY,
    NOfM::KEY,
    Rotate::KEY,
    Awq::KEY,
    SmoothQuant::KEY,
    ROUND_NEAREST,
    Gptq::KEY,
    Trellis::KEY,
    Tuned::KEY,
    SparseBitmask::KEY,
];

/// The pass that a step describes.
pub(super) fn pass(step: Step<'_>, couplings: &Arc<dyn Couplings>) -> Result<Arc<dyn Pass>, RecipeError> {
    let couplings = Arc::clone(couplings);
    Ok(match step.name() {
        Structured::KEY => {
            let (settings, refused) = step.cutting()?;
            Arc::new(Structured::from_settings(couplings, settings).map_err(refused)?)
        }
        DropLayers::KEY => {
            let (settings, refused) = step.cutting()?;
            Arc::new(DropLayers::from_settings(couplings, settings).map_err(refused)?)
        }
        Magnitude::KEY => {
            let (pass, select) = step.selecting::<Magnitude>()?;
            Arc::new(pass.on(select))
        }
        NOfM::KEY => {
            let (pass, select) = step.selecting::<NOfM>()?;
            Arc::new(pass.on(select))
        }
        Rotate::KEY => {
            let (settings, _) = step.cutting()?;
            Arc::new(Rotate::from_settings(couplings, settings))
        }
        Awq::KEY => {
            let (settings, refused) = step.cutting()?;
            Arc::new(Awq::from_settings(couplings, settings).map_err(refused)?)
        }
        SmoothQuant::KEY => {
            let (settings, refused) = step.cutting()?;
            Arc::new(SmoothQuant::from_settings(couplings, settings).map_err(refused)?)
        }
        ROUND_NEAREST => {
            let (pass, select) = step.selecting::<RoundNearest>()?;
            Arc::new(pass.on(select))
        }
        Gptq::KEY => {
            let (pass, select) = step.selecting::<Gptq>()?;
            Arc::new(pass.on(select))
        }
        Trellis::KEY => {
            let (pass, select) = step.selecting::<Trellis>()?;
            Arc::new(pass.on(select))
        }
        Tuned::KEY => {
            let (pass, select) = step.selecting::<Tuned>()?;
            Arc::new(pass.on(select))
        }
        SparseBitmask::KEY => {
            let (pass, select) = step.selecting::<SparseBitmask>()?;
            Arc::new(pass.on(select))
        }
        unknown => {
            return Err(RecipeError::UnknownPass {
                nearest: nearest(unknown, &PASSES),
                place: step.place().clone(),
                known: keys::list(&PASSES),
            });
        }
    })
}

/// The passes that can be a format to choose from: one weight at a time, of stage `encode`.
const FORMATS: [&str; 3] = [ROUND_NEAREST, Gptq::KEY, Trellis::KEY];

/// The format that a step offers to choose from.
pub(super) fn candidate(step: Step<'_>) -> Result<Candidate, RecipeError> {
    fn of<T: DeserializeOwned + WeightPass + Display + 'static>(
        step: Step<'_>,
    ) -> Result<Candidate, RecipeError> {
        Ok(labelled(step.offered::<T>()?))
    }
    match step.name() {
        ROUND_NEAREST => of::<RoundNearest>(step),
        Gptq::KEY => of::<Gptq>(step),
        Trellis::KEY => of::<Trellis>(step),
        _ => Err(no_format(&step)),
    }
}

/// The format that a step settles, and for what.
pub(super) fn pin(step: Step<'_>) -> Result<Pin, RecipeError> {
    fn of<T: DeserializeOwned + WeightPass + Display + 'static>(step: Step<'_>) -> Result<Pin, RecipeError> {
        let (pass, select) = step.selecting::<T>()?;
        Ok(Pin { select, candidate: labelled(pass) })
    }
    match step.name() {
        ROUND_NEAREST => of::<RoundNearest>(step),
        Gptq::KEY => of::<Gptq>(step),
        Trellis::KEY => of::<Trellis>(step),
        _ => Err(no_format(&step)),
    }
}

fn labelled(pass: impl WeightPass + Display + 'static) -> Candidate {
    Candidate { label: pass.to_string(), pass: Arc::new(pass) }
}

fn no_format(step: &Step<'_>) -> RecipeError {
    RecipeError::UnknownPass {
        nearest: nearest(step.name(), &FORMATS),
        place: step.place().clone(),
        known: keys::list(&FORMATS),
    }
}

/// The couplings of whichever known architecture a checkpoint holds.
pub(super) fn known_couplings() -> Arc<dyn Couplings> {
    Arc::new(taper_models::Families)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Recipe;

    #[test]
    fn every_name_builds_the_pass_that_calls_itself_so() {
        for name in PASSES {
            let options = match name {
                Structured::KEY => "family = 'feed-forward'\nratio = 0.25",
                DropLayers::KEY => "least = 1",
                Magnitude::KEY => "sparsity = 0.5",
                NOfM::KEY => "n = 2\nm = 4",
                _ => "",
            };
            let recipe = Recipe::parse(&format!("[[pass]]\nname = '{name}'\n{options}"));
            let pipeline = recipe.unwrap_or_else(|e| panic!("{e}")).pipeline();
            assert_eq!(pipeline.passes()[0].name(), name);
        }
    }
}
