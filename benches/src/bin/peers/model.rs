//! Checkpoints of whole models in each format, and where they lie.

use std::{env, fmt, path::PathBuf, sync::Arc};
use taper::{
    Checkpoint, SharedWeight, Weight,
    candle::{Device, Tensor},
    quant::{Fit, IntLayout, PackedInt},
    weight::to_f32_vec,
};
use taper_benches::matrix::normalised_mse;

use crate::{
    Failed,
    products::{Format, Mode},
    shelf::scheme,
};

/// How all matrices of a model are stored.
#[derive(Clone, Copy)]
pub(crate) enum Stored {
    /// As they are.
    F32,
    /// Packed.
    Packed(Format, Mode),
}

impl Stored {
    /// `f32`, `int4-g128-int8`.
    pub(crate) fn name(self) -> String {
        match self {
            Self::F32 => "f32".into(),
            Self::Packed(format, mode) => format!("{}-{}", format.name(), mode.0),
        }
    }

    /// The checkpoint with the matrices that `select` names stored so.
    pub(crate) fn of(
        self,
        original: &Checkpoint,
        select: impl Fn(&str) -> bool,
    ) -> Result<Checkpoint, Failed> {
        let mut checkpoint = original.clone();
        let Self::Packed(Format::Int(bits, group), mode) = self else { return Ok(checkpoint) };
        for name in original.names() {
            let weight = original.get(&name)?;
            if weight.shape().len() == 2 && select(&name) {
                let packed = pack(weight.as_ref(), bits, group)?.with_arithmetic(mode.1);
                checkpoint.insert(name, Arc::new(packed) as SharedWeight);
            }
        }
        Ok(checkpoint)
    }
}

fn pack(weight: &dyn Weight, bits: u8, group: usize) -> Result<PackedInt, Failed> {
    let (values, scheme) = (to_f32_vec(weight)?, scheme(bits, group)?);
    let layout = IntLayout::PackQuantized;
    Ok(PackedInt::encode(&values, weight.shape(), &scheme, &Fit::AbsMax, None, layout)?)
}

/// A model that is not on this machine.
#[derive(Debug)]
pub(crate) struct Missing(String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// A folder or file below the folder that `TAPER_SHARED` names, else `../shared`.
pub(crate) fn shared(name: &str) -> Result<PathBuf, Failed> {
    let root = env::var_os("TAPER_SHARED").map_or_else(|| PathBuf::from("../shared"), PathBuf::from);
    present(root.join(name), "TAPER_SHARED")
}

/// The folder of the sentence encoder that `TAPER_MINILM` names, else where the gate puts it.
pub(crate) fn minilm() -> Result<PathBuf, Failed> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let dir = env::var_os("TAPER_MINILM").map_or_else(|| target.join("minilm"), PathBuf::from);
    present(dir, "TAPER_MINILM")
}

fn present(path: PathBuf, variable: &str) -> Result<PathBuf, Failed> {
    if path.exists() {
        return Ok(path);
    }
    Err(Box::new(Missing(format!("`{}` is not there; expected what `{variable}` names", path.display()))))
}

/// The normalised distance of two tensors.
pub(crate) fn distance(expected: &Tensor, found: &Tensor) -> Result<f64, Failed> {
    let flat = |t: &Tensor| -> Result<Vec<f32>, Failed> { Ok(t.flatten_all()?.to_vec1()?) };
    Ok(normalised_mse(&flat(expected)?, &flat(found)?))
}

/// Token ids `[texts, len]`.
pub(crate) fn tensor(ids: &[u32], texts: usize) -> Result<Tensor, Failed> {
    Ok(Tensor::from_slice(ids, (texts, ids.len() / texts), &Device::Cpu)?)
}
