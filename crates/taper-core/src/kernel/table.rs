//! The inner loops of dense weights, one table per instruction set.
//!
//! Neighbours: [`super::loops`] is what the functions do; [`super::dense`] and [`super::gram`] call them.

use half::{bf16, f16};
use std::fmt;

use super::{Isa, norms::Norms};

/// Loops that read values of one type.
pub(crate) struct Loops<T: 'static> {
    /// Up to [`super::loops::ROWS`] rows, `[rows, cols]`, times tokens `[tokens, cols]`; the result is `[tokens, rows]`.
    pub(crate) rows: fn(w: &[T], cols: usize, x: &[f32], out: &mut [f32]),
    /// Rows, `[rows, stride]` of which the last may be shorter, turned into a panel `[depth, lanes]` of their first `depth`
    /// values; zeros beyond the last row.
    pub(crate) panel: fn(w: &[T], stride: usize, depth: usize, out: &mut [f32]),
}

/// Loops that multiply bfloat16 by bfloat16. A word is two columns, the first in the low half.
pub(crate) struct Pairs {
    /// Rows of a panel.
    pub(crate) lanes: usize,
    /// Most tokens of a tile.
    pub(crate) tokens: usize,
    /// As [`Loops::rows`].
    pub(crate) rows: fn(w: &[bf16], cols: usize, x: &[bf16], out: &mut [f32]),
    /// As [`Loops::panel`]: `[depth / 2 (rounded up), lanes]` words.
    pub(crate) panel: fn(w: &[bf16], stride: usize, depth: usize, out: &mut [u32]),
    /// As [`Kernels::tile`]: `a` is `[words, tokens]`, `panel` `[words, lanes]`.
    pub(crate) tile: fn(a: &[u32], panel: &[u32], c: &mut [f32]),
}

/// Values, where each tap begins, its weight, and the result.
pub(crate) type Taps = fn(x: &[f32], offsets: &[usize], w: &[f32], out: &mut [f32]);

/// A tile, a panel, the column at which it begins, the rows of the result, and addresses.
pub(crate) type Outer =
    fn(a: &[f32], panel: &[f32], column: usize, rows: &mut [&mut [f64]], next: &[*const f64]);

/// The inner loops, for one instruction set.
pub(crate) struct Kernels {
    pub(crate) isa: Isa,
    /// Rows of a panel.
    pub(crate) lanes: usize,
    /// Most tokens of a tile.
    pub(crate) tokens: usize,
    pub(crate) f32: Loops<f32>,
    pub(crate) f16: Loops<f16>,
    pub(crate) bf16: Loops<bf16>,
    /// `c += a · panel`: `a` is `[depth, tokens]`, `panel` `[depth, lanes]`, `c` `[tokens, lanes]`.
    pub(crate) tile: fn(a: &[f32], panel: &[f32], c: &mut [f32]),
    /// `rows[i][column ..] += a · panel`, summed in f32 and added in f64, as far as the rows go: `a` is `[depth, tokens]`, as
    /// many rows or fewer, `panel` `[depth, lanes]`. Asks for `lanes` values at each of the addresses, which come next.
    pub(crate) outer: Outer,
    /// Adds the first columns of rows that are `stride` apart, as many as there are sums.
    pub(crate) norms: fn(x: &[f32], stride: usize, sums: &mut Norms<'_>),
    /// `out[i] = Σ w[t] · x[offsets[t] + i]`.
    pub(crate) taps: Taps,
    /// What needs [`super::Features::bf16`] besides.
    pub(crate) pairs: Option<&'static Pairs>,
}

impl Kernels {
    /// The loops of bfloat16 pairs, where the machine has the instruction.
    pub(crate) fn pairs(&self) -> Option<&'static Pairs> {
        self.pairs.filter(|_| super::Features::beyond(self.isa).bf16)
    }
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernels").field("isa", &self.isa).finish_non_exhaustive()
    }
}

/// The table of an instruction set; `None` where the machine lacks it.
pub(crate) fn of(isa: Isa) -> Option<&'static Kernels> {
    if !isa.is_available() {
        return None;
    }
    match isa {
        Isa::Scalar => Some(&super::scalar::TABLE),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => Some(&super::avx2::TABLE),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => Some(&super::avx512::TABLE),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => Some(&super::neon::TABLE),
        _ => None,
    }
}

/// The table in use.
pub(crate) fn active() -> &'static Kernels {
    of(super::isa()).unwrap_or(&super::scalar::TABLE)
}

/// Makes `TABLE` of a vector type, its instruction set, the features to enable and the loops of pairs.
macro_rules! table {
    ($vector:ty, $isa:expr, $features:tt, $pairs:expr) => {
        /// For machines with every feature that these functions enable.
        pub(super) static TABLE: $crate::kernel::table::Kernels = $crate::kernel::table::Kernels {
            isa: $isa,
            lanes: 2 * <$vector as Vector>::WIDTH,
            tokens: <$vector as Vector>::TOKENS,
            f32: $crate::kernel::table::loops!($vector, f32, $features),
            f16: $crate::kernel::table::loops!($vector, f16, $features),
            bf16: $crate::kernel::table::loops!($vector, bf16, $features),
            tile: $crate::kernel::table::enabled!($features, tile(a: &[f32], panel: &[f32], c: &mut [f32]) {
                // SAFETY: the features are enabled and detected.
                unsafe { $crate::kernel::loops::tile::<$vector>(a, panel, c) }
            }),
            outer: $crate::kernel::table::enabled!(
                $features,
                outer(a: &[f32], panel: &[f32], column: usize, rows: &mut [&mut [f64]], next: &[*const f64]) {
                    // SAFETY: the features are enabled and detected.
                    unsafe { $crate::kernel::loops::outer::<$vector>(a, panel, column, rows, next) }
                }
            ),
            norms: $crate::kernel::table::enabled!(
                $features,
                norms(x: &[f32], stride: usize, sums: &mut $crate::kernel::norms::Norms<'_>) {
                    $crate::kernel::norms::add_rows(x, stride, sums)
                }
            ),
            taps: $crate::kernel::table::enabled!(
                $features,
                taps(x: &[f32], offsets: &[usize], w: &[f32], out: &mut [f32]) {
                    // SAFETY: the features are enabled and detected.
                    unsafe { $crate::kernel::loops::taps::<$vector>(x, offsets, w, out) }
                }
            ),
            pairs: $pairs,
        };
    };
}

/// The two loops of one element type.
macro_rules! loops {
    ($vector:ty, $element:ty, $features:tt) => {
        $crate::kernel::table::Loops {
            rows: $crate::kernel::table::enabled!($features, rows(w: &[$element], cols: usize, x: &[f32], out: &mut [f32]) {
                // SAFETY: the features are enabled and detected.
                unsafe { $crate::kernel::loops::rows::<$vector, $element>(w, cols, x, out) }
            }),
            panel: $crate::kernel::table::enabled!($features, panel(w: &[$element], stride: usize, depth: usize, out: &mut [f32]) {
                // SAFETY: the features are enabled and detected.
                unsafe { $crate::kernel::loops::panel::<$vector, $element>(w, stride, depth, out) }
            }),
        }
    };
}

/// A function with features enabled, as one that needs none.
macro_rules! enabled {
    ("", $name:ident($($argument:ident: $kind:ty),+) $body:block) => {{
        fn $name($($argument: $kind),+) $body
        $name
    }};
    ($features:tt, $name:ident($($argument:ident: $kind:ty),+) $body:block) => {{
        #[target_feature(enable = $features)]
        fn $name($($argument: $kind),+) $body
        // SAFETY: `table::of` only hands the table out where `Isa::is_available` found the features.
        |$($argument: $kind),+| unsafe { $name($($argument),+) }
    }};
}

pub(super) use {enabled, loops, table};
