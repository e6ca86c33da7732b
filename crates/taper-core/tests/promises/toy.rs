//! A toy encoding (f16 values), toy passes, and small checkpoints.

use candle_core::{DType, Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::Dtype;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, path::Path, sync::Arc};
use taper_core::{
    Checkpoint, Claim, Codec, Codecs, Context, Encoding, Outline, Part, Parts, Result, Rewrite, Rows,
    SharedWeight, Stage, StoredWeight, Weight, WeightPass,
    store::Listing,
    weight::{rows, to_f32_vec},
};

/// f16 values under a codec of their own.
#[derive(Debug, Clone)]
pub(crate) struct Halved {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Arc<Vec<half::f16>>,
}

impl Halved {
    pub(crate) fn of(weight: &dyn Weight) -> Result<Self> {
        let values = to_f32_vec(weight)?.into_iter().map(half::f16::from_f32).collect();
        Ok(Self { shape: weight.shape().to_vec(), values: Arc::new(values) })
    }
}

impl Rows for Halved {
    fn rows(&self) -> usize {
        self.shape[0]
    }

    fn cols(&self) -> usize {
        self.shape[1..].iter().product()
    }

    fn decode_row(&self, row: usize, out: &mut [f32]) {
        let cols = self.cols();
        for (out, value) in out.iter_mut().zip(&self.values[row * cols..]) {
            *out = value.to_f32();
        }
    }
}

impl Weight for Halved {
    fn encoding(&self) -> Encoding {
        Encoding::new("test-half", "halved")
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn nbytes(&self) -> usize {
        self.values.len() * 2
    }

    fn dense(&self) -> Result<Tensor> {
        rows::dense(self)
    }

    fn matmul(&self, x: &Tensor) -> Result<Tensor> {
        rows::matmul(self, x)
    }

    fn gather(&self, ids: &Tensor) -> Result<Tensor> {
        rows::gather(self, ids)
    }

    fn to_parts(&self) -> Result<Parts> {
        let part = Part::from_values(Dtype::F16, self.shape.clone(), &self.values[..]);
        Ok(Parts {
            encoding: self.encoding(),
            shape: self.shape.clone(),
            attributes: Map::new(),
            tensors: BTreeMap::from([("halves".to_owned(), part)]),
        })
    }
}

#[derive(Debug)]
pub(crate) struct HalfCodec;

impl Codec for HalfCodec {
    fn id(&self) -> &str {
        "test-half"
    }

    fn part_name(&self, weight: &str, role: &str) -> String {
        format!("{weight}_{role}")
    }

    fn claim(&self, _: &Listing, _: &Map<String, Value>) -> Result<Vec<Claim>> {
        Ok(Vec::new())
    }

    fn read(&self, weight: &str, parts: Parts) -> Result<SharedWeight> {
        let part = parts.expect(weight, "halves", Dtype::F16, &parts.shape)?;
        Ok(Arc::new(Halved { values: Arc::new(part.values()), shape: parts.shape.clone() }))
    }

    fn config(&self, stored: &[StoredWeight<'_>], _: &[&str]) -> Result<Option<Value>> {
        Ok(Some(json!({ "quant_method": "test-half", "weights": stored.len() })))
    }
}

/// Stores matrices as [`Halved`].
#[derive(Debug, Clone)]
pub(crate) struct Halve;

impl WeightPass for Halve {
    fn name(&self) -> &str {
        "halve"
    }

    fn stage(&self) -> Stage {
        Stage::Encode
    }

    fn settings(&self) -> Value {
        json!({})
    }

    fn rewrite(&self, _: &str, weight: &SharedWeight, _: &Context<'_>) -> Result<Rewrite> {
        if weight.shape().len() < 2 {
            return Ok(Rewrite::left("one-dimensional"));
        }
        Ok(Rewrite::done(Halved::of(weight.as_ref())?))
    }

    fn outline(&self, _: &str, before: &Outline) -> Option<Outline> {
        if before.shape.len() < 2 {
            return Some(before.clone());
        }
        Some(Outline {
            encoding: Encoding::new("test-half", "halved"),
            shape: before.shape.clone(),
            attributes: Map::new(),
            arrays: BTreeMap::from([("halves".to_owned(), (Dtype::F16, before.shape.clone()))]),
        })
    }
}

/// Multiplies by a factor; a stage and a mischief of choice.
#[derive(Debug, Clone)]
pub(crate) struct Scale {
    pub(crate) factor: f64,
    pub(crate) stage: Stage,
}

impl WeightPass for Scale {
    fn name(&self) -> &str {
        "scale"
    }

    fn stage(&self) -> Stage {
        self.stage
    }

    fn settings(&self) -> Value {
        json!({ "factor": self.factor })
    }

    fn rewrite(&self, _: &str, weight: &SharedWeight, _: &Context<'_>) -> Result<Rewrite> {
        Ok(Rewrite::done((weight.dense()? * self.factor)?))
    }
}

pub(crate) fn codecs() -> Codecs {
    Codecs::new().with(HalfCodec)
}

/// Values of N(0, 1)-like size from a seed.
pub(crate) fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-2.0f32..2.0)).collect()
}

pub(crate) fn tensor(shape: &[usize], seed: u64) -> Tensor {
    Tensor::from_vec(values(shape.iter().product(), seed), shape, &Device::Cpu).unwrap()
}

/// `layers` layers of a matrix [24, 16] and a norm [16], plus an i64 buffer and a bf16 matrix.
pub(crate) fn checkpoint(layers: usize) -> Checkpoint {
    let config = json!({ "model_type": "toy", "layers": layers }).as_object().unwrap().clone();
    let mut checkpoint = Checkpoint::new(config).with_codecs(&codecs());
    for i in 0..layers {
        let seed = i as u64;
        checkpoint.insert(format!("layers.{i}.weight"), Arc::new(tensor(&[24, 16], seed)));
        checkpoint.insert(format!("layers.{i}.norm"), Arc::new(tensor(&[16], 100 + seed)));
    }
    let half = tensor(&[8, 16], 7).to_dtype(DType::BF16).unwrap();
    checkpoint.insert("head.weight", Arc::new(half));
    checkpoint.insert("positions", Arc::new(Tensor::arange(0i64, 5, &Device::Cpu).unwrap()));
    checkpoint
}

/// The same, on disk with a tokenizer beside it.
pub(crate) fn on_disk(dir: &Path, layers: usize) -> Checkpoint {
    checkpoint(layers).save(dir).unwrap();
    std::fs::write(dir.join("tokenizer.json"), "{}").unwrap();
    Checkpoint::open_with(dir, &codecs()).unwrap()
}

/// All files below a directory and their bytes, less the report (its timings differ).
pub(crate) fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name != taper_core::store::output::REPORT_FILE {
            all.insert(name, std::fs::read(entry.path()).unwrap());
        }
    }
    all
}

/// The error of something that must fail.
pub(crate) fn error_of<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("succeeded, expected an error"),
        Err(error) => error.to_string(),
    }
}
