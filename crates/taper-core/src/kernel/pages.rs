//! Fresh memory for matrices of many megabytes.
//!
//! ```text
//! promised zeros   read before they are written: two faults for every 4 KiB, and for the second all threads have to stop
//! written zeros    one fault for every 4 KiB, or for every 2 MiB where the system has pages of that size to give
//! ```
//!
//! A Gram matrix of 4,096 inputs takes 134 MB: with promised zeros, faults took longer than its sums.
//!
//! Neighbours: [`super::lent`] is for what is needed again soon; `linalg` keeps its matrices in this.

use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Numbers that are worth it.
const MANY: usize = 1 << 16;

/// A number for every place, written by all threads where they are many, in large pages where the system has some.
#[must_use]
pub fn filled<T: Copy + Send + Sync>(value: T, count: usize) -> Vec<T> {
    if count < MANY {
        return vec![value; count];
    }
    let mut all = Vec::with_capacity(count);
    prefer_large(all.spare_capacity_mut());
    all.par_extend(rayon::iter::repeat_n(value, count));
    all
}

/// Asks the system for large pages, a wish that it may leave.
#[cfg(target_os = "linux")]
fn prefer_large<T>(memory: &mut [MaybeUninit<T>]) {
    const PAGE: usize = 1 << 21;
    let start = memory.as_mut_ptr().cast::<u8>();
    let skipped = start.align_offset(PAGE);
    let whole = size_of_val(memory).saturating_sub(skipped) / PAGE * PAGE;
    if whole > 0 {
        // SAFETY: whole pages within memory that is borrowed mutably; advice of this kind does not change what is in them.
        unsafe { libc::madvise(start.wrapping_add(skipped).cast(), whole, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn prefer_large<T>(_: &mut [MaybeUninit<T>]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_filled_whether_few_or_many() {
        for count in [0, 5, MANY - 1, MANY, 3_000_001] {
            let all = filled(1.5f64, count);
            assert!(all.len() == count && all.iter().all(|x| *x == 1.5), "{count}");
        }
    }
}
