//! What memory, caches and arithmetic units can do at most, measured with the threads of rayon's current pool.
//!
//! ```text
//! memory   1 GiB, 64-byte loads, prefetched; L3: 8 MiB, again and again; copy: non-temporal stores
//! f32      2 · 16 operations per vfmadd231ps,  twelve independent sums
//! bf16     2 · 32 per vdpbf16ps
//! int8     2 · 64 per vpdpbusd
//! ```
//!
//! Every thread works on memory of its own. A figure is the best of a few tries: a limit is what is possible, not what is usual.
//! Without the instructions a unit's limit is `None`.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::{hint::black_box, time::Instant};

/// The limits of the machine, for a number of threads. Bytes per second and operations per second, a multiply-add is two.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Limits {
    /// Threads that worked at once.
    pub threads: usize,
    /// Reading 1 GiB.
    pub memory: f64,
    /// Reading 8 MiB that stay in the last level of cache.
    pub cache: f64,
    /// Copying 512 MiB past the caches: bytes read and bytes written, together.
    pub copy: f64,
    /// f32 multiply-adds in registers.
    pub f32: Option<f64>,
    /// bf16 pairs into f32 sums.
    pub bf16: Option<f64>,
    /// Bytes into 32-bit sums.
    pub int8: Option<f64>,
}

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// f32 multiply-adds.
    F32,
    /// bf16 dot products.
    Bf16,
    /// Byte dot products.
    Int8,
}

/// Bytes of the stream from memory; far beyond any cache.
const STREAM: usize = 1 << 30;
/// Bytes that stay in the last level of cache, but not in the second.
const RESIDENT: usize = 8 << 20;
/// Tries; the best counts.
const TRIES: usize = 5;

impl Limits {
    /// Measures all of them; takes about a second.
    #[must_use]
    pub fn measure() -> Self {
        let threads = rayon::current_num_threads();
        let mut memory = vec![1u64; STREAM / 8];
        let cache = best(|| {
            let resident = &memory[..RESIDENT / 8];
            rate(RESIDENT * 64, || each(resident, threads, |part| read(part, 64)))
        });
        let stream = best(|| rate(STREAM, || each(&memory, threads, |part| read(part, 1))));
        let copy = best(|| {
            let (to, from) = memory.split_at_mut(STREAM / 16);
            let part = to.len().div_ceil(threads);
            rate(STREAM, || {
                to.par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(to, from)| copy(to, from))
            })
        });
        let peak = |unit| peak(unit, 1).map(|_| best(|| all(threads, unit)));
        let [f32, bf16, int8] = [Unit::F32, Unit::Bf16, Unit::Int8].map(peak);
        Self { threads, memory: stream, cache, copy, f32, bf16, int8 }
    }

    /// Operations per second of a unit.
    #[must_use]
    pub fn of(&self, unit: Unit) -> Option<f64> {
        match unit {
            Unit::F32 => self.f32,
            Unit::Bf16 => self.bf16,
            Unit::Int8 => self.int8,
        }
    }
}

fn best(mut measure: impl FnMut() -> f64) -> f64 {
    (0..TRIES).map(|_| measure()).fold(0.0, f64::max)
}

fn rate(amount: usize, work: impl FnOnce()) -> f64 {
    let clock = Instant::now();
    work();
    amount as f64 / clock.elapsed().as_secs_f64()
}

/// Reads all values so many times.
fn read(values: &[u64], times: usize) {
    for _ in 0..times {
        black_box(sum(black_box(values)));
    }
}

/// Reads all values once, with all threads of rayon's current pool.
pub fn read_together(values: &[u64]) {
    each(values, rayon::current_num_threads(), |part| read(part, 1));
}

/// Gives every thread its part of a slice.
fn each(values: &[u64], threads: usize, work: impl Fn(&[u64]) + Send + Sync) {
    values.par_chunks(values.len().div_ceil(threads)).for_each(work);
}

/// Operations per second of a unit on all threads at once.
fn all(threads: usize, unit: Unit) -> f64 {
    const ROUNDS: usize = 1 << 22;
    let clock = Instant::now();
    let done: f64 = rayon::broadcast(|_| peak(unit, ROUNDS).unwrap_or(0.0)).iter().sum();
    debug_assert!(threads > 0);
    done / clock.elapsed().as_secs_f64()
}

#[cfg(target_arch = "x86_64")]
use x86::{copy, peak, sum};

#[cfg(not(target_arch = "x86_64"))]
use portable::{copy, peak, sum};

#[cfg_attr(target_arch = "x86_64", expect(dead_code, reason = "the other machines'"))]
mod portable {
    use super::Unit;

    pub(super) fn sum(values: &[u64]) -> u64 {
        values.iter().fold(0, |a, b| a.wrapping_add(*b))
    }

    pub(super) fn copy(to: &mut [u64], from: &[u64]) {
        to.copy_from_slice(&from[..to.len()]);
    }

    pub(super) fn peak(_: Unit, _: usize) -> Option<f64> {
        None
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Unit, portable};
    use std::{arch::x86_64::*, hint::black_box};

    /// Bytes ahead of the loads that are asked for.
    const AHEAD: usize = 2048;

    /// Σ of all values: reads every byte once.
    pub(super) fn sum(values: &[u64]) -> u64 {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the instructions are there.
            return unsafe { sum_512(values) };
        }
        portable::sum(values)
    }

    #[target_feature(enable = "avx512f")]
    fn sum_512(values: &[u64]) -> u64 {
        let mut sums = [_mm512_setzero_si512(); 4];
        let (blocks, rest) = values.as_chunks::<32>();
        for block in blocks {
            let at = block.as_ptr();
            for line in 0..4 {
                // A prefetch never faults, wherever it points.
                _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(AHEAD + 64 * line));
            }
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: eight of the block's 32 values, from 8 i on.
                let line = unsafe { _mm512_loadu_si512(at.add(8 * i).cast()) };
                *sum = _mm512_add_epi64(*sum, line);
            }
        }
        let total = _mm512_add_epi64(_mm512_add_epi64(sums[0], sums[1]), _mm512_add_epi64(sums[2], sums[3]));
        (_mm512_reduce_add_epi64(total) as u64).wrapping_add(portable::sum(rest))
    }

    /// Copies past the caches.
    pub(super) fn copy(to: &mut [u64], from: &[u64]) {
        if is_x86_feature_detected!("avx512f") && to.as_ptr().cast::<u8>().align_offset(64) == 0 {
            // SAFETY: the instructions are there, and the target is aligned as their stores ask.
            return unsafe { copy_512(to, from) };
        }
        portable::copy(to, from);
    }

    /// # Safety
    /// `to` begins at a multiple of 64 bytes.
    #[target_feature(enable = "avx512f")]
    unsafe fn copy_512(to: &mut [u64], from: &[u64]) {
        let (blocks, rest) = to.as_chunks_mut::<8>();
        let (sources, last) = from[..blocks.len() * 8 + rest.len()].as_chunks::<8>();
        for (to, from) in blocks.iter_mut().zip(sources) {
            // SAFETY: both are 64 bytes long, and all targets are aligned because the first is.
            unsafe { _mm512_stream_si512(to.as_mut_ptr().cast(), _mm512_loadu_si512(from.as_ptr().cast())) };
        }
        rest.copy_from_slice(last);
        _mm_sfence();
    }

    /// Independent sums: more than latency times units of any core so far.
    const SUMS: usize = 12;

    /// Keeps a unit busy for `rounds` instructions per sum; the operations done, `None` without the instructions.
    pub(super) fn peak(unit: Unit, rounds: usize) -> Option<f64> {
        let work = (rounds * SUMS) as f64;
        let there = is_x86_feature_detected!("avx512f")
            && match unit {
                Unit::F32 => true,
                Unit::Bf16 => is_x86_feature_detected!("avx512bf16"),
                Unit::Int8 => is_x86_feature_detected!("avx512vnni"),
            };
        if !there {
            return None;
        }
        // SAFETY: the instructions are there.
        unsafe {
            match unit {
                Unit::F32 => f32_512(rounds),
                Unit::Bf16 => bf16_512(rounds),
                Unit::Int8 => int8_512(rounds),
            }
        }
        Some(work * [32.0, 64.0, 128.0][unit as usize])
    }

    #[target_feature(enable = "avx512f")]
    fn f32_512(rounds: usize) {
        let (a, b) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(1e-3)));
        let mut sums = [_mm512_set1_ps(1.0); SUMS];
        for _ in 0..rounds {
            sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(*sum, a, b));
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn bf16_512(rounds: usize) {
        let [a, b] = [0.5f32, 0.25].map(|v| {
            let v = _mm512_set1_ps(black_box(v));
            _mm512_cvtne2ps_pbh(v, v)
        });
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..rounds {
            sums.iter_mut().for_each(|sum| *sum = _mm512_dpbf16_ps(*sum, a, b));
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn int8_512(rounds: usize) {
        let (a, b) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(-5)));
        let mut sums = [_mm512_setzero_si512(); SUMS];
        for _ in 0..rounds {
            sums.iter_mut().for_each(|sum| *sum = _mm512_dpbusd_epi32(*sum, a, b));
        }
        black_box(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_read_and_copied() {
        let from: Vec<u64> = (0..1003).collect();
        assert_eq!(sum(&from), 1002 * 1003 / 2);
        let mut to = vec![0u64; 1003];
        copy(&mut to, &from);
        assert_eq!(to, from);
    }

    #[test]
    fn operations_are_counted_as_multiply_adds() {
        for (unit, lanes) in [(Unit::F32, 16.0), (Unit::Bf16, 32.0), (Unit::Int8, 64.0)] {
            if let Some(done) = peak(unit, 10) {
                assert_eq!(done, 10.0 * 12.0 * 2.0 * lanes);
            }
        }
    }
}
