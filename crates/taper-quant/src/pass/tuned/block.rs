//! Teaches one block: target, seed, steps, judgement, packing.
//!
//! ```text
//! batches   0 1 2 … 14 │ 15      every sixteenth is kept aside
//!           learn from │ judge   loss before and after; the better state stays
//! ```

use candle_core::{DType, Device, Tensor, Var};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;
use taper_core::{
    Block, Blocks, Checkpoint, Context, Event, Hidden, Needs, Recorder, Result, WeightBuilder,
    weight::to_f32_vec,
};

use super::Schedule;
use crate::{
    Error, IntLayout,
    learn::{Learned, Rate, Rounding},
    scheme::Scheme,
};

/// What is taught, and how.
pub(super) struct Lesson<'a> {
    pub(super) blocks: &'a dyn Blocks,
    pub(super) index: usize,
    pub(super) of: usize,
    pub(super) scheme: &'a Scheme,
    pub(super) schedule: &'a Schedule,
    pub(super) context: &'a Context<'a>,
}

/// A matrix of the block: its rounding, and the tensor that the block reads.
struct Pupil {
    name: String,
    rounding: Rounding,
    var: Var,
}

impl Pupil {
    /// Shows the block what the rounding has become.
    fn show(&self) -> Result<()> {
        Ok(self.var.set(&Tensor::from_vec(self.rounding.values(), self.rounding.shape(), &Device::Cpu)?)?)
    }
}

impl Lesson<'_> {
    /// Quantizes the matrices `names` of the block in `checkpoint`, and takes both streams of hidden states through it:
    /// `dense` by the original weights, `seen` by what is stored.
    pub(super) fn teach(
        &self,
        checkpoint: &mut Checkpoint,
        names: &[String],
        dense: &mut Vec<Hidden>,
        seen: &mut Vec<Hidden>,
    ) -> Result<()> {
        let recorder = Recorder::new(Needs::InputNorms);
        let watched = builder(checkpoint).with_observer(recorder.clone());
        let original = self.blocks.block(&watched, self.index)?;
        *dense = dense.iter().map(|h| original.forward(h)).collect::<Result<_>>()?;
        drop(original);
        if names.is_empty() {
            return self.pass_on(checkpoint, seen);
        }
        let mut pupils = self.pupils(checkpoint, names, &recorder)?;
        let mut taught = checkpoint.clone();
        for pupil in &pupils {
            taught.insert(pupil.name.clone(), Arc::new(pupil.var.as_tensor().clone()));
        }
        let block = self.blocks.block(&builder(&taught), self.index)?;
        self.learn(block.as_ref(), &mut pupils, dense, seen)?;
        for pupil in &pupils {
            let shape = pupil.rounding.shape();
            let standard = IntLayout::PackQuantized.holds(&pupil.name, shape, self.scheme);
            let layout = if standard { IntLayout::PackQuantized } else { IntLayout::Taper };
            checkpoint.insert(pupil.name.clone(), Arc::new(pupil.rounding.packed(layout)?));
        }
        *seen = seen.iter().map(|h| detached(&block.forward(h)?)).collect::<Result<_>>()?;
        Ok(())
    }

    /// Takes the quantized stream through a block that stays as it is.
    fn pass_on(&self, checkpoint: &Checkpoint, seen: &mut Vec<Hidden>) -> Result<()> {
        let block = self.blocks.block(&builder(checkpoint), self.index)?;
        *seen = seen.iter().map(|h| block.forward(h)).collect::<Result<_>>()?;
        Ok(())
    }

    fn pupils(&self, checkpoint: &Checkpoint, names: &[String], recorder: &Recorder) -> Result<Vec<Pupil>> {
        let stats = recorder.stats()?;
        let pupil = |name: &String| {
            let weight = checkpoint.get(name)?;
            let importance = stats.get(name).map(taper_core::stats::InputStats::mean_squares);
            let importance = importance.filter(|norms| norms.len() == weight.shape()[1]);
            let values = to_f32_vec(weight.as_ref())?;
            let rounding = Rounding::new(values, weight.shape(), self.scheme, importance.as_deref())
                .map_err(|error| match error {
                    Error::NotFinite { count, first } => {
                        taper_core::Error::NotFinite { weight: name.clone(), count, first }
                    }
                    other => other.into(),
                })?;
            let var = Var::from_vec(rounding.values(), weight.shape(), &Device::Cpu)?;
            Ok(Pupil { name: name.clone(), rounding, var })
        };
        names.iter().map(pupil).collect()
    }

    /// The steps; at the end each matrix is in the state that is better on the batches kept aside.
    fn learn(
        &self,
        block: &dyn Block,
        pupils: &mut [Pupil],
        dense: &[Hidden],
        seen: &[Hidden],
    ) -> Result<()> {
        let (studied, kept) = split(dense.len(), self.schedule.judge);
        let before = judged(block, &kept, dense, seen)?;
        let start: Vec<Learned> = pupils.iter().map(|p| p.rounding.learned()).collect();
        // One stream of numbers per block, so that blocks do not depend on how many steps those before them took.
        let mut rng = ChaCha8Rng::seed_from_u64(self.context.seed() ^ self.index as u64);
        let mut order: Vec<usize> = Vec::new();
        for step in 0..self.schedule.steps {
            let mut sums: Vec<Option<Tensor>> = vec![None; pupils.len()];
            for _ in 0..self.schedule.batches {
                if order.is_empty() {
                    order.clone_from(&studied);
                    order.shuffle(&mut rng);
                }
                let batch = order.pop().unwrap_or_default();
                accumulate(block, pupils, &seen[batch], &dense[batch], &mut sums)?;
            }
            self.step(step, pupils, &sums)?;
            let (done, total) = (self.index * self.schedule.steps + step + 1, self.of * self.schedule.steps);
            self.context.progress(&Event::Step { what: "steps of learned rounding", done, total })?;
        }
        let after = judged(block, &kept, dense, seen)?;
        if after < before {
            return Ok(());
        }
        for (pupil, start) in pupils.iter_mut().zip(start) {
            pupil.rounding.restore(start);
            pupil.show()?;
            self.context.done(&pupil.name);
        }
        Ok(())
    }

    fn step(&self, step: usize, pupils: &mut [Pupil], sums: &[Option<Tensor>]) -> Result<()> {
        // A rate that falls linearly from 2 t / n to 0 over n steps travels t in all.
        let left = 1.0 - step as f32 / self.schedule.steps as f32;
        let rate = |travel: f32| 2.0 * travel / self.schedule.steps as f32 * left;
        for (pupil, sum) in pupils.iter_mut().zip(sums) {
            let Some(sum) = sum else { return Err(Error::NoGradient { weight: pupil.name.clone() }.into()) };
            let gradient: Vec<f32> = sum.flatten_all()?.to_vec1()?;
            if gradient.iter().any(|g| !g.is_finite()) {
                return Err(Error::GradientNotFinite { weight: pupil.name.clone(), step }.into());
            }
            let rate = Rate { offset: rate(self.schedule.travel), range: rate(self.schedule.stretch) };
            pupil.rounding.step(&gradient, rate);
            pupil.show()?;
        }
        Ok(())
    }
}

/// Adds one batch's gradients.
fn accumulate(
    block: &dyn Block,
    pupils: &[Pupil],
    x: &Hidden,
    target: &Hidden,
    sums: &mut [Option<Tensor>],
) -> Result<()> {
    let y = block.forward(x)?.x;
    let residual = residual(&y.detach(), target)?;
    // Σ y · r has the gradient r with respect to y, which is half that of Σ (y − t)²; signs do not mind the half.
    let grads = (y * residual)?.sum_all()?.backward()?;
    for (pupil, sum) in pupils.iter().zip(sums) {
        let Some(grad) = grads.get(&pupil.var) else {
            return Err(Error::NoGradient { weight: pupil.name.clone() }.into());
        };
        *sum = Some(match sum.take() {
            Some(sum) => (sum + grad)?,
            None => grad.clone(),
        });
    }
    Ok(())
}

/// y − target, 0 at padding.
fn residual(y: &Tensor, target: &Hidden) -> Result<Tensor> {
    let difference = (y - &target.x)?;
    Ok(match &target.mask {
        Some(mask) => difference.broadcast_mul(&mask.to_dtype(DType::F32)?.unsqueeze(2)?)?,
        None => difference,
    })
}

/// Σ (ŷ − y)² over some batches, in f64 and in order.
fn judged(block: &dyn Block, batches: &[usize], dense: &[Hidden], seen: &[Hidden]) -> Result<f64> {
    let mut total = 0f64;
    for &batch in batches {
        let y = block.forward(&seen[batch])?.x.detach();
        let residual: Vec<f32> = residual(&y, &dense[batch])?.flatten_all()?.to_vec1()?;
        total += residual.iter().map(|&r| f64::from(r) * f64::from(r)).sum::<f64>();
    }
    Ok(total)
}

/// Which batches are learned from, and which are kept aside: every `judge`-th and, where there are fewer, the last. A single
/// batch must serve for both.
fn split(batches: usize, judge: usize) -> (Vec<usize>, Vec<usize>) {
    if batches == 1 {
        return (vec![0], vec![0]);
    }
    let every = judge.min(batches);
    (0..batches).partition(|i| (i + 1) % every != 0)
}

fn builder(checkpoint: &Checkpoint) -> WeightBuilder {
    WeightBuilder::new(checkpoint, DType::F32, &Device::Cpu)
}

fn detached(hidden: &Hidden) -> Result<Hidden> {
    Ok(hidden.with(hidden.x.detach()))
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn some_batches_are_kept_aside_and_none_is_in_both_parts() {
        assert_eq!(split(5, 16), (vec![0, 1, 2, 3], vec![4]));
        assert_eq!(split(4, 2), (vec![0, 2], vec![1, 3]));
        assert_eq!(split(1, 16), (vec![0], vec![0]));
    }
}
