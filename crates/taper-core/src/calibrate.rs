//! Running a model on calibration data, so that passes know what the inputs of its layers look like.
//!
//! ```text
//! once         x ─block 0─▶ x ─block 1─▶ x …        the model as it is; statistics of every block from one run
//!
//! sequential   x̂ ─┬─ watch q k v ─▶ statistics ─▶ passes rewrite q k v ─┐
//!                 ├─ watch o      ◀─────────────────────────────────────┘   one group of layers after the other
//!                 ├─ …
//!                 └─▶ through the rewritten block ─▶ x̂ of the next block
//! ```
//!
//! A block that can be run in stages ([`crate::Block::stages`]) is not begun anew for each group: what stands behind the stages whose layers
//! are finished is kept.
//!
//! The driver walks the model by its [`Blocks`]: all batches through one block before the next is built. That costs what
//! running the model costs (once per group of layers where it is sequential), and holds one block's weights, that block's
//! statistics and the hidden states of the calibration tokens.
//!
//! `tap.rs` watches a block, `states.rs` keeps hidden states, `sums.rs` adds up what was seen; the driver's walk is
//! `pipeline/calibrated.rs`. For statistics from an engine's own forward pass see [`crate::observe`].

mod states;
mod sums;
mod tap;

pub(crate) use states::States;
pub(crate) use sums::Sums;
pub(crate) use tap::{Aim, Place, Seen, Station, Wanted};

use candle_core::DType;
use serde_json::{Value, json};
use std::{fmt, sync::Arc};

use crate::{Batch, Blocks, Checkpoint, Error, Event, Flow, Needs, Progress, Result, Stats};

/// What statistics are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The model as it is before the passes that ask for them.
    Once,
    /// Each layer sees what the layers before it became.
    Sequential,
}

/// How closely sequential statistics follow the changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grain {
    /// Layer by layer, those that share an input together: in a transformer q, k and v, then o, then gate and up, then
    /// down.
    #[default]
    Groups,
    /// Block by block: within a block all layers see the block's original ones. A third of the time.
    Blocks,
}

/// In which type the hidden states between two blocks are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kept {
    /// As they are computed.
    #[default]
    F32,
    /// In half the memory, rounded to eight bits of precision after every block, and between the stages of one.
    BF16,
}

impl Kept {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::BF16 => DType::BF16,
        }
    }
}

/// A model that can be run block by block, and what to run it on.
///
/// ```ignore
/// let windows = Windows::of_text(&tokenizer, &text, 256)?.first(128);
/// let batches = windows.batches().map(|b| b.map(Batch::new)).collect::<Result<Vec<_>>>()?;
/// let calibration = Calibration::new(Arc::new(Families), batches)?;
/// pipeline.run_to(checkpoint, "out", &Run::new().with_calibration(&calibration))?;
/// ```
#[derive(Clone)]
pub struct Calibration {
    blocks: Arc<dyn Blocks>,
    batches: Arc<Vec<Batch>>,
    mode: Option<Mode>,
    grain: Grain,
    kept: Kept,
    least_tokens: u64,
}

impl fmt::Debug for Calibration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calibration")
            .field("batches", &self.batches.len())
            .field("mode", &self.mode)
            .field("grain", &self.grain)
            .field("kept", &self.kept)
            .field("least_tokens", &self.least_tokens)
            .finish_non_exhaustive()
    }
}

impl Calibration {
    /// The model whose blocks these are, run on these batches. Errors where there is no batch.
    pub fn new(blocks: Arc<dyn Blocks>, batches: Vec<Batch>) -> Result<Self> {
        if batches.is_empty() {
            return Err(Error::bad_option("batches", 0, "at least one batch to calibrate on"));
        }
        let batches = Arc::new(batches);
        let (grain, kept) = (Grain::default(), Kept::default());
        Ok(Self { blocks, batches, mode: None, grain, kept, least_tokens: 1 })
    }

    /// Of the original model, or of what it became so far; sequential where a pass needs Gram matrices, else once.
    #[must_use]
    pub fn with_mode(mut self, mode: Mode) -> Self {
        self.mode = Some(mode);
        self
    }

    /// How closely sequential statistics follow the changes.
    #[must_use]
    pub fn with_grain(mut self, grain: Grain) -> Self {
        self.grain = grain;
        self
    }

    /// In which type hidden states are kept between blocks.
    #[must_use]
    pub fn with_kept(mut self, kept: Kept) -> Self {
        self.kept = kept;
        self
    }

    /// Makes it an error that a layer saw fewer tokens than this, 1 where absent: an expert that was never chosen, say.
    #[must_use]
    pub fn with_least_tokens(mut self, tokens: u64) -> Self {
        self.least_tokens = tokens;
        self
    }

    /// The model's blocks.
    #[must_use]
    pub fn blocks(&self) -> &Arc<dyn Blocks> {
        &self.blocks
    }

    /// What the model is run on.
    #[must_use]
    pub fn batches(&self) -> &[Batch] {
        &self.batches
    }

    /// The mode for passes that need `needs`.
    #[must_use]
    pub fn mode(&self, needs: Needs) -> Mode {
        self.mode.unwrap_or(if needs >= Needs::Gram { Mode::Sequential } else { Mode::Once })
    }

    pub(crate) fn grain(&self) -> Grain {
        self.grain
    }

    pub(crate) fn least_tokens(&self) -> u64 {
        self.least_tokens
    }

    /// Everything that decides the statistics, as data; part of a run's identity.
    pub(crate) fn identity(&self) -> Result<Value> {
        let mut sum = crc32fast::Hasher::new();
        for batch in self.batches.iter() {
            for part in std::iter::once(&batch.input).chain(&batch.mask) {
                sum.update(format!("{:?}", part.dims()).as_bytes());
                let values = part.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
                sum.update(bytemuck::cast_slice(&values));
            }
        }
        Ok(json!({
            "batches": self.batches.len(), "crc": sum.finalize(), "mode": self.mode, "grain": self.grain,
            "kept": self.kept,
        }))
    }

    /// Statistics of a checkpoint's model, of every layer that reads vectors (those outside the blocks too).
    ///
    /// It holds all of them at once: for Gram matrices of a large model use [`Calibration::visit`], or leave it to the driver.
    /// Errors name the layer where an input is not finite or too few tokens were seen.
    pub fn stats(&self, checkpoint: &Checkpoint, needs: Needs, progress: &dyn Progress) -> Result<Stats> {
        let mut all = Vec::new();
        self.visit(checkpoint, needs, progress, &mut |stats| {
            all.extend(stats.iter().map(|(name, seen)| (name.to_owned(), Arc::clone(seen))));
            Ok(())
        })?;
        Ok(all.into_iter().collect())
    }

    /// [`Calibration::stats`], block by block: `look` is given those of each block, then those of what comes after the last, and
    /// they are forgotten when it returns.
    pub fn visit(
        &self,
        checkpoint: &Checkpoint,
        needs: Needs,
        progress: &dyn Progress,
        look: &mut dyn FnMut(&Stats) -> Result<()>,
    ) -> Result<()> {
        let blocks = self.blocks.as_ref();
        let wanted = wanted(checkpoint, |_| true)?;
        let places = places(blocks, checkpoint)?;
        let mut states = States::enter(self, checkpoint)?;
        let mut seen_any = false;
        for (at, &place) in places.iter().enumerate() {
            let station = Station::new(blocks, place, checkpoint, &wanted)?;
            let mut sums = Sums::new(needs);
            station.pass(&mut states, place, &mut sums, &mut || step(progress, at, places.len()))?;
            drop(station);
            let stats = sums.finish(self.least_tokens)?;
            seen_any |= !stats.is_empty();
            look(&stats)?;
        }
        step(progress, places.len(), places.len())?;
        if seen_any {
            return Ok(());
        }
        Err(Error::Stats {
            site: "*".into(),
            message: "no layer of the model showed its inputs; build its layers with the builder's observer"
                .into(),
        })
    }
}

/// Every block in order, then the exit.
pub(crate) fn places(blocks: &dyn Blocks, checkpoint: &Checkpoint) -> Result<Vec<Place>> {
    let count = blocks.prefixes(checkpoint)?.len();
    Ok((0..count).map(Place::Block).chain([Place::Exit]).collect())
}

/// The matrices among the chosen weights, and how many inputs each has.
pub(crate) fn wanted(checkpoint: &Checkpoint, choose: impl Fn(&str) -> bool) -> Result<Wanted> {
    let mut wanted = Wanted::new();
    for name in checkpoint.names().into_iter().filter(|name| choose(name)) {
        let shape = checkpoint.info(&name)?.shape;
        if shape.len() >= 2 {
            wanted.insert(name, shape[1..].iter().product());
        }
    }
    Ok(wanted)
}

/// Tells how far the walk is; an error where somebody asked to stop.
pub(crate) fn step(progress: &dyn Progress, done: usize, total: usize) -> Result<()> {
    match progress.on(&Event::Step { what: "calibrating", done, total }) {
        Flow::Continue => Ok(()),
        Flow::Cancel => Err(Error::Cancelled),
    }
}
