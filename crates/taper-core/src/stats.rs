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

/// Inputs whose sums are one task's.
const COLUMNS: usize = 256;

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
    gram: Option<Gram>,
    /// Tokens of a stretch that is not whole yet; they count already.
    pending: Vec<f32>,
    cross: Option<Cross>,
}

/// Σ x̃ xᵀ in progress.
#[derive(Debug, Clone)]
struct Cross {
    sums: Vec<f64>,
    /// Tokens that came with an original; all or none do.
    count: u64,
}

impl Accumulator {
    /// Sums for vectors of `inputs` values.
    #[must_use]
    pub fn new(inputs: usize, needs: Needs) -> Self {
        let square = || vec![0.0; inputs * inputs];
        Self {
            inputs,
            count: 0,
            sum: vec![0.0; inputs],
            sum_abs: vec![0.0; inputs],
            sum_squares: vec![0.0; inputs],
            min: vec![f32::INFINITY; inputs],
            max: vec![f32::NEG_INFINITY; inputs],
            gram: (needs >= Needs::Gram).then(|| Gram::zeros(inputs)),
            pending: Vec::new(),
            cross: (needs >= Needs::CrossGram).then(|| Cross { sums: square(), count: 0 }),
        }
    }

    /// Adds vectors, `[n, inputs]` row-major. Errors where a value is not finite or the width is another.
    pub fn add(&mut self, site: &str, rows: &[f32]) -> Result<()> {
        self.check(site, rows)?;
        self.add_norms(rows);
        self.add_products(rows);
        self.count += (rows.len() / self.inputs) as u64;
        Ok(())
    }

    /// The sums per input, some columns per task.
    fn add_norms(&mut self, rows: &[f32]) {
        let inputs = self.inputs;
        let sums = self.sum.par_chunks_mut(COLUMNS).zip(self.sum_abs.par_chunks_mut(COLUMNS));
        let extremes = self.min.par_chunks_mut(COLUMNS).zip(self.max.par_chunks_mut(COLUMNS));
        let all = sums.zip(self.sum_squares.par_chunks_mut(COLUMNS)).zip(extremes).enumerate();
        all.for_each(|(task, (((sum, sum_abs), sum_squares), (min, max)))| {
            let columns = task * COLUMNS..task * COLUMNS + sum.len();
            for row in rows.chunks_exact(inputs) {
                for (j, &x) in row[columns.clone()].iter().enumerate() {
                    let (wide, size) = (f64::from(x), f64::from(x.abs()));
                    sum[j] += wide;
                    sum_abs[j] += size;
                    sum_squares[j] += wide * wide;
                    min[j] = min[j].min(x);
                    max[j] = max[j].max(x);
                }
            }
        });
    }

    /// The sums of products: whole stretches as they come, others when they are whole.
    fn add_products(&mut self, rows: &[f32]) {
        let (inputs, whole) = (self.inputs, STRETCH * self.inputs);
        let Some(gram) = &mut self.gram else { return };
        let mut together: [Vec<&[f32]>; 2] = Default::default();
        stretches(self.count, rows, inputs, |half, part| {
            gram.counts[half] += (part.len() / inputs) as u64;
            if part.len() == whole {
                together[half].push(part);
                return;
            }
            // Sums within a stretch are f32: they must not depend on how its tokens arrive.
            self.pending.extend_from_slice(part);
            if self.pending.len() == whole {
                add_gram(&mut gram.halves[half], &[&self.pending]);
                self.pending.clear();
            }
        });
        for (half, parts) in gram.halves.iter_mut().zip(together) {
            add_gram(half, &parts);
        }
    }

    /// [`Accumulator::add`], with what the original model has at the same tokens. The two go together for all tokens or
    /// for none.
    pub fn add_beside(&mut self, site: &str, rows: &[f32], original: &[f32]) -> Result<()> {
        self.check(site, original)?;
        if rows.len() != original.len() {
            let message = format!("{} values beside {} of the original", rows.len(), original.len());
            return Err(Error::Stats { site: site.to_owned(), message });
        }
        self.add(site, rows)?;
        if let Some(cross) = &mut self.cross {
            cross.count += (rows.len() / self.inputs) as u64;
            add_cross(&mut cross.sums, original, rows, self.inputs);
        }
        Ok(())
    }

    fn check(&self, site: &str, rows: &[f32]) -> Result<()> {
        let fail = |message: String| Err(Error::Stats { site: site.to_owned(), message });
        if self.inputs == 0 || !rows.len().is_multiple_of(self.inputs) {
            return fail(format!("{} values are not vectors of {}", rows.len(), self.inputs));
        }
        match rows.iter().position(|x| !x.is_finite()) {
            Some(at) => {
                fail(format!("input {} of vector {} is not finite", at % self.inputs, at / self.inputs))
            }
            None => Ok(()),
        }
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
        let cross = self.cross.as_ref().filter(|cross| cross.count > 0);
        if cross.is_some_and(|cross| cross.count != self.count) {
            return fail("some inputs came with the original's and some did not; give all or none");
        }
        let mean = |sums: &[f64]| sums.iter().map(|s| (s / self.count as f64) as f32).collect();
        let mut gram = self.gram;
        if let Some(gram) = gram.as_mut().filter(|_| !self.pending.is_empty()) {
            // The tokens of a stretch that is not whole yet.
            let half = (self.count.saturating_sub(1) / STRETCH as u64 % 2) as usize;
            add_gram(&mut gram.halves[half], &[&self.pending]);
        }
        Ok(InputStats {
            count: self.count,
            mean: mean(&self.sum),
            min: self.min,
            max: self.max,
            mean_abs: mean(&self.sum_abs),
            sum_squares: self.sum_squares,
            gram,
            cross: self.cross.filter(|cross| cross.count > 0).map(|cross| cross.sums),
        })
    }
}

/// Cuts rows where the halves change and says which half each part belongs to; `seen` tokens came before.
fn stretches<'r>(seen: u64, rows: &'r [f32], inputs: usize, mut part: impl FnMut(usize, &'r [f32])) {
    let (mut at, mut rest) = (seen, rows);
    while !rest.is_empty() {
        let left = STRETCH - (at % STRETCH as u64) as usize;
        let (here, later) = rest.split_at((left * inputs).min(rest.len()));
        part((at / STRETCH as u64 % 2) as usize, here);
        at += (here.len() / inputs) as u64;
        rest = later;
    }
}

/// G += Σ x xᵀ over parts of at most [`STRETCH`] rows.
fn add_gram(gram: &mut Symmetric, parts: &[&[f32]]) {
    let inputs = gram.order();
    if !parts.is_empty() {
        kernel::gram::lower(parts, inputs, &mut gram.rows_mut());
    }
}

/// C += Σ x̃ xᵀ.
fn add_cross(cross: &mut [f64], original: &[f32], rows: &[f32], inputs: usize) {
    kernel::gram::cross(original, rows, inputs, cross);
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
