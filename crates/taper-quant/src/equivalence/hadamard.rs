//! A random orthogonal matrix that mixes all coordinates and costs n log n (QuaRot, arXiv:2404.00456; QuIP#, arXiv:2402.04396).
//!
//! ```text
//! v Q = ((v ⊙ D) (H ⊗ O)) / √n       n = 2^k · m
//!
//! D   random signs                    H   Sylvester's Hadamard matrix of size 2^k
//! O   m odd: O[a, b] = cos(2πab/m) + sin(2πab/m), Hartley's matrix: symmetric, O Oᵀ = m·I, |O| ≤ √2
//! ```
//!
//! Hartley's matrix exists for every odd m, where Hadamard matrices do not; it mixes almost as evenly. H ⊗ O is symmetric, so
//! the inverse is the same mixing followed by the signs. All in f64.

/// Signs and sizes of Q.
#[derive(Debug, Clone, PartialEq)]
pub struct RandomHadamard {
    signs: Vec<f64>,
    /// m, the odd part of n.
    odd: usize,
    /// O / √n, `[m, m]`; the normalisation of the whole goes here.
    small: Vec<f64>,
}

impl RandomHadamard {
    /// Q of size `width`, at least 1, from a seed.
    #[must_use]
    pub fn new(width: usize, seed: u64) -> Self {
        let signs = (0..width).map(|i| if sign_bit(seed, i) { -1.0 } else { 1.0 }).collect();
        Self::with_signs(signs)
    }

    /// Q with these signs (±1), as many as its size.
    #[must_use]
    pub fn with_signs(signs: Vec<f64>) -> Self {
        let width = signs.len().max(1);
        let odd = width >> width.trailing_zeros();
        let norm = (width as f64).sqrt().recip();
        let angle = |a: usize, b: usize| (a * b % odd) as f64 / odd as f64 * std::f64::consts::TAU;
        let small =
            (0..odd * odd).map(|i| angle(i / odd, i % odd)).map(|t| norm * (t.cos() + t.sin())).collect();
        Self { signs, odd, small }
    }

    /// n.
    #[must_use]
    pub fn width(&self) -> usize {
        self.signs.len()
    }

    /// v ← v Q, for `lanes` vectors side by side: coordinate i of vector l is `v[i · lanes + l]`.
    ///
    /// # Panics
    /// Where `v` does not hold `width · lanes` values.
    pub fn apply(&self, v: &mut [f64], lanes: usize) {
        assert_eq!(v.len(), self.width() * lanes, "one value per coordinate and lane");
        if lanes == 0 {
            return;
        }
        for (coordinate, &sign) in v.chunks_exact_mut(lanes).zip(&self.signs) {
            coordinate.iter_mut().for_each(|x| *x *= sign);
        }
        self.mix(v, lanes);
    }

    /// v ← v Qᵀ, the inverse of [`Self::apply`].
    ///
    /// # Panics
    /// Where `v` does not hold `width · lanes` values.
    pub fn invert(&self, v: &mut [f64], lanes: usize) {
        assert_eq!(v.len(), self.width() * lanes, "one value per coordinate and lane");
        if lanes == 0 {
            return;
        }
        self.mix(v, lanes);
        for (coordinate, &sign) in v.chunks_exact_mut(lanes).zip(&self.signs) {
            coordinate.iter_mut().for_each(|x| *x *= sign);
        }
    }

    /// v ← v (H ⊗ O) / √n.
    fn mix(&self, v: &mut [f64], lanes: usize) {
        let (unit, end) = (self.odd * lanes, v.len());
        let mut half = unit;
        while half < end {
            for pair in v.chunks_exact_mut(2 * half) {
                let (low, high) = pair.split_at_mut(half);
                for (a, b) in low.iter_mut().zip(high) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        if self.odd == 1 {
            v.iter_mut().for_each(|x| *x *= self.small[0]);
            return;
        }
        let mut before = vec![0.0; unit];
        for run in v.chunks_exact_mut(unit) {
            before.copy_from_slice(run);
            for (row, out) in self.small.chunks_exact(self.odd).zip(run.chunks_exact_mut(lanes)) {
                out.fill(0.0);
                for (&o, x) in row.iter().zip(before.chunks_exact(lanes)) {
                    out.iter_mut().zip(x).for_each(|(out, x)| *out += o * x);
                }
            }
        }
    }
}

/// Bit `i` of a stream of random bits: SplitMix64 (Steele et al. 2014), the same everywhere.
#[must_use]
pub fn sign_bit(seed: u64, i: usize) -> bool {
    let step = 0x9e37_79b9_7f4a_7c15_u64;
    let mut z = seed.wrapping_add((i as u64 + 1).wrapping_mul(step));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) >> 63 == 1
}

/// A seed for something that has a name: FNV-1a of the name, from a run's seed.
#[must_use]
pub fn named_seed(seed: u64, name: &str) -> u64 {
    name.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Q as a full matrix, row by row.
    fn matrix(q: &RandomHadamard) -> Vec<Vec<f64>> {
        let n = q.width();
        (0..n)
            .map(|i| {
                let mut unit = vec![0.0; n];
                unit[i] = 1.0;
                q.apply(&mut unit, 1);
                unit
            })
            .collect()
    }

    #[test]
    fn it_is_orthogonal_and_even_for_every_size() {
        for n in [1, 2, 3, 7, 8, 12, 48, 64, 96, 100] {
            let rows = matrix(&RandomHadamard::new(n, 5));
            let flat = (2.0 / n as f64).sqrt() + 1e-12;
            for (i, a) in rows.iter().enumerate() {
                assert!(a.iter().all(|x| x.abs() <= flat), "{n}");
                for (j, b) in rows.iter().enumerate() {
                    let dot: f64 = a.iter().zip(b).map(|(x, y)| x * y).sum();
                    assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-12, "{n}: {i} {j} {dot}");
                }
            }
        }
    }

    #[test]
    fn sylvesters_matrix_of_size_four_is_the_known_one() {
        let q = RandomHadamard::with_signs(vec![1.0; 4]);
        let known = [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]];
        for (row, known) in matrix(&q).iter().zip(known) {
            assert_eq!(row.iter().map(|x| x * 2.0).collect::<Vec<_>>(), known.map(f64::from));
        }
    }

    #[test]
    fn lanes_are_vectors_side_by_side_and_inverting_undoes() {
        let q = RandomHadamard::new(12, 9);
        let values: Vec<f64> = (0..36).map(|i| f64::from(i * i % 17) - 8.0).collect();
        let mut lanes = values.clone();
        q.apply(&mut lanes, 3);
        for l in 0..3 {
            let mut one: Vec<f64> = (0..12).map(|i| values[i * 3 + l]).collect();
            q.apply(&mut one, 1);
            assert!((0..12).all(|i| (one[i] - lanes[i * 3 + l]).abs() < 1e-12));
        }
        q.invert(&mut lanes, 3);
        assert!(lanes.iter().zip(&values).all(|(a, b)| (a - b).abs() < 1e-12));
    }

    #[test]
    fn seeds_and_names_make_other_signs() {
        assert_ne!(RandomHadamard::new(64, 1), RandomHadamard::new(64, 2));
        assert_ne!(named_seed(0, "a"), named_seed(0, "b"));
        let ones = (0..4096).filter(|&i| sign_bit(3, i)).count();
        assert!((1900..2200).contains(&ones), "{ones}");
    }
}
