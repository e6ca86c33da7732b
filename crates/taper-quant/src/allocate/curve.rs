//! A rising curve through measured points, straight on logarithmic axes, and proportional beyond them.
//!
//! ```text
//! between points    log y linear in log x
//! below, above      y = y₀ x / x₀    and    y = yₙ x / xₙ
//! ```
//!
//! Divergences are nearly proportional to errors and span decades: straight lines on logarithmic axes are exact for any
//! power law, and one point is a proportion.

/// A curve that rises with x, through at least one point.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve(Vec<(f64, f64)>);

impl Curve {
    /// The curve through these points; `None` where none has both numbers positive and finite.
    ///
    /// A point that lies below one to its left is noise, and raised to it.
    #[must_use]
    pub fn through(mut points: Vec<(f64, f64)>) -> Option<Self> {
        points.retain(|(x, y)| *x > 0.0 && *y > 0.0 && x.is_finite() && y.is_finite());
        points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let mut highest = 0.0;
        for (_, y) in &mut points {
            highest = f64::max(highest, *y);
            *y = highest;
        }
        points.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            if same {
                kept.1 = later.1;
            }
            same
        });
        (!points.is_empty()).then_some(Self(points))
    }

    /// The height at `x`; 0 at 0.
    #[must_use]
    pub fn at(&self, x: f64) -> f64 {
        between(&self.0, x)
    }

    /// The place whose height is `y`: where the curve is flat, some place of that height.
    #[must_use]
    pub fn place_of(&self, y: f64) -> f64 {
        let turned: Vec<(f64, f64)> = self.0.iter().map(|&(x, y)| (y, x)).collect();
        between(&turned, y)
    }
}

/// Interpolation over points by rising first number.
fn between(points: &[(f64, f64)], x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    let next = points.partition_point(|p| p.0 < x);
    let proportional = |(x0, y0): (f64, f64)| y0 * x / x0;
    match (next.checked_sub(1).and_then(|before| points.get(before)), points.get(next)) {
        (Some(&(x0, y0)), Some(&(x1, y1))) => {
            let share = (x / x0).ln() / (x1 / x0).ln();
            y0 * (y1 / y0).powf(share)
        }
        (None, Some(&point)) | (Some(&point), None) => proportional(point),
        (None, None) => x,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_laws_are_met_everywhere_between_their_points() {
        let law = |x: f64| 3.0 * x.powf(1.2);
        let curve = Curve::through([1.0, 10.0, 0.1].map(|x| (x, law(x))).to_vec()).unwrap();
        for x in [0.1, 0.2, 0.9, 1.0, 7.0, 10.0] {
            assert!((curve.at(x) / law(x) - 1.0).abs() < 1e-12);
            assert!((curve.place_of(law(x)) / x - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn outside_its_points_a_curve_is_a_proportion() {
        let curve = Curve::through(vec![(2.0, 1.0), (4.0, 8.0)]).unwrap();
        assert_eq!((curve.at(1.0), curve.at(8.0), curve.at(0.0)), (0.5, 16.0, 0.0));
        assert_eq!((curve.place_of(0.5), curve.place_of(16.0)), (1.0, 8.0));
    }

    #[test]
    fn curves_never_fall_and_need_a_point() {
        let curve = Curve::through(vec![(1.0, 2.0), (2.0, 1.0), (0.0, 5.0), (3.0, f64::NAN)]).unwrap();
        assert_eq!(curve.at(2.0), 2.0);
        assert_eq!(Curve::through(vec![(0.0, 1.0), (1.0, 0.0)]), None);
    }
}
