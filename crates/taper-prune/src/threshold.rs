//! The exact score below which weights are pruned, found without sorting and, if need be, without holding all scores.
//!
//! ```text
//! score ──key──▶ u32 in the same order        upper 16 bits ┐ one histogram each:
//!                                             lower 16 bits ┘ 65 536 counters, two sweeps
//! ```
//!
//! An f32's bits, with the sign handled, sort like the number itself. A first sweep over all scores counts the
//! upper halves of those keys and finds in which half the threshold lies; a second sweep counts the lower halves of
//! just those. Two sweeps give the exact order statistic of any number of scores in half a megabyte. Scores that equal
//! the threshold are pruned in index order until the count is exact.
//!
//! [`Threshold::of`] does the same for scores that are all in memory. Masks are made in [`crate::mask`].

/// Values of one half of a key.
const HALVES: usize = 1 << 16;

/// A key that sorts like the score, in IEEE total order (−0 before +0).
#[must_use]
pub fn order_key(score: f32) -> u32 {
    let bits = score.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 0x8000_0000 }
}

/// Where pruning stops: every score of a smaller key goes, and the first `ties` of exactly this key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threshold {
    key: u32,
    ties: u64,
}

impl Threshold {
    /// The threshold that prunes exactly `prune` of `scores`; `None` where `prune` is 0.
    ///
    /// More than there are prunes them all.
    #[must_use]
    pub fn of(scores: &[f32], prune: usize) -> Option<Self> {
        let prune = prune.min(scores.len());
        let last = prune.checked_sub(1)?;
        let mut keys: Vec<u32> = scores.iter().map(|&s| order_key(s)).collect();
        let (below, &mut key, _) = keys.select_nth_unstable(last);
        let smaller = below.iter().filter(|&&k| k < key).count();
        Some(Self { key, ties: (prune - smaller) as u64 })
    }

    /// How many scores equal to the threshold are pruned.
    #[must_use]
    pub fn ties(&self) -> u64 {
        self.ties
    }

    /// The same threshold with another allowance of ties: a part of a larger set takes its share.
    #[must_use]
    pub fn with_ties(self, ties: u64) -> Self {
        Self { ties, ..self }
    }

    /// How many of `scores` equal the threshold.
    #[must_use]
    pub fn count_equal(&self, scores: &[f32]) -> u64 {
        scores.iter().filter(|&&s| order_key(s) == self.key).count() as u64
    }

    /// Writes to `keep` which of `scores` stay; both have the same length.
    pub fn mask(&self, scores: &[f32], keep: &mut [bool]) {
        let mut ties = self.ties;
        for (keep, &score) in keep.iter_mut().zip(scores) {
            let key = order_key(score);
            let tied = key == self.key && ties > 0;
            ties -= u64::from(tied);
            *keep = key >= self.key && !tied;
        }
    }
}

/// Finds the half of the key range that holds a rank.
fn locate(counts: &[u64], mut rank: u64) -> Option<(u32, u64)> {
    for (half, &count) in counts.iter().enumerate() {
        if rank <= count {
            return Some((half as u32, rank));
        }
        rank -= count;
    }
    None
}

/// First sweep: counts the upper halves of the keys.
#[derive(Debug, Clone)]
pub struct Coarse {
    rank: u64,
    counts: Vec<u64>,
}

impl Coarse {
    /// A search for the threshold that prunes exactly `prune` scores; `None` where `prune` is 0.
    #[must_use]
    pub fn new(prune: u64) -> Option<Self> {
        (prune > 0).then(|| Self { rank: prune, counts: vec![0; HALVES] })
    }

    /// Counts some of the scores.
    pub fn add(&mut self, scores: &[f32]) {
        for &score in scores {
            self.counts[(order_key(score) >> 16) as usize] += 1;
        }
    }

    /// Ends the first sweep; `None` where fewer scores were added than are to be pruned.
    #[must_use]
    pub fn narrow(self) -> Option<Fine> {
        let (upper, rank) = locate(&self.counts, self.rank)?;
        let mut counts = self.counts;
        counts.fill(0);
        Some(Fine { upper, rank, counts })
    }
}

/// Second sweep: counts the lower halves of the keys that share the upper half found.
#[derive(Debug, Clone)]
pub struct Fine {
    upper: u32,
    rank: u64,
    counts: Vec<u64>,
}

impl Fine {
    /// Counts some of the scores; over the sweep these must be the scores of the first one, in any order.
    pub fn add(&mut self, scores: &[f32]) {
        for &score in scores {
            let key = order_key(score);
            if key >> 16 == self.upper {
                self.counts[(key & 0xffff) as usize] += 1;
            }
        }
    }

    /// Ends the second sweep; `None` where the scores were not those of the first.
    #[must_use]
    pub fn finish(self) -> Option<Threshold> {
        let (lower, ties) = locate(&self.counts, self.rank)?;
        Some(Threshold { key: self.upper << 16 | lower, ties })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_sort_like_the_numbers() {
        let sorted = [f32::NEG_INFINITY, -3.0, -1e-40, -0.0, 0.0, 1e-40, 1.0, 1.000_000_1, f32::INFINITY];
        assert!(sorted.windows(2).all(|w| order_key(w[0]) < order_key(w[1])));
    }

    #[test]
    fn nothing_to_prune_has_no_threshold() {
        assert_eq!(Threshold::of(&[1.0], 0), None);
        assert_eq!(Threshold::of(&[], 3), None);
        assert!(Coarse::new(0).is_none());
    }

    #[test]
    fn a_search_that_saw_too_few_scores_says_so() {
        let mut coarse = Coarse::new(3).unwrap();
        coarse.add(&[1.0, 2.0]);
        assert!(coarse.narrow().is_none());
    }

    proptest! {
        /// Small integers make many ties; the other branch makes arbitrary finite numbers.
        #[test]
        fn two_sweeps_find_what_selection_finds(
            scores in prop_oneof![
                prop::collection::vec((0u8..6).prop_map(f32::from), 1..200),
                prop::collection::vec(prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL | prop::num::f32::ZERO, 1..200),
            ],
            part in 1usize..50,
            share in 0.0f64..1.0,
        ) {
            let prune = 1 + (share * (scores.len() - 1) as f64) as usize;
            let mut coarse = Coarse::new(prune as u64).unwrap();
            scores.chunks(part).for_each(|c| coarse.add(c));
            let mut fine = coarse.narrow().unwrap();
            scores.chunks(part).for_each(|c| fine.add(c));
            prop_assert_eq!(fine.finish(), Threshold::of(&scores, prune));
        }
    }
}
