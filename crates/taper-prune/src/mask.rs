//! Which weights stay: from scores to masks, `true` for kept.
//!
//! ```text
//! prune_lowest           the p lowest of all
//! prune_lowest_per_row   the p lowest of each row
//! prune_n_of_m           all but the n highest of every m consecutive in a row
//! ```
//!
//! Counts are exact. Of equal scores the one of the lower index is pruned first, so a mask depends on nothing but the
//! scores. The count rule is [`pruned_count`]: n·s rounded half to even. (Several published programs prune every score
//! `<=` the threshold instead, which removes one more than asked for, and more again where scores tie.)

use rayon::prelude::*;

use crate::threshold::Threshold;

/// How many of `n` weights a sparsity prunes: n·s, rounded half to even.
///
/// `sparsity` is a fraction of 1; outside `[0, 1]` it counts as the nearer end.
#[must_use]
pub fn pruned_count(n: usize, sparsity: f64) -> usize {
    // A product of at most n: the cast is exact below 2^53 and saturates above.
    ((n as f64 * sparsity.clamp(0.0, 1.0)).round_ties_even() as usize).min(n)
}

/// Keeps all but the `prune` lowest scores.
#[must_use]
pub fn prune_lowest(scores: &[f32], prune: usize) -> Vec<bool> {
    let mut keep = vec![true; scores.len()];
    if let Some(threshold) = Threshold::of(scores, prune) {
        threshold.mask(scores, &mut keep);
    }
    keep
}

/// Keeps all but the `prune` lowest scores of each row of `cols`; a last row may be short.
#[must_use]
pub fn prune_lowest_per_row(scores: &[f32], cols: usize, prune: usize) -> Vec<bool> {
    let mut keep = vec![true; scores.len()];
    let cols = cols.max(1);
    keep.par_chunks_mut(cols).zip(scores.par_chunks(cols)).for_each(|(keep, row)| {
        if let Some(threshold) = Threshold::of(row, prune) {
            threshold.mask(row, keep);
        }
    });
    keep
}

/// How many of a run of `run` weights n-of-m keeps: ⌈n·run/m⌉, which is n for a full run of m.
///
/// A short run at the end of a row keeps at least the share that a full one does.
#[must_use]
pub fn kept_of_run(n: usize, m: usize, run: usize) -> usize {
    // u128: n and m are the caller's and may be large.
    let kept = (n as u128 * run as u128).div_ceil(m.max(1) as u128);
    usize::try_from(kept).map_or(run, |kept| kept.min(run))
}

/// Keeps the `n` highest of every `m` consecutive scores within rows of `cols`; a short run at a row's end keeps
/// [`kept_of_run`].
#[must_use]
pub fn prune_n_of_m(scores: &[f32], cols: usize, n: usize, m: usize) -> Vec<bool> {
    let mut keep = vec![true; scores.len()];
    let cols = cols.max(1);
    keep.par_chunks_mut(cols).zip(scores.par_chunks(cols)).for_each(|(keep, row)| {
        let mut order = Vec::new();
        for (keep, run) in keep.chunks_mut(m.max(1)).zip(row.chunks(m.max(1))) {
            // Stable: of equal scores the lower index comes, and goes, first.
            order.clear();
            order.extend(0..run.len());
            order.sort_by(|&a, &b| run[a].total_cmp(&run[b]));
            for &i in &order[..run.len() - kept_of_run(n, m, run.len())] {
                keep[i] = false;
            }
        }
    });
    keep
}

/// Writes zero to every value that is not kept; both slices have the same length.
pub fn zero_pruned<T: Copy + Default>(values: &mut [T], keep: &[bool]) {
    for (value, &keep) in values.iter_mut().zip(keep) {
        if !keep {
            *value = T::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Plain oracle: sort (score, index) and drop the first `prune`.
    fn by_sorting(scores: &[f32], prune: usize) -> Vec<bool> {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[a].partial_cmp(&scores[b]).unwrap().then(a.cmp(&b)));
        let mut keep = vec![true; scores.len()];
        order.iter().take(prune).for_each(|&i| keep[i] = false);
        keep
    }

    fn scores() -> impl Strategy<Value = Vec<f32>> {
        prop_oneof![
            prop::collection::vec((0u8..5).prop_map(f32::from), 0..150),
            prop::collection::vec(0f32..1e3, 0..150),
        ]
    }

    proptest! {
        #[test]
        fn the_lowest_are_those_that_sorting_puts_first(scores in scores(), prune in 0usize..160) {
            prop_assert_eq!(prune_lowest(&scores, prune), by_sorting(&scores, prune));
        }

        #[test]
        fn rows_are_pruned_each_by_itself(scores in scores(), cols in 1usize..20, prune in 0usize..20) {
            let expected: Vec<bool> = scores.chunks(cols).flat_map(|row| by_sorting(row, prune)).collect();
            prop_assert_eq!(prune_lowest_per_row(&scores, cols, prune), expected);
        }

        #[test]
        fn runs_keep_exactly_their_share(scores in scores(), cols in 1usize..40, m in 2usize..9, n in 1usize..9) {
            let n = n.min(m);
            let keep = prune_n_of_m(&scores, cols, n, m);
            for (keep, row) in keep.chunks(cols).zip(scores.chunks(cols)) {
                for (keep, run) in keep.chunks(m).zip(row.chunks(m)) {
                    let kept = (n * run.len()).div_ceil(m);
                    prop_assert_eq!(keep, &by_sorting(run, run.len() - kept)[..]);
                    prop_assert_eq!(keep.iter().filter(|&&k| k).count(), kept);
                }
            }
        }
    }

    #[test]
    fn counts_round_half_to_even() {
        assert_eq!([10, 6, 2, 14].map(|n| pruned_count(n, 0.25)), [2, 2, 0, 4]);
        assert_eq!(pruned_count(3, 0.9), 3);
        assert_eq!(pruned_count(7, f64::NAN), 0);
        assert_eq!(pruned_count(7, 2.0), 7);
    }

    #[test]
    fn short_runs_keep_at_least_their_share() {
        assert_eq!([1, 2, 3, 4].map(|r| kept_of_run(2, 4, r)), [1, 1, 2, 2]);
        assert_eq!(kept_of_run(usize::MAX, usize::MAX, 5), 5);
    }
}
