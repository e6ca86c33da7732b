//! The loops, written once for every vector type.
//!
//! ```text
//! rows     4 rows × up to 4 tokens, straight from the weight            few tokens: memory sets the pace
//! panel    rows ─turned over, widened─▶ [depth, lanes]                   many tokens: once per weight ...
//! tile     [tokens, lanes] += [depth, tokens] · [depth, lanes]          ... used for every token
//! taps     out[i] = Σ w[t] · x[taps[t] + i]                              depthwise convolutions
//! ```
//!
//! No sum of `tile` or `taps` crosses lanes. `rows` sums in `WIDTH` lanes, which [`lanes_sum`] adds up pairwise.
//!
//! Neighbours: [`super::table`] holds these functions for each instruction set.

use half::{bf16, f16};

use super::vector::Vector;

/// Rows that are multiplied side by side: four streams from memory.
pub(super) const ROWS: usize = 4;

/// Whether one token takes rows one after another: rows of less than a page, which the machine foresees as one stream, while
/// four within a page confuse it.
#[inline(always)]
pub(super) fn in_turn<T>(cols: usize, tokens: usize) -> bool {
    const PAGE: usize = 4096;
    tokens == 1 && cols * size_of::<T>() < PAGE
}

/// Columns that a panel asks for ahead of those it turns over.
const AHEAD: usize = 128;

/// A type that weights are stored in.
pub(super) trait Stored: Copy + Default {
    /// `V::WIDTH` values, widened.
    ///
    /// # Safety
    /// As for [`Vector`].
    unsafe fn load<V: Vector>(p: *const Self) -> V;
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(p) }
    }
}

impl Stored for f16 {
    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_f16(p) }
    }
}

impl Stored for bf16 {
    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_bf16(p) }
    }
}

/// Up to `WIDTH` values of a slice; zeros beyond its end.
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
unsafe fn load<V: Vector, T: Stored>(values: &[T]) -> V {
    if values.len() >= V::WIDTH {
        // SAFETY: as many values were just checked.
        return unsafe { T::load(values.as_ptr()) };
    }
    let mut padded = [T::default(); 16];
    padded[..values.len()].copy_from_slice(values);
    // SAFETY: sixteen values are enough for every vector.
    unsafe { T::load(padded.as_ptr()) }
}

/// The sum of a power of two of lanes, by halves.
#[inline(always)]
pub(super) fn lanes_sum(lanes: &mut [f32]) -> f32 {
    let mut width = lanes.len();
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0]
}

/// # Safety
/// As for [`Vector`].
#[inline(always)]
pub(super) unsafe fn rows<V: Vector, T: Stored>(w: &[T], cols: usize, x: &[f32], out: &mut [f32]) {
    let count = w.len() / cols;
    for (x, out) in x.chunks(V::FEW * cols).zip(out.chunks_mut(V::FEW * count)) {
        // SAFETY: the caller's promise.
        unsafe {
            let tokens = x.len() / cols;
            match (count == ROWS && !in_turn::<T>(cols, tokens), tokens) {
                (true, 4) => rows_of::<V, T, ROWS, 4>(w, cols, x, out),
                (true, 3) => rows_of::<V, T, ROWS, 3>(w, cols, x, out),
                (true, 2) => rows_of::<V, T, ROWS, 2>(w, cols, x, out),
                (true, _) => rows_of::<V, T, ROWS, 1>(w, cols, x, out),
                _ => {
                    for (t, x) in x.chunks_exact(cols).enumerate() {
                        for (r, w) in w.chunks_exact(cols).enumerate() {
                            rows_of::<V, T, 1, 1>(w, cols, x, &mut out[t * count + r..][..1]);
                        }
                    }
                }
            }
        }
    }
}

/// # Safety
/// As for [`Vector`].
#[inline(always)]
unsafe fn rows_of<V: Vector, T: Stored, const R: usize, const N: usize>(
    w: &[T],
    cols: usize,
    x: &[f32],
    out: &mut [f32],
) {
    assert!(w.len() == R * cols && x.len() == N * cols && out.len() == R * N, "{R} rows, {N} tokens");
    // SAFETY: the caller's promise; a prefetch of any address is allowed.
    unsafe {
        let mut sums = [[V::splat(0.0); N]; R];
        for column in (0..cols).step_by(V::WIDTH) {
            let mut tokens = [V::splat(0.0); N];
            for (t, token) in tokens.iter_mut().enumerate() {
                *token = load(&x[t * cols + column..(t + 1) * cols]);
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let at = r * cols + column;
                V::prefetch(w.as_ptr().wrapping_add(at + R * cols));
                let w = load::<V, T>(&w[at..(r + 1) * cols]);
                for (sum, token) in sums.iter_mut().zip(tokens) {
                    *sum = sum.add_product(w, token);
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (t, sum) in sums.into_iter().enumerate() {
                let mut lanes = [0f32; 16];
                sum.store(lanes.as_mut_ptr());
                out[t * R + r] = lanes_sum(&mut lanes[..V::WIDTH]);
            }
        }
    }
}

/// # Safety
/// As for [`Vector`].
#[inline(always)]
pub(super) unsafe fn panel<V: Vector, T: Stored>(w: &[T], stride: usize, depth: usize, out: &mut [f32]) {
    let lanes = 2 * V::WIDTH;
    for half in [0, V::WIDTH] {
        for column in (0..depth).step_by(V::WIDTH) {
            // SAFETY: the caller's promise; `out` is checked to hold what is stored.
            unsafe {
                let mut block = [V::splat(0.0); 16];
                for (row, block) in w.chunks(stride).skip(half).zip(&mut block[..V::WIDTH]) {
                    // So many rows are more streams than the machine follows by itself.
                    V::prefetch(row.as_ptr().wrapping_add(column + AHEAD));
                    *block = load(&row[column..depth]);
                }
                V::transpose(&mut block);
                let count = V::WIDTH.min(depth - column);
                let out = &mut out[column * lanes..(column + count) * lanes];
                for (i, v) in block[..count].iter().enumerate() {
                    v.store(out[i * lanes + half..][..V::WIDTH].as_mut_ptr());
                }
            }
        }
    }
}

/// Calls a tile kernel with the number of tokens, at most 12 and at most `$most`, as a constant.
macro_rules! by_tokens {
    ($tokens:expr, $most:expr, $kernel:ident $(::<$vector:ty>)?, $($argument:expr),+) => {
        match $tokens {
            1 => $kernel::<$($vector,)? 1>($($argument),+),
            2 => $kernel::<$($vector,)? 2>($($argument),+),
            3 => $kernel::<$($vector,)? 3>($($argument),+),
            4 => $kernel::<$($vector,)? 4>($($argument),+),
            5 => $kernel::<$($vector,)? 5>($($argument),+),
            6 => $kernel::<$($vector,)? 6>($($argument),+),
            7 if $most > 6 => $kernel::<$($vector,)? 7>($($argument),+),
            8 if $most > 6 => $kernel::<$($vector,)? 8>($($argument),+),
            9 if $most > 6 => $kernel::<$($vector,)? 9>($($argument),+),
            10 if $most > 6 => $kernel::<$($vector,)? 10>($($argument),+),
            11 if $most > 6 => $kernel::<$($vector,)? 11>($($argument),+),
            12 if $most > 6 => $kernel::<$($vector,)? 12>($($argument),+),
            more => unreachable!("a tile of {more} tokens"),
        }
    };
}
pub(super) use by_tokens;

/// # Safety
/// As for [`Vector`].
#[inline(always)]
pub(super) unsafe fn tile<V: Vector>(a: &[f32], panel: &[f32], c: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe { by_tokens!(c.len() / (2 * V::WIDTH), V::TOKENS, tile_of::<V>, a, panel, c) }
}

/// # Safety
/// As for [`Vector`].
#[inline(always)]
unsafe fn tile_of<V: Vector, const T: usize>(a: &[f32], panel: &[f32], c: &mut [f32]) {
    let (width, lanes) = (V::WIDTH, 2 * V::WIDTH);
    assert!(c.len() == T * lanes, "a tile of {T} tokens");
    // SAFETY: the caller's promise; every vector lies within a chunk of `lanes` values.
    unsafe {
        let mut sums = [[V::splat(0.0); 2]; T];
        for (sums, c) in sums.iter_mut().zip(c.chunks_exact(lanes)) {
            *sums = [V::load(c.as_ptr()), V::load(c[width..].as_ptr())];
        }
        for (a, w) in a.as_chunks::<T>().0.iter().zip(panel.chunks_exact(lanes)) {
            let w = [V::load(w.as_ptr()), V::load(w.as_ptr().add(width))];
            for t in 0..T {
                let a = V::splat(a[t]);
                sums[t][0] = sums[t][0].add_product(a, w[0]);
                sums[t][1] = sums[t][1].add_product(a, w[1]);
            }
        }
        for (sums, c) in sums.iter().zip(c.chunks_exact_mut(lanes)) {
            sums[0].store(c.as_mut_ptr());
            sums[1].store(c[width..].as_mut_ptr());
        }
    }
}

/// Values of the largest tile of any table.
#[repr(align(64))]
struct Sums([f32; 12 * 32]);

/// # Safety
/// As for [`Vector`].
#[inline(always)]
pub(super) unsafe fn outer<V: Vector>(
    a: &[f32],
    panel: &[f32],
    column: usize,
    rows: &mut [&mut [f64]],
    next: &[*const f64],
) {
    let lanes = 2 * V::WIDTH;
    let mut sums = Sums([0.0; 12 * 32]);
    let sums = &mut sums.0[..V::TOKENS * lanes];
    // SAFETY: the caller's promise; a prefetch of any address is allowed.
    unsafe {
        for row in next {
            for line in (0..lanes).step_by(8) {
                V::prefetch(row.wrapping_add(line));
            }
            V::prefetch(row.wrapping_add(lanes - 1));
        }
        tile::<V>(a, panel, sums);
    }
    for (row, sums) in rows.iter_mut().zip(sums.chunks_exact(lanes)) {
        if let Some(row) = row.get_mut(column..column + lanes) {
            // SAFETY: the caller's promise; both have `lanes` values.
            unsafe {
                V::load(sums.as_ptr()).add_to(row.as_mut_ptr());
                V::load(sums[V::WIDTH..].as_ptr()).add_to(row[V::WIDTH..].as_mut_ptr());
            }
        } else if let Some(row) = row.get_mut(column..) {
            row.iter_mut().zip(sums).for_each(|(x, sum)| *x += f64::from(*sum));
        }
    }
}

/// # Safety
/// As for [`Vector`].
#[inline(always)]
pub(super) unsafe fn taps<V: Vector>(x: &[f32], taps: &[usize], w: &[f32], out: &mut [f32]) {
    let last = taps.iter().max().copied().unwrap_or_default();
    assert!(x.len() >= last + out.len() && w.len() == taps.len(), "taps within the values");
    let whole = out.len() - out.len() % V::WIDTH;
    for i in (0..whole).step_by(V::WIDTH) {
        // SAFETY: the caller's promise; i + WIDTH ≤ out.len(), and every tap was checked to leave as much.
        unsafe {
            let mut sum = V::splat(0.0);
            for (tap, w) in taps.iter().zip(w) {
                sum = sum.add_product(V::splat(*w), V::load(x.as_ptr().add(tap + i)));
            }
            sum.store(out.as_mut_ptr().add(i));
        }
    }
    for (i, out) in out.iter_mut().enumerate().skip(whole) {
        *out = taps.iter().zip(w).fold(0.0, |sum, (tap, w)| sum + w * x[tap + i]);
    }
}
