//! NEON: every AArch64 machine, with the dot product of ARMv8.2 where it is there.
//!
//! Its products of bytes are signed, and codes are not: codes are taken less 128, and 128 · Σ a is added to what sums begin
//! with. Nibbles fit as they are.
//!
//! Neighbours: [`integers`] and [`floats`] multiply; loops that compilers vectorise are [`scalar`]'s own. Encoders are the
//! specification's.

mod floats;
mod integers;

use taper_core::kernel::Features;

use super::{Isa, Kernels, scalar};

/// For machines with [`Isa::Neon`].
pub(super) fn table() -> &'static Kernels {
    if Features::beyond(Isa::Neon).dot_product { &WITH_DOT_PRODUCT } else { &TABLE }
}

static TABLE: Kernels = Kernels {
    isa: Isa::Neon,
    tokens: 6,
    tokens_i8: [6; 2],
    // SAFETY: this table is only handed out after NEON was detected, here and below.
    tile_i8: |job, c| unsafe { integers::tile_i8(job, c) },
    // SAFETY: as above.
    tile_f32: |a, panels, stride, c| unsafe { floats::tile_f32(a, panels, stride, c) },
    // Compilers make NEON of the rest: it is what AArch64 has at the least.
    ..scalar::TABLE
};

static WITH_DOT_PRODUCT: Kernels = Kernels {
    // SAFETY: as above, and the dot product as well.
    tile_i8: |job, c| unsafe { integers::tile_i8_dot(job, c) },
    ..TABLE
};
