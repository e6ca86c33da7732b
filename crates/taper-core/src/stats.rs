//! What calibration saw at the input of each layer: a value, never an event.
//!
//! For inputs x_1 … x_n of a layer with `d` inputs: the count n, mean |x_j|, max |x_j|, Σ x_j², and where asked for the
//! Gram matrix G = Σ x xᵀ (`[d, d]`). Sums are f64, those of a chunk of the Gram matrix f32, in chunks of fixed size
//! and in order, so that they do not depend on the number of threads.

use std::{collections::BTreeMap, sync::Arc};

use crate::{Error, Needs, Result, kernel};

/// What was seen at one input.
#[derive(Debug, Clone, PartialEq)]
pub struct InputStats {
    /// Input vectors (tokens) seen.
    pub count: u64,
    /// Mean of |x_j|, per input.
    pub mean_abs: Vec<f32>,
    /// Maximum of |x_j|, per input.
    pub max_abs: Vec<f32>,
    /// Σ x_j², per input.
    pub sum_squares: Vec<f64>,
    /// Σ x xᵀ, `[d, d]` row-major, symmetric; where it was asked for.
    pub gram: Option<Vec<f64>>,
}

impl InputStats {
    /// The number of inputs d.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.sum_squares.len()
    }

    /// E\[x_j²\] per input.
    #[must_use]
    pub fn mean_squares(&self) -> Vec<f32> {
        let n = self.count.max(1) as f64;
        self.sum_squares.iter().map(|s| (s / n) as f32).collect()
    }
}

/// Statistics of all observed layers, by the name of their weight.
#[derive(Debug, Clone, Default)]
pub struct Stats(BTreeMap<String, Arc<InputStats>>);

impl Stats {
    /// What was seen at the input of the layer that owns `weight`.
    #[must_use]
    pub fn get(&self, weight: &str) -> Option<&InputStats> {
        self.0.get(weight).map(Arc::as_ref)
    }

    /// All layers and what they saw; layers with one input share one value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<InputStats>)> {
        self.0.iter().map(|(name, stats)| (name.as_str(), stats))
    }

    /// How many layers were observed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True where no layer was observed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(String, Arc<InputStats>)> for Stats {
    fn from_iter<T: IntoIterator<Item = (String, Arc<InputStats>)>>(iter: T) -> Self {
        Self(iter.into_iter().collect())
    }
}

/// Vectors that go into one step of the Gram sum; fixed, so that the order of summation is.
const CHUNK: usize = 256;

/// Sums over the inputs of one layer.
#[derive(Debug, Clone)]
pub struct Accumulator {
    inputs: usize,
    count: u64,
    sum_abs: Vec<f64>,
    max_abs: Vec<f32>,
    sum_squares: Vec<f64>,
    gram: Option<Vec<f64>>,
}

impl Accumulator {
    /// Sums for vectors of `inputs` values.
    #[must_use]
    pub fn new(inputs: usize, needs: Needs) -> Self {
        Self {
            inputs,
            count: 0,
            sum_abs: vec![0.0; inputs],
            max_abs: vec![0.0; inputs],
            sum_squares: vec![0.0; inputs],
            gram: (needs == Needs::Gram).then(|| vec![0.0; inputs * inputs]),
        }
    }

    /// Adds vectors, `[n, inputs]` row-major. Errors where a value is not finite or the width is another.
    pub fn add(&mut self, site: &str, rows: &[f32]) -> Result<()> {
        let fail = |message: String| Error::Stats { site: site.to_owned(), message };
        if self.inputs == 0 || !rows.len().is_multiple_of(self.inputs) {
            let message = format!("{} values are not vectors of {}", rows.len(), self.inputs);
            return Err(fail(message));
        }
        if let Some(at) = rows.iter().position(|x| !x.is_finite()) {
            let message = format!("input {} of vector {} is not finite", at % self.inputs, at / self.inputs);
            return Err(fail(message));
        }
        for row in rows.chunks_exact(self.inputs) {
            for (j, &x) in row.iter().enumerate() {
                self.sum_abs[j] += f64::from(x.abs());
                self.max_abs[j] = self.max_abs[j].max(x.abs());
                self.sum_squares[j] += f64::from(x) * f64::from(x);
            }
        }
        self.count += (rows.len() / self.inputs) as u64;
        if let Some(gram) = &mut self.gram {
            for chunk in rows.chunks(CHUNK * self.inputs) {
                add_gram(gram, chunk, self.inputs);
            }
        }
        Ok(())
    }

    /// The statistics so far. Errors where nothing was seen.
    pub fn finish(&self, site: &str) -> Result<InputStats> {
        if self.count == 0 {
            return Err(Error::Stats { site: site.to_owned(), message: "no input was seen".into() });
        }
        let n = self.count as f64;
        Ok(InputStats {
            count: self.count,
            mean_abs: self.sum_abs.iter().map(|s| (s / n) as f32).collect(),
            max_abs: self.max_abs.clone(),
            sum_squares: self.sum_squares.clone(),
            gram: self.gram.clone(),
        })
    }
}

/// G += Σ x xᵀ over a chunk of rows.
fn add_gram(gram: &mut [f64], rows: &[f32], inputs: usize) {
    kernel::gram(rows, inputs, gram);
}
