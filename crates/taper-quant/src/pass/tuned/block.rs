//! Teaches one block: target, seed, steps, judgement, packing.
//!
//! ```text
//! sequences   0 1 2 … 14 │ 15      every sixteenth is kept aside
//!             learn from │ judge   loss before and after; the better state stays
//! ```

use candle_core::{Device, Tensor};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use std::{collections::BTreeMap, sync::Arc};
use taper_core::{
    Calibration, Checkpoint, Context, Event, Gradients, Needs, Recorder, Result, SharedWeight,
    weight::to_f32_vec,
};

use super::{
    Schedule, Tuned,
    metric::Metric,
    streams::{Streams, builder},
    unit,
    way::{Way, pulled, residual, values},
};
use crate::{
    Error, IntLayout,
    learn::{Learned, Rate, Rounding},
    scheme::Scheme,
};

/// What is taught, and how.
pub(super) struct Lesson<'a> {
    pub(super) pass: &'a Tuned,
    pub(super) calibration: &'a Calibration,
    pub(super) index: usize,
    pub(super) of: usize,
    pub(super) context: &'a Context<'a>,
    /// What errors cost; all alike without one.
    pub(super) metric: Option<&'a Metric>,
}

/// A matrix of the block and its rounding.
struct Pupil {
    name: String,
    rounding: Rounding,
}

impl Pupil {
    /// What the rounding has become, as a weight.
    fn shown(&self) -> Result<SharedWeight> {
        let values = self.rounding.values();
        Ok(Arc::new(Tensor::from_vec(values, self.rounding.shape(), &Device::Cpu)?))
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
        let blocks = self.calibration.blocks();
        streams.show(blocks.block(&watched, self.index)?.as_ref())?;
        let block = blocks.block(&builder(original), self.index)?;
        streams.advance_dense(block.as_ref(), || self.tick(0))?;
        drop(block);
        let mut pupils = self.pupils(original, names, &recorder)?;
        self.learn(original, &mut pupils, streams)?;
        let packed = pupils
            .iter()
            .map(|pupil| Ok((pupil.name.clone(), packed(&pupil.name, &pupil.rounding, &self.pass.scheme)?)));
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
        let Schedule { arithmetic, steps, .. } = self.pass.schedule;
        streams.advance_seen(block.as_ref(), arithmetic, || self.tick(steps))
    }

    /// Tells that `done` steps of this block are done.
    fn tick(&self, done: usize) -> Result<()> {
        let steps = self.pass.schedule.steps;
        let (done, total) = (self.index * steps + done, self.of * steps);
        self.context.progress(&Event::Step { what: "steps of learned rounding", done, total })
    }

    fn pupils(&self, original: &Checkpoint, names: &[String], recorder: &Recorder) -> Result<Vec<Pupil>> {
        let (stats, scheme) = (recorder.stats()?, &self.pass.scheme);
        let pupil = |name: &String| {
            let importance = stats.get(name).map(taper_core::stats::InputStats::mean_squares);
            let rounding = start(name, original, scheme, importance.as_deref())?;
            Ok(Pupil { name: name.clone(), rounding })
        };
        names.iter().map(pupil).collect()
    }

    /// The checkpoint with the block's matrices as they are now.
    fn taught(&self, original: &Checkpoint, pupils: &[Pupil]) -> Result<Checkpoint> {
        let mut taught = original.clone();
        for pupil in pupils {
            taught.insert(pupil.name.clone(), pupil.shown()?);
        }
        Ok(taught)
    }

    /// The steps; at the end each matrix is in the state that is better on the sequences kept aside.
    fn learn(&self, original: &Checkpoint, pupils: &mut [Pupil], streams: &Streams) -> Result<()> {
        let schedule = self.pass.schedule;
        let (studied, kept) = split(streams.len(), schedule.judge);
        let before = self.judged(&self.taught(original, pupils)?, &kept, streams)?;
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
            let zeros = |p: &Pupil| (p.name.clone(), vec![0f32; p.rounding.shape().iter().product()]);
            let mut sums: Gradients = pupils.iter().map(zeros).collect();
            let way =
                Way::new(self.calibration.blocks().as_ref(), self.index, self.taught(original, pupils)?)?;
            for task in streams.tasks(&chosen)? {
                way.add_gradients(&task, self.metric, schedule.arithmetic, &mut sums)?;
            }
            self.step(step, pupils, &sums)?;
            self.tick(step + 1)?;
        }
        let after = self.judged(&self.taught(original, pupils)?, &kept, streams)?;
        if after < before {
            return Ok(());
        }
        for (pupil, start) in pupils.iter_mut().zip(start) {
            pupil.rounding.restore(start);
        }
        Ok(())
    }

    fn step(&self, step: usize, pupils: &mut [Pupil], sums: &Gradients) -> Result<()> {
        // A rate that falls linearly from 2 t / n to 0 over n steps travels t in all.
        let left = 1.0 - step as f32 / self.pass.schedule.steps as f32;
        let rate = |travel: f32| 2.0 * travel / self.pass.schedule.steps as f32 * left;
        for pupil in pupils {
            let Some(gradient) = sums.get(&pupil.name) else {
                return Err(Error::NoGradient { weight: pupil.name.clone() }.into());
            };
            if gradient.iter().any(|g| !g.is_finite()) {
                return Err(Error::GradientNotFinite { weight: pupil.name.clone(), step }.into());
            }
            let Schedule { travel, stretch, momentum, .. } = self.pass.schedule;
            let rate = Rate { offset: rate(travel), range: rate(stretch), momentum };
            pupil.rounding.step(gradient, rate);
        }
        Ok(())
    }

    /// Σ rᵀ M r over some sequences, in f64 and in order.
    fn judged(&self, taught: &Checkpoint, sequences: &[usize], streams: &Streams) -> Result<f64> {
        let block = self.calibration.blocks().block(&builder(taught), self.index)?;
        let mut total = 0f64;
        for some in sequences.chunks(self.pass.schedule.sequences) {
            for task in streams.tasks(some)? {
                let residual = residual(&values(&block.forward(&task.input)?.x)?, &task.target)?;
                let pulled = pulled(&residual, self.metric);
                total +=
                    residual.iter().zip(&*pulled).map(|(&r, &p)| f64::from(r) * f64::from(p)).sum::<f64>();
            }
        }
        Ok(total)
    }
}

/// The rounding that learning of a weight starts from; `importance` has a value per column, or does not fit and is left out.
pub(super) fn start(
    name: &str,
    checkpoint: &Checkpoint,
    scheme: &Scheme,
    importance: Option<&[f32]>,
) -> Result<Rounding> {
    let weight = checkpoint.get(name)?;
    let importance = importance.filter(|norms| norms.len() == weight.shape()[1]);
    let start = Rounding::new(to_f32_vec(weight.as_ref())?, weight.shape(), scheme, importance);
    start.map_err(|error| match error {
        Error::NotFinite { count, first } => {
            taper_core::Error::NotFinite { weight: name.to_owned(), count, first }
        }
        other => other.into(),
    })
}

/// A rounding as it is stored: in the standard's layout where that holds it.
pub(super) fn packed(name: &str, rounding: &Rounding, scheme: &Scheme) -> Result<SharedWeight> {
    let standard = IntLayout::PackQuantized.holds(name, rounding.shape(), scheme);
    let layout = if standard { IntLayout::PackQuantized } else { IntLayout::Taper };
    Ok(Arc::new(rounding.packed(layout)?))
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
