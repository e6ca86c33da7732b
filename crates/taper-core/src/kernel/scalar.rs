//! Plain Rust: the specification, four values side by side.
//!
//! Neighbours: `neon`, `avx2` and `avx512` do the same with fused products, and x86-64 with more lanes.

use half::{bf16, f16};

use super::{Isa, table::table, vector::Vector};

/// Four values; compilers make one register of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Four([f32; 4]);

// SAFETY: plain Rust works everywhere.
unsafe impl Vector for Four {
    const WIDTH: usize = 4;
    const TOKENS: usize = 6;
    const FEW: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 4])
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller promises four values.
        Self(unsafe { p.cast::<[f32; 4]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        // SAFETY: as above.
        Self(unsafe { p.cast::<[f16; 4]>().read_unaligned() }.map(f16::to_f32))
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        // SAFETY: as above.
        Self(unsafe { p.cast::<[bf16; 4]>().read_unaligned() }.map(bf16::to_f32))
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: as above.
        unsafe { p.cast::<[f32; 4]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn add_to(self, p: *mut f64) {
        // SAFETY: as above.
        let sums = unsafe { &mut *p.cast::<[f64; 4]>() };
        sums.iter_mut().zip(self.0).for_each(|(sum, x)| *sum += f64::from(x));
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // Not `mul_add`: without the instruction that is a slow function.
        Self(std::array::from_fn(|i| self.0[i] + a.0[i] * b.0[i]))
    }

    #[inline(always)]
    unsafe fn transpose(block: &mut [Self; 16]) {
        for i in 0..4 {
            for j in 0..i {
                let upper = block[j].0[i];
                block[j].0[i] = block[i].0[j];
                block[i].0[j] = upper;
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch<T>(_: *const T) {}
}

table!(Four, Isa::Scalar, "", None);
