//! Top-1 accuracy of a classifier on labelled features.
//!
//! Features come from a safetensors file with `features` (`[n, ..]`, i8 or f32) and `labels` (`[n]`, i64). Integer
//! features stand for `(q − zero_point) · scale`, which the model's config states.

use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::path::Path;
use taper_core::Progress;

use super::{likelihood::argmax, step};
use crate::{Error, Result, ds_cnn::DsCnn};

/// Examples per forward pass.
const BATCH: usize = 50;

/// What an integer feature stands for: `(q − zero_point) · scale`.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Quantized {
    /// The step.
    pub scale: f64,
    /// The integer that stands for zero.
    pub zero_point: i64,
}

/// Examples and their classes.
#[derive(Debug, Clone)]
pub struct Labelled {
    /// f32 `[n, ..]`.
    pub features: Tensor,
    /// One class per example.
    pub labels: Vec<u32>,
}

impl Labelled {
    /// Reads a file; integer features need to be told what they stand for.
    pub fn open(path: impl AsRef<Path>, quantized: Option<Quantized>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(taper_core::Error::io(path))?;
        let bad = |message: String| Error::bad_data(path, message);
        let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(e.to_string()))?;
        let array = |name: &str| file.tensor(name).map_err(|_| bad(format!("has no array `{name}`")));
        let features = features(&array("features")?, quantized).map_err(bad)?;
        let labels = labels(&array("labels")?).map_err(bad)?;
        let examples = features.dims().first().copied().unwrap_or(0);
        if examples == 0 || examples != labels.len() {
            return Err(bad(format!(
                "has {examples} examples and {} labels; expected as many, at least 1",
                labels.len()
            )));
        }
        Ok(Self { features, labels })
    }
}

fn features(array: &TensorView<'_>, quantized: Option<Quantized>) -> Result<Tensor, String> {
    let values: Vec<f32> = match (array.dtype(), quantized) {
        (Dtype::F32, _) => {
            let (words, _) = array.data().as_chunks::<4>();
            words.iter().map(|&b| f32::from_le_bytes(b)).collect()
        }
        (Dtype::I8, Some(q)) => {
            let real = |b: &u8| ((i64::from(*b as i8) - q.zero_point) as f64 * q.scale) as f32;
            array.data().iter().map(real).collect()
        }
        (Dtype::I8, None) => {
            return Err("has i8 features, and the model's config does not say what they stand for".into());
        }
        (other, _) => return Err(format!("has features of type {other:?}; expected i8 or f32")),
    };
    Tensor::from_vec(values, array.shape(), &Device::Cpu).map_err(|e| e.to_string())
}

fn labels(array: &TensorView<'_>) -> Result<Vec<u32>, String> {
    if array.dtype() != Dtype::I64 || array.shape().len() != 1 {
        return Err(format!("has labels {:?} {:?}; expected i64 [n]", array.dtype(), array.shape()));
    }
    let (words, _) = array.data().as_chunks::<8>();
    let label = |&bytes: &[u8; 8]| {
        let value = i64::from_le_bytes(bytes);
        u32::try_from(value).map_err(|_| format!("has the label {value}; expected 0 or more"))
    };
    words.iter().map(label).collect()
}

/// Something that tells classes apart.
///
/// Closures of that shape are classifiers too.
pub trait Classifier {
    /// f32 features `[n, ..]` to scores `[n, classes]`.
    fn classify(&self, features: &Tensor) -> taper_core::Result<Tensor>;
}

impl Classifier for DsCnn {
    fn classify(&self, features: &Tensor) -> taper_core::Result<Tensor> {
        self.forward(features)
    }
}

impl<F: Fn(&Tensor) -> taper_core::Result<Tensor>> Classifier for F {
    fn classify(&self, features: &Tensor) -> taper_core::Result<Tensor> {
        self(features)
    }
}

/// How often a classifier is right.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Accuracy {
    /// The share of examples whose likeliest class is the label, 0 to 1.
    pub top1: f64,
    /// How many were right.
    pub correct: usize,
    /// Of how many.
    pub examples: usize,
}

/// Accuracy of `model` on `data`.
pub fn accuracy(model: &impl Classifier, data: &Labelled, progress: &dyn Progress) -> Result<Accuracy> {
    let examples = data.labels.len();
    let mut correct = 0;
    for (i, labels) in data.labels.chunks(BATCH).enumerate() {
        let start = i * BATCH;
        let scores = model.classify(&data.features.narrow(0, start, labels.len())?)?;
        let found = scores.dims().to_vec();
        if scores.rank() != 2 || found[0] != labels.len() || found[1] == 0 {
            let expected = format!("[{}, classes]", labels.len());
            return Err(Error::BadOutput { what: "scores", expected, found });
        }
        for (j, (row, &label)) in
            scores.to_dtype(DType::F32)?.to_vec2::<f32>()?.iter().zip(labels).enumerate()
        {
            if row.iter().any(|v| !v.is_finite()) {
                return Err(Error::NotFinite { what: "scores", place: format!("example {}", start + j) });
            }
            correct += usize::from(argmax(row) == label as usize);
        }
        step(progress, "examples", start + labels.len(), examples)?;
    }
    Ok(Accuracy { top1: correct as f64 / examples as f64, correct, examples })
}

#[cfg(test)]
mod tests {
    use super::*;
    use taper_core::Silent;

    #[test]
    fn accuracy_counts_the_likeliest_class() {
        let features = Tensor::new(&[[1f32, 0.0], [0.0, 1.0], [3.0, 2.0]], &Device::Cpu).unwrap();
        let data = Labelled { features, labels: vec![0, 1, 1] };
        let found = accuracy(&|x: &Tensor| Ok(x.clone()), &data, &Silent).unwrap();
        assert_eq!((found.correct, found.examples), (2, 3));
    }

    #[test]
    fn integer_features_need_their_scale() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("features.safetensors");
        let (features, labels) = ([0u8, 255, 128, 127], [1i64.to_le_bytes(), 0i64.to_le_bytes()].concat());
        let arrays = [
            ("features", TensorView::new(Dtype::I8, vec![2, 2], &features).unwrap()),
            ("labels", TensorView::new(Dtype::I64, vec![2], &labels).unwrap()),
        ];
        std::fs::write(&path, safetensors::serialize(arrays, None).unwrap()).unwrap();
        assert!(Labelled::open(&path, None).unwrap_err().to_string().contains("what they stand for"));
        let data = Labelled::open(&path, Some(Quantized { scale: 0.5, zero_point: 1 })).unwrap();
        assert_eq!(data.features.to_vec2::<f32>().unwrap(), [[-0.5, -1.0], [-64.5, 63.0]]);
        assert_eq!(data.labels, [1, 0]);
    }
}
