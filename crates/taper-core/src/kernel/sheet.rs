//! A result that several threads fill at once, each its own columns.
//!
//! ```text
//!          rows ──▶  first          first + len
//! token 0  ··········┌──────────────┐··········
//! token 1  ··········│  a stretch   │··········      one task, one thread
//! token 2  ··········└──────────────┘··········
//! ```
//!
//! Neighbours: products split by the rows of the weight, which are columns here. Threads are those of rayon's current pool.

use rayon::prelude::*;
use std::{fmt, marker::PhantomData, ops::Deref};

use super::fresh::ask_for_large_pages;

/// Multiplications below which a second thread costs more than it brings.
const ALONE: usize = 1 << 18;

/// A `[tokens, rows]` result, written in stretches of rows.
struct Sheet<'a, T> {
    values: *mut T,
    tokens: usize,
    rows: usize,
    of: PhantomData<&'a mut [T]>,
}

// SAFETY: a `Sheet` is only used through `Stretch` and `put`, and what different tasks write does not overlap (see `deal`).
unsafe impl<T: Send> Sync for Sheet<'_, T> {}

/// Where a [`Stretch`] lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its first row.
    pub first: usize,
    /// How many rows it has.
    pub len: usize,
}

/// What one task writes: rows `first .. first + len` of every token. It reads as its [`Place`].
pub struct Stretch<'a, T = f32> {
    sheet: &'a Sheet<'a, T>,
    place: Place,
}

impl<T> Deref for Stretch<'_, T> {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl<T> fmt::Debug for Stretch<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stretch").field("tokens", &self.sheet.tokens).field("place", &self.place).finish()
    }
}

impl<T> Stretch<'_, T> {
    /// The part of one token, `len` values. Panics where there is no such token.
    pub fn of(&mut self, token: usize) -> &mut [T] {
        assert!(token < self.sheet.tokens, "token out of range");
        // SAFETY: `fill` made sure that first + len ≤ rows, so this lies within the values that the sheet borrows
        // mutably; no other stretch covers these rows, and `&mut self` keeps this one from being used twice.
        unsafe {
            let start = self.sheet.values.add(token * self.sheet.rows + self.place.first);
            std::slice::from_raw_parts_mut(start, self.place.len)
        }
    }
}

/// Computes a `[tokens, rows]` result in stretches of a multiple of `unit` rows; a row costs `cost` multiplications.
///
/// Small results stay on this thread, others are cut for the threads of rayon's current pool. `work` must not depend on
/// how rows are cut into stretches: then the result does not depend on the number of threads. `unit` is at least 1.
pub fn fill<T: Copy + Default + Send>(
    tokens: usize,
    rows: usize,
    unit: usize,
    cost: usize,
    work: impl Fn(&mut Stretch<'_, T>) + Sync,
) -> Vec<T> {
    let mut values = vec![T::default(); tokens * rows];
    let sheet = Sheet { values: values.as_mut_ptr(), tokens, rows, of: PhantomData };
    deal(rows, [unit, unit], cost, |place| work(&mut Stretch { sheet: &sheet, place }));
    values
}

/// Computes a `[tokens, rows]` result in blocks of up to `block` rows, a multiple of `unit`, which is a multiple of `lanes`.
///
/// `work` gives the values of a block, `[panels, tokens, lanes]`: panel `p` has its rows from `p · lanes` on, as far as there
/// are some. They are copied to memory that nobody has touched, token by token, because each token's rows lie in a page of
/// their own. Threads as for [`fill`]. Panics where a block has another number of values.
pub fn gather<T: Copy + Send, B: Deref<Target = [T]>>(
    tokens: usize,
    rows: usize,
    [block, unit, lanes]: [usize; 3],
    cost: usize,
    work: impl Fn(Place) -> B + Sync,
) -> Vec<T> {
    let mut values = Vec::with_capacity(tokens * rows);
    ask_for_large_pages(values.spare_capacity_mut());
    let sheet = Sheet { values: values.as_mut_ptr(), tokens, rows, of: PhantomData };
    deal(rows, [block, unit], cost, |stretch| {
        for start in (0..stretch.len).step_by(block) {
            let place = Place { first: stretch.first + start, len: block.min(stretch.len - start) };
            sheet.put(place, lanes, &work(place));
        }
    });
    // SAFETY: blocks cover all rows, and `put` wrote all tokens of each.
    unsafe { values.set_len(tokens * rows) };
    values
}

impl<T: Copy> Sheet<'_, T> {
    /// Writes a block, see [`gather`].
    fn put(&self, place: Place, lanes: usize, panels: &[T]) {
        let count = place.len.div_ceil(lanes);
        assert_eq!(panels.len(), count * self.tokens * lanes, "values of a block");
        assert!(place.first + place.len <= self.rows, "rows of a block");
        for token in 0..self.tokens {
            for p in 0..count {
                let row = p * lanes;
                let values = &panels[(p * self.tokens + token) * lanes..][..lanes.min(place.len - row)];
                // SAFETY: these rows lie within the memory of the sheet, and no other block has them.
                unsafe {
                    let out = self.values.add(token * self.rows + place.first + row);
                    out.copy_from_nonoverlapping(values.as_ptr(), values.len());
                }
            }
        }
    }
}

/// Cuts rows into stretches of whole `unit`s, and of at least a `block` where there are many, and deals them out.
///
/// Many stretches per thread, each to be taken alone, even out what else the machine does: a thread that the system halts holds
/// up one of them, not a share of all.
fn deal(rows: usize, [block, unit]: [usize; 2], cost: usize, work: impl Fn(Place) + Sync) {
    /// Multiplications that are enough for a stretch.
    const ENOUGH: usize = 1 << 24;
    /// Multiplications that a stretch has at least: handing one out costs as much as some ten thousand.
    const LEAST: usize = 1 << 16;
    let threads = rayon::current_num_threads();
    if threads == 1 || rows.saturating_mul(cost) < ALONE {
        return work(Place { first: 0, len: rows });
    }
    let of_unit = unit * cost.max(1);
    let enough = (ENOUGH / of_unit).max(block / unit);
    let each = rows.div_ceil(unit).div_ceil(threads * 16).min(enough).max(LEAST / of_unit).max(1) * unit;
    (0..rows.div_ceil(each)).into_par_iter().with_max_len(1).for_each(|task| {
        let first = task * each;
        work(Place { first, len: each.min(rows - first) });
    });
}

/// Computes `planes` results of `size` values, one after another in memory; each costs `cost` multiplications.
///
/// Threads as for [`fill`]: `work` is given the number of a plane and its values, zeros so far.
pub fn fill_planes(
    planes: usize,
    size: usize,
    cost: usize,
    work: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let mut values = vec![0f32; planes * size];
    let each = ALONE.div_ceil(cost.max(1));
    values
        .par_chunks_mut(size.max(1))
        .enumerate()
        .with_min_len(each)
        .for_each(|(plane, values)| work(plane, values));
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Threads;
    use std::{collections::BTreeSet, num::NonZero, sync::Mutex};

    /// Each value says where it lies.
    fn numbered(tokens: usize, rows: usize, unit: usize) -> Vec<f32> {
        fill(tokens, rows, unit, ALONE, |out| {
            assert!(out.first.is_multiple_of(unit));
            for token in 0..tokens {
                let first = out.first;
                for (i, value) in out.of(token).iter_mut().enumerate() {
                    *value += (token * rows + first + i) as f32;
                }
            }
        })
    }

    #[test]
    fn every_value_is_written_once_for_any_number_of_threads() {
        for threads in [1, 2, 3, 7] {
            let threads = Threads::new(NonZero::new(threads).unwrap()).unwrap();
            for (tokens, rows, unit) in [(1, 1, 1), (3, 1000, 16), (2, 33, 32), (0, 5, 4), (4, 0, 4)] {
                let expected: Vec<f32> = (0..tokens * rows).map(|i| i as f32).collect();
                assert_eq!(threads.run(|| numbered(tokens, rows, unit)), expected);
            }
        }
    }

    #[test]
    fn blocks_are_copied_to_where_their_rows_belong() {
        for threads in [1, 2, 3] {
            let threads = Threads::new(NonZero::new(threads).unwrap()).unwrap();
            for (tokens, rows, sizes) in [
                (1, 1, [16; 3]),
                (3, 1000, [64, 64, 16]),
                (2, 33, [64, 16, 16]),
                (0, 5, [4; 3]),
                (4, 0, [4; 3]),
            ] {
                let block = |place: Place| -> Vec<f32> {
                    let lanes = sizes[2];
                    assert!(place.first.is_multiple_of(sizes[1]) && place.len <= sizes[0]);
                    let value = |i: usize| {
                        let (panel, token, lane) = (i / lanes / tokens, i / lanes % tokens, i % lanes);
                        (token * rows + place.first + panel * lanes + lane) as f32
                    };
                    (0..place.len.div_ceil(lanes) * tokens * lanes).map(value).collect()
                };
                let expected: Vec<f32> = (0..tokens * rows).map(|i| i as f32).collect();
                assert_eq!(threads.run(|| gather(tokens, rows, sizes, ALONE, block)), expected);
            }
        }
    }

    #[test]
    #[should_panic(expected = "values of a block")]
    fn a_block_of_another_size_is_refused() {
        gather(2, 20, [16; 3], 1, |_| vec![0f32; 7]);
    }

    #[test]
    fn the_pool_of_the_host_does_the_work() {
        let name = |index| format!("host-{index}");
        let host = rayon::ThreadPoolBuilder::new().num_threads(3).thread_name(name).build().unwrap();
        let seen = Mutex::new(BTreeSet::new());
        host.install(|| {
            fill::<f32>(1, 256, 1, ALONE, |_| {
                let name = std::thread::current().name().unwrap_or("nameless").to_owned();
                seen.lock().unwrap().insert(name);
            })
        });
        let seen = seen.into_inner().unwrap();
        assert!(!seen.is_empty() && seen.iter().all(|name| name.starts_with("host-")), "{seen:?}");
    }
}
