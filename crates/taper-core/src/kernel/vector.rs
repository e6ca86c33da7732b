//! What one vector register of f32 can do, so that a loop is written once for all instruction sets.
//!
//! Neighbours: [`super::loops`] are the loops; `scalar`, `neon`, `avx2` and `avx512` implement this.

use half::{bf16, f16};

/// A vector of [`Vector::WIDTH`] f32.
///
/// # Safety
/// The methods may only be called where the machine has the instructions of the implementation, and within functions that
/// enable them: then all of this is inlined there. Pointers must be good for `WIDTH` values.
pub(super) unsafe trait Vector: Copy {
    /// Values of a vector: 4, 8 or 16.
    const WIDTH: usize;
    /// Most tokens of a tile: accumulators, two vectors of the panel and one broadcast fill the registers.
    const TOKENS: usize;
    /// Most tokens of a row product, for the same reason.
    const FEW: usize;

    /// The same value everywhere.
    unsafe fn splat(x: f32) -> Self;
    /// `WIDTH` values.
    unsafe fn load(p: *const f32) -> Self;
    /// `WIDTH` half-precision values, widened.
    unsafe fn load_f16(p: *const f16) -> Self;
    /// `WIDTH` bfloat16 values, widened.
    unsafe fn load_bf16(p: *const bf16) -> Self;
    /// Writes `WIDTH` values.
    unsafe fn store(self, p: *mut f32);
    /// Adds each value to one of `WIDTH` f64.
    unsafe fn add_to(self, p: *mut f64);
    /// `self + a · b`.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
    /// Turns `WIDTH` vectors of `WIDTH` values over.
    unsafe fn transpose(block: &mut [Self; 16]);
    /// Asks for the cache line at an address, which need not be valid.
    unsafe fn prefetch<T>(p: *const T);
}
