//! A new vector, written by the threads that compute it and never before.
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
}
