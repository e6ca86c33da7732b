//! The rules that every pass must keep, checked after every pass: names kept, logical shapes kept (unless the pass cuts),
//! all values finite. The measured damage comes from the same look at the values.

use candle_core::DType;
use rayon::prelude::*;

use crate::{
    Codecs, Error, Part, Parts, Result, SharedWeight, Stage, Weight, WeightInfo, report::Damage,
    weight::to_f32_vec,
};

/// Elements per partial sum; fixed, so that sums do not depend on the number of threads.
const CHUNK: usize = 1 << 16;

/// True for weights whose values are numbers to compress, not indices.
#[must_use]
pub fn is_float(info: &WeightInfo) -> bool {
    // An encoded weight decodes to f32.
    !info.encoding.is_dense()
        || [DType::F32, DType::F16, DType::BF16, DType::F64]
            .iter()
            .any(|d| d.as_str() == info.encoding.format)
}

/// True for the weights that compression is about: float, two or more dimensions.
#[must_use]
pub fn is_eligible(info: &WeightInfo) -> bool {
    info.shape.len() >= 2 && is_float(info)
}

/// Errors where a value is NaN or infinite.
pub fn finite(name: &str, values: &[f32]) -> Result<()> {
    let count = values.par_chunks(CHUNK).map(|c| c.iter().filter(|x| !x.is_finite()).count()).sum();
    if count == 0 {
        return Ok(());
    }
    let first = values.iter().position(|x| !x.is_finite()).unwrap_or_default();
    Err(Error::NotFinite { weight: name.to_owned(), count, first })
}

/// How far values moved: Σ (w − ŵ)² / Σ w² and max |w − ŵ|, summed in f64 chunk by chunk in order.
#[must_use]
pub fn damage(before: &[f32], after: &[f32]) -> Damage {
    let partial: Vec<(f64, f64, f64)> = before
        .par_chunks(CHUNK)
        .zip(after.par_chunks(CHUNK))
        .map(|(a, b)| {
            a.iter().zip(b).fold((0.0, 0.0, 0.0), |(noise, signal, max): (f64, f64, f64), (&a, &b)| {
                let (a, error) = (f64::from(a), f64::from(a) - f64::from(b));
                (noise + error * error, signal + a * a, max.max(error.abs()))
            })
        })
        .collect();
    let (noise, signal, max) =
        partial.iter().fold((0.0, 0.0, 0f64), |t, p| (t.0 + p.0, t.1 + p.1, t.2.max(p.2)));
    let normalised_mse = if noise == 0.0 { 0.0 } else { noise / signal };
    Damage { normalised_mse, max_error: max }
}

/// Checks a rewritten weight against the one it replaces and measures the damage.
///
/// `values` are the old weight's values. The new values come from the stored bytes: a weight with a registered codec is
/// taken apart and read again, so that what is reported is what is stored.
pub fn rewritten(
    pass: &str,
    stage: Stage,
    name: &str,
    before: &WeightInfo,
    values: &[f32],
    after: &SharedWeight,
    codecs: &Codecs,
) -> Result<Option<Damage>> {
    let broken = |rule: String| Error::RuleBroken { pass: pass.to_owned(), weight: name.to_owned(), rule };
    if stage != Stage::Shape && after.shape() != before.shape {
        return Err(broken(format!(
            "its shape went from {:?} to {:?}; only a pass of stage `shape` may change shapes",
            before.shape,
            after.shape()
        )));
    }
    let stored = restored(name, after, codecs)?;
    let new = to_f32_vec(stored.as_ref())?;
    finite(name, &new).map_err(|e| broken(e.to_string()))?;
    Ok((after.shape() == before.shape).then(|| damage(values, &new)))
}

/// The weight as it will be read back: through its codec where that is registered, itself where it is dense or of a
/// type that only lives in memory.
fn restored(name: &str, weight: &SharedWeight, codecs: &Codecs) -> Result<SharedWeight> {
    let encoding = weight.encoding();
    match codecs.get(&encoding.codec) {
        Some(codec) if !encoding.is_dense() => codec.read(name, weight.to_parts()?),
        _ => Ok(weight.clone()),
    }
}

/// Bytes of parts as a file stores them; a check that a weight's own count is honest.
pub fn honest_size(name: &str, weight: &dyn Weight, parts: &Parts) -> Result<()> {
    let stored: usize = parts.tensors.values().map(|p: &Part| p.data.len()).sum();
    if stored == weight.nbytes() {
        return Ok(());
    }
    Err(Error::BadParts {
        weight: name.to_owned(),
        codec: parts.encoding.codec.to_string(),
        message: format!("it claims {} bytes and stores {stored}", weight.nbytes()),
    })
}
