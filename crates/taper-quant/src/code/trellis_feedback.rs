//! A matrix as trellis streams, each column making up for the errors of those before it (LDLQ, QuIP, arXiv:2307.13304).
//!
//! ```text
//! G + λ·mean(diag G)·I = M D Mᵀ        M unit upper triangular, columns in falling order of diag G
//! u_j = w_j + Σ_{i<j} M_ij e_i          e_i = w_i − q_i          q_j = trellis code of u_j, down the rows
//! tr(E G Eᵀ) = Σ_j d_j ‖u_j − q_j‖²
//! ```
//!
//! A stream runs down the **rows** of one column. So a whole stream is coded at once by Viterbi's algorithm while feedback
//! still goes column by column, which streams along rows would have to give up; and a column may have a rate of its own: a bit
//! more where d_j is large costs little and counts much. Bits are shared by d_j and the code's distortion, greedily, which is
//! optimal because distortion is convex in the rate.
//!
//! Rows are cut into segments that know nothing of each other: they are encoded in parallel, with the same bits for any
//! number of threads. Neighbours: [`super::trellis`] is the code.

use rayon::prelude::*;
use taper_core::linalg::Ldl;

use super::trellis::{DISTORTION, Scratch, StateBits, Trellis, stream_bytes};
use crate::{Error, Result};

/// Columns whose errors are spread to later columns together.
const BLOCK: usize = 32;

/// D and M of a Gram matrix, and the order of columns.
#[derive(Debug, Clone)]
pub struct Feedback {
    /// Columns in the order in which they are encoded.
    order: Vec<usize>,
    /// Row i holds M_ji for j < i, in that order: what column i takes from those before it.
    rows: Vec<Vec<f32>>,
    /// d_j, in that order.
    pivots: Vec<f64>,
}

impl Feedback {
    /// No feedback: all columns alike.
    #[must_use]
    pub fn none(cols: usize) -> Self {
        Self { order: (0..cols).collect(), rows: vec![Vec::new(); cols], pivots: vec![1.0; cols] }
    }

    /// From a Gram matrix `[cols, cols]`, damped by `damping` of its mean diagonal; it is consumed, because it is as large as
    /// the factor.
    ///
    /// # Errors
    /// A matrix that is not finite, or not positive definite in spite of the damping.
    pub fn new(gram: Vec<f64>, cols: usize, damping: f64) -> Result<Self> {
        if gram.len() != cols * cols {
            return Err(Error::Length { what: "gram", found: gram.len(), expected: cols * cols });
        }
        if let Some(first) = gram.iter().position(|g| !g.is_finite()) {
            return Err(Error::NotFinite { count: gram.iter().filter(|g| !g.is_finite()).count(), first });
        }
        let diagonal = |i: usize| gram[i * cols + i];
        let mean = (0..cols).map(diagonal).sum::<f64>() / cols.max(1) as f64;
        if mean <= 0.0 {
            return Ok(Self::none(cols));
        }
        let mut order: Vec<usize> = (0..cols).collect();
        order.sort_by(|&a, &b| diagonal(b).total_cmp(&diagonal(a)).then(a.cmp(&b)));
        // M D Mᵀ with columns in that order is L D Lᵀ with columns in the other.
        let mut damped = vec![0.0; cols * cols];
        damped.par_chunks_mut(cols).enumerate().for_each(|(i, row)| {
            let from = &gram[order[cols - 1 - i] * cols..][..cols];
            row.iter_mut().zip(order.iter().rev()).for_each(|(x, &j)| *x = from[j] / mean);
            row[i] += damping;
        });
        drop(gram);
        let ldl = Ldl::of(damped, cols, f64::MIN_POSITIVE).ok_or(Error::NotPositive { damping })?;
        let column = |j: usize| {
            let below = (cols - j..cols).rev().map(|i| ldl.lower()[i * cols + cols - 1 - j] as f32);
            below.collect()
        };
        let rows = (0..cols).into_par_iter().map(column).collect();
        Ok(Self { order, rows, pivots: ldl.pivots().iter().rev().copied().collect() })
    }

    /// A rate of 1 to `most` for every column (in the matrix's own order), at most `bits` on average.
    #[must_use]
    pub fn rates(&self, bits: f64, most: u8) -> Vec<u8> {
        let cols = self.pivots.len();
        let gain = |j: usize, k: usize| self.pivots[j] * (DISTORTION[k] - DISTORTION[k + 1]);
        let mut steps: Vec<(f64, usize)> =
            (0..cols).flat_map(|j| (1..usize::from(most)).map(move |k| (gain(j, k), j))).collect();
        steps.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let spare = ((bits - 1.0) * cols as f64 + 1e-9).max(0.0) as usize;
        let mut rates = vec![1u8; cols];
        for &(_, j) in steps.iter().take(spare) {
            rates[self.order[j]] += 1;
        }
        rates
    }
}

/// Streams and scales of a matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedTrellis {
    /// Segment after segment; in each, column after column, each a stream down the segment's rows.
    pub codes: Vec<u8>,
    /// One scale per row.
    pub scales: Vec<half::f16>,
}

/// Bytes of one segment of `rows` rows.
#[must_use]
pub fn segment_bytes(rates: &[u8], rows: usize) -> usize {
    rates.iter().map(|&rate| stream_bytes(rows, rate)).sum()
}

/// Encodes a row-major matrix; `segment` rows share streams.
///
/// # Errors
/// A scale that f16 cannot hold.
pub fn encode(
    values: &[f32],
    rates: &[u8],
    segment: usize,
    feedback: &Feedback,
    trellis: &Trellis,
) -> Result<EncodedTrellis> {
    let cols = rates.len();
    let segments: Vec<Result<Coded>> = values
        .par_chunks((segment * cols).max(1))
        .enumerate()
        .map(|(s, rows)| {
            best_of(rows, rates, feedback, trellis).map_err(|(row, scale)| overflow(s * segment + row, scale))
        })
        .collect();
    let mut encoded = EncodedTrellis { codes: Vec::new(), scales: Vec::new() };
    for coded in segments {
        let coded = coded?;
        encoded.codes.extend(coded.codes);
        encoded.scales.extend(coded.scales);
    }
    Ok(encoded)
}

fn overflow(row: usize, scale: f32) -> Error {
    Error::ScaleOverflow { row, scale, scales: crate::ScaleType::F16 }
}

/// One segment, encoded.
struct Coded {
    codes: Vec<u8>,
    scales: Vec<half::f16>,
    /// tr(E G Eᵀ) over the segment.
    cost: f64,
    /// Mean square of what was coded, in units of the scales.
    power: f64,
}

/// Encodes with scales from the rows themselves and with scales from what is really coded, to which feedback adds, and keeps the
/// better. How much feedback adds is measured with the fewest states, which takes a sixteenth of the time of the most.
fn best_of(
    rows: &[f32],
    rates: &[u8],
    feedback: &Feedback,
    trellis: &Trellis,
) -> Result<Coded, (usize, f32)> {
    let fewest = Trellis::shared(StateBits::Eight);
    let drafted: Vec<u8> = rates.iter().map(|&rate| rate.min(fewest.bits().most_rate())).collect();
    let raise = once(rows, &drafted, feedback, fewest, 1.0)?.power.sqrt() as f32;
    let coded = |factor: f32| once(rows, rates, feedback, trellis, factor);
    let (plain, raised) = rayon::join(|| coded(1.0), || coded(raise));
    let (plain, raised) = (plain?, raised?);
    Ok(if raised.cost < plain.cost { raised } else { plain })
}

/// Root mean squares of rows, times a factor, as f16 holds them; 1 for rows of zeros.
fn scales(rows: &[f32], cols: usize, factor: f32) -> Result<Vec<half::f16>, (usize, f32)> {
    let scale = |(r, row): (usize, &[f32])| {
        let square: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let scale = (square / cols as f64).sqrt() as f32 * factor;
        let stored = half::f16::from_f32(scale);
        match (stored.is_finite(), stored.to_f32() == 0.0) {
            (false, _) => Err((r, scale)),
            (true, true) if scale > 0.0 => Ok(half::f16::from_bits(1)),
            (true, true) => Ok(half::f16::ONE),
            (true, false) => Ok(stored),
        }
    };
    rows.chunks(cols).enumerate().map(scale).collect()
}

fn once(
    rows: &[f32],
    rates: &[u8],
    feedback: &Feedback,
    trellis: &Trellis,
    factor: f32,
) -> Result<Coded, (usize, f32)> {
    let mut scratch = Scratch::default();
    let (cols, height) = (rates.len(), rows.len() / rates.len());
    let scales = scales(rows, cols, factor)?;
    let wide: Vec<f32> = scales.iter().map(|s| s.to_f32()).collect();
    // Column after column in the order of encoding, in units of the scales.
    let mut target: Vec<f32> = Vec::with_capacity(rows.len());
    for &c in &feedback.order {
        target.extend((0..height).map(|r| rows[r * cols + c] / wide[r]));
    }
    let mut starts = vec![0; cols];
    for c in 1..cols {
        starts[c] = starts[c - 1] + stream_bytes(height, rates[c - 1]);
    }
    let mut codes = vec![0; segment_bytes(rates, height)];
    let (mut errors, mut decoded) = (vec![0f32; rows.len()], vec![0f32; height]);
    let original = target.clone();
    let (mut cost, mut power) = (0.0, 0.0);
    for block in (0..cols).step_by(BLOCK) {
        let end = (block + BLOCK).min(cols);
        for j in block..end {
            let column = &mut target[j * height..(j + 1) * height];
            take(column, &feedback.rows[j], &errors, block..j, height);
            let (c, span) = (feedback.order[j], j * height..(j + 1) * height);
            let stream = &mut codes[starts[c]..starts[c] + stream_bytes(height, rates[c])];
            trellis.encode(column, rates[c], &mut scratch, stream, &mut decoded);
            for ((e, w), q) in errors[span.clone()].iter_mut().zip(&original[span]).zip(&decoded) {
                *e = w - q;
            }
            for ((u, q), s) in column.iter().zip(&decoded).zip(&wide) {
                cost += feedback.pivots[j] * f64::from((u - q) * s).powi(2);
                power += f64::from(*u).powi(2);
            }
        }
        for j in end..cols {
            let column = &mut target[j * height..(j + 1) * height];
            take(column, &feedback.rows[j], &errors, block..end, height);
        }
    }
    Ok(Coded { codes, scales, cost, power: power / rows.len().max(1) as f64 })
}

/// u_j += Σ M_ij e_i over some columns i.
fn take(column: &mut [f32], row: &[f32], errors: &[f32], from: std::ops::Range<usize>, height: usize) {
    if row.is_empty() {
        return;
    }
    for i in from {
        let factor = row[i];
        for (u, e) in column.iter_mut().zip(&errors[i * height..(i + 1) * height]) {
            *u += factor * e;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, step: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * step + i * i * 17) % 1009) as f32 / 504.0 - 1.0).collect()
    }

    /// X Xᵀ of tokens that are correlated from input to input.
    fn gram(cols: usize) -> Vec<f64> {
        let mut gram = vec![0.0; cols * cols];
        for t in 0..4 * cols {
            let raw = noise(cols, 31 + 2 * t);
            let mut x = raw.clone();
            (1..cols).for_each(|i| x[i] = 0.7 * x[i - 1] + raw[i]);
            for i in 0..cols {
                (0..cols).for_each(|j| gram[i * cols + j] += f64::from(x[i]) * f64::from(x[j]));
            }
        }
        gram
    }

    fn decoded(encoded: &EncodedTrellis, rates: &[u8], segment: usize, trellis: &Trellis) -> Vec<f32> {
        let (rows, cols) = (encoded.scales.len(), rates.len());
        let mut out = vec![0f32; rows * cols];
        let mut at = 0;
        for start in (0..rows).step_by(segment) {
            let height = segment.min(rows - start);
            for (c, &rate) in rates.iter().enumerate() {
                let bytes = stream_bytes(height, rate);
                let mut column = vec![0f32; height];
                trellis.decode(&encoded.codes[at..at + bytes], rate, &mut column);
                at += bytes;
                for (r, v) in column.into_iter().enumerate() {
                    out[(start + r) * cols + c] = v * encoded.scales[start + r].to_f32();
                }
            }
        }
        out
    }

    fn cost(values: &[f32], decoded: &[f32], gram: &[f64], cols: usize) -> f64 {
        let mut total = 0.0;
        for (w, q) in values.chunks(cols).zip(decoded.chunks(cols)) {
            let e: Vec<f64> = w.iter().zip(q).map(|(a, b)| f64::from(a - b)).collect();
            for i in 0..cols {
                total += (0..cols).map(|j| e[i] * gram[i * cols + j] * e[j]).sum::<f64>();
            }
        }
        total
    }

    #[test]
    fn the_factors_give_the_matrix_back() {
        let cols = 24;
        let gram = gram(cols);
        let feedback = Feedback::new(gram.clone(), cols, 0.01).unwrap();
        let mean = (0..cols).map(|i| gram[i * cols + i]).sum::<f64>() / cols as f64;
        let m = |i: usize, j: usize| match i.cmp(&j) {
            std::cmp::Ordering::Less => f64::from(feedback.rows[j][i]),
            std::cmp::Ordering::Equal => 1.0,
            std::cmp::Ordering::Greater => 0.0,
        };
        for i in 0..cols {
            for k in 0..cols {
                let product: f64 = (0..cols).map(|j| m(i, j) * feedback.pivots[j] * m(k, j)).sum();
                let (a, b) = (feedback.order[i], feedback.order[k]);
                let expected = gram[a * cols + b] / mean + if i == k { 0.01 } else { 0.0 };
                assert!((product - expected).abs() < 1e-5, "{i} {k}: {product} {expected}");
            }
        }
    }

    #[test]
    fn feedback_and_rates_by_column_lower_the_error_at_the_output() {
        let (rows, cols, segment) = (96, 32, 64);
        let (values, gram) = (noise(rows * cols, 7), gram(cols));
        let trellis = Trellis::new(StateBits::Eight);
        let run = |feedback: &Feedback, rates: &[u8]| {
            let encoded = encode(&values, rates, segment, feedback, &trellis).unwrap();
            assert_eq!(encoded.codes.len(), segment_bytes(rates, 64) + segment_bytes(rates, 32));
            cost(&values, &decoded(&encoded, rates, segment, &trellis), &gram, cols)
        };
        let even = vec![2; cols];
        let feedback = Feedback::new(gram.clone(), cols, 0.01).unwrap();
        let plain = run(&Feedback::none(cols), &even);
        let fed = run(&feedback, &even);
        let rates = feedback.rates(2.0, trellis.bits().most_rate());
        assert_eq!(rates.iter().map(|&r| usize::from(r)).sum::<usize>(), 2 * cols);
        let shared = run(&feedback, &rates);
        println!("plain {plain}, fed {fed}, shared {shared}");
        assert!(fed < 0.7 * plain, "{fed} instead of {plain}");
        assert!(shared < 1.05 * fed, "{shared} instead of {fed}");
    }

    #[test]
    fn a_gram_matrix_that_is_none_is_an_error_and_a_poor_one_is_not() {
        let error = Feedback::new(vec![1.0, 2.0, 2.0, 1.0], 2, 0.01).unwrap_err().to_string();
        assert!(error.contains("not positive definite"), "{error}");
        let error = Feedback::new(vec![1.0, f64::NAN, f64::NAN, 1.0], 2, 0.01).unwrap_err().to_string();
        assert!(error.contains("finite"), "{error}");
        // One token of calibration, and none at all.
        let one: Vec<f64> = (0..16).map(|i| f64::from((i / 4) * (i % 4))).collect();
        assert!(Feedback::new(one, 4, 0.01).is_ok());
        assert_eq!(Feedback::new(vec![0.0; 16], 4, 0.01).unwrap().pivots, [1.0; 4]);
    }
}
