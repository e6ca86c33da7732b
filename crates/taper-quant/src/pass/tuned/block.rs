//! Teaches one block: target, seed, steps, judgement, packing.
//!
//! ```text
//! sequences   0 1 2 … 14 │ 15      every sixteenth is kept aside
//!             learn from │ judge   loss before and after; the better state stays
//! ```

use candle_core::{DType, Device, Tensor, Var};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use std::{collections::BTreeMap, sync::Arc};
use taper_core::{
    Block, Calibration, Checkpoint, Context, Event, Hidden, Needs, Recorder, Result, SharedWeight,
    weight::to_f32_vec,
};

use super::{
    Schedule, Tuned,
    streams::{Streams, Task, builder},
    unit,
};
use crate::{
    Error, IntLayout,
    learn::{Learned, Rate, Rounding},
};

/// What is taught, and how.
pub(super) struct Lesson<'a> {
    pub(super) pass: &'a Tuned,
    pub(super) calibration: &'a Calibration,
    pub(super) index: usize,
    pub(super) of: usize,
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
    /// Quantizes the matrices `names` of the block in `checkpoint`, and takes both streams through it.
    pub(super) fn teach(
        &self,
        original: &Checkpoint,
        checkpoint: &mut Checkpoint,
        names: &[String],
        streams: &mut Streams,
    ) -> Result<()> {
        let recorder = Recorder::new(Needs::InputNorms);
        let watched = builder(original).with_observer(recorder.clone());
        let block = self.calibration.blocks().block(&watched, self.index)?;
        streams.advance_dense(block.as_ref(), || self.tick(0))?;
        drop(block);
        let mut pupils = self.pupils(original, names, &recorder)?;
        let mut taught = original.clone();
        for pupil in &pupils {
            taught.insert(pupil.name.clone(), Arc::new(pupil.var.as_tensor().clone()));
        }
        let block = self.calibration.blocks().block(&builder(&taught), self.index)?;
        self.learn(block.as_ref(), &mut pupils, streams)?;
        drop((block, taught));
        let packed = pupils.iter().map(|pupil| Ok((pupil.name.clone(), self.packed(pupil)?)));
        let packed = packed.collect::<Result<BTreeMap<String, SharedWeight>>>()?;
        drop(pupils);
        self.context.finish(&unit(self.index), packed, checkpoint)?;
        self.advance_seen(checkpoint, names, streams)
    }

    /// Takes both streams through a block that is finished, or stays.
    pub(super) fn pass_by(
        &self,
        original: &Checkpoint,
        checkpoint: &Checkpoint,
        names: &[String],
        streams: &mut Streams,
    ) -> Result<()> {
        let block = self.calibration.blocks().block(&builder(original), self.index)?;
        streams.advance_dense(block.as_ref(), || self.tick(self.pass.schedule.steps))?;
        self.advance_seen(checkpoint, names, streams)
    }

    /// The second stream through what is stored. Dense values are multiplied, so that a resumed run sees the same bits.
    fn advance_seen(&self, checkpoint: &Checkpoint, names: &[String], streams: &mut Streams) -> Result<()> {
        if self.index + 1 == self.of {
            return Ok(()); // nobody looks at it
        }
        let mut stored = checkpoint.clone();
        for name in names {
            stored.insert(name.clone(), Arc::new(checkpoint.get(name)?.dense()?));
        }
        let block = self.calibration.blocks().block(&builder(&stored), self.index)?;
        streams.advance_seen(block.as_ref(), || self.tick(self.pass.schedule.steps))
    }

    /// Tells that `done` steps of this block are done.
    fn tick(&self, done: usize) -> Result<()> {
        let steps = self.pass.schedule.steps;
        let (done, total) = (self.index * steps + done, self.of * steps);
        self.context.progress(&Event::Step { what: "steps of learned rounding", done, total })
    }

    fn packed(&self, pupil: &Pupil) -> Result<SharedWeight> {
        let shape = pupil.rounding.shape();
        let standard = IntLayout::PackQuantized.holds(&pupil.name, shape, &self.pass.scheme);
        let layout = if standard { IntLayout::PackQuantized } else { IntLayout::Taper };
        Ok(Arc::new(pupil.rounding.packed(layout)?))
    }

    fn pupils(&self, original: &Checkpoint, names: &[String], recorder: &Recorder) -> Result<Vec<Pupil>> {
        let stats = recorder.stats()?;
        let pupil = |name: &String| {
            let weight = original.get(name)?;
            let importance = stats.get(name).map(taper_core::stats::InputStats::mean_squares);
            let importance = importance.filter(|norms| norms.len() == weight.shape()[1]);
            let values = to_f32_vec(weight.as_ref())?;
            let rounding = Rounding::new(values, weight.shape(), &self.pass.scheme, importance.as_deref())
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

    /// The steps; at the end each matrix is in the state that is better on the sequences kept aside.
    fn learn(&self, block: &dyn Block, pupils: &mut [Pupil], streams: &Streams) -> Result<()> {
        let schedule = self.pass.schedule;
        let (studied, kept) = split(streams.len(), schedule.judge);
        let before = judged(block, &kept, schedule, streams)?;
        let start: Vec<Learned> = pupils.iter().map(|p| p.rounding.learned()).collect();
        // One stream of numbers per block, so that blocks do not depend on how many steps those before them took.
        let mut rng = ChaCha8Rng::seed_from_u64(self.context.seed() ^ self.index as u64);
        let mut order: Vec<usize> = Vec::new();
        for step in 0..schedule.steps {
            let mut chosen = Vec::new();
            for _ in 0..schedule.sequences {
                if order.is_empty() {
                    order.clone_from(&studied);
                    order.shuffle(&mut rng);
                }
                chosen.extend(order.pop());
            }
            let mut sums: Vec<Option<Tensor>> = vec![None; pupils.len()];
            for task in streams.tasks(&chosen)? {
                accumulate(block, pupils, &task, &mut sums)?;
            }
            self.step(step, pupils, &sums)?;
            self.tick(step + 1)?;
        }
        let after = judged(block, &kept, schedule, streams)?;
        if after < before {
            return Ok(());
        }
        for (pupil, start) in pupils.iter_mut().zip(start) {
            pupil.rounding.restore(start);
            pupil.show()?;
        }
        Ok(())
    }

    fn step(&self, step: usize, pupils: &mut [Pupil], sums: &[Option<Tensor>]) -> Result<()> {
        // A rate that falls linearly from 2 t / n to 0 over n steps travels t in all.
        let left = 1.0 - step as f32 / self.pass.schedule.steps as f32;
        let rate = |travel: f32| 2.0 * travel / self.pass.schedule.steps as f32 * left;
        for (pupil, sum) in pupils.iter_mut().zip(sums) {
            let Some(sum) = sum else { return Err(Error::NoGradient { weight: pupil.name.clone() }.into()) };
            let gradient: Vec<f32> = sum.flatten_all()?.to_vec1()?;
            if gradient.iter().any(|g| !g.is_finite()) {
                return Err(Error::GradientNotFinite { weight: pupil.name.clone(), step }.into());
            }
            let rate =
                Rate { offset: rate(self.pass.schedule.travel), range: rate(self.pass.schedule.stretch) };
            pupil.rounding.step(&gradient, rate);
            pupil.show()?;
        }
        Ok(())
    }
}

/// Adds the gradients of some sequences.
fn accumulate(block: &dyn Block, pupils: &[Pupil], task: &Task, sums: &mut [Option<Tensor>]) -> Result<()> {
    let y = block.forward(&task.input)?.x;
    let residual = residual(&y.detach(), &task.target)?;
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

/// Σ (ŷ − y)² over some sequences, in f64 and in order.
fn judged(block: &dyn Block, sequences: &[usize], schedule: Schedule, streams: &Streams) -> Result<f64> {
    let mut total = 0f64;
    for some in sequences.chunks(schedule.sequences) {
        for task in streams.tasks(some)? {
            let y = block.forward(&task.input)?.x.detach();
            let residual: Vec<f32> = residual(&y, &task.target)?.flatten_all()?.to_vec1()?;
            total += residual.iter().map(|&r| f64::from(r) * f64::from(r)).sum::<f64>();
        }
    }
    Ok(total)
}

/// Which sequences are learned from, and which are kept aside: every `judge`-th and, where there are fewer, the last. A
/// single one must serve for both.
fn split(sequences: usize, judge: usize) -> (Vec<usize>, Vec<usize>) {
    if sequences == 1 {
        return (vec![0], vec![0]);
    }
    let every = judge.min(sequences);
    (0..sequences).partition(|i| (i + 1) % every != 0)
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn some_sequences_are_kept_aside_and_none_is_in_both_parts() {
        assert_eq!(split(5, 16), (vec![0, 1, 2, 3], vec![4]));
        assert_eq!(split(4, 2), (vec![0, 2], vec![1, 3]));
        assert_eq!(split(1, 16), (vec![0], vec![0]));
    }
}
