//! A matrix of trellis codes.
//!
//! ```text
//! y = s ⊙ Σ_j (x Q)_j · stream_j        stream_j runs down the rows of a segment; s one scale per row; Q turns blocks of inputs
//! ```
//!
//! The product goes through the streams in the order in which they are stored. For few tokens only one decoded column of a
//! segment exists per thread, and segments are multiplied in parallel; for many, one decoded segment exists at a time, and
//! tokens are. A decoded matrix never does.
//!
//! Neighbours: [`crate::code::trellis`] is the code, [`crate::code::trellis_feedback`] encodes, [`crate::codec::trellis`] stores.

use candle_core::Tensor;
use half::f16;
use rayon::prelude::*;
use std::sync::Arc;
use taper_core::{
    Encoding, Parts, Rows, Weight,
    linalg::{View, product},
    weight::{checked_elements, rows},
};

use crate::{
    Error, Result,
    code::{
        trellis::{StateBits, Trellis, stream_bytes},
        trellis_feedback::{self, Feedback, segment_bytes},
    },
    codec,
    equivalence::{RandomHadamard, hadamard::sign_bit},
};

/// Rows that share streams. Each stream begins without a past, which costs its first few weights: about 1 % of the error at
/// 256. Shorter ones can be encoded and multiplied by more threads.
pub const SEGMENT: usize = 256;

/// Tokens that are multiplied with one decoded column at a time: their partial sums over a segment stay in the first-level
/// cache. For more it pays to decode a segment.
const BATCH: usize = 32;

/// Rows that are turned side by side.
const ABREAST: usize = 8;

/// Tokens, and columns to decode, per task where a segment is decoded.
const TOKENS: usize = 128;
const COLUMNS: usize = 32;

/// What a number of bits is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Counted {
    /// The codes alone.
    #[default]
    Codes,
    /// Everything that is stored: codes, scales, rates and signs.
    Everything,
}

/// How a matrix becomes trellis codes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrellisScheme {
    /// Bits of the state.
    pub state: StateBits,
    /// Bits per weight on average; columns that matter more get more. Codes have 1 to [`StateBits::most_rate`].
    pub bits: f64,
    /// What these bits are about.
    pub counted: Counted,
    /// Inputs that are mixed with each other: the largest power of two up to this that divides the columns; 1 for none.
    pub block: usize,
    /// What is added to the diagonal of the Gram matrix, as a share of its mean.
    pub damping: f64,
}

impl Default for TrellisScheme {
    /// Codes of two bits, 1,024 states, blocks of 256 inputs, a damping of 1 %.
    ///
    /// Weights are coded as if they were Gaussian, so a few that stand out by far must be spread over many: with blocks of 64 the
    /// error of a sentence encoder was twice that with 128, which are enough for it.
    fn default() -> Self {
        let (state, counted) = (StateBits::default(), Counted::default());
        Self { state, bits: 2.0, counted, block: 256, damping: 0.01 }
    }
}

impl TrellisScheme {
    /// Checks that the numbers are in range.
    ///
    /// # Errors
    /// [`Error::Conflict`] that names the option.
    pub fn check(&self) -> Result<()> {
        let bad = |option, conflict: String, expected: &str| {
            Err(Error::Conflict { option, conflict, expected: expected.to_owned() })
        };
        let (rate, states) = (self.state.most_rate(), 1u32 << self.state.get());
        let most = match self.counted {
            Counted::Codes => f64::from(rate),
            // What is stored besides takes a part, which depends on the matrix.
            Counted::Everything => 2.0 * f64::from(rate),
        };
        if !(1.0..=most).contains(&self.bits) {
            let expected = format!("1 to {rate} bits per weight, as a trellis of {states} states has");
            return bad("bits", format!("is {}", self.bits), &expected);
        }
        if !self.block.is_power_of_two() {
            return bad(
                "block",
                format!("is {}", self.block),
                "a power of two, such as 256; 1 for no rotation",
            );
        }
        if !(self.damping.is_finite() && self.damping > 0.0) {
            return bad("damping", format!("is {}", self.damping), "more than 0, such as 0.01");
        }
        Ok(())
    }

    /// Bits per weight that are left for the codes of a matrix.
    ///
    /// # Errors
    /// [`Error::Conflict`] where less than one bit is left.
    pub fn code_bits(&self, [rows, cols]: [usize; 2]) -> Result<f64> {
        if self.counted == Counted::Codes {
            return Ok(self.bits);
        }
        let signs = if self.block_of(cols) > 1 { cols.div_ceil(8) } else { 0 };
        // Streams begin at whole bytes.
        let rounding = if rows.is_multiple_of(8) { 0 } else { cols };
        let beside = 8.0 * (2 * rows + cols + signs + rounding) as f64 / (rows * cols).max(1) as f64;
        let left = self.bits - beside;
        if left < 1.0 {
            return Err(Error::Conflict {
                option: "bits",
                conflict: format!("is {}, of which scales and rates take {beside:.3} here", self.bits),
                expected: "leave at least 1 bit per weight for the codes".into(),
            });
        }
        Ok(left.min(f64::from(self.state.most_rate())))
    }

    /// The block that fits a matrix.
    #[must_use]
    pub fn block_of(&self, cols: usize) -> usize {
        let even = 1usize << cols.trailing_zeros().min(usize::BITS - 1);
        self.block.min(even).max(1)
    }
}

/// A matrix of trellis codes; cheap to clone.
#[derive(Debug, Clone)]
pub struct PackedTrellis(Arc<Prepared>);

/// What is stored, and what products need besides.
#[derive(Debug)]
struct Prepared {
    stored: Stored,
    trellis: &'static Trellis,
    /// Q, block by block; empty where it is the identity.
    blocks: Vec<RandomHadamard>,
}

/// What a file holds. Made by the codec, which has checked that all of it fits together.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) shape: [usize; 2],
    pub(crate) state: StateBits,
    /// Rows per segment.
    pub(crate) segment: usize,
    pub(crate) codes: Arc<[u8]>,
    pub(crate) scales: Vec<f16>,
    /// Bits per weight of every column.
    pub(crate) rates: Vec<u8>,
    /// Inputs per block of Q, and a bit per input: set where its sign is turned. `None` where Q is the identity.
    pub(crate) turn: Option<(usize, Vec<u8>)>,
}

/// Q, block by block.
fn blocks(cols: usize, turn: Option<&(usize, Vec<u8>)>) -> Vec<RandomHadamard> {
    let Some((block, signs)) = turn else { return Vec::new() };
    let sign = |i: usize| if signs[i / 8] >> (i % 8) & 1 == 1 { -1.0 } else { 1.0 };
    let starts = (0..cols).step_by(*block);
    starts.map(|b| RandomHadamard::with_signs((b..b + block).map(sign).collect())).collect()
}

impl PackedTrellis {
    /// Encodes a row-major matrix `[out, in]`. With a Gram matrix `[in, in]` of the inputs each column makes up for the errors
    /// of others and columns share the bits by how much they matter (it is consumed: what follows from it is as large); without one
    /// every column is alike. `seed` chooses Q.
    ///
    /// # Errors
    /// Options out of range, values or a Gram matrix that are not finite, slices that do not fit, scales beyond f16.
    pub fn encode(
        values: &[f32],
        shape: [usize; 2],
        scheme: &TrellisScheme,
        gram: Option<Vec<f64>>,
        seed: u64,
    ) -> Result<Self> {
        scheme.check()?;
        let [_, cols] = shape;
        let elements = checked_elements(&shape).unwrap_or(usize::MAX);
        if values.len() != elements {
            return Err(Error::Length { what: "values", found: values.len(), expected: elements });
        }
        if elements == 0 {
            return Err(Error::Empty { shape: shape.to_vec() });
        }
        crate::Values::F32(values).check_finite()?;
        let block = scheme.block_of(cols);
        let turn = (block > 1).then(|| (block, signs(seed, cols)));
        let blocks = blocks(cols, turn.as_ref());
        let feedback = match gram {
            Some(gram) => Feedback::new(turn_gram(gram, cols, &blocks)?, cols, scheme.damping)?,
            None => Feedback::none(cols),
        };
        let rates = feedback.rates(scheme.code_bits(shape)?, scheme.state.most_rate());
        let trellis = Trellis::shared(scheme.state);
        let turned = turn_rows(values, cols, &blocks);
        let encoded = trellis_feedback::encode(&turned, &rates, SEGMENT, &feedback, trellis)?;
        Ok(Self::from_stored(Stored {
            shape,
            state: scheme.state,
            segment: SEGMENT,
            codes: encoded.codes.into(),
            scales: encoded.scales,
            rates,
            turn,
        }))
    }

    pub(crate) fn from_stored(stored: Stored) -> Self {
        let blocks = blocks(stored.shape[1], stored.turn.as_ref());
        Self(Arc::new(Prepared { trellis: Trellis::shared(stored.state), blocks, stored }))
    }

    pub(crate) fn stored(&self) -> &Stored {
        &self.0.stored
    }

    /// Bits per weight of every column.
    #[must_use]
    pub fn rates(&self) -> &[u8] {
        &self.0.stored.rates
    }

    /// The streams of segment `index`, and its rows.
    fn segment(&self, index: usize) -> (&[u8], usize) {
        let stored = &self.0.stored;
        let whole = segment_bytes(&stored.rates, stored.segment);
        let height = stored.segment.min(stored.shape[0] - index * stored.segment);
        let start = index * whole;
        (&stored.codes[start..start + segment_bytes(&stored.rates, height)], height)
    }

    /// A whole segment decoded in units of the scales, `[cols, height]`: column after column, as streams run.
    fn decoded(&self, index: usize) -> (Vec<f32>, usize) {
        let (rates, (streams, height)) = (&self.0.stored.rates, self.segment(index));
        let mut starts = vec![0; rates.len()];
        for c in 1..rates.len() {
            starts[c] = starts[c - 1] + stream_bytes(height, rates[c - 1]);
        }
        let mut out = vec![0f32; rates.len() * height];
        out.par_chunks_mut(COLUMNS * height).enumerate().for_each(|(i, out)| {
            for (j, column) in out.chunks_exact_mut(height).enumerate() {
                let c = i * COLUMNS + j;
                let bytes = stream_bytes(height, rates[c]);
                self.0.trellis.decode(&streams[starts[c]..starts[c] + bytes], rates[c], column);
            }
        });
        (out, height)
    }

    /// The product with many tokens, `[batch, rows]`, by decoded segments; `x` is turned already.
    fn wide(&self, x: &[f32], y: &mut [f32]) {
        let ([rows, cols], segment) = (self.0.stored.shape, self.0.stored.segment);
        for index in 0..rows.div_ceil(segment) {
            let ((columns, height), start) = (self.decoded(index), index * segment);
            let scales: Vec<f32> =
                self.0.stored.scales[start..start + height].iter().map(|s| s.to_f32()).collect();
            y.par_chunks_mut(TOKENS * rows).zip(x.par_chunks(TOKENS * cols)).for_each(|(y, x)| {
                let tokens = x.len() / cols;
                let mut sums = vec![0f32; tokens * height];
                let (left, right) = (View::rows(x, cols), View::rows(&columns, height));
                product(&mut sums, height, (tokens, height, cols), (0.0, 1.0), left, right);
                for (y, sums) in y.chunks_exact_mut(rows).zip(sums.chunks_exact(height)) {
                    let scaled = sums.iter().zip(&scales).map(|(sum, scale)| sum * scale);
                    y[start..start + height].iter_mut().zip(scaled).for_each(|(y, v)| *y = v);
                }
            });
        }
    }

    /// Sums of one segment for some tokens, `[tokens, height]`; `x` is turned already.
    fn sums(&self, index: usize, x: &[f32], tokens: usize) -> Vec<f32> {
        let (stored, (streams, height)) = (&self.0.stored, self.segment(index));
        let cols = stored.shape[1];
        let (mut y, mut column, mut at) = (vec![0f32; tokens * height], vec![0f32; height], 0);
        for (j, &rate) in stored.rates.iter().enumerate() {
            let bytes = stream_bytes(height, rate);
            self.0.trellis.decode(&streams[at..at + bytes], rate, &mut column);
            at += bytes;
            for (t, y) in y.chunks_exact_mut(height).enumerate() {
                let x = x[t * cols + j];
                y.iter_mut().zip(&column).for_each(|(y, w)| *y += x * w);
            }
        }
        let scales = &stored.scales[index * stored.segment..];
        for y in y.chunks_exact_mut(height) {
            y.iter_mut().zip(scales).for_each(|(y, s)| *y *= s.to_f32());
        }
        y
    }

    /// One row before Q is undone.
    fn turned_row(&self, row: usize, out: &mut [f32]) {
        let stored = &self.0.stored;
        let (streams, height) = self.segment(row / stored.segment);
        let (scale, mut at) = (stored.scales[row].to_f32(), 0);
        for (out, &rate) in out.iter_mut().zip(&stored.rates) {
            let bytes = stream_bytes(height, rate);
            *out = scale * self.0.trellis.at(&streams[at..at + bytes], rate, row % stored.segment);
            at += bytes;
        }
    }
}

/// Random signs, a bit per column.
fn signs(seed: u64, cols: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; cols.div_ceil(8)];
    for i in (0..cols).filter(|&i| sign_bit(seed, i)) {
        bytes[i / 8] |= 1 << (i % 8);
    }
    bytes
}

/// x Q for rows of `cols` values.
fn turn_rows(x: &[f32], cols: usize, blocks: &[RandomHadamard]) -> Vec<f32> {
    let Some(width) = cols.checked_div(blocks.len()) else { return x.to_vec() };
    let mut out = vec![0f32; x.len()];
    out.par_chunks_mut(ABREAST * cols).zip(x.par_chunks(ABREAST * cols)).for_each(|(out, x)| {
        let rows = x.len() / cols;
        let mut run = vec![0f64; width * rows];
        for (start, block) in (0..cols).step_by(width).zip(blocks) {
            for (r, row) in x.chunks_exact(cols).enumerate() {
                let lane = run[r..].iter_mut().step_by(rows);
                lane.zip(&row[start..start + width]).for_each(|(v, x)| *v = f64::from(*x));
            }
            block.apply(&mut run, rows);
            for (r, row) in out.chunks_exact_mut(cols).enumerate() {
                let lane = run[r..].iter().step_by(rows);
                row[start..start + width].iter_mut().zip(lane).for_each(|(out, v)| *out = *v as f32);
            }
        }
    });
    out
}

/// Qᵀ G Q.
fn turn_gram(mut gram: Vec<f64>, cols: usize, blocks: &[RandomHadamard]) -> Result<Vec<f64>> {
    if gram.len() != cols * cols {
        return Err(Error::Length { what: "gram", found: gram.len(), expected: cols * cols });
    }
    if let Some(width) = cols.checked_div(blocks.len()) {
        gram.par_chunks_mut(cols).for_each(|row| {
            row.chunks_mut(width).zip(blocks).for_each(|(run, block)| block.apply(run, 1));
        });
        gram.par_chunks_mut(width * cols).zip(blocks).for_each(|(rows, block)| block.apply(rows, cols));
    }
    Ok(gram)
}

impl Rows for PackedTrellis {
    fn rows(&self) -> usize {
        self.0.stored.shape[0]
    }

    fn cols(&self) -> usize {
        self.0.stored.shape[1]
    }

    fn decode_row(&self, row: usize, out: &mut [f32]) {
        self.turned_row(row, out);
        if let Some(width) = out.len().checked_div(self.0.blocks.len()) {
            let mut wide: Vec<f64> = out.iter().map(|&v| f64::from(v)).collect();
            wide.chunks_mut(width).zip(&self.0.blocks).for_each(|(run, block)| block.invert(run, 1));
            out.iter_mut().zip(wide).for_each(|(out, v)| *out = v as f32);
        }
    }

    fn product(&self, x: &[f32], batch: usize) -> Vec<f32> {
        let ([rows, cols], segment) = (self.0.stored.shape, self.0.stored.segment);
        let x = turn_rows(x, cols, &self.0.blocks);
        let mut y = vec![0f32; batch * rows];
        if batch > BATCH {
            self.wide(&x, &mut y);
            return y;
        }
        for (x, y) in x.chunks(BATCH * cols).zip(y.chunks_mut(BATCH * rows)) {
            let tokens = y.len() / rows;
            let segments: Vec<Vec<f32>> = (0..rows.div_ceil(segment))
                .into_par_iter()
                .map(|index| self.sums(index, x, tokens))
                .collect();
            for (index, sums) in segments.iter().enumerate() {
                let (start, height) = (index * segment, sums.len() / tokens.max(1));
                for (y, sums) in y.chunks_mut(rows).zip(sums.chunks(height)) {
                    y[start..start + height].copy_from_slice(sums);
                }
            }
        }
        y
    }
}

impl Weight for PackedTrellis {
    fn encoding(&self) -> Encoding {
        Encoding::new(codec::trellis::ID, codec::trellis::format(self.0.stored.state, self.rates()))
    }

    fn shape(&self) -> &[usize] {
        &self.0.stored.shape
    }

    fn nbytes(&self) -> usize {
        let stored = &self.0.stored;
        let turn = stored.turn.as_ref().map_or(0, |(_, signs)| signs.len());
        stored.codes.len() + 2 * stored.scales.len() + stored.rates.len() + turn
    }

    fn dense(&self) -> taper_core::Result<Tensor> {
        rows::dense(self)
    }

    fn matmul(&self, x: &Tensor) -> taper_core::Result<Tensor> {
        rows::matmul(self, x)
    }

    fn gather(&self, ids: &Tensor) -> taper_core::Result<Tensor> {
        rows::gather(self, ids)
    }

    fn to_parts(&self) -> taper_core::Result<Parts> {
        Ok(codec::trellis::to_parts(self))
    }
}
