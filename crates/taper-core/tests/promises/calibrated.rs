//! Calibrated runs: what passes see, in which order, and that memory, disk, resuming and threads change nothing.

use crate::toy::{Halved, codecs, error_of, files, tensor};
use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value, json};
use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};
use taper_core::{
    Batch, Block, Blocks, Calibration, Checkpoint, Context, Entrance, Event, Exit, Flow, Hidden, InputStats,
    Needs, Pass, Pipeline, Reading, Result, Rewrite, Run, SharedWeight, Silent, Stage, WeightBuilder,
    WeightPass,
    calibrate::{Grain, Kept, Mode},
    nn::{self, Embedding, Linear},
    report::Origin,
    store::output::{Resume, partial_path},
    weight::to_f32_vec,
};

const WIDTH: usize = 8;

/// x ← x + down(tanh(left x) ⊙ right x), a few times, between an embedding and a head.
struct Chain;

struct Gated {
    left: Linear,
    right: Linear,
    down: Linear,
}

impl Gated {
    fn gate(&self, x: &Tensor) -> Result<Tensor> {
        Ok((self.left.forward(x)?.tanh()? * self.right.forward(x)?)?)
    }
}

/// The same model, its blocks in two stages each, which count their runs.
#[derive(Default)]
struct InStages(Arc<[AtomicUsize; 2]>);

struct Staged(Gated, Arc<[AtomicUsize; 2]>);

struct Head(Linear);

struct Table(Embedding);

impl Entrance for Table {
    fn forward(&self, batch: &Batch) -> Result<Hidden> {
        Ok(Hidden::new(self.0.forward(&batch.input)?, batch.mask.clone()))
    }
}

impl Block for Gated {
    fn forward(&self, hidden: &Hidden) -> Result<Hidden> {
        let x = &hidden.x;
        Ok(hidden.with((x + self.down.forward(&self.gate(x)?)?)?))
    }
}

impl Block for Staged {
    fn forward(&self, hidden: &Hidden) -> Result<Hidden> {
        self.0.forward(hidden)
    }

    fn stages(&self) -> usize {
        2
    }

    fn stage(&self, index: usize, hidden: &Hidden) -> Result<Hidden> {
        self.1[index].fetch_add(1, Ordering::Relaxed);
        let x = &hidden.x;
        match index {
            0 => Ok(hidden.holding(self.0.gate(x)?)),
            _ => Ok(hidden.with((x + self.0.down.forward(hidden.held()?)?)?)),
        }
    }
}

impl Exit for Head {
    fn forward(&self, hidden: &Hidden) -> Result<Tensor> {
        self.0.forward(&hidden.x)
    }
}

impl Blocks for Chain {
    fn prefixes(&self, checkpoint: &Checkpoint) -> Result<Vec<String>> {
        let has = |i: &usize| checkpoint.contains(&format!("blocks.{i}.down.weight"));
        Ok((0..).take_while(has).map(|i| format!("blocks.{i}")).collect())
    }

    fn entrance(&self, weights: &WeightBuilder) -> Result<Box<dyn Entrance>> {
        Ok(Box::new(Table(nn::embedding(20, WIDTH, &weights.pp("table"))?)))
    }

    fn block(&self, weights: &WeightBuilder, index: usize) -> Result<Box<dyn Block>> {
        Ok(Box::new(gated(weights, index)?))
    }

    fn exit(&self, weights: &WeightBuilder) -> Result<Box<dyn Exit>> {
        Ok(Box::new(Head(nn::linear_no_bias(WIDTH, 20, &weights.pp("head"))?)))
    }
}

fn gated(weights: &WeightBuilder, index: usize) -> Result<Gated> {
    let at = weights.pp("blocks").pp(index);
    Ok(Gated {
        left: nn::linear_no_bias(WIDTH, 12, &at.pp("left"))?,
        right: nn::linear_no_bias(WIDTH, 12, &at.pp("right"))?,
        down: nn::linear_no_bias(12, WIDTH, &at.pp("down"))?,
    })
}

impl Blocks for InStages {
    fn prefixes(&self, checkpoint: &Checkpoint) -> Result<Vec<String>> {
        Chain.prefixes(checkpoint)
    }

    fn entrance(&self, weights: &WeightBuilder) -> Result<Box<dyn Entrance>> {
        Chain.entrance(weights)
    }

    fn block(&self, weights: &WeightBuilder, index: usize) -> Result<Box<dyn Block>> {
        Ok(Box::new(Staged(gated(weights, index)?, Arc::clone(&self.0))))
    }

    fn exit(&self, weights: &WeightBuilder) -> Result<Box<dyn Exit>> {
        Chain.exit(weights)
    }
}

/// Eleven blocks, so that block 10 is written before block 2.
fn checkpoint() -> Checkpoint {
    let mut checkpoint = Checkpoint::new(Map::new()).with_codecs(&codecs());
    let mut put = |name: String, shape: &[usize], seed| {
        let values = (tensor(shape, seed) * 0.2).unwrap();
        checkpoint.insert(format!("{name}.weight"), Arc::new(values));
    };
    put("table".into(), &[20, WIDTH], 1);
    put("head".into(), &[20, WIDTH], 2);
    for i in 0..11u64 {
        put(format!("blocks.{i}.left"), &[12, WIDTH], 10 + 3 * i);
        put(format!("blocks.{i}.right"), &[12, WIDTH], 11 + 3 * i);
        put(format!("blocks.{i}.down"), &[WIDTH, 12], 12 + 3 * i);
    }
    checkpoint
}

fn batches() -> Vec<Batch> {
    let ids = |n: usize, from: usize| {
        let values: Vec<u32> = (0..n).map(|i| ((i * 7 + from) % 20) as u32).collect();
        Batch::new(Tensor::from_vec(values, (1, n), &Device::Cpu).unwrap())
    };
    vec![ids(30, 0), ids(17, 5), ids(40, 3)]
}

fn calibration() -> Calibration {
    Calibration::new(Arc::new(Chain), batches()).unwrap()
}

/// A weight that was rewritten, and what was known of its inputs.
type Note = (String, Option<InputStats>);

/// Scales each weight by 0.9, halves its precision, and notes what it saw.
#[derive(Debug, Clone)]
struct Notes {
    needs: Needs,
    seen: Arc<Mutex<Vec<Note>>>,
}

impl Notes {
    fn new(needs: Needs) -> Self {
        Self { needs, seen: Arc::default() }
    }

    fn of(&self, name: &str) -> InputStats {
        let seen = self.seen.lock().unwrap();
        seen.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("{name}")).1.clone().unwrap()
    }
}

impl WeightPass for Notes {
    fn name(&self) -> &str {
        "notes"
    }
    fn stage(&self) -> Stage {
        Stage::Encode
    }
    fn needs(&self) -> Needs {
        self.needs
    }
    fn settings(&self) -> Value {
        json!({ "needs": self.needs })
    }
    fn rewrite(&self, name: &str, weight: &SharedWeight, context: &Context<'_>) -> Result<Rewrite> {
        self.seen.lock().unwrap().push((name.to_owned(), context.stats(name).cloned()));
        Ok(Rewrite::done(Halved::of(&(weight.dense()? * 0.9)?)?))
    }
}

/// Runs in memory; what the pass saw, and the result.
fn ran(calibration: &Calibration, needs: Needs) -> (Notes, Checkpoint) {
    let notes = Notes::new(needs);
    let pipeline = Pipeline::new().then(notes.clone().on_matrices());
    let (out, report) = pipeline.run(checkpoint(), &Run::new().with_calibration(calibration)).unwrap();
    let seen = report.calibration.unwrap();
    assert_eq!(seen.layers.len(), 34, "every layer but the embedding");
    assert!(seen.layers.values().all(|&tokens| tokens == 87));
    (notes, out)
}

/// Rows of all inputs of one layer of a model, computed here without the driver.
fn inputs(model: &Checkpoint, block: usize, site: &str) -> Vec<Vec<f64>> {
    let get = |c: &Checkpoint, name: String| c.get(&name).unwrap().dense().unwrap();
    let mut rows = Vec::new();
    for batch in batches() {
        let table = get(model, "table.weight".into());
        let mut x = table.index_select(&batch.input.flatten_all().unwrap(), 0).unwrap();
        for i in 0..=block {
            let at = |c, layer: &str| get(c, format!("blocks.{i}.{layer}.weight"));
            if i == block && site == "left" {
                break;
            }
            let inner = (x.matmul(&at(model, "left").t().unwrap()).unwrap().tanh().unwrap()
                * x.matmul(&at(model, "right").t().unwrap()).unwrap())
            .unwrap();
            if i == block {
                x = inner;
                break;
            }
            x = (&x + inner.matmul(&at(model, "down").t().unwrap()).unwrap()).unwrap();
        }
        rows.extend(x.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap());
    }
    rows
}

fn assert_is_gram(stats: &InputStats, rows: &[Vec<f64>]) {
    let gram = stats.gram.as_ref().unwrap();
    assert_eq!(stats.count as usize, rows.len());
    for i in 0..gram.inputs() {
        for j in 0..gram.inputs() {
            let expected: f64 = rows.iter().map(|r| r[i] * r[j]).sum();
            assert!((gram.get(i, j) - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{i} {j}");
        }
    }
}

#[test]
fn sequential_layers_see_what_those_before_them_became() {
    let (notes, out) = ran(&calibration(), Needs::Gram);
    for (block, site) in [(0, "left"), (0, "down"), (3, "left"), (10, "down")] {
        let rows = inputs(&out, block, site);
        assert_is_gram(&notes.of(&format!("blocks.{block}.{site}.weight")), &rows);
    }
    let order: Vec<String> = notes.seen.lock().unwrap().iter().map(|(n, _)| n.clone()).collect();
    let place = |name: &str| order.iter().position(|n| n == name).unwrap();
    assert!(place("table.weight") < place("blocks.0.left.weight"));
    assert!(place("blocks.2.down.weight") < place("blocks.10.left.weight"));
    assert_eq!(order.last().unwrap(), "head.weight");
}

#[test]
fn once_layers_see_the_model_as_it_was() {
    let once = calibration().with_mode(Mode::Once);
    let (notes, _) = ran(&once, Needs::Gram);
    let all = once.stats(&checkpoint(), Needs::Gram, &Silent).unwrap();
    for (block, site) in [(0, "down"), (3, "left"), (10, "down")] {
        let name = format!("blocks.{block}.{site}.weight");
        assert_is_gram(&notes.of(&name), &inputs(&checkpoint(), block, site));
        assert_eq!(&notes.of(&name), all.get(&name).unwrap(), "walked and gathered at one go");
    }
    let (light, _) = ran(&calibration(), Needs::InputNorms);
    assert_eq!(light.of("head.weight").sum_squares, all.get("head.weight").unwrap().sum_squares);
}

#[test]
fn given_statistics_and_fresh_ones_give_the_same_bytes() {
    let once = calibration().with_mode(Mode::Once);
    let stats = once.stats(&checkpoint(), Needs::Gram, &Silent).unwrap();
    let pipeline = || Pipeline::new().then(Notes::new(Needs::Gram).on_matrices());
    let dir = tempfile::tempdir().unwrap();
    let (fresh, given) = (dir.path().join("fresh"), dir.path().join("given"));
    pipeline().run_to(checkpoint(), &fresh, &Run::new().with_calibration(&once)).unwrap();
    let report = pipeline().run_to(checkpoint(), &given, &Run::new().with_stats(&stats)).unwrap();
    assert_eq!(report.calibration.unwrap().origin, Origin::Given);
    assert_eq!(files(&fresh), files(&given));
}

#[test]
fn the_cross_gram_is_that_of_the_original_and_the_changed_input() {
    let (notes, out) = ran(&calibration(), Needs::CrossGram);
    let (changed, original) = (inputs(&out, 4, "down"), inputs(&checkpoint(), 4, "down"));
    let seen = notes.of("blocks.4.down.weight");
    assert_is_gram(&seen, &changed);
    let cross = seen.cross.unwrap();
    for i in 0..12 {
        for j in 0..12 {
            let expected: f64 = original.iter().zip(&changed).map(|(o, c)| o[i] * c[j]).sum();
            assert!((cross[i * 12 + j] - expected).abs() < 1e-4 * (1.0 + expected.abs()));
        }
    }
}

#[test]
fn a_grain_of_blocks_sees_the_blocks_own_layers_as_they_were() {
    let (notes, out) = ran(&calibration().with_grain(Grain::Blocks), Needs::Gram);
    let mut mixed = out.clone();
    for layer in ["left", "right", "down"] {
        let name = format!("blocks.5.{layer}.weight");
        mixed.insert(name.clone(), checkpoint().get(&name).unwrap());
    }
    assert_is_gram(&notes.of("blocks.5.down.weight"), &inputs(&mixed, 5, "down"));
}

fn written(dir: &Path, calibration: &Calibration) -> std::collections::BTreeMap<String, Vec<u8>> {
    let pipeline = Pipeline::new().then(Notes::new(Needs::Gram).on_matrices());
    pipeline.run_to(checkpoint(), dir, &Run::new().with_calibration(calibration)).unwrap();
    files(dir)
}

#[test]
fn memory_disk_and_threads_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let disk = written(&dir.path().join("disk"), &calibration());
    let (_, out) = ran(&calibration(), Needs::Gram);
    out.save(dir.path().join("memory")).unwrap();
    assert_eq!(disk, files(&dir.path().join("memory")));
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let path = dir.path().join(format!("threads{threads}"));
        assert_eq!(disk, pool.install(|| written(&path, &calibration())), "{threads} threads");
    }
}

#[test]
fn stages_spare_work_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for needs in [Needs::Gram, Needs::CrossGram] {
        let staged = InStages::default();
        let runs = Arc::clone(&staged.0);
        let in_stages = Calibration::new(Arc::new(staged), batches()).unwrap();
        let written = |calibration: &Calibration, name: &str| {
            let path = dir.path().join(format!("{name}-{needs:?}"));
            let pipeline = Pipeline::new().then(Notes::new(needs).on_matrices());
            pipeline.run_to(checkpoint(), &path, &Run::new().with_calibration(calibration)).unwrap();
            files(&path)
        };
        assert_eq!(written(&in_stages, "stages"), written(&calibration(), "whole"));
        let streams = if needs == Needs::CrossGram { 2 } else { 1 };
        // Eleven blocks, three batches. The first batch once to find the groups; then the first stage up to its layers, and as
        // a whole once; the second up to its layer, and as a whole once.
        let expected = 11 * (1 + streams * 3 * 2);
        assert_eq!(runs.each_ref().map(|n| n.load(Ordering::Relaxed)), [expected, expected]);
    }
}

/// The same model again, in stages or not, reading one weight past the observer: it is rewritten last, when all others are.
struct Unwatched {
    in_stages: bool,
}

struct Past {
    left: Tensor,
    right: Linear,
    down: Linear,
    stages: usize,
}

impl Block for Past {
    fn forward(&self, hidden: &Hidden) -> Result<Hidden> {
        self.finish(&hidden.holding(self.gate(&hidden.x)?))
    }

    fn stages(&self) -> usize {
        self.stages
    }

    fn stage(&self, index: usize, hidden: &Hidden) -> Result<Hidden> {
        match (self.stages, index) {
            (2, 0) => Ok(hidden.holding(self.gate(&hidden.x)?)),
            (2, _) => self.finish(hidden),
            _ => self.forward(hidden),
        }
    }
}

impl Past {
    fn gate(&self, x: &Tensor) -> Result<Tensor> {
        Ok((x.broadcast_matmul(&self.left.t()?)?.tanh()? * self.right.forward(x)?)?)
    }

    fn finish(&self, hidden: &Hidden) -> Result<Hidden> {
        Ok(hidden.with((&hidden.x + self.down.forward(hidden.held()?)?)?))
    }
}

impl Blocks for Unwatched {
    fn prefixes(&self, checkpoint: &Checkpoint) -> Result<Vec<String>> {
        Chain.prefixes(checkpoint)
    }

    fn entrance(&self, weights: &WeightBuilder) -> Result<Box<dyn Entrance>> {
        Chain.entrance(weights)
    }

    fn block(&self, weights: &WeightBuilder, index: usize) -> Result<Box<dyn Block>> {
        let Gated { right, down, .. } = gated(weights, index)?;
        let left = weights.pp("blocks").pp(index).pp("left").tensor(&[12, WIDTH], "weight")?;
        Ok(Box::new(Past { left, right, down, stages: if self.in_stages { 2 } else { 1 } }))
    }

    fn exit(&self, weights: &WeightBuilder) -> Result<Box<dyn Exit>> {
        Chain.exit(weights)
    }
}

#[test]
fn no_stage_is_done_before_a_layer_that_nobody_can_watch() {
    let seen = |in_stages: bool| {
        let calibration = Calibration::new(Arc::new(Unwatched { in_stages }), batches()).unwrap();
        let notes = Notes::new(Needs::Gram);
        let pipeline = Pipeline::new().then(notes.clone().on_matrices());
        pipeline.run(checkpoint(), &Run::new().with_calibration(&calibration)).unwrap();
        let seen = notes.seen.lock().unwrap();
        assert!(seen.iter().any(|(name, stats)| name == "blocks.3.left.weight" && stats.is_none()));
        seen.clone()
    };
    assert!(seen(true) == seen(false));
}

#[test]
fn a_cancelled_run_goes_on_after_the_last_whole_block() {
    let dir = tempfile::tempdir().unwrap();
    let whole = written(&dir.path().join("whole"), &calibration());
    let out = dir.path().join("out");
    let (calibration, steps) = (calibration(), AtomicUsize::new(0));
    let notes = Notes::new(Needs::Gram);
    let pipeline = Pipeline::new().then(notes.clone().on_matrices());
    let stop = |event: &Event<'_>| match event {
        Event::Step { done: 6, .. } if steps.fetch_add(1, Ordering::Relaxed) > 3 => Flow::Cancel,
        _ => Flow::Continue,
    };
    let run = Run::new().with_calibration(&calibration).with_progress(&stop);
    assert!(pipeline.run_to(checkpoint(), &out, &run).unwrap_err().is_cancelled());
    assert!(!out.exists() && partial_path(&out).unwrap().join("calibrated/block-5").is_dir());
    notes.seen.lock().unwrap().clear();
    let again = Run::new().with_calibration(&calibration).with_resume(Resume::Continue);
    let report = pipeline.run_to(checkpoint(), &out, &again).unwrap();
    assert_eq!(files(&out), whole);
    assert_eq!(report.calibration.unwrap().layers.len(), 34);
    let seen = notes.seen.lock().unwrap();
    assert!(seen.iter().all(|(name, _)| !name.starts_with("blocks.5.") && name != "table.weight"));
    assert!(seen.iter().any(|(name, _)| name == "blocks.6.left.weight"));
    let other = Calibration::new(Arc::new(Chain), batches()[..2].to_vec()).unwrap();
    drop(seen);
    let out = dir.path().join("other");
    steps.store(0, Ordering::Relaxed);
    let run = Run::new().with_calibration(&calibration).with_progress(&stop);
    pipeline.run_to(checkpoint(), &out, &run).unwrap_err();
    let run = Run::new().with_calibration(&other).with_resume(Resume::Continue);
    assert!(error_of(pipeline.run_to(checkpoint(), &out, &run)).contains("another recipe"));
}

/// A pass over the whole model that notes how many layers it is shown at once.
#[derive(Debug, Default)]
struct Looks(Arc<Mutex<Vec<usize>>>);

impl Pass for Looks {
    fn name(&self) -> &str {
        "looks"
    }

    fn stage(&self) -> Stage {
        Stage::Value
    }

    fn needs(&self) -> Needs {
        Needs::InputNorms
    }

    fn settings(&self) -> Value {
        json!({})
    }

    fn reading(&self) -> Reading {
        Reading::ByBlock
    }

    fn run(&self, mut checkpoint: Checkpoint, context: &Context<'_>) -> Result<Checkpoint> {
        assert!(context.stats("blocks.0.down.weight").is_none(), "nothing is held besides");
        context.visit_stats(&checkpoint, &mut |stats| {
            self.0.lock().unwrap().push(stats.len());
            Ok(())
        })?;
        let head = checkpoint.get("head.weight")?.dense()?;
        checkpoint.insert("head.weight", Arc::new((head * 0.5)?));
        Ok(checkpoint)
    }
}

#[test]
fn statistics_that_are_read_by_block_are_so_in_a_dry_run_too() {
    let calibration = calibration();
    let run = Run::new().with_calibration(&calibration);
    let looked = |dry: bool| {
        let looks = Looks::default();
        let seen = Arc::clone(&looks.0);
        let pipeline = Pipeline::new().then(looks);
        if dry {
            pipeline.predict(checkpoint(), &run).unwrap();
        } else {
            pipeline.run(checkpoint(), &run).unwrap();
        }
        seen.lock().unwrap().clone()
    };
    let seen = looked(false);
    assert_eq!(seen.iter().filter(|layers| **layers == 3).count(), 11, "{seen:?}");
    assert!(seen.iter().all(|layers| *layers <= 3), "{seen:?}");
    assert_eq!(looked(true), seen);
}

#[test]
fn padding_is_not_counted() {
    let ids = Tensor::new(&[[3u32, 4, 5], [6, 0, 0]], &Device::Cpu).unwrap();
    let mask = Tensor::new(&[[1u32, 1, 1], [1, 0, 0]], &Device::Cpu).unwrap();
    let padded = Calibration::new(Arc::new(Chain), vec![Batch::padded(ids, mask)]).unwrap();
    let seen = padded.stats(&checkpoint(), Needs::Gram, &Silent).unwrap();
    let apart = [vec![3u32, 4, 5], vec![6]].map(|ids| {
        let n = ids.len();
        Batch::new(Tensor::from_vec(ids, (1, n), &Device::Cpu).unwrap())
    });
    let apart = Calibration::new(Arc::new(Chain), apart.to_vec()).unwrap();
    let expected = apart.stats(&checkpoint(), Needs::Gram, &Silent).unwrap();
    let name = "blocks.7.down.weight";
    let (seen, expected) = (seen.get(name).unwrap(), expected.get(name).unwrap());
    assert_eq!(seen.count, 4);
    for (a, b) in seen.sum_squares.iter().zip(&expected.sum_squares) {
        assert!((a - b).abs() < 1e-6 * b);
    }
}

#[test]
fn what_cannot_be_calibrated_is_an_error_that_names_the_layer() {
    let run = |checkpoint: Checkpoint, calibration: &Calibration| {
        let pipeline = Pipeline::new().then(Notes::new(Needs::Gram).on_matrices());
        error_of(pipeline.run(checkpoint, &Run::new().with_calibration(calibration)))
    };
    let message = run(checkpoint(), &calibration().with_least_tokens(88));
    assert!(
        message.contains("87 tokens, fewer than the 88") && message.contains("blocks.0.left"),
        "{message}"
    );
    // What is wrong in block 2 is first seen by a layer of block 3.
    let mut broken = checkpoint();
    let wrong = Tensor::full(f32::NAN, (WIDTH, 12), &Device::Cpu).unwrap();
    broken.insert("blocks.2.down.weight", Arc::new(wrong));
    let once = calibration().with_mode(Mode::Once);
    let message = error_of(once.stats(&broken, Needs::InputNorms, &Silent));
    assert!(message.contains("blocks.3.left.weight") && message.contains("not finite"), "{message}");
    assert!(error_of(Calibration::new(Arc::new(Chain), Vec::new())).contains("at least one batch"));
    let needy = Pipeline::new().then(Notes::new(Needs::Gram).on_matrices());
    let message = error_of(needy.run(checkpoint(), &Run::new()));
    assert!(message.contains("pass `notes` needs input gram matrices"), "{message}");
    let light = calibration().stats(&checkpoint(), Needs::InputNorms, &Silent).unwrap();
    assert!(error_of(needy.run(checkpoint(), &Run::new().with_stats(&light))).contains("gram matrices"));
}

#[test]
fn one_token_dead_columns_and_an_outlier_are_counted_as_they_are() {
    let mut odd = checkpoint();
    let mut table = to_f32_vec(odd.get("table.weight").unwrap().as_ref()).unwrap();
    for row in table.chunks_exact_mut(WIDTH) {
        (row[2], row[5]) = (0.0, 1e4);
    }
    let table = Tensor::from_vec(table, (20, WIDTH), &Device::Cpu).unwrap();
    odd.insert("table.weight", Arc::new(table));
    let token = Tensor::new(&[[7u32]], &Device::Cpu).unwrap();
    let one = Calibration::new(Arc::new(Chain), vec![Batch::new(token)]).unwrap();
    let stats = one.stats(&odd, Needs::Gram, &Silent).unwrap();
    let seen = stats.get("blocks.0.left.weight").unwrap();
    assert_eq!((seen.count, seen.sum_squares[2], seen.sum_squares[5]), (1, 0.0, 1e8));
    let pipeline = Pipeline::new().then(Notes::new(Needs::Gram).on_matrices());
    pipeline.run(odd, &Run::new().with_calibration(&one)).unwrap();
}

#[test]
fn hidden_states_in_half_the_memory_are_near() {
    let exact = calibration().stats(&checkpoint(), Needs::InputNorms, &Silent).unwrap();
    let half = calibration().with_kept(Kept::BF16);
    let half = half.stats(&checkpoint(), Needs::InputNorms, &Silent).unwrap();
    let name = "head.weight";
    for (a, b) in half.get(name).unwrap().sum_squares.iter().zip(&exact.get(name).unwrap().sum_squares) {
        assert!(a != b && (a - b).abs() < 0.05 * b, "{a} {b}");
    }
}
