//! NEON: four values side by side, with fused products.
//!
//! Neighbours: [`super::loops`] are the loops.

use half::{bf16, f16};
use std::arch::{
    aarch64::{
        float32x4_t, uint16x4_t, vaddq_f64, vcvt_f64_f32, vcvt_high_f64_f32, vdupq_n_f32, vfmaq_f32,
        vget_low_f32, vld1_u16, vld1q_f32, vld1q_f64, vreinterpretq_f32_f64, vreinterpretq_f32_u32,
        vreinterpretq_f64_f32, vshll_n_u16, vst1q_f32, vst1q_f64, vtrn1q_f32, vtrn1q_f64, vtrn2q_f32,
        vtrn2q_f64,
    },
    asm,
};

use super::{Isa, table::table, vector::Vector};

/// One register.
#[derive(Clone, Copy)]
pub(super) struct Four(float32x4_t);

// SAFETY: the instructions are those of `Isa::Neon`.
unsafe impl Vector for Four {
    const WIDTH: usize = 4;
    // 24 accumulators, two vectors of the panel and broadcasts, of 32 registers.
    const TOKENS: usize = 12;
    const FEW: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller has the instructions; so everywhere below, where it also promises four values.
        Self(unsafe { vdupq_n_f32(x) })
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: as above.
        Self(unsafe { vld1q_f32(p) })
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        // SAFETY: as above; the instruction reads and writes nothing but its registers.
        unsafe {
            let halves: uint16x4_t = vld1_u16(p.cast());
            let wide: float32x4_t;
            asm!("fcvtl {wide:v}.4s, {halves:v}.4h", wide = lateout(vreg) wide, halves = in(vreg) halves,
                options(pure, nomem, nostack, preserves_flags));
            Self(wide)
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        // SAFETY: as above.
        Self(unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.cast()))) })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: as above.
        unsafe { vst1q_f32(p, self.0) }
    }

    #[inline(always)]
    unsafe fn add_to(self, p: *mut f64) {
        // SAFETY: as above.
        unsafe {
            let (low, high) = (vcvt_f64_f32(vget_low_f32(self.0)), vcvt_high_f64_f32(self.0));
            vst1q_f64(p, vaddq_f64(vld1q_f64(p), low));
            vst1q_f64(p.add(2), vaddq_f64(vld1q_f64(p.add(2)), high));
        }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { vfmaq_f32(self.0, a.0, b.0) })
    }

    #[inline(always)]
    unsafe fn transpose(block: &mut [Self; 16]) {
        // SAFETY: as above.
        unsafe {
            let [a, b, c, d] = [block[0].0, block[1].0, block[2].0, block[3].0];
            // 2 × 2 values, then 2 × 2 pairs.
            let (ab_even, ab_odd) = (vtrn1q_f32(a, b), vtrn2q_f32(a, b));
            let (cd_even, cd_odd) = (vtrn1q_f32(c, d), vtrn2q_f32(c, d));
            for (i, (ab, cd)) in [(ab_even, cd_even), (ab_odd, cd_odd)].into_iter().enumerate() {
                let (ab, cd) = (vreinterpretq_f64_f32(ab), vreinterpretq_f64_f32(cd));
                block[i].0 = vreinterpretq_f32_f64(vtrn1q_f64(ab, cd));
                block[2 + i].0 = vreinterpretq_f32_f64(vtrn2q_f64(ab, cd));
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch<T>(p: *const T) {
        // SAFETY: a prefetch of any address is allowed.
        unsafe { asm!("prfm pldl1keep, [{}]", in(reg) p, options(nostack, preserves_flags, readonly)) }
    }
}

table!(Four, Isa::Neon, "neon", None);
