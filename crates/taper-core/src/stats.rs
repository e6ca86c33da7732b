//! What calibration saw at the input of each layer: a value, never an event.
//!
//! For inputs x_1 … x_n of a layer with `d` inputs: the count n, the mean, minimum and maximum of x_j, mean |x_j|, Σ x_j²,
//! and where asked for the [`Gram`] matrix G = Σ x xᵀ, `[d, d]`.
//!
//! The Gram sum is kept in **two halves**, of stretches of 256 tokens in turn:
//!
//! ```text
//! tokens    0 … 255 │ 256 … 511 │ 512 … 767 │ …           G = A + B
//! half         A    │     B     │     A     │ …           A − B shows how far G is from what it estimates
//! ```
//!
//! With d inputs and few more tokens than d, G says much about these tokens and less about others. How much less is
//! visible only by comparing two samples, so whoever trusts G can choose from the data how far to trust it. Each half
//! is one triangle: together they take the memory of one full matrix.
//!
//! Sums are f64, those of a chunk of 256 tokens of a Gram matrix f32, in chunks of fixed size and in order, so that they
//! do not depend on the number of threads.

pub mod file;
pub mod importance;

mod merge;

use rayon::prelude::*;
use std::{collections::BTreeMap, sync::Arc};

use crate::{Error, Needs, Result, kernel, linalg::Symmetric};

/// What was seen at one input.
#[derive(Debug, Clone, PartialEq)]
pub struct InputStats {
    /// Input vectors (tokens) seen.
    pub count: u64,
    /// Mean of x_j, per input.
    pub mean: Vec<f32>,
    /// Minimum of x_j, per input.
    pub min: Vec<f32>,
    /// Maximum of x_j, per input.
    pub max: Vec<f32>,
    /// Mean of |x_j|, per input.
    pub mean_abs: Vec<f32>,
    /// Σ x_j², per input.
    pub sum_squares: Vec<f64>,
    /// Σ x xᵀ; where it was asked for.
    pub gram: Option<Gram>,
    /// Σ x̃ xᵀ, `[d, d]` row-major: x̃ is what the original model has where x was seen, behind layers that were changed
    /// already. Where it was asked for and the two differ.
    pub cross: Option<Vec<f64>>,
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

    /// Maximum of |x_j|, per input.
    #[must_use]
    pub fn max_abs(&self) -> Vec<f32> {
        self.min.iter().zip(&self.max).map(|(low, high)| high.max(-low)).collect()
    }
}

/// Σ x xᵀ over the inputs of a layer, as the sums of two halves.
#[derive(Debug, Clone, PartialEq)]
pub struct Gram {
    /// Tokens in each half.
    pub counts: [u64; 2],
    /// Σ x xᵀ over the tokens of each half.
    pub halves: [Symmetric; 2],
}

impl Gram {
    /// Nothing seen yet.
    #[must_use]
    pub fn zeros(inputs: usize) -> Self {
        Self { counts: [0; 2], halves: [Symmetric::zeros(inputs), Symmetric::zeros(inputs)] }
    }

    /// The number of inputs d.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.halves[0].order()
    }

    /// Tokens in both halves.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts[0] + self.counts[1]
    }

    /// Element (i, j) of the sum over all tokens.
    #[inline]
    #[must_use]
    pub fn get(&self, i: usize, j: usize) -> f64 {
        self.halves[0].get(i, j) + self.halves[1].get(i, j)
    }

    /// The sum over all tokens.
    #[must_use]
    pub fn total(&self) -> Symmetric {
        self.halves[0].plus(&self.halves[1])
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

    /// The same, as layers with one input share it.
    pub(crate) fn shared(&self, weight: &str) -> Option<&Arc<InputStats>> {
        self.0.get(weight)
    }

    /// How many layers share this value.
    pub(crate) fn readers(&self, seen: &Arc<InputStats>) -> usize {
        self.0.values().filter(|other| Arc::ptr_eq(other, seen)).count()
    }

    /// All layers and what they saw; layers with one input share one value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<InputStats>)> {
        self.0.iter().map(|(name, stats)| (name.as_str(), stats))
    }

    /// The same, apart by inputs: layers that share one are together, in the order of their first names.
    pub(crate) fn by_input(self) -> Vec<Self> {
        let mut parts: Vec<Self> = Vec::new();
        for (name, seen) in self.0 {
            let known = parts.iter_mut().find(|part| part.0.values().any(|other| Arc::ptr_eq(other, &seen)));
            match known {
                Some(part) => {
                    part.0.insert(name, seen);
                }
                None => parts.push(Self(BTreeMap::from([(name, seen)]))),
            }
        }
        parts
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

/// Tokens that go into one half before the other has its turn, and into one step of the Gram sum. Neighbours in a text
/// resemble each other: halves of single tokens would agree about what the text says rather than about the model.
pub const STRETCH: usize = 256;

/// Values that are finite or not, together.
const RUN: usize = 1 << 14;

/// Stretches that wait for each other, so that threads are called and sums walked over for all of them at once: as many as
/// take 2 MiB, or an eighth of what the Gram matrix takes, and at most eight.
fn batch(inputs: usize) -> usize {
    const KEPT: usize = 2 << 20;
    (inputs * inputs).max(KEPT).checked_div(STRETCH * inputs * size_of::<f32>()).unwrap_or(1).clamp(1, 8)
}

/// Sums over the inputs of one layer.
#[derive(Debug, Clone)]
pub struct Accumulator {
    inputs: usize,
    count: u64,
    sum: Vec<f64>,
    sum_abs: Vec<f64>,
    sum_squares: Vec<f64>,
    min: Vec<f32>,
    max: Vec<f32>,
    products: Option<Products>,
}

/// The sums of products in progress.
#[derive(Debug, Clone)]
struct Products {
    gram: Gram,
    /// Σ x̃ xᵀ, where it is asked for: empty until an original comes.
    cross: Option<Vec<f64>>,
    /// Tokens that are not summed up yet; the first of them is the first of its stretch.
    pending: Vec<f32>,
    /// What the original model has at these tokens, where it was given.
    originals: Vec<f32>,
    /// Tokens that came with an original; all or none do.
    beside: u64,
}

impl Accumulator {
    /// Sums for vectors of `inputs` values.
    #[must_use]
    pub fn new(inputs: usize, needs: Needs) -> Self {
        Self {
            inputs,
            count: 0,
            sum: vec![0.0; inputs],
            sum_abs: vec![0.0; inputs],
            sum_squares: vec![0.0; inputs],
            min: vec![f32::INFINITY; inputs],
            max: vec![f32::NEG_INFINITY; inputs],
            products: (needs >= Needs::Gram).then(|| Products {
                gram: Gram::zeros(inputs),
                cross: (needs >= Needs::CrossGram).then(Vec::new),
                pending: Vec::new(),
                originals: Vec::new(),
                beside: 0,
            }),
        }
    }

    /// Adds vectors, `[n, inputs]` row-major. Errors where a value is not finite or the width is another.
    pub fn add(&mut self, site: &str, rows: &[f32]) -> Result<()> {
        // One call of the threads for all that follows.
        rayon::scope(|_| {
            self.check(site, rows)?;
            self.add_all(rows, &[]);
            Ok(())
        })
    }

    /// [`Accumulator::add`], with what the original model has at the same tokens. The two go together for all tokens or
    /// for none.
    pub fn add_beside(&mut self, site: &str, rows: &[f32], original: &[f32]) -> Result<()> {
        rayon::scope(|_| {
            self.check(site, original)?;
            if rows.len() != original.len() {
                let message = format!("{} values beside {} of the original", rows.len(), original.len());
                return Err(Error::Stats { site: site.to_owned(), message });
            }
            self.check(site, rows)?;
            self.add_all(rows, original);
            Ok(())
        })
    }

    /// Adds vectors that were checked, and what is beside them.
    fn add_all(&mut self, rows: &[f32], originals: &[f32]) {
        kernel::norms(
            rows,
            kernel::Norms {
                sum: &mut self.sum,
                sum_abs: &mut self.sum_abs,
                sum_squares: &mut self.sum_squares,
                min: &mut self.min,
                max: &mut self.max,
            },
        );
        self.count += (rows.len() / self.inputs) as u64;
        if let Some(products) = &mut self.products {
            products.add(rows, originals);
        }
    }

    fn check(&self, site: &str, rows: &[f32]) -> Result<()> {
        let fail = |message: String| Err(Error::Stats { site: site.to_owned(), message });
        if self.inputs == 0 || !rows.len().is_multiple_of(self.inputs) {
            return fail(format!("{} values are not vectors of {}", rows.len(), self.inputs));
        }
        // All of a run, without a branch for each.
        let finite = |run: &[f32]| run.iter().fold(true, |all, x| all & x.is_finite());
        if rows.par_chunks(RUN).all(finite) {
            return Ok(());
        }
        let at = rows.iter().position(|x| !x.is_finite()).unwrap_or_default();
        fail(format!("input {} of vector {} is not finite", at % self.inputs, at / self.inputs))
    }

    /// The statistics so far. Errors where nothing was seen.
    pub fn finish(&self, site: &str) -> Result<InputStats> {
        self.clone().into_stats(site)
    }

    /// The statistics, without a copy of the sums: a Gram matrix of some thousand inputs takes a hundred megabytes and more.
    /// Errors where nothing was seen.
    pub fn into_stats(self, site: &str) -> Result<InputStats> {
        let fail = |message: &str| Err(Error::Stats { site: site.to_owned(), message: message.to_owned() });
        if self.count == 0 {
            return fail("no input was seen");
        }
        let beside = self.products.as_ref().map_or(0, |products| products.beside);
        if beside > 0 && beside != self.count {
            return fail("some inputs came with the original's and some did not; give all or none");
        }
        let mean = |sums: &[f64]| sums.iter().map(|s| (s / self.count as f64) as f32).collect();
        let (gram, cross) = self.products.map(Products::finish).unzip();
        Ok(InputStats {
            count: self.count,
            mean: mean(&self.sum),
            min: self.min,
            max: self.max,
            mean_abs: mean(&self.sum_abs),
            sum_squares: self.sum_squares,
            gram,
            cross: cross.flatten(),
        })
    }
}

impl Products {
    /// Adds vectors: as they come where they are many, behind those that wait otherwise.
    fn add(&mut self, rows: &[f32], originals: &[f32]) {
        let inputs = self.gram.inputs();
        let batch = batch(inputs) * STRETCH * inputs;
        if self.cross.is_some() {
            self.beside += (originals.len() / inputs) as u64;
        }
        let originals = if self.cross.is_some() { originals } else { &[] };
        let waiting = if self.pending.is_empty() { 0 } else { batch - self.pending.len() };
        let (first, rows) = rows.split_at(waiting.min(rows.len()));
        let (beside, originals) = originals.split_at(first.len().min(originals.len()));
        self.pending.extend_from_slice(first);
        self.originals.extend_from_slice(beside);
        if self.pending.len() == batch {
            self.sum_up();
        }
        let whole = rows.len() - rows.len() % (STRETCH * inputs);
        let (first, rest) = rows.split_at(if whole >= batch { whole } else { 0 });
        let (beside, originals) = originals.split_at(first.len().min(originals.len()));
        self.add_stretches(first, beside);
        self.pending.extend_from_slice(rest);
        self.originals.extend_from_slice(originals);
    }

    /// Adds the vectors that wait.
    fn sum_up(&mut self) {
        let (rows, originals) = (std::mem::take(&mut self.pending), std::mem::take(&mut self.originals));
        self.add_stretches(&rows, &originals);
        // Their memory waits for the next ones.
        (self.pending, self.originals) = (rows, originals);
        self.pending.clear();
        self.originals.clear();
    }

    /// Adds vectors of which the first is that of a stretch. Sums within a stretch are f32: how tokens arrive does not matter.
    fn add_stretches(&mut self, rows: &[f32], originals: &[f32]) {
        let inputs = self.gram.inputs();
        let mut halves: [Vec<&[f32]>; 2] = Default::default();
        for stretch in rows.chunks(STRETCH * inputs) {
            let half = (self.gram.count() / STRETCH as u64 % 2) as usize;
            self.gram.counts[half] += (stretch.len() / inputs) as u64;
            halves[half].push(stretch);
        }
        for (half, stretches) in self.gram.halves.iter_mut().zip(halves) {
            kernel::gram::lower(&stretches, inputs, &mut half.rows_mut());
        }
        if let (Some(cross), true) = (&mut self.cross, !rows.is_empty() && rows.len() == originals.len()) {
            if cross.is_empty() {
                *cross = kernel::fresh::repeated(0.0, inputs * inputs);
            }
            kernel::gram::cross(originals, rows, inputs, cross);
        }
    }

    /// All that came, and what was beside it.
    fn finish(mut self) -> (Gram, Option<Vec<f64>>) {
        rayon::scope(|_| self.sum_up());
        (self.gram, self.cross.filter(|_| self.beside > 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 300.0).collect()
    }

    #[test]
    fn halves_do_not_depend_on_how_tokens_arrive() {
        let rows = values(3 * 700);
        let mut whole = Accumulator::new(3, Needs::Gram);
        whole.add("x", &rows).unwrap();
        let mut parts = Accumulator::new(3, Needs::Gram);
        rows.chunks(3 * 97).for_each(|part| parts.add("x", part).unwrap());
        let (whole, parts) = (whole.finish("x").unwrap(), parts.finish("x").unwrap());
        assert_eq!(whole, parts);
        let gram = whole.gram.unwrap();
        assert_eq!((gram.counts, gram.count()), ([256 + 188, 256], 700));
        for (i, square) in whole.sum_squares.iter().enumerate() {
            // Products of a chunk of tokens are summed in f32.
            assert!((gram.get(i, i) - square).abs() < 1e-6 * square);
        }
    }

    #[test]
    fn cross_sums_do_not_depend_on_how_tokens_arrive() {
        // Of 256 inputs eight stretches are summed at once: more than that, and parts that fill no stretch.
        let (inputs, tokens) = (256, 8 * STRETCH + 700);
        let all = values(inputs * tokens + 9);
        let (rows, original) = (&all[9..], &all[..inputs * tokens]);
        let mut whole = Accumulator::new(inputs, Needs::CrossGram);
        whole.add_beside("x", rows, original).unwrap();
        let whole = whole.into_stats("x").unwrap();
        for part in [100, 256, 999] {
            let mut parts = Accumulator::new(inputs, Needs::CrossGram);
            for (rows, original) in rows.chunks(inputs * part).zip(original.chunks(inputs * part)) {
                parts.add_beside("x", rows, original).unwrap();
            }
            assert_eq!(parts.finish("x").unwrap(), whole, "{part} tokens at a time");
        }
        assert_eq!(whole.gram.unwrap().counts, [5 * 256 + 188, 5 * 256]);
    }

    #[test]
    fn the_cross_gram_is_that_of_both_inputs() {
        let (rows, original) = (values(3 * 20), values(3 * 20 + 9)[9..].to_vec());
        let mut sums = Accumulator::new(3, Needs::CrossGram);
        sums.add_beside("x", &rows, &original).unwrap();
        let cross = sums.finish("x").unwrap().cross.unwrap();
        let expected: f64 =
            (0..20).map(|t| f64::from(original[3 * t + 2]) * f64::from(rows[3 * t + 1])).sum();
        assert!((cross[2 * 3 + 1] - expected).abs() < 1e-5);
        sums.add("x", &rows).unwrap();
        assert!(sums.finish("x").unwrap_err().to_string().contains("all or none"));
    }
}
