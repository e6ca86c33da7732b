//! Learns rounding and ranges block by block, against what the block did before.
//!
//! ```text
//! y = block(x)                                the original weights on the original hidden states: the target
//! ŷ = block̂(x̂)                               quantized weights on what the quantized blocks before made of them
//! minimise Σ rᵀ M r, r = ŷ − y    over v, a of every matrix of the block:  v ← v − η sign(m),  η falling to 0
//! ```
//!
//! SignRound (Cheng et al., arXiv 2309.05516), as AutoRound has it, with these differences: learning starts from scales
//! searched for the block's inputs (errors weighted by E\[x²\], signed scales); m is a running gradient, because signs of
//! small batches do not average; ranges move by their gradient over its running size, on the scale that is stored; M weighs
//! errors by what the rest of the model makes of them; and some sequences are kept aside, so that a block whose learned
//! rounding is not better on text that it has not learned from goes back to where it started.
//!
//! One block is held at a time, with the hidden states of all sequences before and after quantization; time is linear in the
//! number of blocks. M is found beforehand for all blocks, a matrix of the hidden state's width each; with `fisher = 0` there
//! is none. A finished block goes to the run's shelf, so that a cancelled or killed run goes on after it.
//!
//! Neighbours: [`crate::learn`] has the arithmetic, `tuned/block.rs` teaches one block, `tuned/way.rs` gets its gradients,
//! `tuned/metric.rs` weighs errors, `tuned/streams.rs` keeps hidden states, [`super::TunedSettings`] is how recipes spell it,
//! [`taper_core::Blocks`] is how any architecture is walked.

mod block;
mod metric;
mod streams;
mod way;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use taper_core::{
    Checkpoint, Context, Error, Needs, Pass, Result, Select, Stage, WeightInfo, kernel::Arithmetic,
};

use super::TunedSettings;
use crate::scheme::{Granularity, Scheme};
use block::Lesson;
use metric::metrics;
use streams::Streams;

/// How long and how fast rounding is learned.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Schedule {
    /// Steps per block.
    pub steps: usize,
    /// Sequences per step: windows of the calibration text, sentences of an encoder.
    pub sequences: usize,
    /// How far an offset can travel in all, in steps of the grid; the rate falls linearly from twice this over `steps`.
    pub travel: f32,
    /// The same of a range, as a share of itself.
    pub stretch: f32,
    /// How much of the running gradient is kept at each step, from 0 to below 1.
    pub momentum: f32,
    /// Of this many sequences one is kept aside to judge by.
    pub judge: usize,
    /// φ, how much of a block's loss is weighed by what the rest of the model makes of an error, from 0 (not at all) to 1.
    pub fisher: f32,
    /// In what the products of a step are computed, where a block brings its own way back ([`taper_core::Block::trace`]).
    pub arithmetic: Arithmetic,
}

impl Default for Schedule {
    /// Fifty steps of four sequences (of 256 tokens, say): an eighth of the tokens that AutoRound reads (200 steps of eight).
    /// Half of the loss by the Fisher information, chosen on calibration text kept aside: on a model of seven million
    /// parameters the KL is 1 per cent lower at 2 bits than without.
    fn default() -> Self {
        let arithmetic = Arithmetic::BF16;
        Self {
            steps: 50,
            sequences: 4,
            travel: 0.5,
            stretch: 0.125,
            momentum: 0.0,
            judge: 16,
            fisher: 0.5,
            arithmetic,
        }
    }
}

impl Schedule {
    fn check(&self) -> crate::Result<()> {
        let positive = |x: f32| x.is_finite() && x > 0.0;
        let refuse = |option, value: String, expected: &str| {
            let conflict = format!("is {value}");
            Err(crate::Error::Conflict { option, conflict, expected: format!("choose {expected}") })
        };
        if self.steps == 0 || self.sequences == 0 {
            return refuse(
                "steps",
                format!("{} of {} sequences", self.steps, self.sequences),
                "at least one of each",
            );
        }
        if !(positive(self.travel) && self.stretch.is_finite() && self.stretch >= 0.0) {
            let value = format!("{}, `stretch` {}", self.travel, self.stretch);
            return refuse("travel", value, "a travel above 0 (0.5 is usual) and a stretch of at least 0");
        }
        if !(0.0..1.0).contains(&self.momentum) {
            return refuse("momentum", self.momentum.to_string(), "a share from 0 to below 1");
        }
        if !(0.0..=1.0).contains(&self.fisher) {
            return refuse("fisher", self.fisher.to_string(), "a share from 0 to 1");
        }
        if self.judge < 2 {
            return refuse(
                "judge",
                self.judge.to_string(),
                "at least 2, so that some sequences are learned from",
            );
        }
        Ok(())
    }
}

/// Learns rounding and ranges of the matrices of every block, on the batches of the run's calibration.
///
/// ```
/// # use taper_quant::{Schedule, Scheme, Tuned};
/// let pass = Tuned::new(Scheme::int4(128)?)?.with_schedule(Schedule { steps: 100, ..Schedule::default() })?;
/// assert_eq!(pass.scheme().to_string(), "int4 g128");
/// # Ok::<(), taper_quant::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Tuned {
    scheme: Scheme,
    schedule: Schedule,
    select: Select,
}

impl Tuned {
    /// The recipe key.
    pub const KEY: &'static str = "tuned";

    /// Encodes all matrices of the blocks to `scheme`.
    ///
    /// # Errors
    /// One scale for a whole tensor.
    pub fn new(scheme: Scheme) -> crate::Result<Self> {
        if scheme.granularity == Granularity::Tensor {
            return Err(crate::Error::Conflict {
                option: "granularity",
                conflict: "is `tensor`, which leaves nothing to learn per group".into(),
                expected: "use groups, or one scale per channel".into(),
            });
        }
        Ok(Self { scheme, schedule: Schedule::default(), select: Select::matrices() })
    }

    /// The integers.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// How long and how fast.
    #[must_use]
    pub fn schedule(&self) -> Schedule {
        self.schedule
    }

    /// With another schedule.
    ///
    /// # Errors
    /// One that takes no step, goes nowhere, or keeps every sequence aside.
    pub fn with_schedule(mut self, schedule: Schedule) -> crate::Result<Self> {
        schedule.check()?;
        self.schedule = schedule;
        Ok(self)
    }

    /// Only these weights; those of them that are in no block stay, with the reason in the report.
    #[must_use]
    pub fn on(mut self, select: Select) -> Self {
        self.select = select;
        self
    }

    /// The selected weights of each block, the reasons of those that stay being recorded.
    fn plan(
        &self,
        blocks: &dyn taper_core::Blocks,
        checkpoint: &Checkpoint,
        context: &Context<'_>,
    ) -> Result<Vec<Vec<String>>> {
        let count = blocks.prefixes(checkpoint)?.len();
        let inside = (0..count).map(|i| blocks.weights(checkpoint, i)).collect::<Result<Vec<_>>>()?;
        let mut plan = vec![Vec::new(); count];
        let mut selected = 0;
        for name in checkpoint.names() {
            let info = checkpoint.info(&name)?;
            if !self.select.matches(&name, &info.shape) {
                continue;
            }
            selected += 1;
            let home = inside.iter().position(|names| names.binary_search(&name).is_ok());
            match (home, stays(&info)) {
                (None, _) => {
                    context.left(&name, "is in no block; what lies outside has no output to learn from")
                }
                (_, Some(why)) => context.left(&name, why),
                (Some(block), None) => plan[block].push(name),
            }
        }
        if selected == 0 {
            let names = checkpoint.names();
            return Err(Error::NothingSelected {
                pass: Self::KEY.into(),
                select: self.select.to_string(),
                weights: names.len(),
                examples: names.into_iter().take(3).collect::<Vec<_>>().join(", "),
            });
        }
        Ok(plan)
    }
}

/// Why a selected weight of a block stays, where it does.
fn stays(info: &WeightInfo) -> Option<String> {
    if !info.encoding.is_dense() {
        Some(format!("is encoded already, as {}", info.encoding))
    } else if !matches!(info.encoding.format.as_str(), "f32" | "f16" | "bf16") {
        Some(format!("holds {}, not f32, f16 or bf16", info.encoding))
    } else if info.shape.len() != 2 {
        Some(format!("has shape {:?}; only matrices are learned", info.shape))
    } else if info.elements() == 0 {
        Some("has no elements".to_owned())
    } else {
        None
    }
}

impl Pass for Tuned {
    fn name(&self) -> &str {
        Self::KEY
    }

    fn stage(&self) -> Stage {
        Stage::Encode
    }

    fn needs(&self) -> Needs {
        Needs::Batches
    }

    fn settings(&self) -> Value {
        let mut settings = serde_json::to_value(TunedSettings::from(self)).unwrap_or_default();
        settings["select"] = self.select.to_string().into();
        settings
    }

    /// Encodes what learning would start from.
    fn rehearse(&self, mut checkpoint: Checkpoint, context: &Context<'_>) -> Result<Checkpoint> {
        let Some(calibration) = context.calibration() else {
            return Err(Error::NeedsStats { pass: Self::KEY.into(), needs: self.needs() });
        };
        for name in self.plan(calibration.blocks().as_ref(), &checkpoint, context)?.into_iter().flatten() {
            let start = block::start(&name, &checkpoint, &self.scheme, None)?;
            checkpoint.insert(name.clone(), block::packed(&name, &start, &self.scheme)?);
        }
        Ok(checkpoint)
    }

    fn run(&self, mut checkpoint: Checkpoint, context: &Context<'_>) -> Result<Checkpoint> {
        let Some(calibration) = context.calibration() else {
            return Err(Error::NeedsStats { pass: Self::KEY.into(), needs: self.needs() });
        };
        let original = checkpoint.clone();
        let plan = self.plan(calibration.blocks().as_ref(), &original, context)?;
        let mut finished = 0;
        while finished < plan.len()
            && (plan[finished].is_empty() || context.finished(&unit(finished), &mut checkpoint)?)
        {
            finished += 1;
        }
        if plan[finished..].iter().all(Vec::is_empty) {
            return Ok(checkpoint);
        }
        let mut streams = Streams::enter(calibration, &original)?;
        let metrics = match self.schedule.fisher {
            0.0 => Vec::new(),
            share => metrics(calibration.blocks().as_ref(), &original, &streams, share, context.seed())?,
        };
        for (index, names) in plan.iter().enumerate() {
            let metric = metrics.get(index);
            let lesson = Lesson { pass: self, calibration, index, of: plan.len(), context, metric };
            if index >= finished && !names.is_empty() {
                lesson.teach(&original, &mut checkpoint, names, &mut streams)?;
            } else {
                lesson.pass_by(&original, &checkpoint, names, &mut streams)?;
            }
        }
        Ok(checkpoint)
    }
}

/// What the run's shelf calls a block.
fn unit(index: usize) -> String {
    format!("block-{index}")
}
