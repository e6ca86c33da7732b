//! The choice of one option per item, exactly: dynamic programming over Pareto fronts.
//!
//! ```text
//! after item k:    front_k = { (cost, value) that no other set of choices for items 0..=k beats in both }
//! front_{k+1}      = Pareto( front_k + each option of item k+1 )
//! ```
//!
//! Fronts grow with the number of distinct costs. Two bounds keep them small and change nothing in the result: a state is
//! dropped where even the cheapest rest exceeds the limit, and where even the Lagrangian bound on the rest,
//!
//! ```text
//! min over the rest of Σ value + λ Σ cost, less λ (limit − cost so far)
//! ```
//!
//! exceeds the value of a solution that is known already (greedy along the convex hulls, whose last slope is λ).
//!
//! Sums are in the order of items, so the same question has the same answer to the bit.

use super::{Choice, Infeasible, Limit};

/// How much a bound may be off by the rounding of its sum; such states stay.
const SLACK: f64 = 1e-9;

/// A choice as the search sees it: at most so much `cost`, as little `value` as possible.
#[derive(Debug, Clone, Copy)]
struct Way {
    cost: f64,
    value: f64,
    index: usize,
}

/// A set of choices so far.
#[derive(Debug, Clone, Copy)]
struct State {
    cost: f64,
    value: f64,
    /// The state before in its front, and the option taken.
    parent: usize,
    index: usize,
}

/// The index of a choice for each item, so that the limit is kept and the other sum is the least.
///
/// Among equals the cheaper is taken, then the earlier. Every item needs a choice; bytes are exact below 2⁵³.
///
/// # Errors
/// [`Infeasible`], with the least that is possible.
pub fn solve(items: &[Vec<Choice>], limit: Limit) -> Result<Vec<usize>, Infeasible> {
    let turned = |choice: &Choice| match limit {
        Limit::Bytes(_) => (choice.bytes as f64, choice.damage),
        Limit::Damage(_) => (choice.damage, choice.bytes as f64),
    };
    let most = match limit {
        Limit::Bytes(bytes) => bytes as f64,
        Limit::Damage(damage) => damage,
    };
    let items: Vec<Vec<Way>> = items
        .iter()
        .map(|choices| {
            let options = choices.iter().enumerate().map(|(index, choice)| {
                let (cost, value) = turned(choice);
                Way { cost, value, index }
            });
            front(options.collect())
        })
        .collect();
    // The first of a front is the cheapest.
    let least = items.iter().map(|o| o.first().map_or(f64::INFINITY, |o| o.cost)).sum();
    if least > most {
        return Err(Infeasible { limit: most, least });
    }
    Ok(search(&items, most, &Bounds::new(&items, most)))
}

/// What is not beaten in both, by rising cost and falling value.
fn front(mut options: Vec<Way>) -> Vec<Way> {
    options.sort_by(|a, b| a.cost.total_cmp(&b.cost).then(a.value.total_cmp(&b.value)));
    let mut best = f64::INFINITY;
    options.retain(|option| {
        let better = option.value < best;
        best = best.min(option.value);
        better
    });
    options
}

fn search(items: &[Vec<Way>], most: f64, bounds: &Bounds) -> Vec<usize> {
    let mut fronts: Vec<Vec<State>> = vec![vec![State { cost: 0.0, value: 0.0, parent: 0, index: 0 }]];
    for (at, options) in items.iter().enumerate() {
        let before = &fronts[at];
        let mut states = Vec::with_capacity(before.len() * options.len());
        for (parent, state) in before.iter().enumerate() {
            for option in options {
                let (cost, value) = (state.cost + option.cost, state.value + option.value);
                if bounds.allow(at + 1, cost, value, most) {
                    states.push(State { cost, value, parent, index: option.index });
                }
            }
        }
        // Stable: equals stay in the order of their parents.
        states.sort_by(|a, b| a.cost.total_cmp(&b.cost).then(a.value.total_cmp(&b.value)));
        let mut best = f64::INFINITY;
        states.retain(|state| {
            let better = state.value < best;
            best = best.min(state.value);
            better
        });
        fronts.push(states);
    }
    let last = fronts.last().map_or(&[][..], Vec::as_slice);
    // Values fall along a front: the last that keeps the limit is the best.
    let mut place = last.iter().rposition(|state| state.cost <= most).unwrap_or(0);
    let mut chosen = vec![0; items.len()];
    for at in (0..items.len()).rev() {
        let Some(state) = fronts[at + 1].get(place) else { continue };
        chosen[at] = state.index;
        place = state.parent;
    }
    chosen
}

/// What is known of the items that are still to come.
struct Bounds {
    /// The least cost of items k and later.
    rest_cost: Vec<f64>,
    /// min Σ value + λ cost of items k and later.
    rest_mixed: Vec<f64>,
    lambda: f64,
    /// The value of a solution.
    known: f64,
}

impl Bounds {
    fn new(items: &[Vec<Way>], most: f64) -> Self {
        let (lambda, known) = greedy(items, most);
        let suffix = |of: &dyn Fn(&Way) -> f64| {
            let mut sums = vec![0.0; items.len() + 1];
            for (at, options) in items.iter().enumerate().rev() {
                sums[at] = sums[at + 1] + options.iter().map(of).fold(f64::INFINITY, f64::min);
            }
            sums
        };
        let rest_mixed = suffix(&|o| o.value + lambda * o.cost);
        Self { rest_cost: suffix(&|o| o.cost), rest_mixed, lambda, known }
    }

    /// False where no solution that goes on from here keeps the limit and beats the known one.
    fn allow(&self, next: usize, cost: f64, value: f64, most: f64) -> bool {
        let within = cost + self.rest_cost[next] <= most + SLACK * most.abs();
        let bound = value + self.rest_mixed[next] - self.lambda * (most - cost);
        // The terms of the bound may be far larger than the bound.
        let doubt = SLACK * (self.known.abs() + self.lambda * most.abs());
        within && bound <= self.known + doubt
    }
}

/// A good solution: from the cheapest along the convex hulls, steepest step first, as long as the limit allows. Returns the
/// slope of the first step that did not fit (0 where all did) and the solution's value.
fn greedy(items: &[Vec<Way>], most: f64) -> (f64, f64) {
    let mut steps: Vec<(f64, usize, Way)> = Vec::new();
    let (mut cost, mut value) = (0.0, 0.0);
    for (item, options) in items.iter().enumerate() {
        let hull = hull(options);
        if let Some(first) = hull.first() {
            cost += first.cost;
            value += first.value;
        }
        for pair in hull.windows(2) {
            let (dc, dv) = (pair[1].cost - pair[0].cost, pair[0].value - pair[1].value);
            steps.push((dv / dc, item, Way { cost: dc, value: dv, index: 0 }));
        }
    }
    // Slopes fall along a hull, so the steps of one item stay in their order.
    steps.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let (mut lambda, mut closed) = (0.0, vec![false; items.len()]);
    for (slope, item, step) in steps {
        if closed[item] {
            continue;
        }
        // Strictly inside, by the rounding of this sum: what is called known must keep the limit.
        if cost + step.cost <= most - SLACK * most.abs() {
            cost += step.cost;
            value -= step.value;
        } else {
            closed[item] = true;
            lambda = f64::max(lambda, slope);
        }
    }
    (lambda, value)
}

/// The options on the lower convex hull of a front.
fn hull(front: &[Way]) -> Vec<Way> {
    let mut hull: Vec<Way> = Vec::new();
    for &option in front {
        while let [.., a, b] = hull[..] {
            // b lies on or above the line from a to the new one.
            let above =
                (b.value - a.value) * (option.cost - a.cost) >= (option.value - a.value) * (b.cost - a.cost);
            if !above {
                break;
            }
            hull.pop();
        }
        hull.push(option);
    }
    hull
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn choice((bytes, damage): (u64, u32)) -> Choice {
        Choice { bytes, damage: f64::from(damage) / 7.0 }
    }

    /// Every combination, sums in the order of items.
    fn brute(items: &[Vec<Choice>]) -> Vec<(u64, f64)> {
        let mut sums = vec![(0, 0.0)];
        for choices in items {
            sums = sums
                .iter()
                .flat_map(|(bytes, damage)| choices.iter().map(move |c| (bytes + c.bytes, damage + c.damage)))
                .collect();
        }
        sums
    }

    fn sums(items: &[Vec<Choice>], chosen: &[usize]) -> (u64, f64) {
        items.iter().zip(chosen).fold((0, 0.0), |(bytes, damage), (choices, &i)| {
            (bytes + choices[i].bytes, damage + choices[i].damage)
        })
    }

    proptest! {
        #[test]
        fn no_combination_is_better(
            items in prop::collection::vec(prop::collection::vec((0u64..40, 0u32..40), 1..5), 0..7),
            share in 0f64..1.2,
        ) {
            let items: Vec<Vec<Choice>> = items.into_iter().map(|c| c.into_iter().map(choice).collect()).collect();
            let all = brute(&items);
            let least = all.iter().map(|s| s.0).min().unwrap_or(0);
            let most = all.iter().map(|s| s.0).max().unwrap_or(0);
            let limit = (share * most as f64) as u64;
            match solve(&items, Limit::Bytes(limit)) {
                Ok(chosen) => {
                    let (bytes, damage) = sums(&items, &chosen);
                    let best = all.iter().filter(|s| s.0 <= limit).map(|s| s.1).fold(f64::INFINITY, f64::min);
                    prop_assert!(bytes <= limit);
                    prop_assert_eq!(damage, best);
                }
                Err(error) => {
                    prop_assert!(least > limit);
                    prop_assert_eq!(error, Infeasible { limit: limit as f64, least: least as f64 });
                }
            }
        }

        #[test]
        fn no_combination_of_so_little_damage_is_smaller(
            items in prop::collection::vec(prop::collection::vec((0u64..40, 0u32..40), 1..5), 0..7),
            share in 0f64..1.2,
        ) {
            let items: Vec<Vec<Choice>> = items.into_iter().map(|c| c.into_iter().map(choice).collect()).collect();
            let all = brute(&items);
            let limit = share * all.iter().map(|s| s.1).fold(0.0, f64::max);
            match solve(&items, Limit::Damage(limit)) {
                Ok(chosen) => {
                    let (bytes, damage) = sums(&items, &chosen);
                    prop_assert!(damage <= limit);
                    prop_assert_eq!(Some(bytes), all.iter().filter(|s| s.1 <= limit).map(|s| s.0).min());
                }
                Err(_) => prop_assert!(all.iter().all(|s| s.1 > limit)),
            }
        }
    }

    #[test]
    fn a_hundred_layers_of_eight_formats_are_solved_within_the_bound_of_the_relaxation() {
        let sizes = [2.25, 3.125, 4.125, 4.5, 5.125, 6.125, 7.125, 8.0];
        let items: Vec<Vec<Choice>> = (0..100u64)
            .map(|layer| {
                let elements = [65_536, 180_224, 1_048_576][layer as usize % 3];
                let weight = 1.0 + (layer * 7919 % 101) as f64;
                let choices = sizes.iter().map(|bits: &f64| Choice {
                    bytes: (elements as f64 * bits / 8.0) as u64,
                    damage: weight * 4f64.powf(-bits),
                });
                choices.collect()
            })
            .collect();
        let limit = items.iter().map(|c| c[1].bytes).sum::<u64>() + 1_000_000;
        let chosen = solve(&items, Limit::Bytes(limit)).unwrap();
        let (bytes, damage) = sums(&items, &chosen);
        assert!(bytes <= limit);
        // The Lagrangian dual, by its own bisection, is a lower bound that the optimum comes close to.
        let dual = |lambda: f64| -> f64 {
            let rest = items
                .iter()
                .map(|c| c.iter().map(|c| c.damage + lambda * c.bytes as f64).fold(f64::INFINITY, f64::min));
            rest.sum::<f64>() - lambda * limit as f64
        };
        let bound =
            (-400..0).map(|e| dual(10f64.powf(f64::from(e) / 20.0))).fold(f64::NEG_INFINITY, f64::max);
        assert!(damage >= bound && damage < 1.01 * bound.abs() + 1e-9, "{damage} {bound}");
    }

    #[test]
    fn infeasible_limits_say_the_least() {
        let items = vec![vec![choice((10, 3)), choice((20, 1))], vec![choice((5, 0))]];
        assert_eq!(solve(&items, Limit::Bytes(14)), Err(Infeasible { limit: 14.0, least: 15.0 }));
        assert_eq!(solve(&items, Limit::Bytes(15)), Ok(vec![0, 0]));
        assert_eq!(solve(&items, Limit::Damage(0.2)), Ok(vec![1, 0]));
        assert_eq!(solve(&[], Limit::Bytes(0)), Ok(Vec::new()));
    }
}
