//! Trellis codes: each weight is K bits, and what they mean depends on the bits before (QTIP, Tseng et al., arXiv:2406.11235).
//!
//! ```text
//! bits of a stream   … b b b b b b b b b b b b …      most significant first, K new bits per weight
//!                        └──── state s, L bits ────┘   the last L bits; zeros before the stream begins
//! value = spread_K · Φ⁻¹((g(s) + ½) / 2^L)             one table of 2^L numbers
//! g(s)  = t·(a + c·t) mod 2^L,  t = s read backwards    (newest bit first: the K new bits choose evenly spaced values)
//! ```
//!
//! A scalar code of K bits has 2^K levels for all weights. Here each weight has 2^K levels too, but which ones is up to the
//! weights before it, and Viterbi's algorithm finds the sequence that is best as a whole. On Gaussian weights at two bits that
//! leaves 0.072 (L = 10) of the square where the best scalar code leaves 0.118; no code can leave less than 0.0625.
//!
//! The constants a and c were found by trying some dozens; unlike random tables (0.080 at L = 10), g spaces the choices of each
//! step evenly over the distribution. Decoding needs no step before the last: any weight can be read alone.
//!
//! Neighbours: [`super::trellis_feedback`] encodes matrices, [`crate::PackedTrellis`] is the weight.

use serde::{Deserialize, Serialize};
use std::sync::OnceLock;

use crate::{
    Error, Result,
    kernel::encode::{
        Encoders,
        viterbi::{PADDING, Step},
    },
};

/// The most bits per weight, with the most states.
pub const MOST_RATE: u8 = 6;

/// Bits of the state: more is better and takes longer to encode, in proportion to 2^L.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub enum StateBits {
    /// 256 states, a table of 1 KiB.
    Eight,
    /// 1,024 states, a table of 4 KiB.
    #[default]
    Ten,
    /// 4,096 states, a table of 16 KiB.
    Twelve,
}

impl StateBits {
    /// L.
    #[must_use]
    pub const fn get(self) -> u32 {
        match self {
            Self::Eight => 8,
            Self::Ten => 10,
            Self::Twelve => 12,
        }
    }

    /// The most bits per weight: a state holds two weights at least. 4, 5 and 6.
    #[must_use]
    pub const fn most_rate(self) -> u8 {
        (self.get() / 2) as u8
    }

    /// a and c of g.
    const fn constants(self) -> (usize, usize) {
        match self {
            Self::Eight => (69, 0),
            Self::Ten => (263, 0),
            Self::Twelve => (4043, 8086),
        }
    }
}

impl TryFrom<u64> for StateBits {
    type Error = Error;

    fn try_from(bits: u64) -> Result<Self> {
        match bits {
            8 => Ok(Self::Eight),
            10 => Ok(Self::Ten),
            12 => Ok(Self::Twelve),
            _ => Err(Error::Conflict {
                option: "state-bits",
                conflict: format!("is {bits}"),
                expected: "8, 10 and 12 are supported".into(),
            }),
        }
    }
}

impl From<StateBits> for u64 {
    fn from(bits: StateBits) -> Self {
        u64::from(bits.get())
    }
}

/// How wide the levels lie for Gaussian weights of variance 1, by rate: about the best of widths from 0.8 to 1.4, between which
/// the error hardly changes.
const SPREAD: [f32; MOST_RATE as usize + 1] = [0.0, 0.93, 1.03, 1.08, 1.12, 1.14, 1.15];

/// nMSE on Gaussian weights by rate, for sharing bits between columns: measured with 1,024 states, at six bits with 4,096.
pub(super) const DISTORTION: [f64; MOST_RATE as usize + 1] =
    [1.0, 0.3, 0.072, 0.0197, 0.0053, 0.00125, 0.00033];

/// The values of all states.
#[derive(Debug, Clone, PartialEq)]
pub struct Trellis {
    bits: StateBits,
    /// One table per rate, from 1 on.
    tables: Vec<Vec<f32>>,
}

impl Trellis {
    /// The code with states of so many bits.
    #[must_use]
    pub fn new(bits: StateBits) -> Self {
        let (l, (a, c)) = (bits.get(), bits.constants());
        let size = 1usize << l;
        let unit: Vec<f32> = (0..size)
            .map(|state| {
                let t = ((state as u64).reverse_bits() >> (64 - l)) as usize;
                let g = t.wrapping_mul(a.wrapping_add(c.wrapping_mul(t))) % size;
                // In steps of 2⁻¹² the table is the same wherever logarithms differ in their last bit.
                ((quantile((g as f64 + 0.5) / size as f64) * 4096.0).round() / 4096.0) as f32
            })
            .collect();
        let spread = &SPREAD[1..=usize::from(bits.most_rate())];
        Self { bits, tables: spread.iter().map(|by| unit.iter().map(|v| v * by).collect()).collect() }
    }

    /// The code, made once and kept.
    #[must_use]
    pub fn shared(bits: StateBits) -> &'static Self {
        static CODES: [OnceLock<Trellis>; 3] = [const { OnceLock::new() }; 3];
        CODES[bits as usize].get_or_init(|| Self::new(bits))
    }

    /// L.
    #[must_use]
    pub fn bits(&self) -> StateBits {
        self.bits
    }

    /// The value of every state at a rate of 1 to [`StateBits::most_rate`] bits per weight.
    ///
    /// # Panics
    /// For any other rate.
    #[must_use]
    pub fn table(&self, rate: u8) -> &[f32] {
        &self.tables[usize::from(rate) - 1]
    }

    /// The best stream for values of variance about 1: writes packed bits and what they decode to.
    /// Costs are kept for what stays of each state alone, and its oldest bits are found again on the way back.
    ///
    /// `packed` has [`stream_bytes`] bytes. Ties go to the lower state.
    ///
    /// # Panics
    /// Where the slices do not fit together.
    pub fn encode(&self, x: &[f32], rate: u8, scratch: &mut Scratch, packed: &mut [u8], decoded: &mut [f32]) {
        assert_eq!(packed.len(), stream_bytes(x.len(), rate), "a stream of {} values", x.len());
        packed.fill(0);
        if x.is_empty() {
            return;
        }
        let (shift, ends) = (self.bits.get() as usize - usize::from(rate), self.table(rate).len() >> rate);
        let choices = 1usize << rate;
        self.forward(x, rate, scratch);
        let costs =
            |t: usize| self.step(x[t], rate, &scratch.history[t * (ends + PADDING)..][..ends + PADDING]);
        let (step, best) = (costs(x.len() - 1), &scratch.history[x.len() * (ends + PADDING)..][..ends]);
        let least = best.iter().copied().fold(f32::INFINITY, f32::min);
        let cheapest = |j: usize| (0..choices).map(|r| r << shift | j).find(|&s| step.cost(s) == least);
        let ending = (0..ends).filter(|&j| best[j] == least).filter_map(cheapest).min();
        let mut state = ending.unwrap_or(0);
        for t in (0..x.len()).rev() {
            decoded[t] = self.table(rate)[state];
            put(packed, t * usize::from(rate), rate, (state & (choices - 1)) as u8);
            if t > 0 {
                let step = costs(t - 1);
                state = lowest((0..choices).map(|r| r << shift | state >> rate), |s| step.cost(s));
            }
        }
    }

    /// The least costs after every weight, `[len + 1, 2^(L−K) + PADDING]`, of what stays of the states.
    fn forward(&self, x: &[f32], rate: u8, scratch: &mut Scratch) {
        let width = (self.table(rate).len() >> rate) + PADDING;
        scratch.history.resize((x.len() + 1) * width, 0.0);
        scratch.history[..width].fill(f32::INFINITY);
        scratch.history[0] = 0.0;
        let viterbi = Encoders::active().viterbi;
        for (t, &x) in x.iter().enumerate() {
            let (before, after) = scratch.history[t * width..(t + 2) * width].split_at_mut(width);
            viterbi(&self.step(x, rate, before), after);
        }
    }

    fn step<'a>(&'a self, x: f32, rate: u8, best: &'a [f32]) -> Step<'a> {
        Step { table: self.table(rate), rate, x, best }
    }

    /// Decodes a stream from its beginning.
    pub fn decode(&self, packed: &[u8], rate: u8, out: &mut [f32]) {
        let (k, mask) = (usize::from(rate), (1u64 << self.bits.get()) - 1);
        let table = self.table(rate);
        let mut window = 0u64;
        // Eight weights are K whole bytes.
        for (out, bytes) in out.chunks_mut(8).zip(packed.chunks(k)) {
            for &byte in bytes {
                window = (window << 8) | u64::from(byte);
            }
            window <<= 8 * (k - bytes.len());
            for (i, out) in out.iter_mut().enumerate() {
                *out = table[((window >> (k * (7 - i))) & mask) as usize];
            }
        }
    }

    /// The value of weight `t` of a stream alone.
    #[must_use]
    pub fn at(&self, packed: &[u8], rate: u8, t: usize) -> f32 {
        let (l, end) = (self.bits.get() as usize, (t + 1) * usize::from(rate));
        let last = (end - 1) / 8;
        // Twelve bits that end in this byte begin in one of the two before it.
        let byte = |back: usize| last.checked_sub(back).map_or(0, |i| u32::from(packed[i]));
        let window = byte(2) << 16 | byte(1) << 8 | byte(0);
        self.table(rate)[(window >> (8 * (last + 1) - end)) as usize & ((1 << l) - 1)]
    }
}

/// Bytes of a stream of `len` weights.
#[must_use]
pub const fn stream_bytes(len: usize, rate: u8) -> usize {
    (len * rate as usize).div_ceil(8)
}

/// What encoding needs besides its result; kept between streams.
#[derive(Debug, Clone, Default)]
pub struct Scratch {
    history: Vec<f32>,
}

/// The state of least cost among some; the first of equals.
fn lowest(states: impl Iterator<Item = usize>, cost: impl Fn(usize) -> f32) -> usize {
    let lower = |best: (f32, usize), s: usize| if cost(s) < best.0 { (cost(s), s) } else { best };
    states.fold((f32::INFINITY, 0), lower).1
}

/// Writes `rate` bits at bit `at`, most significant first.
fn put(packed: &mut [u8], at: usize, rate: u8, code: u8) {
    for i in 0..usize::from(rate) {
        let bit = code >> (usize::from(rate) - 1 - i) & 1;
        packed[(at + i) / 8] |= bit << (7 - (at + i) % 8);
    }
}

/// Φ⁻¹, the quantile function of the normal distribution, to nine digits (Acklam's rational approximation).
fn quantile(p: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969683028665376e1,
        2.209460984245205e2,
        -2.759285104469687e2,
        1.38357751867269e2,
        -3.066479806614716e1,
        2.506628277459239,
    ];
    const B: [f64; 6] = [
        -5.447609879822406e1,
        1.615858368580409e2,
        -1.556989798598866e2,
        6.680131188771972e1,
        -1.328068155288572e1,
        1.0,
    ];
    const C: [f64; 6] = [
        -7.784894002430293e-3,
        -3.223964580411365e-1,
        -2.400758277161838,
        -2.549732539343734,
        4.374664141464968,
        2.938163982698783,
    ];
    const D: [f64; 5] =
        [7.784695709041462e-3, 3.224671290700398e-1, 2.445134137142996, 3.754408661907416, 1.0];
    /// Beyond this the tails have a fraction of their own.
    const TAIL: f64 = 0.02425;
    let poly = |c: &[f64], x: f64| c.iter().fold(0.0, |sum, c| sum * x + c);
    if p > 0.5 {
        return -quantile(1.0 - p);
    }
    if p < TAIL {
        let q = (-2.0 * p.ln()).sqrt();
        return poly(&C, q) / poly(&D, q);
    }
    let q = p - 0.5;
    q * poly(&A, q * q) / poly(&B, q * q)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_distr::{Distribution, StandardNormal};

    fn gaussian(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| StandardNormal.sample(&mut rng)).collect()
    }

    /// nMSE over streams of `len` values.
    fn nmse(bits: StateBits, rate: u8, len: usize, streams: u64) -> f64 {
        let (trellis, mut scratch) = (Trellis::new(bits), Scratch::default());
        let (mut noise, mut signal) = (0.0, 0.0);
        for seed in 0..streams {
            let x = gaussian(len, seed);
            let (mut packed, mut out) = (vec![0; stream_bytes(len, rate)], vec![0.0; len]);
            trellis.encode(&x, rate, &mut scratch, &mut packed, &mut out);
            noise += x.iter().zip(&out).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            signal += x.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>();
        }
        noise / signal
    }

    #[test]
    fn quantiles_are_those_of_tables() {
        for (p, z) in [(0.5, 0.0), (0.975, 1.959_963_985), (0.999, 3.090_232_306), (0.01, -2.326_347_874)] {
            assert!((quantile(p) - z).abs() < 1e-8, "{p}");
        }
    }

    #[test]
    fn every_value_occurs_once_and_values_are_symmetric() {
        for bits in [StateBits::Eight, StateBits::Ten, StateBits::Twelve] {
            let mut values = Trellis::new(bits).table(2).to_vec();
            values.sort_by(f32::total_cmp);
            assert!(values.windows(2).all(|w| w[0] < w[1]), "{bits:?}");
            assert!(values.iter().zip(values.iter().rev()).all(|(a, b)| *a == -*b));
        }
    }

    #[test]
    fn gaussian_weights_reach_the_published_table_and_not_the_bound() {
        // Random tables of 2^8, 2^10 and 2^12 states, from the table of the literature: 2 and 3 bits.
        for (bits, two, three) in [
            (StateBits::Eight, 0.0873, 0.0267),
            (StateBits::Ten, 0.0797, 0.0224),
            (StateBits::Twelve, 0.0732, 0.0195),
        ] {
            for (rate, published) in [(2, two), (3, three)] {
                let found = nmse(bits, rate, 1024, 12);
                let bound = 0.25f64.powi(i32::from(rate));
                println!("{bits:?} {rate}: {found:.4}, published {published}, bound {bound:.4}");
                assert!(bound < found && found < published, "{bits:?} at {rate} bits: {found}");
            }
        }
        // Lloyd and Max's scalar quantizers of 2 and 4 levels leave 0.3634 and 0.1175.
        assert!(nmse(StateBits::Ten, 1, 1024, 6) < 0.32);
        assert!(nmse(StateBits::Ten, 2, 1024, 6) < 0.1175 * 0.66);
        // More bits: a quarter of the error each, and no less than no code can do.
        for rate in [4, 5, 6] {
            let (found, bound) = (nmse(StateBits::Twelve, rate, 512, 4), 0.25f64.powi(i32::from(rate)));
            assert!(bound < found && found < 1.45 * bound, "{rate} bits: {found}");
        }
    }

    #[test]
    fn viterbi_finds_what_trying_everything_finds() {
        let (trellis, mut scratch) = (Trellis::new(StateBits::Eight), Scratch::default());
        for seed in 0..5 {
            let x = gaussian(5, 100 + seed);
            let cost = |stream: &[u8]| {
                let mut out = [0.0; 5];
                trellis.decode(stream, 2, &mut out);
                x.iter().zip(out).map(|(a, b)| (a - b).powi(2)).sum::<f32>()
            };
            let all = (0..1u32 << 10).map(|code| cost(&((code << 6) as u16).to_be_bytes()));
            let best = all.fold(f32::INFINITY, f32::min);
            let (mut packed, mut out) = ([0; 2], [0.0; 5]);
            trellis.encode(&x, 2, &mut scratch, &mut packed, &mut out);
            assert!((cost(&packed) - best).abs() < 1e-6);
        }
    }

    #[test]
    fn a_stream_decodes_to_what_was_encoded_as_a_whole_and_weight_by_weight() {
        let mut scratch = Scratch::default();
        for bits in [StateBits::Eight, StateBits::Ten, StateBits::Twelve] {
            let trellis = Trellis::new(bits);
            let lengths = [(1, 9), (2, 64), (3, 21), (4, 1), (3, 8), (5, 19), (6, 33)];
            for (rate, len) in lengths.into_iter().filter(|(rate, _)| *rate <= bits.most_rate()) {
                let x = gaussian(len, len as u64);
                let (mut packed, mut out) = (vec![0; stream_bytes(len, rate)], vec![0.0; len]);
                trellis.encode(&x, rate, &mut scratch, &mut packed, &mut out);
                let mut whole = vec![0.0; len];
                trellis.decode(&packed, rate, &mut whole);
                assert_eq!(whole, out, "{bits:?} {rate} {len}");
                let single: Vec<f32> = (0..len).map(|t| trellis.at(&packed, rate, t)).collect();
                assert_eq!(single, out, "{bits:?} {rate} {len}");
            }
        }
    }
}
