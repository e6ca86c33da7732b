//! Learns rounding and ranges block by block, against what the block did before.
//!
//! ```text
//! y = block(x)                                the original weights on the original hidden states: the target
//! ŷ = block̂(x̂)                               quantized weights on what the quantized blocks before made of them
//! minimise ‖ŷ − y‖²    over v, a of every matrix of the block:  v ← v − η sign(∂/∂v),  η falling to 0
//! ```
//!
//! SignRound (Cheng et al., arXiv 2309.05516), as AutoRound has it, with three differences: learning starts from scales
//! searched for the inputs that the block really gets (errors weighted by E\[x²\], signed scales); ranges move by their
//! gradient over its running size, on the scale that is stored; and some batches are kept aside, so that a block whose
//! learned rounding is not better on text that it has not learned from goes back to where it started.
//!
//! One block is held at a time, with the hidden states of all batches before and after quantization; time is linear in the
//! number of blocks. Neighbours: [`crate::learn`] has the arithmetic, `tuned/block.rs` teaches one block,
//! [`taper_core::Blocks`] is how any architecture is walked.

mod block;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{fmt, sync::Arc};
use taper_core::{
    Batch, Blocks, Checkpoint, Context, Error, Hidden, Pass, Result, Select, Stage, WeightBuilder,
};

use crate::scheme::{Granularity, Scheme};
use block::Lesson;

/// How long and how fast rounding is learned.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Schedule {
    /// Steps per block.
    pub steps: usize,
    /// Batches per step.
    pub batches: usize,
    /// How far an offset can travel in all, in steps of the grid; the rate falls linearly from twice this over `steps`.
    pub travel: f32,
    /// The same of a range, as a share of itself.
    pub stretch: f32,
    /// Of this many batches one is kept aside to judge by.
    pub judge: usize,
}

impl Default for Schedule {
    /// Fifty steps of four batches (of 256 tokens, say): an eighth of the tokens that AutoRound reads (200 steps of eight),
    /// and on a model of seven million parameters as close to the original: KL 0.068 at 2 bits, 0.0155 at 3.
    fn default() -> Self {
        Self { steps: 50, batches: 4, travel: 0.5, stretch: 0.125, judge: 16 }
    }
}

impl Schedule {
    fn check(&self) -> Result<()> {
        let positive = |x: f32| x.is_finite() && x > 0.0;
        let refuse = |option, value: String, expected: &str| Err(Error::bad_option(option, value, expected));
        if self.steps == 0 || self.batches == 0 {
            return refuse(
                "steps",
                format!("{} of {} batches", self.steps, self.batches),
                "at least one of each",
            );
        }
        if !(positive(self.travel) && self.stretch.is_finite() && self.stretch >= 0.0) {
            let value = format!("{}, `stretch` {}", self.travel, self.stretch);
            return refuse("travel", value, "a travel above 0 (0.5 is usual) and a stretch of at least 0");
        }
        if self.judge < 2 {
            return refuse(
                "judge",
                self.judge.to_string(),
                "at least 2, so that some batches are learned from",
            );
        }
        Ok(())
    }
}

/// Learns rounding and ranges of the matrices of every block. From Rust only so far: recipes have no arm for it.
#[derive(Clone)]
pub struct Tuned {
    blocks: Arc<dyn Blocks>,
    batches: Arc<Vec<Batch>>,
    scheme: Scheme,
    schedule: Schedule,
    select: Select,
}

impl fmt::Debug for Tuned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tuned")
            .field("scheme", &self.scheme)
            .field("schedule", &self.schedule)
            .field("select", &self.select)
            .field("batches", &self.batches.len())
            .finish_non_exhaustive()
    }
}

impl Tuned {
    /// The recipe key.
    pub const KEY: &'static str = "tuned";

    /// Encodes all matrices of the blocks to `scheme`, learning on `batches`.
    ///
    /// # Errors
    /// No batch, and one scale for a whole tensor.
    pub fn new(scheme: Scheme, blocks: Arc<dyn Blocks>, batches: Arc<Vec<Batch>>) -> Result<Self> {
        if batches.is_empty() {
            return Err(Error::bad_option(
                "batches",
                0,
                "at least one batch of calibration text to learn from",
            ));
        }
        if scheme.granularity == Granularity::Tensor {
            return Err(Error::bad_option("granularity", "tensor", "groups, or one scale per channel"));
        }
        let (schedule, select) = (Schedule::default(), Select::matrices());
        Ok(Self { blocks, batches, scheme, schedule, select })
    }

    /// With another schedule.
    ///
    /// # Errors
    /// One that takes no step, goes nowhere, or keeps every batch aside.
    pub fn with_schedule(mut self, schedule: Schedule) -> Result<Self> {
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
    fn plan(&self, checkpoint: &Checkpoint, context: &Context<'_>) -> Result<Vec<Vec<String>>> {
        let blocks = self.blocks.prefixes(checkpoint)?.len();
        let inside = (0..blocks).map(|i| self.blocks.weights(checkpoint, i)).collect::<Result<Vec<_>>>()?;
        let mut plan = vec![Vec::new(); blocks];
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
fn stays(info: &taper_core::WeightInfo) -> Option<String> {
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

    fn settings(&self) -> Value {
        serde_json::json!({
            "scheme": self.scheme,
            "schedule": self.schedule,
            "select": self.select.to_string(),
            "batches": self.batches.len(),
        })
    }

    fn run(&self, mut checkpoint: Checkpoint, context: &Context<'_>) -> Result<Checkpoint> {
        let plan = self.plan(&checkpoint, context)?;
        let builder =
            |c: &Checkpoint| WeightBuilder::new(c, candle_core::DType::F32, &candle_core::Device::Cpu);
        let entrance = self.blocks.entrance(&builder(&checkpoint))?;
        let mut dense = self.batches.iter().map(|b| entrance.forward(b)).collect::<Result<Vec<Hidden>>>()?;
        drop(entrance);
        let mut seen = dense.clone();
        for (index, names) in plan.iter().enumerate() {
            let lesson = Lesson {
                blocks: self.blocks.as_ref(),
                index,
                of: plan.len(),
                scheme: &self.scheme,
                schedule: &self.schedule,
                context,
            };
            lesson.teach(&mut checkpoint, names, &mut dense, &mut seen)?;
        }
        Ok(checkpoint)
    }
}
