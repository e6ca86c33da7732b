//! The word that a misspelt one was probably meant to be.
//!
//! Optimal string alignment distance: insertions, deletions, replacements and swaps of neighbours cost 1 each.

/// The candidate nearest to `word`, unless even that is too far to have been meant.
pub(super) fn nearest(word: &str, candidates: &[&str]) -> Option<String> {
    let word: String = word.to_lowercase().replace('_', "-");
    let scored = candidates.iter().map(|c| (distance(&word, c), *c));
    // A third of the letters may be wrong, at least two: `bitss`, `gruop`, `magnitud`, `nm`.
    let far = (word.chars().count() / 3).max(2);
    scored.filter(|(d, _)| *d <= far).min().map(|(_, candidate)| candidate.to_owned())
}

fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        rows[i][0] = i;
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_the_textbook_ones() {
        for (a, b, d) in [("", "abc", 3), ("kitten", "sitting", 3), ("gruop", "group", 1), ("n", "n", 0)] {
            assert_eq!((distance(a, b), distance(b, a)), (d, d), "{a} {b}");
        }
    }

    #[test]
    fn near_words_are_offered_and_far_ones_are_not() {
        let keys = ["bits", "group", "symmetry", "scales"];
        assert_eq!(nearest("bit", &keys).as_deref(), Some("bits"));
        assert_eq!(nearest("Group", &keys).as_deref(), Some("group"));
        assert_eq!(nearest("simmetry", &keys).as_deref(), Some("symmetry"));
        assert_eq!(nearest("temperature", &keys), None);
    }
}
