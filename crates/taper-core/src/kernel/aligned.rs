//! Buffers that begin at a cache line.
//!
//! A 64-byte vector that crosses a line costs two accesses; what allocators return lies 16 bytes beyond a line as a rule.

use std::{
    fmt,
    marker::PhantomData,
    ops::{Deref, DerefMut},
};

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Numbers for which any bytes are a value, zeros among them.
///
/// # Safety
/// Only for types without padding and without invalid bit patterns, aligned to at most 64 bytes.
pub unsafe trait Number: Copy {}

// SAFETY: every bit pattern is a value.
unsafe impl Number for f32 {}
// SAFETY: every bit pattern is a value.
unsafe impl Number for u8 {}
// SAFETY: every bit pattern is a value.
unsafe impl Number for i8 {}
// SAFETY: every bit pattern is a value.
unsafe impl Number for u16 {}
// SAFETY: every bit pattern is a value.
unsafe impl Number for i32 {}
// SAFETY: every bit pattern is a value.
unsafe impl Number for u32 {}
// SAFETY: every bit pattern is a value.
unsafe impl Number for f64 {}

/// A fixed number of numbers that begin at a cache line.
#[derive(Clone)]
pub struct Aligned<T> {
    lines: Vec<Line>,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Number> Aligned<T> {
    /// Zeros.
    #[must_use]
    pub fn zeros(len: usize) -> Self {
        let lines = (len * size_of::<T>()).div_ceil(64);
        Self { lines: vec![Line([0; 64]); lines], len, of: PhantomData }
    }

    /// Bytes that there is room for.
    pub(super) fn room(&self) -> usize {
        self.lines.len() * 64
    }

    /// The same bytes as other numbers. Panics where there is no room for so many.
    pub(super) fn cast<U: Number>(self, len: usize) -> Aligned<U> {
        assert!(len * size_of::<U>() <= self.room(), "no room for {len} numbers");
        Aligned { lines: self.lines, len, of: PhantomData }
    }
}

impl<T: Number> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the lines hold `len` numbers, initialised and aligned (see `Number`).
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl<T: Number> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

impl<T: Number + fmt::Debug> fmt::Debug for Aligned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
