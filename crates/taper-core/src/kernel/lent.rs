//! Buffers that a thread keeps from one product to the next.
//!
//! A product needs some hundred kilobytes for panels and sums. Asked for anew, they may come as fresh pages, which the
//! system zeroes and maps again for every product.
//!
//! ```text
//! Lent::new(len) ── from the thread's shelf, or made ──▶ used ── dropped ──▶ back on the shelf, up to 4 MiB a thread
//! ```
//!
//! Neighbours: [`super::aligned`] is what is lent; [`super::dense`] and the products of packed weights borrow.

use std::{
    cell::RefCell,
    fmt,
    ops::{Deref, DerefMut},
};

use super::aligned::{Aligned, Number};

/// Bytes that a thread keeps.
const KEPT: usize = 4 << 20;

/// Buffers that a thread keeps.
const BUFFERS: usize = 8;

thread_local! {
    static SHELF: RefCell<Vec<Aligned<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Numbers that begin at a cache line, with whatever was in them before.
pub struct Lent<T: Number> {
    lines: Aligned<T>,
}

impl<T: Number> Lent<T> {
    /// So many numbers; what they are is left open.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let bytes = len * size_of::<T>();
        // The smallest that is large enough, so that large ones are there for others.
        let kept = SHELF.try_with(|shelf| {
            let mut shelf = shelf.borrow_mut();
            let fits = shelf.iter().enumerate().filter(|(_, buffer)| buffer.room() >= bytes);
            let best = fits.min_by_key(|(_, buffer)| buffer.room()).map(|(i, _)| i);
            best.map(|i| shelf.swap_remove(i))
        });
        match kept {
            Ok(Some(buffer)) => Self { lines: buffer.cast(len) },
            _ => Self { lines: Aligned::zeros(len) },
        }
    }

    /// So many zeros.
    #[must_use]
    pub fn zeros(len: usize) -> Self
    where
        T: Default,
    {
        let mut lent = Self::new(len);
        lent.fill(T::default());
        lent
    }
}

impl<T: Number> Drop for Lent<T> {
    fn drop(&mut self) {
        let buffer = std::mem::replace(&mut self.lines, Aligned::zeros(0)).cast::<u8>(0);
        if buffer.room() == 0 {
            return;
        }
        // A thread that is ending keeps nothing.
        let _ = SHELF.try_with(|shelf| {
            let mut shelf = shelf.borrow_mut();
            let held: usize = shelf.iter().map(Aligned::room).sum();
            if shelf.len() < BUFFERS && held + buffer.room() <= KEPT {
                shelf.push(buffer);
            }
        });
    }
}

impl<T: Number> Deref for Lent<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.lines
    }
}

impl<T: Number> DerefMut for Lent<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.lines
    }
}

impl<T: Number> fmt::Debug for Lent<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent").field("len", &self.lines.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_as_another_type_and_as_zeros() {
        let mut floats = Lent::<f32>::new(1000);
        floats.fill(1.5);
        let at = floats.as_ptr().addr();
        drop(floats);
        let bytes = Lent::<u8>::new(4000);
        assert_eq!((bytes.as_ptr().addr(), bytes.len()), (at, 4000));
        drop(bytes);
        let zeros = Lent::<f32>::zeros(900);
        assert_eq!((zeros.as_ptr().addr(), zeros.len()), (at, 900));
        assert!(zeros.iter().all(|x| *x == 0.0));
    }

    #[test]
    fn two_that_live_at_once_do_not_overlap() {
        drop(Lent::<u8>::new(4096));
        let (mut a, mut b) = (Lent::<u8>::zeros(100), Lent::<u8>::zeros(100));
        a.fill(1);
        b.fill(2);
        assert!(a.iter().all(|x| *x == 1) && b.iter().all(|x| *x == 2));
    }

    #[test]
    fn what_is_kept_has_an_end() {
        drop((0..20).map(|_| Lent::<u8>::new(1 << 20)).collect::<Vec<_>>());
        let held: usize = SHELF.with_borrow(|shelf| shelf.iter().map(Aligned::room).sum());
        assert!(0 < held && held <= KEPT, "{held} bytes");
    }
}
