//! The arithmetic of cutting units: scores, choice, cutting, masking, as pure functions of slices.
//!
//! ```text
//! a member [.., axis, ..]     outer × (units × block) × inner      unit u covers u·block .. (u+1)·block
//!
//! n_m(u) = Σ w²  over the slices of unit u in member m, divided by its mean over all units
//!
//! product     s(u) = Π_{m produces} n_m(u) · Π_{m accompanies} n_m(u) · Σ_{m consumes} Σ w²(m, u)
//! consumers   s(u) = Σ_{m consumes} Σ w²(m, u)
//! sum         s(u) = Σ_m n_m(u)
//! ```
//!
//! **The product** is the size of what is lost where inputs have no preferred direction: a unit writes
//! `down[:, u] · act(gate_u·x) · (up_u·x)`, of size ‖down_u‖·‖gate_u‖·‖up_u‖ up to a constant. It does not change when
//! a unit is rescaled in a way that leaves the function alone (up × c, down ÷ c), where a sum does. Several consumers
//! of one unit add up their errors, so they are summed. A batch norm counts as folded into what it accompanies: its
//! gain multiplies, its running variance divides, so that rescaling a convolution that is normalised afterwards
//! changes nothing either.
//!
//! Which of them cuts best is a question of measurement, not of theory. Without data, the consumers alone measured better
//! than the product for gated feed-forward blocks on three small Llama models, the product better than the others for
//! attention groups on one, and the sum better for the channels of one convolutional network; `docs/results.md` has a
//! table and its command. Where calibration data is at hand, measure.
//!
//! So [`UnitScore::of`] gives feed-forward blocks the consumers, attention groups the product, and channels the sum.
//!
//! Which weights make a coupling, and how many units stay, is [`crate::resolve`].

use serde::{Deserialize, Serialize};
use taper_core::coupling::{Family, Role};

use crate::mask::pruned_count;

/// How the members' sums of squares become one score per unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnitScore {
    /// The product along the unit's path: what it writes, for inputs without a preferred direction.
    Product,
    /// The weights that read the unit, and nothing else; a coupling without consumers falls back to the product.
    Consumers,
    /// The sum over members, each normalised to mean 1.
    Sum,
}

impl UnitScore {
    /// The score that a family gets unless somebody says otherwise; the reasons stand at the top of this file.
    #[must_use]
    pub fn of(family: Family) -> Self {
        match family {
            Family::FeedForward => Self::Consumers,
            Family::AttentionGroups => Self::Product,
            Family::Channels => Self::Sum,
        }
    }
}

/// An axis of a row-major tensor, seen as units of `block` indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Axis {
    /// Product of the dimensions before it.
    pub outer: usize,
    /// Units on it.
    pub units: usize,
    /// Indices per unit.
    pub block: usize,
    /// Product of the dimensions after it.
    pub inner: usize,
}

impl Axis {
    /// Axis `axis` of a shape; `None` where there is no such axis or it is not whole units of `block`.
    #[must_use]
    pub fn of(shape: &[usize], axis: usize, block: usize) -> Option<Self> {
        let dim = *shape.get(axis)?;
        let units = dim.checked_div(block)?;
        let whole = units * block == dim;
        whole.then(|| Self {
            outer: shape[..axis].iter().product(),
            units,
            block,
            inner: shape[axis + 1..].iter().product(),
        })
    }

    /// Elements of one unit that are contiguous.
    fn stretch(&self) -> usize {
        self.block * self.inner
    }
}

/// Σ w² of each unit, in f64 and in storage order.
#[must_use]
pub fn unit_squares(values: &[f32], axis: Axis) -> Vec<f64> {
    let mut squares = vec![0f64; axis.units];
    if axis.units == 0 || axis.stretch() == 0 {
        return squares;
    }
    for row in values.chunks(axis.units * axis.stretch()) {
        for (sum, stretch) in squares.iter_mut().zip(row.chunks(axis.stretch())) {
            *sum += stretch.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
        }
    }
    squares
}

/// The values of the kept units only, in their order: the axis shrinks to `kept.len()` units.
///
/// # Panics
/// Where `kept` names a unit that the axis does not have, or `values` are fewer than the axis says;
/// [`crate::resolve::Plan::new`] checks both.
#[must_use]
pub fn cut_units<T: Copy>(values: &[T], axis: Axis, kept: &[usize]) -> Vec<T> {
    let stretch = axis.stretch();
    let mut out = Vec::with_capacity(axis.outer * kept.len() * stretch);
    for row in values.chunks((axis.units * stretch).max(1)) {
        for &unit in kept {
            out.extend_from_slice(&row[unit * stretch..(unit + 1) * stretch]);
        }
    }
    out
}

/// Zeroes every unit that is not kept; the shape stays. The function of the model is then that of the cut one.
///
/// # Panics
/// Where `kept` names a unit that the axis does not have.
pub fn mask_units<T: Copy + Default>(values: &mut [T], axis: Axis, kept: &[usize]) {
    let mut keep = vec![false; axis.units];
    for &unit in kept {
        keep[unit] = true;
    }
    let stretch = axis.stretch().max(1);
    for row in values.chunks_mut((axis.units * stretch).max(1)) {
        for (keep, stretch) in keep.iter().zip(row.chunks_mut(stretch)) {
            if !keep {
                stretch.fill(T::default());
            }
        }
    }
}

/// One member's part in a unit's score.
#[derive(Debug, Clone, PartialEq)]
pub struct MemberSquares {
    /// What the member does with the coupled values.
    pub role: Role,
    /// True where it divides (a running variance).
    pub divides: bool,
    /// Σ w² of each unit; for a variance the variances themselves.
    pub squares: Vec<f64>,
}

/// The scores of a coupling's `units`, each member having as many squares; a member that is all zero says nothing.
#[must_use]
pub fn unit_scores(members: &[MemberSquares], units: usize, how: UnitScore) -> Vec<f64> {
    match how {
        UnitScore::Product => product(members, units),
        UnitScore::Consumers => {
            let mut consumers = members.iter().filter(|m| m.role == Role::Consumes).peekable();
            if consumers.peek().is_none() {
                return product(members, units);
            }
            let mut scores = vec![0f64; units];
            consumers.for_each(|member| add(&mut scores, &member.squares));
            scores
        }
        UnitScore::Sum => {
            let mut scores = vec![0f64; units];
            for member in members.iter().filter(|m| !m.divides) {
                add(&mut scores, &normalised(&member.squares));
            }
            scores
        }
    }
}

/// How much a whole coupling can write: √Σ_u Π_m Σ w²(m, u), consumers summed first, nothing normalised.
///
/// It compares couplings of one family with each other; a coupling with a member that is all zero writes nothing.
#[must_use]
pub fn path_gain(members: &[MemberSquares], units: usize) -> f64 {
    let unit = |u: usize| {
        let (mut path, mut consumed) = (1f64, None);
        for member in members {
            let square = member.squares.get(u).copied().unwrap_or(0.0);
            match (member.role, member.divides) {
                (Role::Consumes, _) => *consumed.get_or_insert(0.0) += square,
                (_, true) => path /= square,
                (_, false) => path *= square,
            }
        }
        path * consumed.unwrap_or(1.0)
    };
    (0..units).map(unit).sum::<f64>().sqrt()
}

fn product(members: &[MemberSquares], units: usize) -> Vec<f64> {
    let mut scores = vec![1f64; units];
    let mut consumed = vec![0f64; units];
    for member in members {
        if member.role == Role::Consumes {
            add(&mut consumed, &member.squares);
            continue;
        }
        for (score, n) in scores.iter_mut().zip(normalised(&member.squares)) {
            *score = if member.divides { *score / n } else { *score * n };
        }
    }
    if members.iter().any(|m| m.role == Role::Consumes) {
        for (score, n) in scores.iter_mut().zip(normalised(&consumed)) {
            *score *= n;
        }
    }
    scores
}

fn add(to: &mut [f64], values: &[f64]) {
    for (to, value) in to.iter_mut().zip(values) {
        *to += value;
    }
}

/// Divided by the mean, so that products of many members neither overflow nor vanish.
fn normalised(squares: &[f64]) -> Vec<f64> {
    let mean = squares.iter().sum::<f64>() / squares.len().max(1) as f64;
    squares.iter().map(|s| if mean > 0.0 { s / mean } else { 1.0 }).collect()
}

/// How many of `units` stay when a `ratio` of them is to go: n·ratio go, rounded half to even; what stays is rounded up
/// to a multiple of `multiple_of`. At least one unit stays, and never more than there are.
#[must_use]
pub fn kept_units(units: usize, ratio: f64, multiple_of: usize) -> usize {
    let kept = (units - pruned_count(units, ratio)).max(1);
    kept.checked_next_multiple_of(multiple_of.max(1)).unwrap_or(units).min(units)
}

/// The `keep` units of the highest scores, in their original order; of equal scores the later unit stays.
#[must_use]
pub fn highest_units(scores: &[f64], keep: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let mut kept = order.split_off(scores.len().saturating_sub(keep));
    kept.sort_unstable();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member(role: Role, squares: &[f64]) -> MemberSquares {
        MemberSquares { role, divides: false, squares: squares.to_vec() }
    }

    #[test]
    fn an_axis_is_whole_units_or_none() {
        assert_eq!(Axis::of(&[2, 6, 5], 1, 3), Some(Axis { outer: 2, units: 2, block: 3, inner: 5 }));
        assert_eq!(Axis::of(&[2, 6, 5], 1, 4), None);
        assert_eq!(Axis::of(&[2, 6, 5], 3, 1), None);
        assert_eq!(Axis::of(&[2, 6, 5], 1, 0), None);
    }

    #[test]
    fn the_product_ignores_a_rescaling_that_the_function_ignores() {
        let up = [1.0, 4.0, 9.0];
        let down = [5.0, 2.0, 0.5];
        let plain =
            unit_scores(&[member(Role::Produces, &up), member(Role::Consumes, &down)], 3, UnitScore::Product);
        assert_eq!(highest_units(&plain, 1), [1], "the largest product is 4·2");
        // Unit 2: up × 10, down ÷ 10, so squares × 100 and ÷ 100.
        let scaled = unit_scores(
            &[member(Role::Produces, &[1.0, 4.0, 900.0]), member(Role::Consumes, &[5.0, 2.0, 0.005])],
            3,
            UnitScore::Product,
        );
        for pair in [(0, 1), (1, 2), (0, 2)] {
            let ratio = |s: &[f64]| s[pair.0] / s[pair.1];
            assert!((ratio(&plain) / ratio(&scaled) - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn consumers_add_up_and_a_variance_divides() {
        let members = [
            member(Role::Produces, &[2.0, 2.0]),
            MemberSquares { role: Role::Accompanies, divides: true, squares: vec![4.0, 1.0] },
            member(Role::Consumes, &[1.0, 0.0]),
            member(Role::Consumes, &[1.0, 1.0]),
        ];
        let s = unit_scores(&members, 2, UnitScore::Product);
        assert!((s[0] / s[1] - (2.0 / 4.0 * 2.0) / (2.0 / 1.0 * 1.0)).abs() < 1e-12, "{s:?}");
    }

    #[test]
    fn consumers_alone_decide_where_asked() {
        let members = [
            member(Role::Produces, &[100.0, 1.0, 1.0]),
            member(Role::Consumes, &[1.0, 2.0, 0.0]),
            member(Role::Consumes, &[1.0, 1.0, 1.0]),
        ];
        assert_eq!(unit_scores(&members, 3, UnitScore::Consumers), [2.0, 3.0, 1.0]);
        let none = &members[..1];
        assert_eq!(highest_units(&unit_scores(none, 3, UnitScore::Consumers), 1), [0]);
    }

    #[test]
    fn a_silent_member_decides_nothing() {
        let s = unit_scores(
            &[member(Role::Produces, &[0.0; 3]), member(Role::Consumes, &[1.0, 3.0, 2.0])],
            3,
            UnitScore::Product,
        );
        assert_eq!(highest_units(&s, 2), [1, 2]);
    }

    #[test]
    fn counts_round_half_to_even_then_up_to_the_multiple() {
        assert_eq!(kept_units(768, 0.25, 1), 576);
        assert_eq!(kept_units(172, 0.25, 8), 136);
        assert_eq!(kept_units(2, 0.25, 1), 2);
        assert_eq!(kept_units(2, 0.75, 1), 1);
        assert_eq!(kept_units(5, 0.999, 1), 1);
        assert_eq!(kept_units(5, 0.5, 8), 5);
        assert_eq!(kept_units(0, 0.5, 8), 0);
    }

    proptest! {
        #[test]
        fn masking_then_cutting_is_cutting(
            (outer, units, block, inner) in (1usize..4, 1usize..6, 1usize..4, 1usize..4),
            bits in any::<u8>(),
        ) {
            let axis = Axis { outer, units, block, inner };
            let values: Vec<f32> = (1..=outer * units * block * inner).map(|v| v as f32).collect();
            let kept: Vec<usize> = (0..units).filter(|u| bits >> u & 1 == 1).collect();
            let cut = cut_units(&values, axis, &kept);
            let mut masked = values.clone();
            mask_units(&mut masked, axis, &kept);
            // Independent of the stretch arithmetic: every element asked for by its own index.
            let is_kept = |i: usize| kept.contains(&(i / inner % (units * block) / block));
            let expected: Vec<f32> = (0..values.len()).filter(|&i| is_kept(i)).map(|i| values[i]).collect();
            prop_assert_eq!(&cut, &expected);
            let zeroed: Vec<f32> =
                values.iter().enumerate().map(|(i, &v)| if is_kept(i) { v } else { 0.0 }).collect();
            prop_assert_eq!(masked, zeroed);
            let squares = unit_squares(&values, axis);
            for (unit, square) in squares.iter().enumerate() {
                let direct: f64 = (0..values.len())
                    .filter(|i| i / inner % (units * block) / block == unit)
                    .map(|i| f64::from(values[i]).powi(2))
                    .sum();
                prop_assert!((square - direct).abs() <= 1e-9 * direct);
            }
        }
    }
}
