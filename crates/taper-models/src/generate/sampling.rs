//! Drawing the next token from logits.
//!
//! ```text
//! repetition penalty ─▶ ÷ temperature ─▶ the k largest ─▶ the fewest with Σp ≥ top-p ─▶ draw
//! ```
//!
//! The penalty divides positive logits of tokens already seen and multiplies negative ones (Keskar et al., "CTRL",
//! 2019); top-p is nucleus sampling (Holtzman et al., 2020). Ties go to the lower token id, and numbers come from our
//! own seeded ChaCha, so a seed gives the same text on every machine.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Error, Result};

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Sampling {
    temperature: f64,
    top_k: Option<usize>,
    top_p: Option<f64>,
    repetition_penalty: f64,
    seed: u64,
}

impl Sampling {
    /// Always the likeliest token.
    #[must_use]
    pub fn greedy() -> Self {
        Self { temperature: 0.0, top_k: None, top_p: None, repetition_penalty: 1.0, seed: 0 }
    }

    /// At random: 1 is the model's own distribution, less is bolder; 0 is [`Sampling::greedy`].
    #[must_use]
    pub fn at_temperature(temperature: f64) -> Self {
        Self { temperature, ..Self::greedy() }
    }

    /// Only among the `k` likeliest tokens.
    #[must_use]
    pub fn with_top_k(mut self, k: usize) -> Self {
        self.top_k = Some(k);
        self
    }

    /// Only among the fewest tokens that together have probability `p`.
    #[must_use]
    pub fn with_top_p(mut self, p: f64) -> Self {
        self.top_p = Some(p);
        self
    }

    /// Makes tokens already seen less likely; 1 does nothing, 1.1 is usual.
    #[must_use]
    pub fn with_repetition_penalty(mut self, penalty: f64) -> Self {
        self.repetition_penalty = penalty;
        self
    }

    /// Another seed than 0.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    fn check(&self) -> Result<()> {
        let bad = |option, value: String, expected| {
            Err(taper_core::Error::bad_option(option, value, expected).into())
        };
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return bad("temperature", self.temperature.to_string(), "0 or more");
        }
        if self.top_k == Some(0) {
            return bad("top-k", "0".to_owned(), "at least 1");
        }
        if let Some(p) = self.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return bad("top-p", p.to_string(), "more than 0 and at most 1");
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            return bad("repetition penalty", self.repetition_penalty.to_string(), "a number above 0");
        }
        Ok(())
    }
}

/// Draws tokens, one after the other.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler at the beginning of its seed's numbers. Errors where an option is out of range.
    pub fn new(sampling: Sampling) -> Result<Self> {
        sampling.check()?;
        Ok(Self { sampling, rng: ChaCha8Rng::seed_from_u64(sampling.seed) })
    }

    /// The next token, given one logit per token of the vocabulary and the tokens seen so far.
    pub fn next(&mut self, logits: &[f32], seen: &[u32]) -> Result<u32> {
        let step = || format!("token {}", seen.len());
        if logits.is_empty() || logits.iter().any(|v| v.is_nan() || *v == f32::INFINITY) {
            return Err(Error::NotFinite { what: "logits", place: step() });
        }
        let penalised = self.penalised(logits, seen);
        if self.sampling.temperature == 0.0 {
            return Ok(likeliest(&penalised));
        }
        let candidates = self.candidates(&penalised);
        Ok(self.draw(&candidates))
    }

    fn penalised(&self, logits: &[f32], seen: &[u32]) -> Vec<f64> {
        let mut out: Vec<f64> = logits.iter().map(|&v| f64::from(v)).collect();
        let penalty = self.sampling.repetition_penalty;
        if penalty != 1.0 {
            let mut ids = seen.to_vec();
            ids.sort_unstable();
            ids.dedup();
            for id in ids {
                if let Some(v) = out.get_mut(id as usize) {
                    *v = if *v > 0.0 { *v / penalty } else { *v * penalty };
                }
            }
        }
        out
    }

    /// The tokens that may be drawn and their probabilities (up to a common factor), likeliest first.
    fn candidates(&self, logits: &[f64]) -> Vec<(u32, f64)> {
        let mut ranked: Vec<(u32, f64)> = (0u32..).zip(logits.iter().copied()).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        ranked.truncate(self.sampling.top_k.unwrap_or(usize::MAX));
        let top = ranked[0].1;
        for (_, value) in &mut ranked {
            *value = ((*value - top) / self.sampling.temperature).exp();
        }
        if let Some(p) = self.sampling.top_p {
            let total: f64 = ranked.iter().map(|(_, w)| w).sum();
            let mut reached = 0.0;
            let keep = ranked.iter().take_while(|(_, w)| {
                let wanted = reached < p * total;
                reached += w;
                wanted
            });
            let keep = keep.count();
            ranked.truncate(keep);
        }
        ranked
    }

    fn draw(&mut self, candidates: &[(u32, f64)]) -> u32 {
        let total: f64 = candidates.iter().map(|(_, w)| w).sum();
        let mut left = self.rng.random::<f64>() * total;
        for (id, weight) in candidates {
            left -= weight;
            if left < 0.0 {
                return *id;
            }
        }
        candidates[0].0 // rounding used up the last bit: the likeliest is as good as any
    }
}

fn likeliest(logits: &[f64]) -> u32 {
    let mut best = 0;
    for (i, value) in logits.iter().enumerate() {
        if *value > logits[best] {
            best = i;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [0.0, 2.0, 1.0, 2.0];

    fn drawn(sampling: Sampling, n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling).unwrap();
        (0..n).map(|_| sampler.next(&LOGITS, &[]).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(drawn(Sampling::greedy(), 3), [1, 1, 1]);
        assert_eq!(drawn(Sampling::at_temperature(1.0).with_top_k(1), 3), [1, 1, 1]);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let n = 40_000;
        let draws = drawn(Sampling::at_temperature(0.5).with_seed(7), n);
        let weights = LOGITS.map(|v| (f64::from(v) / 0.5).exp());
        let total: f64 = weights.iter().sum();
        for (id, weight) in weights.iter().enumerate() {
            let expected = weight / total;
            let found = draws.iter().filter(|&&d| d as usize == id).count() as f64 / n as f64;
            let deviation = (expected * (1.0 - expected) / n as f64).sqrt();
            assert!((found - expected).abs() < 5.0 * deviation, "{id}: {found} {expected}");
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let mut ids = drawn(Sampling::at_temperature(1.0).with_top_k(2), 200);
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids, [1, 3]);
        // p(1) = p(3) = 0.40, p(2) = 0.147: 0.85 needs all three.
        let mut ids = drawn(Sampling::at_temperature(1.0).with_top_p(0.85), 400);
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids, [1, 2, 3]);
    }

    #[test]
    fn repetition_makes_either_sign_less_likely() {
        let mut sampler = Sampler::new(Sampling::greedy().with_repetition_penalty(4.0)).unwrap();
        assert_eq!(sampler.next(&LOGITS, &[1, 3]).unwrap(), 2);
        assert_eq!(sampler.next(&[-1.0, -2.0], &[0]).unwrap(), 1);
    }

    #[test]
    fn a_seed_is_a_sequence() {
        let at = |seed| drawn(Sampling::at_temperature(1.0).with_seed(seed), 50);
        assert_eq!(at(3), at(3));
        assert_ne!(at(3), at(4));
    }

    #[test]
    fn impossible_options_and_logits_are_refused() {
        let refusal = |s: Sampling| Sampler::new(s).unwrap_err().to_string();
        assert!(refusal(Sampling::at_temperature(-1.0)).contains("`temperature` is -1"));
        assert!(refusal(Sampling::greedy().with_top_k(0)).contains("at least 1"));
        assert!(refusal(Sampling::greedy().with_top_p(1.5)).contains("at most 1"));
        assert!(refusal(Sampling::greedy().with_repetition_penalty(0.0)).contains("above 0"));
        let mut sampler = Sampler::new(Sampling::greedy()).unwrap();
        assert!(sampler.next(&[0.0, f32::NAN], &[]).unwrap_err().to_string().contains("not finite"));
    }
}
