//! How scales are found: a choice of its own, apart from how codes are stored.
//!
//! A fit looks at the values that share a scale (a [`Sample`]) and returns their [`Grid`]. Whatever it returns is already
//! rounded to the type in which the scale will be stored, so that an error measured here is the error of the file.
//!
//! Neighbours: [`absmax`], [`minmax`], [`search`] and [`hqq`] hold one way each; [`crate::code`] turns a grid into codes.

pub mod absmax;
pub mod hqq;
pub mod minmax;
pub mod search;

mod sums;
mod tiles;

pub(crate) use sums::{Levels, ROUND};
pub(crate) use tiles::{Found, Tiles};

pub use hqq::Hqq;
pub use search::{ScaleSign, Search};

use std::borrow::Cow;

use crate::{
    Error, Result,
    kernel::encode::{Encoders, Method, Number, Spread, Spreading},
    scheme::{Bits, ScaleType, Scheme, Symmetry},
};

/// The values that share a scale, and how much each matters.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    values: &'a [f32],
    importance: Option<&'a [f32]>,
}

impl<'a> Sample<'a> {
    /// Values that matter equally.
    #[must_use]
    pub fn new(values: &'a [f32]) -> Self {
        Self { values, importance: None }
    }

    /// Values whose squared errors are weighted; the weights repeat every `importance.len()` values (the columns of a
    /// matrix, say). No weights at all are equal weights.
    #[must_use]
    pub fn weighted(values: &'a [f32], importance: Option<&'a [f32]>) -> Self {
        Self { values, importance: importance.filter(|w| !w.is_empty()) }
    }

    /// The values.
    #[must_use]
    pub fn values(&self) -> &'a [f32] {
        self.values
    }

    /// The weight of each value.
    fn repeated(&self) -> Option<Cow<'a, [f32]>> {
        let (weights, count) = (self.importance?, self.values.len());
        Some(match weights.get(..count) {
            Some(weights) => Cow::Borrowed(weights),
            None => weights.iter().copied().cycle().take(count).collect(),
        })
    }

    /// The smallest and largest value, both widened to contain 0.
    #[must_use]
    pub fn extremes(&self) -> (f32, f32) {
        let (mut low, mut high) = ([0f32; 8], [0f32; 8]);
        let (runs, rest) = self.values.as_chunks::<8>();
        let mut see = |run: &[f32]| {
            for ((low, high), &x) in low.iter_mut().zip(&mut high).zip(run) {
                *low = if x < *low { x } else { *low };
                *high = if x > *high { x } else { *high };
            }
        };
        runs.iter().for_each(|run| see(run));
        see(rest);
        (low.iter().copied().fold(0.0, f32::min), high.iter().copied().fold(0.0, f32::max))
    }
}

/// Where the codes of one group lie: x̂ = scale · (q − zero).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    /// The scale as stored; never 0, not NaN, finite. Negative only where a signed [`Search`] chose so.
    pub scale: f32,
    /// The code of zero.
    pub zero: i32,
}

impl Grid {
    /// The grid of a group without a nonzero value: any scale serves.
    pub const OF_ZEROS: Self = Self { scale: 1.0, zero: 0 };
}

/// How scales are found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fit {
    /// Symmetric, ±(2^(b−1) − 1) spans ±max |x|; the classic, and exact for bitsandbytes.
    AbsMax,
    /// The whole range of codes spans the whole range of values, by the rules of compressed-tensors.
    MinMax,
    /// The least weighted squared error over a grid of scales, each refitted by least squares.
    Search(Search),
    /// The least sum of powers below 1 of errors, by half-quadratic splitting.
    Hqq(Hqq),
}

impl Default for Fit {
    /// [`Search`]: at 4 bits worth about a quarter of the squared error, at the same size.
    fn default() -> Self {
        Self::Search(Search::default())
    }
}

impl Fit {
    /// The codes that this fit uses.
    #[must_use]
    pub fn codes(&self, bits: Bits) -> (i32, i32) {
        match self {
            Self::AbsMax => (-bits.highest(), bits.highest()),
            Self::MinMax | Self::Search(_) | Self::Hqq(_) => (bits.lowest(), bits.highest()),
        }
    }

    /// Checks that the fit can serve this symmetry.
    ///
    /// # Errors
    /// [`Error::Conflict`] for `AbsMax` with zero points: it spans ±max |x|, where a zero point could only be 0; for a norm
    /// of `Hqq` outside its range.
    pub fn check(&self, symmetry: Symmetry) -> Result<()> {
        match (self, symmetry) {
            (Self::AbsMax, Symmetry::Asymmetric) => Err(Error::Conflict {
                option: "fit",
                conflict: "absmax is symmetric by definition and cannot use zero points".into(),
                expected: "choose minmax or search, or symmetric codes".into(),
            }),
            (Self::Hqq(hqq), _) => hqq.check(),
            _ => Ok(()),
        }
    }

    /// The grid of one group.
    ///
    /// # Errors
    /// The scale that the values ask for, where the scheme's scale type cannot hold it or its codes leave f32.
    pub fn grid(&self, sample: Sample<'_>, scheme: &Scheme) -> std::result::Result<Grid, f32> {
        let (low, high) = sample.extremes();
        self.grid_within(sample, low, high, scheme)
    }

    /// The grids of groups of `span` values each, with weights that they share: each as [`Fit::grid`] gives it, but searched side
    /// by side.
    ///
    /// # Errors
    /// The number of the first group whose scale cannot be stored, and that scale.
    pub(crate) fn grids(
        &self,
        values: &[f32],
        span: usize,
        importance: Option<&[f32]>,
        scheme: &Scheme,
        out: &mut [Grid],
    ) -> std::result::Result<(), (usize, f32)> {
        let one = |group| Sample::weighted(group, importance);
        let groups = || values.chunks(span.max(1));
        let hunt = self.hunt(scheme).filter(|_| span <= search::LONGEST);
        let Some((number, method)) = hunt else {
            for (at, (group, out)) in groups().zip(out).enumerate() {
                *out = self.grid(one(group), scheme).map_err(|scale| (at, scale))?;
            }
            return Ok(());
        };
        let weights = one(&values[..span.min(values.len())]).repeated();
        let mut tiles = Tiles::new(Encoders::active(), number, method, span, weights.is_some());
        let spread = self.spread(scheme);
        let keep = |out: &mut [Grid], found: Found| {
            out[found.place] = Grid { scale: found.scale, zero: found.zero as i32 };
        };
        for (at, group) in groups().enumerate() {
            let (low, high) = one(group).extremes();
            out[at] = Grid::OF_ZEROS;
            if low != 0.0 || high != 0.0 {
                out[at] = minmax::grid(low, high, scheme).map_err(|scale| (at, scale))?;
                if search::searchable(low, high) {
                    tiles.put(at, group, weights.as_deref(), low, high);
                }
            }
            if tiles.full() {
                tiles.run().for_each(|found| keep(out, found));
            }
        }
        tiles.finish().for_each(|found| keep(out, found));
        let unheld = out.iter().position(|grid| !spread.holds(grid.scale, grid.zero as f32));
        unheld.map_or(Ok(()), |at| Err((at, out[at].scale)))
    }

    /// As [`Fit::grid`], for a sample whose extremes are known; only some fits look at its values.
    pub(crate) fn grid_within(
        &self,
        sample: Sample<'_>,
        low: f32,
        high: f32,
        scheme: &Scheme,
    ) -> std::result::Result<Grid, f32> {
        if low == 0.0 && high == 0.0 {
            return Ok(Grid::OF_ZEROS);
        }
        let grid = match self {
            Self::AbsMax => absmax::grid(low, high, scheme.bits, scheme.scales),
            Self::MinMax => minmax::grid(low, high, scheme),
            Self::Search(search) => search.grid(sample, low, high, scheme),
            Self::Hqq(hqq) => hqq.grid(sample, low, high, scheme),
        }?;
        if self.spread(scheme).holds(grid.scale, grid.zero as f32) { Ok(grid) } else { Err(grid.scale) }
    }

    /// How fits that look at all values look for the grids of a scheme; `None` for those that extremes suffice.
    pub(crate) fn hunt(&self, scheme: &Scheme) -> Option<(Number, Method)> {
        match self {
            Self::AbsMax | Self::MinMax => None,
            Self::Search(search) => Some((search.number(scheme), Method::Search { steps: search.steps })),
            Self::Hqq(hqq) => Some((Hqq::number(scheme), Method::HalfQuadratic(*hqq))),
        }
    }

    /// The grids that span all values: those of the fit itself, or what a search begins with.
    pub(crate) fn spread(&self, scheme: &Scheme) -> Spread {
        let (lowest, highest) = self.codes(scheme.bits);
        let steps = scheme.bits.steps() as f32;
        let how = match self {
            Self::AbsMax => Spreading::Peak(highest as f32),
            _ if scheme.is_symmetric() => Spreading::Peak(steps / 2.0),
            Self::MinMax | Self::Search(_) | Self::Hqq(_) => Spreading::Range(steps),
        };
        Spread { how, scales: scheme.scales, lowest: lowest as f32, highest: highest as f32 }
    }
}

/// A scale as its type stores it.
///
/// A nonzero scale never becomes 0: below the type's smallest value it is that value.
///
/// # Errors
/// The scale itself, where the type cannot hold it.
pub fn stored(scale: f32, scales: ScaleType) -> std::result::Result<f32, f32> {
    let rounded = scales.round(scale);
    if !rounded.is_finite() {
        Err(scale)
    } else if rounded == 0.0 {
        Ok(scales.smallest().copysign(scale))
    } else {
        Ok(rounded)
    }
}
