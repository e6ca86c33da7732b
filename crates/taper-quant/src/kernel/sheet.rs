//! A result that several threads fill at once, each its own columns.
//!
//! Neighbours: [`super::exact`] and [`super::int8`] split products by the rows of the weight, which are columns here.

use rayon::prelude::*;
use std::marker::PhantomData;

/// Multiplications below which a second thread costs more than it brings.
const ALONE: usize = 1 << 18;

/// A `[tokens, rows]` result, written in stretches of rows.
pub(crate) struct Sheet<'a> {
    values: *mut f32,
    tokens: usize,
    rows: usize,
    of: PhantomData<&'a mut [f32]>,
}

// SAFETY: a `Sheet` is only used through `Stretch`, and stretches of different tasks do not overlap (see `fill`).
unsafe impl Sync for Sheet<'_> {}

/// What one task writes: rows `first .. first + len` of every token.
pub(crate) struct Stretch<'a> {
    sheet: &'a Sheet<'a>,
    pub(crate) first: usize,
    pub(crate) len: usize,
}

impl Stretch<'_> {
    /// The part of one token.
    pub(crate) fn of(&mut self, token: usize) -> &mut [f32] {
        assert!(token < self.sheet.tokens, "token out of range");
        // SAFETY: `fill` made sure that first + len ≤ rows, so this lies within the values that the sheet borrows
        // mutably; no other stretch covers these rows, and `&mut self` keeps this one from being used twice.
        unsafe {
            let start = self.sheet.values.add(token * self.sheet.rows + self.first);
            std::slice::from_raw_parts_mut(start, self.len)
        }
    }
}

/// Computes a `[tokens, rows]` result in stretches of a multiple of `unit` rows; a row costs `cost` multiplications.
///
/// Small results stay on this thread. `work` must not depend on how rows are cut into stretches.
pub(crate) fn fill(
    tokens: usize,
    rows: usize,
    unit: usize,
    cost: usize,
    work: impl Fn(&mut Stretch<'_>) + Sync,
) -> Vec<f32> {
    let mut values = vec![0f32; tokens * rows];
    let sheet = Sheet { values: values.as_mut_ptr(), tokens, rows, of: PhantomData };
    let threads = rayon::current_num_threads();
    if threads == 1 || rows.saturating_mul(cost) < ALONE {
        work(&mut Stretch { sheet: &sheet, first: 0, len: rows });
        return values;
    }
    // A few stretches per thread even out what else the machine does.
    let units = rows.div_ceil(unit);
    let each = units.div_ceil(threads * 8).max(1) * unit;
    (0..rows.div_ceil(each)).into_par_iter().for_each(|task| {
        let first = task * each;
        work(&mut Stretch { sheet: &sheet, first, len: each.min(rows - first) });
    });
    values
}
