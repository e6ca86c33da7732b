//! Integer products: a panel of 16 rows times tiles of up to six tokens.
//!
//! ```text
//! nibbles   maddubs of the low quad + maddubs of the high quad, in 16 bits (4 · 15 · 127 fits), madd with ones
//! bytes     bytes 0 and 2 of each word, then 1 and 3, widened: two madd
//! VNNI      vpdpbusd, for either
//! ```
//!
//! Neighbours: [`super::floats`] is the same with f32.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256,
    _mm256_broadcastsi128_si256, _mm256_cvtepi32_ps, _mm256_dpbusd_avx_epi32, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps,
    _mm256_mullo_epi32, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_slli_epi16, _mm256_srai_epi16, _mm256_srli_epi16,
    _mm256_storeu_ps,
};

use crate::kernel::{
    Cells, CodeForm, TileI8,
    tiles::{LANES, LINE},
};

const BYTES: u8 = 0;
const NIBBLES: u8 = 1;
const TABLE: u8 = 2;

/// Calls a tile kernel with the form and the number of tokens as constants.
macro_rules! by_form_and_tokens {
    ($kernel:ident, $job:expr, $c:expr) => {
        match $job.codes.form {
            CodeForm::Bytes => by_form_and_tokens!($kernel, BYTES; $job, $c),
            CodeForm::Nibbles => by_form_and_tokens!($kernel, NIBBLES; $job, $c),
            CodeForm::Table(_) => by_form_and_tokens!($kernel, TABLE; $job, $c),
        }
    };
    ($kernel:ident, $form:ident; $job:expr, $c:expr) => {
        for panel in 0..$c.panels {
            match $c.tokens {
                1 => $kernel::<$form, 1>($job, panel, $c),
                2 => $kernel::<$form, 2>($job, panel, $c),
                3 => $kernel::<$form, 3>($job, panel, $c),
                4 => $kernel::<$form, 4>($job, panel, $c),
                5 => $kernel::<$form, 5>($job, panel, $c),
                _ => $kernel::<$form, 6>($job, panel, $c),
            }
        }
    };
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn tile_i8(job: &TileI8<'_>, c: &mut Cells<'_>) {
    by_form_and_tokens!(plain, job, c);
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub(super) fn tile_i8_vnni(job: &TileI8<'_>, c: &mut Cells<'_>) {
    by_form_and_tokens!(vnni, job, c);
}

/// Σ of four products of bytes, added to each sum.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_bytes(sum: __m256i, w: __m256i, a: __m256i) -> __m256i {
    let even = _mm256_and_si256(w, _mm256_set1_epi16(255));
    let a_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(a));
    let sum = _mm256_add_epi32(sum, _mm256_madd_epi16(even, a_even));
    let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(w), _mm256_srai_epi16::<8>(a));
    _mm256_add_epi32(sum, odd)
}

/// Σ of eight products of nibbles and bytes, added to each sum.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_nibbles(sum: __m256i, low: __m256i, a: __m256i, high: __m256i, b: __m256i) -> __m256i {
    let pairs = _mm256_add_epi16(_mm256_maddubs_epi16(low, a), _mm256_maddubs_epi16(high, b));
    _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

/// One panel times `T` tokens, for an instruction set and its products. A macro, because code of one instruction set is
/// not inlined into that of another.
macro_rules! tile {
    ($name:ident, $features:literal, $bytes:ident, $nibbles:ident) => {
        #[inline]
        #[target_feature(enable = $features)]
        fn $name<const FORM: u8, const T: usize>(job: &TileI8<'_>, panel: usize, c: &mut Cells<'_>) {
            let low = _mm256_set1_epi8(15);
            let table = match job.codes.form {
                CodeForm::Table(table) => broadcast(table),
                _ => low,
            };
            let mut lines = job.codes.bytes[panel * job.codes.stride..].as_chunks::<LINE>().0.iter();
            let mut tokens = job.a.as_chunks::<4>().0.as_chunks::<T>().0.iter();
            for (s, &quads) in job.quads.iter().enumerate() {
                let at = panel * job.grids.stride + s * LANES;
                let mut sums = [[_mm256_setzero_si256(); 2]; T];
                for (t, sums) in sums.iter_mut().enumerate() {
                    *sums = start(job, at, job.starts[s * T + t]);
                }
                if FORM == BYTES {
                    for (line, a) in lines.by_ref().zip(tokens.by_ref()).take(quads as usize) {
                        let w = halves(line);
                        for (sums, a) in sums.iter_mut().zip(a) {
                            let a = _mm256_set1_epi32(i32::from_ne_bytes(a.map(i8::cast_unsigned)));
                            *sums = [$bytes(sums[0], w[0], a), $bytes(sums[1], w[1], a)];
                        }
                    }
                } else {
                    for line in lines.by_ref().take(quads as usize / 2) {
                        let [w0, w1] = halves(line);
                        let mut first = [_mm256_and_si256(w0, low), _mm256_and_si256(w1, low)];
                        let mut second = [
                            _mm256_and_si256(_mm256_srli_epi16::<4>(w0), low),
                            _mm256_and_si256(_mm256_srli_epi16::<4>(w1), low),
                        ];
                        if FORM == TABLE {
                            first =
                                [_mm256_shuffle_epi8(table, first[0]), _mm256_shuffle_epi8(table, first[1])];
                            second = [
                                _mm256_shuffle_epi8(table, second[0]),
                                _mm256_shuffle_epi8(table, second[1]),
                            ];
                        }
                        let (Some(a), Some(b)) = (tokens.next(), tokens.next()) else { break };
                        for ((sums, a), b) in sums.iter_mut().zip(a).zip(b) {
                            let a = _mm256_set1_epi32(i32::from_ne_bytes(a.map(i8::cast_unsigned)));
                            let b = _mm256_set1_epi32(i32::from_ne_bytes(b.map(i8::cast_unsigned)));
                            for v in 0..2 {
                                sums[v] = if FORM == TABLE {
                                    $bytes($bytes(sums[v], first[v], a), second[v], b)
                                } else {
                                    $nibbles(sums[v], first[v], a, second[v], b)
                                };
                            }
                        }
                    }
                }
                for (t, sums) in sums.iter().enumerate() {
                    let step = _mm256_set1_ps(job.steps[s * T + t]);
                    for (v, sum) in sums.iter().enumerate() {
                        let scales = &job.grids.scales[at + v * 8..at + v * 8 + 8];
                        let cells = panel * c.stride + t * LANES + v * 8;
                        let cells = &mut c.values[cells..cells + 8];
                        // SAFETY: the slices have 8 values.
                        unsafe {
                            let factor = _mm256_mul_ps(_mm256_loadu_ps(scales.as_ptr()), step);
                            let before = _mm256_loadu_ps(cells.as_ptr());
                            let total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(*sum), factor, before);
                            _mm256_storeu_ps(cells.as_mut_ptr(), total);
                        }
                    }
                }
            }
        }
    };
}

tile!(plain, "avx2,fma", dot_bytes, dot_nibbles);
tile!(vnni, "avx2,fma,avxvnni", _mm256_dpbusd_avx_epi32, dot_nibbles_vnni);

/// As [`dot_nibbles`].
#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn dot_nibbles_vnni(sum: __m256i, low: __m256i, a: __m256i, high: __m256i, b: __m256i) -> __m256i {
    _mm256_dpbusd_avx_epi32(_mm256_dpbusd_avx_epi32(sum, low, a), high, b)
}

/// What the centers take away.
#[inline]
#[target_feature(enable = "avx2")]
fn start(job: &TileI8<'_>, at: usize, start: i32) -> [__m256i; 2] {
    let start = _mm256_set1_epi32(start);
    let Some(centers) = job.grids.centers else { return [start; 2] };
    let centers = &centers[at..at + LANES];
    // SAFETY: the slice has 16 numbers.
    let [first, second] = unsafe {
        [_mm256_loadu_si256(centers.as_ptr().cast()), _mm256_loadu_si256(centers[8..].as_ptr().cast())]
    };
    [_mm256_mullo_epi32(start, first), _mm256_mullo_epi32(start, second)]
}

/// Sixteen bytes, in both halves of a vector: a table for byte shuffles.
#[inline]
#[target_feature(enable = "avx2")]
fn broadcast(table: &[u8; 16]) -> __m256i {
    // SAFETY: the array has 16 bytes.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(table.as_ptr().cast::<__m128i>()) })
}

/// A line as two vectors.
#[inline]
#[target_feature(enable = "avx2")]
fn halves(line: &[u8; LINE]) -> [__m256i; 2] {
    // SAFETY: the array has 64 bytes.
    unsafe { [_mm256_loadu_si256(line.as_ptr().cast()), _mm256_loadu_si256(line[32..].as_ptr().cast())] }
}
