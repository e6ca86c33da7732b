//! Scales channels so that rounding hurts the loud ones less (AWQ, Lin et al., arXiv:2306.00978).
//!
//! ```text
//! s = act^a / w^b over a grid       cost(s) = Σ_consumers tr(E G Eᵀ),  E = Q(W·s)/s − W
//! best s: producer / s, consumers · s                then, if asked for, the best clipping of each group of W·s
//! ```
//!
//! Statistics are read block by block: one block's Gram matrices are held, whatever the size of the model. The cost is read off the Gram matrix, so it does not grow with the tokens of calibration, and off a sample of the rows, so
//! it does not grow with the outputs (`SAMPLE`). Q is whatever will encode the weights afterwards, given as a
//! [`RoundNearest`]. The mathematics is in [`crate::equivalence`]; clipping is `awq_clip.rs`.

use rayon::prelude::*;
use serde_json::Value;
use std::{fmt, num::NonZeroUsize, sync::Arc};
use taper_core::{
    Checkpoint, Context, Coordinates, Couplings, Error as CoreError, Event, InputStats, Needs, Pass, Reading,
    Result, Rows, Stage, Stats,
    coupling::{Carrier, Scaling},
    weight::{rows::dense_slice, to_f32_vec},
};

use super::{
    awq_clip,
    awq_settings::{AwqSettings, Clip, Score},
    round_nearest::{Number, RoundNearest},
};
use crate::{
    Error, IntLayout, PackedInt, PackedNf4,
    equivalence::{
        Fold, Folds, Proxy,
        proxy::bad_stats,
        scale::{self, Exponents},
    },
};

/// Multiply-adds that one candidate may cost in tr(E G Eᵀ) per consumer: 64 rows of 4,096 inputs, all of 1,024 of 1,024. The
/// rows of a layer agree about the best scale, and the error of a sample falls with the square root of its size.
const SAMPLE: usize = 1 << 30;

/// Error rows that are multiplied by the Gram matrix at a time: enough to be limited by arithmetic, not by reading it.
const TOGETHER: usize = 2048;

/// Rows that are looked at in any case.
const LEAST_ROWS: usize = 64;

/// Scales every declared channel for the quantizer that comes next. Recipe key `awq`.
#[derive(Clone)]
pub struct Awq {
    couplings: Arc<dyn Couplings>,
    rounding: RoundNearest,
    points: NonZeroUsize,
    exponents: Exponents,
    clip: Clip,
    score: Score,
}

impl fmt::Debug for Awq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Awq").field("settings", &self.to_settings()).finish_non_exhaustive()
    }
}

impl Awq {
    /// The recipe key.
    pub const KEY: &'static str = "awq";

    /// For this quantizer: 20 points, scored by the Gram matrix, nothing clipped.
    #[must_use]
    pub fn new(couplings: Arc<dyn Couplings>, rounding: RoundNearest) -> Self {
        let points = NonZeroUsize::new(20).unwrap_or(NonZeroUsize::MIN);
        let (exponents, clip, score) = (Exponents::default(), Clip::default(), Score::default());
        Self { couplings, rounding, points, exponents, clip, score }
    }

    /// The pass that a recipe step describes.
    ///
    /// # Errors
    /// Options of the quantizer that contradict each other.
    pub fn from_settings(couplings: Arc<dyn Couplings>, settings: AwqSettings) -> Result<Self> {
        let (clip, score, exponents, points) =
            (settings.clip, settings.score, settings.exponents, settings.points);
        let new = Self::new(couplings, settings.rounding()?);
        Ok(Self { clip, score, exponents, points: points.unwrap_or(new.points), ..new })
    }

    /// With this many candidates, no scaling among them.
    #[must_use]
    pub fn with_points(mut self, points: NonZeroUsize) -> Self {
        self.points = points;
        self
    }

    /// With this grid.
    #[must_use]
    pub fn with_exponents(mut self, exponents: Exponents) -> Self {
        self.exponents = exponents;
        self
    }

    /// With groups clipped or not.
    #[must_use]
    pub fn with_clip(mut self, clip: Clip) -> Self {
        self.clip = clip;
        self
    }

    /// Scored this way.
    #[must_use]
    pub fn scored_by(mut self, score: Score) -> Self {
        self.score = score;
        self
    }

    fn to_settings(&self) -> AwqSettings {
        let quantizer = AwqSettings::of(&self.rounding);
        let (clip, score, exponents) = (self.clip, self.score, self.exponents);
        AwqSettings { points: Some(self.points), clip, score, exponents, ..quantizer }
    }

    fn proxy(&self, site: &str, stats: &InputStats) -> Result<Proxy> {
        match self.score {
            Score::Gram => Proxy::gram(site, stats),
            Score::InputNorms => Proxy::diagonal(site, stats),
        }
    }

    /// The best scales of one coupling and what to clip afterwards.
    fn choose(&self, scaling: &Scaling, checkpoint: &Checkpoint, seen: &Stats) -> Result<Choice> {
        let (site, stats) = statistics(scaling, seen)?;
        let proxy = self.proxy(site, stats)?;
        let consumers = read_consumers(scaling, checkpoint, stats.inputs())?;
        let act = activity(scaling, site, stats)?;
        let weight = magnitudes(&consumers, scaling.channels, self.rounding.number());
        let grid = self.exponents.grid(self.points.get());
        let candidates: Vec<Vec<f64>> = grid.iter().map(|&at| scale::scales(&act, &weight, at)).collect();
        let mut costs = vec![0.0; candidates.len()];
        for consumer in &consumers {
            let found = self.costs(consumer, &candidates, &proxy)?;
            costs.iter_mut().zip(found).for_each(|(sum, cost)| *sum += cost);
        }
        // Of equals the first, so no scaling where nothing is better.
        let finite = costs.iter().enumerate().filter(|(_, cost)| cost.is_finite());
        let best = finite.min_by(|a, b| a.1.total_cmp(b.1)).map(|(at, _)| at);
        let best = best.ok_or_else(|| bad_stats(site, "no candidate has a finite cost"))?;
        let mut clips = Vec::new();
        if self.clip == Clip::Search {
            for consumer in &consumers {
                let columns = consumer.columns(&candidates[best]);
                let fold = awq_clip::limits(&consumer.values, &columns, &self.rounding, &proxy)?;
                clips.push((consumer.carrier.weight.clone(), fold));
            }
        }
        Ok(Choice { scales: (best > 0).then(|| candidates[best].clone()), clips })
    }

    /// The cost of every candidate at one consumer, a few candidates per product.
    fn costs(&self, consumer: &Consumer<'_>, candidates: &[Vec<f64>], proxy: &Proxy) -> Result<Vec<f64>> {
        let rows = sample(&consumer.values, consumer.inputs);
        let height = rows.len() / consumer.inputs.max(1);
        let mut costs = Vec::new();
        for some in candidates.chunks((TOGETHER / height.max(1)).max(1)) {
            let mut all = Vec::with_capacity(some.len() * rows.len());
            for scales in some {
                all.extend(errors(&rows, &consumer.columns(scales), &self.rounding)?);
            }
            costs.extend(proxy.costs(all, consumer.inputs, height)?);
        }
        Ok(costs)
    }
}

/// What is best for one coupling.
struct Choice {
    /// The scales; `None` where none are best.
    scales: Option<Vec<f64>>,
    /// What to clip, by weight.
    clips: Vec<(String, Fold)>,
}

/// One consumer's values.
struct Consumer<'a> {
    carrier: &'a Carrier,
    values: Vec<f32>,
    inputs: usize,
}

impl Consumer<'_> {
    /// The scale of each column.
    fn columns(&self, scales: &[f64]) -> Vec<f32> {
        (0..self.inputs).map(|i| scales[self.carrier.spread.channel(i)] as f32).collect()
    }
}

fn read_consumers<'a>(
    scaling: &'a Scaling,
    checkpoint: &Checkpoint,
    inputs: usize,
) -> Result<Vec<Consumer<'a>>> {
    let read = |carrier: &'a Carrier| {
        let weight = checkpoint.get(&carrier.weight)?;
        taper_core::verify::finite(&carrier.weight, weight.as_ref())?;
        Ok(Consumer { carrier, values: to_f32_vec(weight.as_ref())?, inputs })
    };
    scaling.consumers.iter().map(read).collect()
}

/// mean |x| per channel.
fn activity(scaling: &Scaling, site: &str, stats: &InputStats) -> Result<Vec<f64>> {
    if let Some(i) = stats.mean_abs.iter().position(|x| !(x.is_finite() && *x >= 0.0)) {
        return Err(bad_stats(site, format!("the mean of |input {i}| is {}", stats.mean_abs[i])));
    }
    let wide: Vec<f64> = stats.mean_abs.iter().map(|&x| f64::from(x)).collect();
    let spread = scaling.consumers[0].spread;
    Ok(scale::by_channel(&wide, scaling.channels, |i| spread.channel(i)))
}

/// Mean per channel of |w| over the largest |w| of its group, all consumers together.
fn magnitudes(consumers: &[Consumer<'_>], channels: usize, number: Number) -> Vec<f64> {
    let mut all = vec![0.0; channels];
    for consumer in consumers {
        let span = awq_clip::span(number, consumer.inputs);
        let partial: Vec<Vec<f64>> = consumer
            .values
            .par_chunks(256 * consumer.inputs.max(1))
            .map(|rows| {
                let mut sums = vec![0.0; consumer.inputs];
                for row in rows.chunks(consumer.inputs.max(1)) {
                    for (group, sums) in row.chunks(span).zip(sums.chunks_mut(span)) {
                        let peak = group.iter().fold(0f32, |m, w| m.max(w.abs()));
                        let inverse = if peak > 0.0 { 1.0 / peak } else { 0.0 };
                        sums.iter_mut().zip(group).for_each(|(s, w)| *s += f64::from(w.abs() * inverse));
                    }
                }
                sums
            })
            .collect();
        for sums in partial {
            let spread = consumer.carrier.spread;
            sums.iter().enumerate().for_each(|(i, s)| all[spread.channel(i)] += s);
        }
    }
    all
}

/// Rows at even distances, as many as [`SAMPLE`] allows.
fn sample(values: &[f32], inputs: usize) -> Vec<f32> {
    let rows = values.len() / inputs.max(1);
    let wanted = (SAMPLE / (inputs * inputs).max(1)).max(LEAST_ROWS).min(rows);
    (0..wanted)
        .map(|k| k * rows / wanted.max(1))
        .flat_map(|r| &values[r * inputs..(r + 1) * inputs])
        .copied()
        .collect()
}

/// Q(W·s)/s − W.
pub(super) fn errors(rows: &[f32], columns: &[f32], rounding: &RoundNearest) -> Result<Vec<f32>> {
    let scaled = scaled(rows, columns);
    let mut decoded = rounded(&scaled, columns.len(), rounding)?;
    for (row, original) in decoded.chunks_mut(columns.len()).zip(rows.chunks(columns.len())) {
        for ((q, w), s) in row.iter_mut().zip(original).zip(columns) {
            *q = *q / s - w;
        }
    }
    Ok(decoded)
}

/// W·s.
pub(super) fn scaled(rows: &[f32], columns: &[f32]) -> Vec<f32> {
    rows.chunks(columns.len().max(1)).flat_map(|row| row.iter().zip(columns).map(|(w, s)| w * s)).collect()
}

/// Encoded and decoded again.
pub(super) fn rounded(values: &[f32], cols: usize, rounding: &RoundNearest) -> crate::Result<Vec<f32>> {
    let (shape, fit) = ([values.len() / cols.max(1), cols], rounding.fit());
    Ok(match rounding.number() {
        Number::Int(scheme) => {
            decoded(&PackedInt::encode(values, &shape, &scheme, &fit, None, IntLayout::Taper)?)
        }
        Number::Nf4(scheme) => {
            decoded(&PackedNf4::encode(values, &shape, scheme, &fit, None, Default::default())?)
        }
    })
}

fn decoded<R: Rows>(weight: &R) -> Vec<f32> {
    dense_slice(weight)
}

/// Checks that every axis of a declaration is there and carries the channels.
pub(super) fn check(scaling: &Scaling, checkpoint: &Checkpoint) -> Result<()> {
    let wrong = |weight: &str, message: String| {
        let coupling = scaling.name.clone();
        CoreError::from(Error::Declaration { coupling, weight: weight.to_owned(), message })
    };
    if scaling.consumers.is_empty() || scaling.producers.is_empty() {
        return Err(wrong("", "it needs at least one producer and one consumer".into()));
    }
    for (carrier, rank) in
        scaling.producers.iter().map(|c| (c, 1)).chain(scaling.consumers.iter().map(|c| (c, 2)))
    {
        let shape = checkpoint.info(&carrier.weight)?.shape;
        let Some(&size) = shape.get(carrier.axis).filter(|_| shape.len() >= rank) else {
            return Err(wrong(
                &carrier.weight,
                format!("it has shape {shape:?}, without axis {}", carrier.axis),
            ));
        };
        let channels = size / carrier.spread.times.max(1);
        if carrier.spread.width == 0
            || size != channels * carrier.spread.times
            || channels != scaling.channels
        {
            let message =
                format!("axis {} has {size} indices for {} channels", carrier.axis, scaling.channels);
            return Err(wrong(&carrier.weight, message));
        }
    }
    for consumer in &scaling.consumers {
        if consumer.axis != 1 || consumer.spread != scaling.consumers[0].spread {
            let message = "consumers read along axis 1, all of them in one order".to_owned();
            return Err(wrong(&consumer.weight, message));
        }
    }
    Ok(())
}

/// What the consumers of a coupling saw; they all see the same.
pub(super) fn statistics<'a, 'c>(scaling: &'a Scaling, seen: &'c Stats) -> Result<(&'a str, &'c InputStats)> {
    let found = scaling.consumers.iter().find_map(|c| Some((c.weight.as_str(), seen.get(&c.weight)?)));
    let (site, stats) = found.ok_or_else(|| unseen(scaling))?;
    let expected = scaling.channels * scaling.consumers[0].spread.times;
    if stats.inputs() != expected || stats.mean_abs.len() != expected {
        return Err(bad_stats(
            site,
            format!("they are of {} inputs, the weight has {expected}", stats.inputs()),
        ));
    }
    Ok((site, stats))
}

/// The error where no consumer of a coupling has statistics.
pub(super) fn unseen(scaling: &Scaling) -> CoreError {
    let message = format!("none were gathered, and `{}` needs them; calibrate the whole model", scaling.name);
    bad_stats(&scaling.consumers[0].weight, message)
}

/// Folds scales into producers (divided) and consumers (multiplied).
pub(super) fn fold_scales(
    scaling: &Scaling,
    scales: &[f64],
    checkpoint: &Checkpoint,
    folds: &mut Folds,
) -> Result<()> {
    let mut add = |carrier: &Carrier, power: i32| -> Result<()> {
        let size = checkpoint.info(&carrier.weight)?.shape[carrier.axis];
        let factors = (0..size).map(|i| scales[carrier.spread.channel(i)].powi(power)).collect();
        folds.add(&carrier.weight, Fold::Scale { axis: carrier.axis, factors });
        Ok(())
    };
    scaling.producers.iter().try_for_each(|carrier| add(carrier, -1))?;
    scaling.consumers.iter().try_for_each(|carrier| add(carrier, 1))
}

impl Pass for Awq {
    fn name(&self) -> &str {
        Self::KEY
    }

    fn stage(&self) -> Stage {
        Stage::Value
    }

    fn needs(&self) -> Needs {
        match self.score {
            Score::Gram => Needs::Gram,
            Score::InputNorms => Needs::InputNorms,
        }
    }

    fn settings(&self) -> Value {
        serde_json::to_value(self.to_settings()).unwrap_or_default()
    }

    fn coordinates(&self) -> Coordinates {
        Coordinates::Changed
    }

    fn reading(&self) -> Reading {
        Reading::ByBlock
    }

    fn run(&self, checkpoint: Checkpoint, context: &Context<'_>) -> Result<Checkpoint> {
        self.rounding.check()?;
        let scalings = self.couplings.scalings(&checkpoint)?;
        if scalings.is_empty() {
            return Err(Error::NothingDeclared { what: "channels to scale" }.into());
        }
        scalings.iter().try_for_each(|scaling| check(scaling, &checkpoint))?;
        let mut choices: Vec<Option<Choice>> = scalings.iter().map(|_| None).collect();
        let mut done = 0;
        context.visit_stats(&checkpoint, &mut |seen| {
            for (scaling, choice) in scalings.iter().zip(&mut choices) {
                if choice.is_none() && scaling.consumers.iter().any(|c| seen.get(&c.weight).is_some()) {
                    *choice = Some(self.choose(scaling, &checkpoint, seen)?);
                    done += 1;
                    let total = scalings.len();
                    context.progress(&Event::Step { what: "couplings scaled", done, total })?;
                }
            }
            Ok(())
        })?;
        let mut folds = Folds::new();
        let mut unscaled = Vec::new();
        for (scaling, choice) in scalings.iter().zip(choices) {
            let choice = choice.ok_or_else(|| unseen(scaling))?;
            match choice.scales {
                Some(scales) => fold_scales(scaling, &scales, &checkpoint, &mut folds)?,
                None => unscaled.extend(scaling.consumers.iter().map(|c| (&c.weight, &scaling.name))),
            }
            choice.clips.into_iter().for_each(|(weight, fold)| folds.add(&weight, fold));
        }
        for (weight, name) in unscaled {
            if !folds.weights().any(|changed| changed == weight) {
                context.left(weight, format!("no scale of `{name}` lowers the error at its outputs"));
            }
        }
        folds.apply(checkpoint)
    }
}
