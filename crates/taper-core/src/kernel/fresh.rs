//! New vectors, written by the threads that compute them and never before.
//!
//! The system zeroes each new page when it is first touched, and that takes longer than most that we write there: pages of
//! 4 KiB one by one, 64 MiB some 20 ms. So large memory asks for pages of 2 MiB (as NumPy does), and a task clears its own
//! piece just before it fills it, while the piece is on its way into the cache anyhow.
//!
//! ```text
//! filled(len, piece, work):   reserve ─▶ ask for large pages ─▶ each task: clear its piece, then work(index, piece)
//! ```
//!
//! Neighbours: [`super::sheet`] is a result in columns; [`super::lent`] is memory that a thread keeps.

use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Bytes from which large pages are asked for.
const LARGE: usize = 4 << 20;

/// Numbers that are worth several threads.
const MANY: usize = 1 << 16;

/// A vector of `len` values: `work` is given each stretch of `piece` values (the last may be shorter) by its number, all
/// of them `T::default()`, and fills it. Stretches are dealt out to rayon's current pool; `piece` is at least 1.
pub fn filled<T: Copy + Default + Send>(
    len: usize,
    piece: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    let memory = &mut values.spare_capacity_mut()[..len];
    ask_for_large_pages(memory);
    memory.par_chunks_mut(piece).enumerate().for_each(|(index, piece)| {
        piece.fill(MaybeUninit::new(T::default()));
        // SAFETY: every element was just written; `MaybeUninit<T>` has the layout of `T`.
        work(index, unsafe { piece.assume_init_mut() });
    });
    // SAFETY: chunks cover all of the `len` elements that there is room for, and each was cleared.
    unsafe { values.set_len(len) };
    values
}

/// A number for every place, written by all threads where they are many.
///
/// A matrix that is only promised zeros (`vec![0.0; n]`) costs two faults for every 4 KiB where it is read before it is written, and
/// for the second all threads have to stop: for the 134 MB of a Gram matrix of 4,096 inputs that took longer than its sums.
#[must_use]
pub fn repeated<T: Copy + Send + Sync>(value: T, count: usize) -> Vec<T> {
    if count < MANY {
        return vec![value; count];
    }
    let mut all = Vec::with_capacity(count);
    ask_for_large_pages(all.spare_capacity_mut());
    all.par_extend(rayon::iter::repeat_n(value, count));
    all
}

/// Asks for pages of 2 MiB wherever such a page lies wholly within memory that is not yet touched. Does nothing for less
/// than 4 MiB and on systems that cannot be asked; a system that declines is no slower than before.
pub fn ask_for_large_pages<T>(memory: &mut [MaybeUninit<T>]) {
    if size_of_val(memory) < LARGE {
        return;
    }
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 2 << 20;
        let start = memory.as_mut_ptr().cast::<u8>();
        let skip = start.align_offset(PAGE);
        let len = size_of_val(memory).saturating_sub(skip) / PAGE * PAGE;
        // SAFETY: the range lies within memory that is borrowed mutably, and the advice changes none of its contents.
        unsafe { libc::madvise(start.wrapping_add(skip).cast(), len, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Threads;
    use std::num::NonZero;

    #[test]
    fn every_value_is_written_whatever_the_piece_and_the_number_of_threads() {
        for threads in [1, 2, 3] {
            let threads = Threads::new(NonZero::new(threads).unwrap()).unwrap();
            for (len, piece) in [(0, 1), (1, 7), (1000, 64), (64, 64), (3 << 20, 5000)] {
                let filled = threads.run(|| {
                    filled(len, piece, |index, out: &mut [u32]| {
                        for (i, out) in out.iter_mut().enumerate() {
                            *out += (index * piece + i) as u32;
                        }
                    })
                });
                assert!(filled.iter().copied().eq(0..len as u32), "{len} values, {piece} a piece");
            }
        }
    }

    #[test]
    fn what_work_leaves_alone_is_the_default() {
        assert_eq!(filled(5, 2, |index, out: &mut [i8]| out[0] = index as i8 + 1), [1, 0, 2, 0, 3]);
    }

    #[test]
    fn every_place_is_repeated_whether_few_or_many() {
        for count in [0, 5, MANY - 1, MANY, 3_000_001] {
            let all = repeated(1.5f64, count);
            assert!(all.len() == count && all.iter().all(|x| *x == 1.5), "{count}");
        }
    }
}
