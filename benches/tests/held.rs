//! Promise 8, for calibrated passes: what they hold beyond the model is counted in Gram matrices of the widest input.
//!
//! ```text
//! a Gram matrix, two triangles of f64: 8 d² bytes        a factor, f32: half of one
//! ```
//!
//! The model has three blocks whose second layer reads the widest input, so that statistics of all blocks would be three.

use std::sync::Arc;
use taper::{
    Coupling, Needs, Pass, Pipeline, Run,
    candle::{DType, Device, Tensor},
    core::{
        Batch, Block, Blocks, Calibration, Entrance, Exit, Hidden, WeightBuilder,
        calibrate::Mode,
        coupling::{Carrier, Scaling},
        nn::{self, Linear},
    },
    prelude::*,
    quant::{Awq, Gptq, Granularity},
};
use taper_benches::kernel::Counted;

#[global_allocator]
static HEAP: Counted = Counted;

const NARROW: usize = 32;
const WIDE: usize = 2048;
const BLOCKS: usize = 3;

/// x ← x + down(norm ⊙ tanh(up x)), without a table before or a head after.
struct Wide;

struct Layers {
    up: Linear,
    gain: Tensor,
    down: Linear,
}

struct Through;

impl Entrance for Through {
    fn forward(&self, batch: &Batch) -> taper::Result<Hidden> {
        Ok(Hidden::new(batch.input.clone(), None))
    }
}

impl Block for Layers {
    fn forward(&self, hidden: &Hidden) -> taper::Result<Hidden> {
        let inner = self.up.forward(&hidden.x)?.tanh()?.broadcast_mul(&self.gain)?;
        Ok(hidden.with((&hidden.x + self.down.forward(&inner)?)?))
    }
}

impl Exit for Through {
    fn forward(&self, hidden: &Hidden) -> taper::Result<Tensor> {
        Ok(hidden.x.clone())
    }
}

impl Blocks for Wide {
    fn prefixes(&self, _: &Checkpoint) -> taper::Result<Vec<String>> {
        Ok((0..BLOCKS).map(|i| format!("blocks.{i}")).collect())
    }

    fn entrance(&self, _: &WeightBuilder) -> taper::Result<Box<dyn Entrance>> {
        Ok(Box::new(Through))
    }

    fn block(&self, weights: &WeightBuilder, index: usize) -> taper::Result<Box<dyn Block>> {
        let at = weights.pp("blocks").pp(index);
        Ok(Box::new(Layers {
            up: nn::linear_no_bias(NARROW, WIDE, &at.pp("up"))?,
            gain: at.tensor(&[WIDE], "gain")?,
            down: nn::linear_no_bias(WIDE, NARROW, &at.pp("down"))?,
        }))
    }

    fn exit(&self, _: &WeightBuilder) -> taper::Result<Box<dyn Exit>> {
        Ok(Box::new(Through))
    }
}

impl Couplings for Wide {
    fn couplings(&self, _: &Checkpoint) -> taper::Result<Vec<Coupling>> {
        Ok(Vec::new())
    }

    fn scalings(&self, _: &Checkpoint) -> taper::Result<Vec<Scaling>> {
        let one = |i: usize| Scaling {
            name: format!("gain {i}"),
            channels: WIDE,
            producers: vec![Carrier::new(format!("blocks.{i}.gain"), 0)],
            consumers: vec![Carrier::new(format!("blocks.{i}.down.weight"), 1)],
        };
        Ok((0..BLOCKS).map(one).collect())
    }
}

fn values(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0).collect()
}

fn checkpoint() -> Checkpoint {
    let mut checkpoint = Checkpoint::new(Default::default()).with_codecs(&taper::codecs());
    let mut put = |name: String, shape: &[usize], seed| {
        let tensor = Tensor::from_vec(values(shape.iter().product(), seed), shape, &Device::Cpu).unwrap();
        checkpoint.insert(name, Arc::new((tensor * 0.3).unwrap()));
    };
    for i in 0..BLOCKS {
        put(format!("blocks.{i}.up.weight"), &[WIDE, NARROW], 3 * i);
        put(format!("blocks.{i}.down.weight"), &[NARROW, WIDE], 3 * i + 1);
    }
    for i in 0..BLOCKS {
        let ones = Tensor::ones(WIDE, DType::F32, &Device::Cpu).unwrap();
        checkpoint.insert(format!("blocks.{i}.gain"), Arc::new(ones));
    }
    checkpoint
}

/// The most that a calibrated run of one pass held, in Gram matrices.
fn held(pass: impl Pass + 'static, mode: Mode) -> f64 {
    let batches = (0..3).map(|i| {
        let x = Tensor::from_vec(values(200 * NARROW, 50 + i), (1, 200, NARROW), &Device::Cpu).unwrap();
        Batch::new(x)
    });
    let calibration = Calibration::new(Arc::new(Wide), batches.collect()).unwrap().with_mode(mode);
    let (dir, input) = (tempfile::tempdir().unwrap(), checkpoint());
    let pipeline = Pipeline::new().then(pass);
    let run = Run::new().with_calibration(&calibration);
    let (bytes, done) = Counted::most_held(|| pipeline.run_to(input, dir.path().join("out"), &run));
    assert_eq!(done.unwrap().calibration.unwrap().layers.len(), 2 * BLOCKS);
    bytes as f64 / (8 * WIDE * WIDE) as f64
}

#[test]
fn calibrated_passes_hold_one_block_of_statistics_and_half_as_much_again() {
    let gptq = || {
        let numbers = RoundNearest::int(4, Granularity::group(32).unwrap()).unwrap();
        assert_eq!(Gptq::new(numbers).needs(), Needs::Gram);
        Gptq::new(numbers).on_matrices()
    };
    let awq = Awq::new(Arc::new(Wide), RoundNearest::int4(32).unwrap());
    let runs = [
        ("gptq, sequential", held(gptq(), Mode::Sequential)),
        ("gptq, once", held(gptq(), Mode::Once)),
        ("awq", held(awq, Mode::Once)),
    ];
    for (name, held) in runs {
        println!("{name}: {held:.2}");
        assert!(held < 1.85, "{name} held {held:.2} Gram matrices");
    }
}
