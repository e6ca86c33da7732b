//! Memory for results that is written by the threads that compute them, and never before.
//!
//! Zeroing an output first would touch each of its pages once more than needed, on one thread. Here a task clears its own
//! piece just before it fills it, while the piece is on its way into the cache anyhow. The pieces count what they have
//! cleared, so that memory which no task has seen is never handed out.
//!
//! Neighbours: `code::int` and `code::nf4` write into it.

use std::{
    mem::MaybeUninit,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use taper_core::kernel::fresh::ask_for_large_pages;

/// Memory of `len` elements before and after it is filled.
///
/// # Safety
/// `slice` always is the same memory, of the length that was asked for, and `finish` is that memory.
pub(crate) unsafe trait Memory<T> {
    /// What it becomes.
    type Filled;

    /// Memory with nothing in it.
    fn new(len: usize) -> Self;

    /// All of it.
    fn slice(&mut self) -> &mut [MaybeUninit<T>];

    /// All of it, filled.
    ///
    /// # Safety
    /// Every element is initialised.
    unsafe fn finish(self) -> Self::Filled;
}

// SAFETY: a box is one slice.
unsafe impl<T> Memory<T> for Box<[MaybeUninit<T>]> {
    type Filled = Vec<T>;

    fn new(len: usize) -> Self {
        Box::new_uninit_slice(len)
    }

    fn slice(&mut self) -> &mut [MaybeUninit<T>] {
        self
    }

    unsafe fn finish(self) -> Vec<T> {
        // SAFETY: the caller's promise.
        unsafe { self.assume_init() }.into_vec()
    }
}

// SAFETY: the pointer is not shared before it is finished.
unsafe impl<T> Memory<T> for Arc<[MaybeUninit<T>]> {
    type Filled = Arc<[T]>;

    fn new(len: usize) -> Self {
        Arc::new_uninit_slice(len)
    }

    fn slice(&mut self) -> &mut [MaybeUninit<T>] {
        Arc::get_mut(self).unwrap_or_default()
    }

    unsafe fn finish(self) -> Arc<[T]> {
        // SAFETY: the caller's promise.
        unsafe { self.assume_init() }
    }
}

/// Memory of which pieces are filled in any order.
pub(crate) struct Fresh<M> {
    memory: M,
    cleared: AtomicUsize,
}

/// A part of it that nobody else has.
pub(crate) struct Piece<'a, T> {
    slice: &'a mut [MaybeUninit<T>],
    cleared: &'a AtomicUsize,
}

impl<M> Fresh<M> {
    /// Memory for `len` elements.
    pub(crate) fn new<T>(len: usize) -> Self
    where
        M: Memory<T>,
    {
        let mut memory = M::new(len);
        ask_for_large_pages(memory.slice());
        Self { memory, cleared: AtomicUsize::new(0) }
    }

    /// Pieces of `size` elements, the last one shorter where it does not divide the length.
    pub(crate) fn pieces<T>(&mut self, size: usize) -> impl Iterator<Item = Piece<'_, T>>
    where
        M: Memory<T>,
        T: 'static,
    {
        // Earlier pieces are gone; what they cleared does not count.
        *self.cleared.get_mut() = 0;
        let cleared = &self.cleared;
        self.memory.slice().chunks_mut(size.max(1)).map(move |slice| Piece { slice, cleared })
    }

    /// What was filled; `None` where a piece was never cleared.
    pub(crate) fn finish<T>(mut self) -> Option<M::Filled>
    where
        M: Memory<T>,
    {
        let whole = self.memory.slice().len() == self.cleared.into_inner();
        // SAFETY: pieces are disjoint, each is cleared at most once, and together they have cleared all.
        whole.then(|| unsafe { self.memory.finish() })
    }
}

impl<'a, T: Copy> Piece<'a, T> {
    /// The piece, every element `value`.
    pub(crate) fn clear(self, value: T) -> &'a mut [T] {
        for element in &mut *self.slice {
            element.write(value);
        }
        self.cleared.fetch_add(self.slice.len(), Ordering::Relaxed);
        // SAFETY: every element was just written; `MaybeUninit<T>` has the layout of `T`.
        unsafe { &mut *(std::ptr::from_mut(self.slice) as *mut [T]) }
    }
}
