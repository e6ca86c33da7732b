//! What an error of the weights costs at the layer's output, whatever the number of tokens was.
//!
//! ```text
//! Σ_t ‖(W − Ŵ) x_t‖² = tr(E G Eᵀ),  E = W − Ŵ [out, in],  G = Σ x xᵀ        ≈ Σ_j G_jj Σ_o E_oj²  from the diagonal alone
//! ```
//!
//! G is scaled to a mean diagonal of 1 and held as f32: products are then safe whatever the activations are, and costs are
//! compared with each other only. It is symmetric, so one triangle says it all, with half the products:
//!
//! ```text
//! e G eᵀ = Σ_j e_j (G_jj e_j + 2 Σ_{i>j} e_i G_ij)
//! ```

use rayon::prelude::*;
use taper_core::{
    Error, InputStats, Result,
    linalg::{View, product},
};

/// G, or its diagonal, with a mean diagonal of 1.
#[derive(Debug, Clone)]
pub enum Proxy {
    /// All of it.
    Gram(Triangle),
    /// Σ x_j² per input.
    Diagonal(Vec<f32>),
}

/// The lower triangle of G with everything below its diagonal doubled, `[order, order]` row-major, zeros above.
#[derive(Debug, Clone)]
pub struct Triangle {
    order: usize,
    values: Vec<f32>,
}

/// Columns per task of a product with the triangle.
const COLUMNS: usize = 128;

/// Σ x xᵀ as a full matrix, row-major; the one place that knows how statistics hold it.
#[must_use]
pub fn gram_of(stats: &InputStats) -> Option<Vec<f64>> {
    let gram = stats.gram.as_ref()?;
    let order = gram.inputs();
    let mut full = vec![0f64; order * order];
    full.par_chunks_mut(order.max(1)).enumerate().for_each(|(i, out)| {
        out.iter_mut().enumerate().for_each(|(j, out)| *out = gram.get(i, j));
    });
    Some(full)
}

/// max |x_j| per input; the one place that knows how statistics hold it.
#[must_use]
pub fn max_abs(stats: &InputStats) -> Vec<f32> {
    stats.max_abs()
}

/// An error about the statistics of a layer.
pub(crate) fn bad_stats(site: &str, message: impl Into<String>) -> Error {
    Error::Stats { site: site.to_owned(), message: message.into() }
}

impl Proxy {
    /// From the Gram matrix that was seen at `site`.
    ///
    /// # Errors
    /// Statistics without a Gram matrix, with values that are not finite, or with nothing but zeros.
    pub fn gram(site: &str, stats: &InputStats) -> Result<Self> {
        let missing =
            || bad_stats(site, "it has no Gram matrix; calibrate with one, or score by input norms");
        let (gram, order) = (stats.gram.as_ref().ok_or_else(missing)?, stats.inputs());
        let scale = scale(site, (0..order).map(|i| gram.get(i, i)))?;
        // Straight from the halves: a second matrix in f64 would double what is held.
        let mut values = vec![0f32; order * order];
        values.par_chunks_mut(order.max(1)).enumerate().for_each(|(i, row)| {
            let halves = gram.halves[0].row(i).iter().zip(gram.halves[1].row(i));
            row.iter_mut().zip(halves).for_each(|(x, (a, b))| *x = (2.0 * scale * (a + b)) as f32);
            row[i] *= 0.5;
        });
        if !values.par_iter().all(|x| x.is_finite()) {
            return Err(bad_stats(site, "its Gram matrix is not finite"));
        }
        Ok(Self::Gram(Triangle { order, values }))
    }

    /// From the sums of squares that were seen at `site`.
    ///
    /// # Errors
    /// Sums that are not finite, or nothing but zeros.
    pub fn diagonal(site: &str, stats: &InputStats) -> Result<Self> {
        let scale = scale(site, stats.sum_squares.iter().copied())?;
        Ok(Self::Diagonal(stats.sum_squares.iter().map(|s| (s * scale) as f32).collect()))
    }

    /// tr(E G Eᵀ) of error rows `[rows, in]`; the same for any number of threads.
    ///
    /// # Errors
    /// Rows of another width.
    pub fn cost(&self, errors: Vec<f32>, inputs: usize) -> Result<f64> {
        let rows = errors.len() / inputs.max(1);
        Ok(self.costs(errors, inputs, rows)?.into_iter().sum())
    }

    /// tr(E G Eᵀ) of each run of `rows` error rows: one product for all, which reads G once.
    ///
    /// # Errors
    /// Rows of another width.
    pub fn costs(&self, errors: Vec<f32>, inputs: usize, rows: usize) -> Result<Vec<f64>> {
        let run = (rows * inputs).max(1);
        match self {
            Self::Diagonal(diagonal) => {
                let cost =
                    |row: &[f32]| row.iter().zip(diagonal).map(|(e, g)| f64::from(e * e * g)).sum::<f64>();
                Ok(errors.par_chunks(run).map(|e| e.chunks_exact(inputs.max(1)).map(cost).sum()).collect())
            }
            Self::Gram(gram) if gram.order == inputs => Ok(gram.costs(&errors, rows)),
            Self::Gram(gram) => Err(Error::ShapeMismatch {
                name: "errors".into(),
                expected: vec![gram.order],
                found: vec![inputs],
            }),
        }
    }

    /// The square of G that belongs to columns `start ..` of a group, `[len, len]` row-major.
    ///
    /// # Errors
    /// Columns that are not there.
    pub fn block(&self, start: usize, len: usize) -> Result<Vec<f32>> {
        match self {
            Self::Gram(gram) if start + len <= gram.order => {
                let at = |i: usize, j: usize| gram.values[(start + i) * gram.order + start + j];
                let one = |i: usize, j: usize| if i == j { at(i, i) } else { 0.5 * at(i.max(j), i.min(j)) };
                Ok((0..len).flat_map(|i| (0..len).map(move |j| one(i, j))).collect())
            }
            Self::Gram(gram) => Err(Error::ShapeMismatch {
                name: "block".into(),
                expected: vec![gram.order],
                found: vec![start + len],
            }),
            Self::Diagonal(diagonal) => {
                let mut block = vec![0.0; len * len];
                for (i, &g) in diagonal[start..start + len].iter().enumerate() {
                    block[i * len + i] = g;
                }
                Ok(block)
            }
        }
    }
}

impl Triangle {
    /// tr(E G Eᵀ) of each run of `rows` error rows.
    fn costs(&self, errors: &[f32], rows: usize) -> Vec<f64> {
        let d = self.order;
        let count = errors.len() / d.max(1);
        let parts: Vec<Vec<f64>> = (0..d)
            .into_par_iter()
            .step_by(COLUMNS)
            .map(|from| {
                let width = COLUMNS.min(d - from);
                let mut weighted = vec![0f32; count * width];
                // Rows above the first column hold nothing.
                let (left, right) =
                    (View::rows(&errors[from..], d), View::rows(&self.values[from * d + from..], d));
                product(&mut weighted, width, (count, width, d - from), (0.0, 1.0), left, right);
                let rows_of =
                    weighted.chunks_exact((rows * width).max(1)).zip(errors.chunks_exact((rows * d).max(1)));
                rows_of
                    .map(|(weighted, errors)| {
                        let pairs = weighted.chunks_exact(width).zip(errors.chunks_exact(d));
                        pairs.map(|(w, e)| dot(w, &e[from..from + width])).sum::<f64>()
                    })
                    .collect()
            })
            .collect();
        // In the order of columns, whoever was first.
        (0..count / rows.max(1)).map(|run| parts.iter().map(|part| part[run]).sum::<f64>()).collect()
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

/// What brings the mean of a diagonal to 1.
fn scale(site: &str, diagonal: impl Iterator<Item = f64>) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0usize);
    for value in diagonal {
        if !(value.is_finite() && value >= 0.0) {
            return Err(bad_stats(site, format!("the sum of squares of input {count} is {value}")));
        }
        (sum, count) = (sum + value, count + 1);
    }
    if sum > 0.0 && (count as f64 / sum).is_finite() {
        Ok(count as f64 / sum)
    } else {
        Err(bad_stats(site, "every input was zero; calibrate on text that reaches this layer"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use taper_core::{Needs, stats::Accumulator};

    #[test]
    fn it_is_the_error_of_the_outputs_up_to_one_factor() {
        let (inputs, rows) = (5, 3);
        let value = |i: usize, k: usize| ((i * k + 3 * i) % 13) as f32 / 6.0 - 1.0;
        let tokens: Vec<f32> = (0..20 * inputs).map(|i| value(i, 7)).collect();
        let mut sums = Accumulator::new(inputs, Needs::Gram);
        sums.add("x", &tokens).unwrap();
        let stats = sums.finish("x").unwrap();
        let direct = |errors: &[f32]| -> f64 {
            let mut total = 0.0;
            for x in tokens.chunks(inputs) {
                for e in errors.chunks(inputs) {
                    total += e.iter().zip(x).map(|(e, x)| f64::from(e * x)).sum::<f64>().powi(2);
                }
            }
            total
        };
        let (a, b): (Vec<f32>, Vec<f32>) = (0..rows * inputs).map(|i| (value(i, 3), value(i, 5))).unzip();
        let proxy = Proxy::gram("x", &stats).unwrap();
        let block = proxy.block(1, 3).unwrap();
        let gram = stats.gram.as_ref().unwrap();
        for (i, j) in [(0, 0), (0, 2), (2, 0), (1, 2)] {
            let (got, other) = (f64::from(block[3 * i + j]), f64::from(block[0]));
            let expected = gram.get(1 + i, 1 + j) / gram.get(1, 1);
            assert!((got / other - expected).abs() < 1e-5, "{i} {j}");
        }
        assert!(proxy.block(3, 3).is_err());
        let ratio = |e: &Vec<f32>| proxy.cost(e.clone(), inputs).unwrap() / direct(e);
        assert!((ratio(&a) / ratio(&b) - 1.0).abs() < 1e-5);
        let unit = |j: usize| (0..inputs).map(|i| if i == j { 1.0 } else { 0.0 }).collect::<Vec<f32>>();
        let diagonal = Proxy::diagonal("x", &stats).unwrap();
        for j in 0..inputs {
            let (full, diagonal) =
                (proxy.cost(unit(j), inputs).unwrap(), diagonal.cost(unit(j), inputs).unwrap());
            assert!((full - diagonal).abs() < 1e-5 * full);
        }
    }

    #[test]
    fn statistics_that_are_no_numbers_are_errors() {
        let mut stats = InputStats { ..template() };
        stats.sum_squares[1] = f64::NAN;
        let error = Proxy::diagonal("layer", &stats).unwrap_err().to_string();
        assert!(error.contains("`layer`: the sum of squares of input 1 is NaN"), "{error}");
        assert!(Proxy::gram("layer", &InputStats { gram: None, ..template() }).is_err());
        stats.sum_squares = vec![0.0; 2];
        assert!(Proxy::diagonal("layer", &stats).unwrap_err().to_string().contains("every input was zero"));
    }

    fn template() -> InputStats {
        let mut sums = Accumulator::new(2, Needs::Gram);
        sums.add("x", &[1.0, 2.0, 3.0, -1.0]).unwrap();
        sums.finish("x").unwrap()
    }
}
