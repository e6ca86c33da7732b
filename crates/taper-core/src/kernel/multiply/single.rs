//! f32 times f32, as it is or rounded to bfloat16 first.
//!
//! ```text
//! panel [depth, 32]      two vectors of the panel times one value of each row of A, up to twelve rows at a time
//! ```
//!
//! Neighbours: [`super`] cuts products into these tiles.

use half::bf16;

use super::{Arithmetic, Loops, Operand, Part, Sizes, Stretch};
use crate::kernel::{
    Isa,
    loops::by_tokens,
    scalar::Four,
    table::{Kernels, enabled},
    vector::Vector,
};

#[cfg(target_arch = "x86_64")]
use crate::kernel::{avx2::Eight, avx512::Sixteen};

/// `c[.., stride] += a · panel`.
type TileOf = fn(a: Stretch<'_, f32>, panel: &[f32], c: &mut [f32], stride: usize);

/// The loops of one instruction set.
pub(super) struct Single<'a> {
    kernels: &'a Kernels,
    tile: TileOf,
    arithmetic: Arithmetic,
}

/// Makes a tile of a vector type with the features that it needs.
macro_rules! tile {
    ($vector:ty, $features:tt) => {
        enabled!($features, enabled_tile(a: Stretch<'_, f32>, panel: &[f32], c: &mut [f32], stride: usize) {
            // SAFETY: the features are enabled and detected.
            unsafe { tile::<$vector>(a, panel, c, stride) }
        })
    };
}

/// The loops of a table.
pub(super) fn of(kernels: &Kernels, arithmetic: Arithmetic) -> Single<'_> {
    let tile: TileOf = match kernels.isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => tile!(Sixteen, "avx512f,avx512bw,avx512vl,avx2,fma,f16c"),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => tile!(Eight, "avx2,fma,f16c"),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => tile!(crate::kernel::neon::Four, "neon"),
        _ => tile!(Four, ""),
    };
    Single { kernels, tile, arithmetic }
}

/// The nearest value that bfloat16 has.
fn rounded(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

impl Single<'_> {
    fn round(&self, values: &mut [f32]) {
        if self.arithmetic == Arithmetic::BF16 {
            values.iter_mut().for_each(|x| *x = rounded(*x));
        }
    }
}

impl Loops for Single<'_> {
    type Word = f32;
    const SPAN: usize = 1;

    fn sizes(&self) -> (usize, usize) {
        (self.kernels.lanes, self.kernels.tokens)
    }

    fn panel(&self, b: Operand<'_>, sizes: Sizes, columns: Part, out: &mut [f32]) {
        let Part { first, count } = columns;
        match b {
            Operand::Along(b) => {
                let rows = &b[first * sizes.depth..(first + count) * sizes.depth];
                (self.kernels.f32.panel)(rows, sizes.depth, sizes.depth, out);
            }
            Operand::Across(b) => {
                let rows = b.chunks_exact(sizes.columns);
                for (row, out) in rows.zip(out.chunks_exact_mut(self.kernels.lanes)) {
                    out[..count].copy_from_slice(&row[first..first + count]);
                }
            }
        }
        self.round(out);
    }

    fn stretch<'a>(
        &self,
        a: Operand<'a>,
        sizes: Sizes,
        (rows, words): (Part, Part),
        room: &'a mut [f32],
    ) -> Stretch<'a, f32> {
        match a {
            Operand::Along(a) => {
                let a = &a[rows.first * sizes.depth + words.first..];
                if self.arithmetic == Arithmetic::F32 {
                    return Stretch { values: a, rows: rows.count, row: sizes.depth, depth: 1 };
                }
                for (row, out) in a.chunks(sizes.depth).zip(room.chunks_exact_mut(words.count)) {
                    out.copy_from_slice(&row[..words.count]);
                }
                self.round(room);
                Stretch { values: room, rows: rows.count, row: words.count, depth: 1 }
            }
            Operand::Across(a) => {
                let a = a.chunks_exact(sizes.rows).skip(words.first);
                for (row, out) in a.zip(room.chunks_exact_mut(rows.count)) {
                    out.copy_from_slice(&row[rows.first..rows.first + rows.count]);
                }
                self.round(room);
                Stretch { values: room, rows: rows.count, row: 1, depth: rows.count }
            }
        }
    }

    fn tile(&self, a: Stretch<'_, f32>, panel: &[f32], c: &mut [f32], stride: usize) {
        (self.tile)(a, panel, c, stride);
    }
}

/// # Safety
/// As for [`Vector`].
#[inline(always)]
unsafe fn tile<V: Vector>(a: Stretch<'_, f32>, panel: &[f32], c: &mut [f32], stride: usize) {
    // SAFETY: the caller's promise.
    unsafe { by_tokens!(a.rows, V::TOKENS, tile_of::<V>, a, panel, c, stride) }
}

/// # Safety
/// As for [`Vector`].
#[inline(always)]
unsafe fn tile_of<V: Vector, const T: usize>(
    a: Stretch<'_, f32>,
    panel: &[f32],
    c: &mut [f32],
    stride: usize,
) {
    let (width, lanes) = (V::WIDTH, 2 * V::WIDTH);
    let depth = panel.len() / lanes;
    let last = (T - 1) * a.row + depth.saturating_sub(1) * a.depth;
    assert!(last < a.values.len() && c.len() >= (T - 1) * stride + lanes, "a tile of {T} rows");
    // SAFETY: the caller's promise; the last value that is read and the last vector that is written were just checked.
    unsafe {
        let mut sums = [[V::splat(0.0); 2]; T];
        for (t, sums) in sums.iter_mut().enumerate() {
            let c = c.as_ptr().add(t * stride);
            *sums = [V::load(c), V::load(c.add(width))];
        }
        // Every third row has a pointer of its own; the two behind it are one and two steps away: twelve pointers are more
        // than there are registers.
        let mut bases = [a.values.as_ptr(); 4];
        for (i, base) in bases.iter_mut().enumerate() {
            *base = base.wrapping_add(3 * i * a.row);
        }
        for w in panel.chunks_exact(lanes) {
            let w = [V::load(w.as_ptr()), V::load(w.as_ptr().add(width))];
            for t in 0..T {
                let x = V::splat(*bases[t / 3].wrapping_add(t % 3 * a.row));
                sums[t][0] = sums[t][0].add_product(x, w[0]);
                sums[t][1] = sums[t][1].add_product(x, w[1]);
            }
            for base in &mut bases {
                *base = base.wrapping_add(a.depth);
            }
        }
        for (t, sums) in sums.iter().enumerate() {
            let c = c.as_mut_ptr().add(t * stride);
            sums[0].store(c);
            sums[1].store(c.add(width));
        }
    }
}
