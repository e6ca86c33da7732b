//! The rules that every pass must keep, checked after every pass: names kept, logical shapes kept (unless the pass cuts),
//! all values finite. The measured damage comes from the same look at the values.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use std::borrow::Cow;

use crate::{
    Codecs, Error, Gram, Part, Parts, Result, SharedWeight, Stage, Weight, WeightInfo, kernel,
    linalg::Symmetric, report::Damage,
};

/// Elements per partial sum; fixed, so that sums do not depend on the number of threads.
const CHUNK: usize = 1 << 16;

/// Elements decoded at once: 4 MB of f32, little next to any weight worth streaming and enough to keep threads busy.
const STRETCH: usize = 1 << 20;

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
pub fn finite(name: &str, weight: &dyn Weight) -> Result<()> {
    let (mut count, mut first) = (0, None);
    for_stretches(weight, |start, values| {
        count += values.par_chunks(CHUNK).map(|c| c.iter().filter(|x| !x.is_finite()).count()).sum::<usize>();
        if count > 0 && first.is_none() {
            first = values.iter().position(|x| !x.is_finite()).map(|at| start + at);
        }
        Ok(())
    })?;
    match first {
        None => Ok(()),
        Some(first) => Err(Error::NotFinite { weight: name.to_owned(), count, first }),
    }
}

/// How far values moved: Σ (w − ŵ)² / Σ w² and max |w − ŵ|, summed in f64 stretch by stretch in order.
///
/// Both have one shape. Only a stretch of either is ever decoded at once.
pub fn damage(before: &dyn Weight, after: &dyn Weight) -> Result<Damage> {
    let (mut noise, mut signal, mut max) = (0f64, 0f64, 0f64);
    let mut new = Stretches::new(after)?;
    for_stretches(before, |start, old| {
        let new = new.values(start, old.len())?;
        let partial: Vec<(f64, f64, f64)> =
            old.par_chunks(CHUNK).zip(new.par_chunks(CHUNK)).map(|(a, b)| moved(a, b)).collect();
        for (n, s, m) in partial {
            noise += n;
            signal += s;
            max = max.max(m);
        }
        Ok(())
    })?;
    let normalised_mse = if noise == 0.0 { 0.0 } else { noise / signal };
    Ok(Damage { normalised_mse, max_error: max, output_error: None })
}

/// How far a layer's output moves under the inputs that `gram` is of, tr(E G Eᵀ) / tr(W G Wᵀ) with E = W − Ŵ.
///
/// `None` where the matrix has another number of columns than `gram` has inputs (a convolution), or where its output under
/// these inputs is zero. Both traces are ⟨XᵀX, G⟩, so that a stretch of rows is needed at a time, and one triangle, first
/// for the one and then for the other.
pub fn output_error(before: &dyn Weight, after: &dyn Weight, gram: &Gram) -> Result<Option<f64>> {
    let d = gram.inputs();
    if !matches!(before.shape(), [_, cols] if *cols == d && d > 0) {
        return Ok(None);
    }
    let mut new = Stretches::new(after)?;
    let noise = energy(before, gram, |start, old| {
        let mut errors = new.values(start, old.len())?;
        errors.par_chunks_mut(CHUNK).zip(old.par_chunks(CHUNK)).for_each(|(new, old)| {
            new.iter_mut().zip(old).for_each(|(new, old)| *new = old - *new);
        });
        Ok(errors.into())
    })?;
    let signal = energy(before, gram, |_, old| Ok(old.into()))?;
    Ok((signal > 0.0).then(|| (noise / signal).max(0.0)))
}

/// tr(X G Xᵀ), with X made of a weight stretch by stretch.
fn energy(
    weight: &dyn Weight,
    gram: &Gram,
    mut made: impl for<'v> FnMut(usize, &'v [f32]) -> Result<Cow<'v, [f32]>>,
) -> Result<f64> {
    let d = gram.inputs();
    let mut sums = Symmetric::zeros(d);
    for_stretches(weight, |start, values| {
        let rows = made(start, values)?;
        let chunks: Vec<&[f32]> = rows.chunks(kernel::gram::CHUNK * d).collect();
        kernel::gram::lower(&chunks, d, &mut sums.rows_mut());
        Ok(())
    })?;
    Ok(inner(&sums, gram))
}

/// ⟨A, G⟩ = Σ_ij A_ij G_ij, row by row in order.
fn inner(a: &Symmetric, gram: &Gram) -> f64 {
    let [left, right] = &gram.halves;
    let row = |i: usize| -> f64 {
        let whole = left.row(i).iter().zip(right.row(i)).map(|(l, r)| l + r);
        let products: f64 = a.row(i).iter().zip(whole).map(|(a, g)| a * g).sum();
        2.0 * products - a.get(i, i) * gram.get(i, i)
    };
    let rows: Vec<f64> = (0..a.order()).into_par_iter().map(row).collect();
    rows.iter().sum()
}

/// Σ (a − b)², Σ a² and max |a − b|.
fn moved(a: &[f32], b: &[f32]) -> (f64, f64, f64) {
    a.iter().zip(b).fold((0.0, 0.0, 0.0), |(noise, signal, max): (f64, f64, f64), (&a, &b)| {
        let (a, error) = (f64::from(a), f64::from(a) - f64::from(b));
        (noise + error * error, signal + a * a, max.max(error.abs()))
    })
}

/// Calls `look` with each stretch of whole rows, in order: the flat index of its first element and its values.
fn for_stretches(weight: &dyn Weight, mut look: impl FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
    let mut stretches = Stretches::new(weight)?;
    let (rows, cols) = (stretches.rows, stretches.cols);
    let step = (STRETCH / cols.max(1)).max(1);
    for row in (0..rows).step_by(step) {
        let values = stretches.values(row * cols, step.min(rows - row) * cols)?;
        look(row * cols, &values)?;
    }
    Ok(())
}

/// A weight, decoded a few rows at a time: a dense one by views, a packed matrix by row lookup.
struct Stretches<'a> {
    weight: &'a dyn Weight,
    /// The whole, flat; for what is dense anyway and for what has no row lookup.
    flat: Option<Tensor>,
    rows: usize,
    cols: usize,
}

impl<'a> Stretches<'a> {
    fn new(weight: &'a dyn Weight) -> Result<Self> {
        let (rows, cols) = match weight.shape() {
            [] => (1, 1),
            [rows, rest @ ..] => (*rows, rest.iter().product()),
        };
        let packed = !weight.encoding().is_dense() && weight.shape().len() == 2;
        let flat = if packed { None } else { Some(weight.dense()?.flatten_all()?) };
        if let Some(flat) = flat.as_ref().filter(|f| !f.dtype().is_float()) {
            return Err(Error::Unsupported {
                operation: "judging the values",
                shape: weight.shape().to_vec(),
                format: flat.dtype().as_str().to_owned(),
                message: "passes work on f32, f16 and bf16 weights".into(),
            });
        }
        Ok(Self { weight, flat, rows, cols })
    }

    /// `count` values from the flat index `start`; both whole rows.
    fn values(&mut self, start: usize, count: usize) -> Result<Vec<f32>> {
        let values = match &self.flat {
            Some(flat) => flat.narrow(0, start, count)?,
            None => {
                let cols = self.cols.max(1);
                let ids =
                    Tensor::arange((start / cols) as i64, ((start + count) / cols) as i64, &Device::Cpu)?;
                self.weight.gather(&ids)?.flatten_all()?
            }
        };
        Ok(values.to_dtype(DType::F32)?.to_vec1::<f32>()?)
    }
}

/// Checks a rewritten weight against the one it replaces and measures the damage (none where the shape changed).
///
/// The new values come from the stored bytes: a weight with a registered codec is taken apart and read again, so that
/// what is reported is what is stored. With the Gram matrix of the layer's inputs, the error of its output is measured too.
pub fn rewritten(
    pass: &str,
    stage: Stage,
    name: &str,
    before: &dyn Weight,
    after: &SharedWeight,
    codecs: &Codecs,
    gram: Option<&Gram>,
) -> Result<Option<Damage>> {
    let broken = |rule: String| Error::RuleBroken { pass: pass.to_owned(), weight: name.to_owned(), rule };
    if stage != Stage::Shape && after.shape() != before.shape() {
        return Err(broken(format!(
            "its shape went from {:?} to {:?}; only a pass of stage `shape` may change shapes",
            before.shape(),
            after.shape()
        )));
    }
    let stored = restored(name, after, codecs)?;
    finite(name, stored.as_ref()).map_err(|e| match e {
        Error::NotFinite { .. } => broken(e.to_string()),
        other => other,
    })?;
    if after.shape() != before.shape() {
        return Ok(None);
    }
    let output_error = match gram {
        Some(gram) => output_error(before, stored.as_ref(), gram)?,
        None => None,
    };
    Ok(Some(Damage { output_error, ..damage(before, stored.as_ref())? }))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Needs, stats::Accumulator};

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 300.0 - 1.6).collect()
    }

    #[test]
    fn the_output_error_is_that_of_the_outputs() {
        let (rows, d, tokens) = (300, 7, 40);
        let (w, x) = (numbers(rows * d, 1), numbers(tokens * d, 2));
        let changed: Vec<f32> = w.iter().zip(numbers(rows * d, 3)).map(|(w, e)| w + 0.01 * e).collect();
        let mut sums = Accumulator::new(d, Needs::Gram);
        sums.add("x", &x).unwrap();
        let gram = sums.finish("x").unwrap().gram.unwrap();
        let tensor = |v: &[f32]| Tensor::from_slice(v, (rows, d), &Device::Cpu).unwrap();
        let found = output_error(&tensor(&w), &tensor(&changed), &gram).unwrap().unwrap();
        let energy = |w: &dyn Fn(usize) -> f64| -> f64 {
            let outputs = (0..rows).flat_map(|r| (0..tokens).map(move |t| (r, t)));
            outputs
                .map(|(r, t)| (0..d).map(|j| w(r * d + j) * f64::from(x[t * d + j])).sum::<f64>().powi(2))
                .sum()
        };
        let noise = energy(&|i| f64::from(w[i]) - f64::from(changed[i]));
        let expected = noise / energy(&|i| f64::from(w[i]));
        assert!((found / expected - 1.0).abs() < 1e-4, "{found} {expected}");
        let other = Tensor::zeros((rows, d + 1), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(output_error(&other, &other, &gram).unwrap(), None);
    }
}
