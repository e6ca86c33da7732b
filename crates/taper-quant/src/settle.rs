//! Rounding with feedback: each column of a weight takes up the errors of those before it (GPTQ, Frantar et al., 2022).
//!
//! With H = L D Lᵀ of the inputs (columns in reverse order of settling, see `taper_core::linalg::ldl`) and E = W − Ŵ:
//!
//! ```text
//! t_k = W_k + Σ_{j settled before k} E_j L_jk      Ŵ_k = the nearest code of t_k      ‖E X‖² / n = Σ_k D_k (t_k − Ŵ_k)²
//! ```
//!
//! This is GPTQ to the letter (theorem 1 of QuIP, Chee et al., 2023) without an inverse and without updating the rest of W:
//! what all columns before a group contribute to it is one product, and W is read once. Within a group it is a product for
//! every strip of columns, and column by column within a strip only.
//!
//! A group's grid is found when its turn comes, on the targets t with the importances D: precisely the error that will be
//! left. Groups are settled whole, so codes stay in natural order and no index of groups is stored.
//!
//! Rows are independent. They are settled in pieces of fixed size: the same bits for any number of threads.
//!
//! Neighbours: [`crate::code::nearest`] says what a code is, [`crate::pass::gptq`] is the pass.

use rayon::prelude::*;
use std::ops::Range;
use taper_core::linalg::{Ldl, View, product};

use crate::{code::nearest::NearestCode, fit::Sample};

/// In which order columns are settled. The later a column, the fewer are left to take up its error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// As they are.
    Natural,
    /// Groups by their loudest input, columns by loudness within their group (group-aware order, Gafni et al., 2025).
    #[default]
    Groups,
    /// All columns by loudness, with grids fitted beforehand to the weights as they were (static activation order).
    Columns,
}

/// Which columns are settled together and in which order.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The columns in the order in which they are settled.
    pub order: Vec<usize>,
    /// Consecutive parts of `order`.
    blocks: Vec<Range<usize>>,
    /// Columns per group.
    span: usize,
    /// Whether a block is a group whose grid is found when its turn comes.
    adaptive: bool,
}

/// Columns per block where blocks are no groups, and the widest group that is settled as one block.
const BLOCK: usize = 128;
const WIDEST: usize = 512;

impl Plan {
    /// A plan for columns of these loudnesses (mean squares) in groups of `span`.
    #[must_use]
    pub fn new(loudness: &[f32], span: usize, order: Order) -> Self {
        let d = loudness.len();
        let louder = |&a: &usize, &b: &usize| loudness[b].total_cmp(&loudness[a]);
        let natural: Vec<usize> = (0..d).collect();
        let adaptive = order != Order::Columns && span <= WIDEST && span < d.max(2);
        if !adaptive {
            let mut sorted = natural;
            if order != Order::Natural {
                sorted.sort_by(louder);
            }
            let blocks = (0..d).step_by(BLOCK).map(|from| from..(from + BLOCK).min(d)).collect();
            return Self { order: sorted, blocks, span, adaptive };
        }
        let mut groups: Vec<Vec<usize>> = natural.chunks(span).map(<[usize]>::to_vec).collect();
        if order == Order::Groups {
            groups.iter_mut().for_each(|group| group.sort_by(louder));
            // Each group begins with its loudest column now.
            groups.sort_by(|a, b| louder(&a[0], &b[0]));
        }
        let (mut order, mut blocks) = (Vec::with_capacity(d), Vec::with_capacity(groups.len()));
        for group in groups {
            blocks.push(order.len()..order.len() + group.len());
            order.extend(group);
        }
        Self { order, blocks, span, adaptive }
    }

    /// Whether each group's grid is found when its turn comes; otherwise all are fitted beforehand.
    #[must_use]
    pub fn is_adaptive(&self) -> bool {
        self.adaptive
    }
}

/// What settling a weight needs besides its values.
#[derive(Debug)]
pub struct Settling<'a, C: NearestCode> {
    /// The format.
    pub codes: &'a C,
    /// Order and groups.
    pub plan: &'a Plan,
    /// H = L D Lᵀ in the reverse order of the plan.
    pub factor: &'a Ldl<f32>,
    /// Grids of all groups, `[rows, groups]`, fitted beforehand; `None` where each is found in its turn.
    pub fixed: Option<&'a [C::Grid]>,
    /// Columns whose input was always 0: their errors cost nothing.
    pub dead: &'a [bool],
}

/// A settled weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Settled<G> {
    /// One code per byte, row-major.
    pub codes: Vec<u8>,
    /// `[rows, groups]`.
    pub grids: Vec<G>,
    /// Σ D (t − ŵ)²: what calibration says the output's squared error is, per token, after shrinkage.
    pub loss: f64,
}

/// Rows per task: a product wants many, the cache and short weights few. Whole tiles of it, and whole lanes.
fn rows_per_task(rows: usize) -> usize {
    (rows / 8).next_multiple_of(48).clamp(48, 288)
}

/// Rows settled side by side.
const LANES: usize = 16;

/// Columns of a block that are settled one by one; what the strips before contribute to them is a product.
const STRIP: usize = 32;

/// Some rows, while they are settled.
struct Rows<'a, G> {
    /// Their values, `[rows, d]`.
    w: &'a [f32],
    /// Their codes, `[rows, d]`.
    codes: &'a mut [u8],
    /// Their grids, `[rows, groups]`.
    grids: &'a mut [G],
    /// E, column by column in the order of the factor: `[d, rows]`.
    errors: Vec<f32>,
    /// How many.
    count: usize,
}

impl<C: NearestCode> Settling<'_, C> {
    /// Settles a weight, `[rows, d]` row-major.
    ///
    /// # Errors
    /// The row and scale of the first grid that cannot be stored.
    pub fn run(&self, values: &[f32]) -> Result<Settled<C::Grid>, (usize, f32)> {
        let d = self.plan.order.len();
        let rows = values.len() / d.max(1);
        let groups = d.div_ceil(self.plan.span);
        let mut codes = vec![0u8; values.len()];
        let mut grids = match self.fixed {
            Some(fixed) => fixed.to_vec(),
            None => vec![C::Grid::default(); rows * groups],
        };
        let piece = rows_per_task(rows);
        let parts: Vec<Result<f64, (usize, f32)>> = codes
            .par_chunks_mut(piece * d)
            .zip(grids.par_chunks_mut(piece * groups))
            .zip(values.par_chunks(piece * d))
            .enumerate()
            .map(|(i, ((codes, grids), values))| {
                let count = values.len() / d;
                let errors = vec![0f32; values.len()];
                let done = self.rows(&mut Rows { w: values, codes, grids, errors, count });
                done.map_err(|(row, scale)| (i * piece + row, scale))
            })
            .collect();
        let loss = parts.into_iter().sum::<Result<f64, _>>()?;
        Ok(Settled { codes, grids, loss })
    }

    fn rows(&self, rows: &mut Rows<'_, C::Grid>) -> Result<f64, (usize, f32)> {
        let d = self.plan.order.len();
        let mut targets = Vec::new();
        let mut loss = 0.0;
        for block in &self.plan.blocks {
            // The first settled is the last in the factor.
            let (from, to, width) = (d - block.end, d - block.start, block.len());
            let columns: Vec<usize> = self.plan.order[block.clone()].iter().rev().copied().collect();
            targets.clear();
            for row in rows.w.chunks_exact(d) {
                targets.extend(columns.iter().map(|&c| row[c]));
            }
            self.feed(&mut targets, width, width, (from, to..d), rows);
            if self.plan.adaptive && self.fixed.is_none() {
                self.fit(&targets, &columns, from, rows.grids)?;
            }
            for start in (0..width).step_by(STRIP).collect::<Vec<_>>().into_iter().rev() {
                let end = (start + STRIP).min(width);
                self.feed(&mut targets[start..], width, end - start, (from + start, from + end..to), rows);
                loss += self.strip(&targets[start..], width, &columns[start..end], from + start, rows);
            }
        }
        Ok(loss)
    }

    /// Adds to the targets of some columns, `[rows, width]` with rows `stride` apart, what the settled ones contribute; `first`
    /// is the place of the first column in the factor.
    fn feed(
        &self,
        targets: &mut [f32],
        stride: usize,
        width: usize,
        (first, settled): (usize, Range<usize>),
        rows: &Rows<'_, C::Grid>,
    ) {
        if settled.is_empty() {
            return;
        }
        let d = self.plan.order.len();
        let left = View::columns(&rows.errors[settled.start * rows.count..], rows.count);
        let right = View::rows(&self.factor.lower()[settled.start * d + first..], d);
        product(targets, stride, (rows.count, width, settled.len()), (1.0, 1.0), left, right);
    }

    /// The grids of one group of some rows, on their targets.
    fn fit(
        &self,
        targets: &[f32],
        columns: &[usize],
        from: usize,
        grids: &mut [C::Grid],
    ) -> Result<(), (usize, f32)> {
        let (width, groups) = (columns.len(), self.plan.order.len().div_ceil(self.plan.span));
        let group = columns[0] / self.plan.span;
        // In natural order, as every other fit sees them.
        let mut natural: Vec<usize> = (0..width).collect();
        natural.sort_by_key(|&i| columns[i]);
        let pivots = &self.factor.pivots()[from..from + width];
        let importance = importance(natural.iter().map(|&i| (pivots[i], self.dead[columns[i]])));
        let mut samples = Vec::with_capacity(targets.len());
        for targets in targets.chunks_exact(width) {
            samples.extend(natural.iter().map(|&i| targets[i]));
        }
        let mut found = vec![C::Grid::default(); targets.len() / width];
        self.codes.grids(&samples, width, importance.as_deref(), &mut found)?;
        for (row, grid) in grids.chunks_exact_mut(groups).zip(found) {
            row[group] = grid;
        }
        Ok(())
    }

    /// Settles a strip of columns of some rows and returns what it costs. Targets are `[rows, columns]`, rows `stride` apart.
    fn strip(
        &self,
        targets: &[f32],
        stride: usize,
        columns: &[usize],
        from: usize,
        rows: &mut Rows<'_, C::Grid>,
    ) -> f64 {
        let (d, width, count) = (self.plan.order.len(), columns.len(), rows.count);
        let groups = d.div_ceil(self.plan.span);
        let (lower, pivots) = (self.factor.lower(), self.factor.pivots());
        let mut tile = [[0f32; LANES]; STRIP];
        let mut loss = 0.0;
        for first in (0..count).step_by(LANES) {
            let lanes = LANES.min(count - first);
            for (lane, row) in targets[first * stride..].chunks(stride).take(lanes).enumerate() {
                tile.iter_mut().zip(&row[..width]).for_each(|(column, &t)| column[lane] = t);
            }
            for i in (0..width).rev() {
                let (column, at) = (columns[i], from + i);
                let mut error = [0f32; LANES];
                let mut lost = 0f64;
                for lane in 0..lanes {
                    let row = first + lane;
                    let t = tile[i][lane];
                    let grid = rows.grids[row * groups + column / self.plan.span];
                    let (code, value) = self.codes.nearest(grid, t);
                    rows.codes[row * d + column] = code;
                    error[lane] = rows.w[row * d + column] - value;
                    lost += f64::from(t - value) * f64::from(t - value);
                }
                rows.errors[at * count + first..][..lanes].copy_from_slice(&error[..lanes]);
                if !self.dead[column] {
                    loss += pivots[at] * lost;
                }
                let factors = &lower[at * d + from..at * d + at];
                for (targets, &l) in tile.iter_mut().zip(factors) {
                    for (t, e) in targets.iter_mut().zip(&error) {
                        *t += e * l;
                    }
                }
            }
        }
        loss
    }

    /// Grids for all groups, fitted to the values as they are with the importances D; `[rows, groups]`.
    ///
    /// With `whole` the weight has one grid, which all groups share.
    ///
    /// # Errors
    /// The row and scale of the first grid that cannot be stored.
    pub fn fit_beforehand(&self, values: &[f32], whole: bool) -> Result<Vec<C::Grid>, (usize, f32)> {
        let d = self.plan.order.len();
        let mut by_column = vec![(0.0, false); d];
        for (i, &column) in self.plan.order.iter().enumerate() {
            by_column[column] = (self.factor.pivots()[d - 1 - i], self.dead[column]);
        }
        if whole {
            let importance = importance(by_column.iter().copied());
            let grid = self.codes.grid(Sample::weighted(values, importance.as_deref()));
            return Ok(vec![grid.map_err(|scale| (0, scale))?; values.len() / d.max(1)]);
        }
        let importances: Vec<Option<Vec<f32>>> =
            by_column.chunks(self.plan.span).map(|group| importance(group.iter().copied())).collect();
        let groups = importances.len();
        let mut grids = vec![C::Grid::default(); values.len() / d.max(1) * groups];
        let piece = rows_per_task(values.len() / d.max(1));
        let tasks = values.par_chunks((piece * d).max(1)).zip(grids.par_chunks_mut((piece * groups).max(1)));
        let failed = tasks.enumerate().find_map_first(|(task, (values, grids))| {
            let failed = self.fit_rows(values, &importances, grids).err();
            failed.map(|(row, scale)| (task * piece + row, scale))
        });
        failed.map_or(Ok(grids), Err)
    }

    /// Grids for all groups of some rows.
    fn fit_rows(
        &self,
        values: &[f32],
        importances: &[Option<Vec<f32>>],
        grids: &mut [C::Grid],
    ) -> Result<(), (usize, f32)> {
        let (d, span, groups) = (self.plan.order.len(), self.plan.span, importances.len());
        for (group, importance) in importances.iter().enumerate() {
            let columns = group * span..((group + 1) * span).min(d);
            let samples: Vec<f32> =
                values.chunks_exact(d).flat_map(|row| &row[columns.clone()]).copied().collect();
            let mut found = vec![C::Grid::default(); values.len() / d];
            self.codes.grids(&samples, columns.len(), importance.as_deref(), &mut found)?;
            for (row, grid) in grids.chunks_exact_mut(groups).zip(found) {
                row[group] = grid;
            }
        }
        Ok(())
    }
}

/// Importances with a mean of 1 from pivots; dead columns have none. `None` where all are dead.
fn importance(pivots: impl Iterator<Item = (f64, bool)>) -> Option<Vec<f32>> {
    let alive: Vec<f64> = pivots.map(|(pivot, dead)| if dead { 0.0 } else { pivot }).collect();
    let mean = alive.iter().sum::<f64>() / alive.len().max(1) as f64;
    (mean > 0.0).then(|| alive.iter().map(|pivot| (pivot / mean) as f32).collect())
}
