//! Everything of encoders but the search: extremes, grids, codes and their bits.
//!
//! Neighbours: [`super::lanes`] is what all of it is written over; [`super::search`] is the rest.

use super::{
    Codes, Spread, Spreading,
    lanes::{Lanes, load_some},
};
use crate::{
    fit::ROUND,
    pack,
    scheme::{Bits, ScaleType},
};

/// See [`super::Encoders::peaks`].
#[inline(always)]
pub(crate) fn peaks<L: Lanes>(x: &[f32], span: usize, peaks: &mut [f32]) -> bool {
    // Zero times anything finite is zero; times NaN or infinity it is NaN, which stays.
    let (zero, mut poison) = (L::splat(0.0), L::splat(0.0));
    for (peak, x) in peaks.iter_mut().zip(x.chunks(span)) {
        let mut most = zero;
        for x in x.chunks(L::WIDTH) {
            let v = load_some::<L>(x);
            most = most.most(v.magnitude());
            poison = poison + v * zero;
        }
        *peak = most.largest();
    }
    all_zero(poison)
}

/// See [`super::Encoders::extremes`].
#[inline(always)]
pub(crate) fn extremes<L: Lanes>(x: &[f32], span: usize, low: &mut [f32], high: &mut [f32]) -> bool {
    let (zero, mut poison) = (L::splat(0.0), L::splat(0.0));
    for ((low, high), x) in low.iter_mut().zip(high).zip(x.chunks(span)) {
        let (mut least, mut most) = (zero, zero);
        for x in x.chunks(L::WIDTH) {
            let v = load_some::<L>(x);
            (least, most) = (v.least(least), v.most(most));
            poison = poison + v * zero;
        }
        (*low, *high) = (least.smallest(), most.largest());
    }
    all_zero(poison)
}

/// Whether every lane is 0 (NaN is not).
#[inline(always)]
fn all_zero<L: Lanes>(v: L) -> bool {
    let mut lanes = [0f32; 16];
    v.store(&mut lanes);
    lanes == [0f32; 16]
}

/// A scale rounded to its type in integer steps, which compilers vectorise: equal to [`ScaleType::round`] for all scales
/// that are not negative.
#[inline(always)]
fn rounded(scale: f32, scales: ScaleType) -> f32 {
    let bits = scale.to_bits();
    match scales {
        ScaleType::F32 => scale,
        // 16 bits fall away; the lowest that stays decides ties. Infinity stays itself.
        ScaleType::BF16 => f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000),
        ScaleType::F16 => {
            let normal = f32::from_bits((bits + 0xfff + (bits >> 13 & 1)) & 0xffff_e000);
            // Below 2⁻¹⁴ steps are 2⁻²⁴, as they are of f32 next to 0.75.
            let small = (scale + 0.75) - 0.75;
            let value = if scale < 6.103_515_6e-5 { small } else { normal };
            if value > 65504.0 { f32::INFINITY } else { value }
        }
    }
}

/// The scale of its type below the nearest where that is above it: equal to [`ScaleType::round_down`], likewise.
#[inline(always)]
fn cut(scale: f32, scales: ScaleType) -> f32 {
    let nearest = rounded(scale, scales);
    let lower = match scales {
        ScaleType::F32 => nearest,
        ScaleType::BF16 => f32::from_bits(nearest.to_bits().wrapping_sub(1 << 16)),
        ScaleType::F16 => {
            let normal = f32::from_bits(nearest.to_bits().wrapping_sub(1 << 13));
            if scale < 6.103_515_6e-5 { nearest - 5.960_464_5e-8 } else { normal }
        }
    };
    if nearest > scale && nearest < f32::INFINITY { lower } else { nearest }
}

/// See [`super::Encoders::grids`].
#[inline(always)]
pub(crate) fn grids(job: &Spread, low: &[f32], high: &[f32], scales: &mut [f32], zeros: &mut [f32]) -> bool {
    // The type is a constant in each arm, so that loops do not ask for it.
    match (job.how, job.scales) {
        (Spreading::Peak(steps), ScaleType::F16) => symmetric(job, steps, ScaleType::F16, low, high, scales),
        (Spreading::Peak(steps), ScaleType::BF16) => {
            symmetric(job, steps, ScaleType::BF16, low, high, scales)
        }
        (Spreading::Peak(steps), ScaleType::F32) => symmetric(job, steps, ScaleType::F32, low, high, scales),
        (Spreading::Range(steps), ScaleType::F16) => {
            asymmetric(job, steps, ScaleType::F16, low, high, scales, zeros)
        }
        (Spreading::Range(steps), ScaleType::BF16) => {
            asymmetric(job, steps, ScaleType::BF16, low, high, scales, zeros)
        }
        (Spreading::Range(steps), ScaleType::F32) => {
            asymmetric(job, steps, ScaleType::F32, low, high, scales, zeros)
        }
    }
}

#[inline(always)]
fn asymmetric(
    job: &Spread,
    steps: f32,
    stored: ScaleType,
    low: &[f32],
    high: &[f32],
    scales: &mut [f32],
    zeros: &mut [f32],
) -> bool {
    let mut fine = true;
    for (((low, high), scale), zero) in low.iter().zip(high).zip(scales).zip(zeros) {
        let range = high - low;
        let even = if range.is_finite() { range / steps } else { high / steps - low / steps };
        let value = settled(even, stored);
        let start = job.lowest - low / value;
        let start = if start > job.lowest { start } else { job.lowest };
        let start = if start < job.highest { start } else { job.highest };
        let empty = range == 0.0;
        *zero = if empty { 0.0 } else { (start + ROUND) - ROUND };
        *scale = if empty { 1.0 } else { value };
        fine &= job.holds(*scale, *zero);
    }
    fine
}

/// Nonzero scales stay so.
#[inline(always)]
fn settled(scale: f32, stored: ScaleType) -> f32 {
    let value = rounded(scale, stored);
    if value == 0.0 { stored.smallest() } else { value }
}

#[inline(always)]
fn symmetric(
    job: &Spread,
    steps: f32,
    stored: ScaleType,
    low: &[f32],
    high: &[f32],
    scales: &mut [f32],
) -> bool {
    let (mut fine, half) = (true, steps.fract() > 0.0);
    for ((low, high), scale) in low.iter().zip(high).zip(scales) {
        let peak = if *high > -low { *high } else { -low };
        // Why scales of half steps are cut: see [`crate::fit::minmax`].
        let exact = peak / steps;
        let value = if half { cut(exact, stored) } else { rounded(exact, stored) };
        let value = if value == 0.0 { stored.smallest() } else { value };
        *scale = if peak == 0.0 { 1.0 } else { value };
        fine &= job.holds(*scale, 0.0);
    }
    fine
}

/// See [`super::Encoders::codes`].
#[inline(always)]
pub(crate) fn codes<L: Lanes>(job: &Codes<'_>, x: &[f32], out: &mut [u8]) {
    let (low, high) = (L::splat(job.lowest), L::splat(job.highest));
    // An even offset moves no tie to another side.
    let magic = L::splat(ROUND + job.offset);
    for (g, (x, out)) in x.chunks(job.span).zip(out.chunks_mut(job.span)).enumerate() {
        let scale = L::splat(job.scales[g]);
        let zero = L::splat(job.zeros.map_or(0.0, |zeros| zeros[g]));
        let (full, rest) = x.split_at(x.len() - x.len() % L::WIDTH);
        let (out, out_rest) = out.split_at_mut(full.len());
        for (x, out) in full.chunks_exact(L::WIDTH).zip(out.chunks_exact_mut(L::WIDTH)) {
            let v = L::load(x) / scale + zero;
            (v.most(low).least(high) + magic).low_bytes(out);
        }
        if !rest.is_empty() {
            let mut bytes = [0u8; 16];
            let v = load_some::<L>(rest) / scale + zero;
            (v.most(low).least(high) + magic).low_bytes(&mut bytes);
            out_rest.copy_from_slice(&bytes[..rest.len()]);
        }
    }
}

/// See [`super::Encoders::pack`].
#[inline(always)]
pub(crate) fn pack(codes: &[u8], bits: Bits, out: &mut [u8]) {
    pack::pack(codes, bits, out);
}

/// See [`super::Encoders::levels`].
#[inline(always)]
pub(crate) fn levels<L: Lanes>(x: &[f32], scale: f32, out: &mut [u8]) {
    let inverse = 1.0 / scale;
    // bitsandbytes multiplies by the reciprocal; where that is infinite, only division is left.
    let multiply = inverse.is_finite();
    let factor = L::splat(if multiply { inverse } else { scale });
    let (full, rest) = x.split_at(x.len() - x.len() % L::WIDTH);
    let (out, out_rest) = out.split_at_mut(full.len());
    for (x, out) in full.chunks_exact(L::WIDTH).zip(out.chunks_exact_mut(L::WIDTH)) {
        let v = L::load(x);
        (if multiply { v * factor } else { v / factor }).level_codes(out);
    }
    if !rest.is_empty() {
        let (v, mut bytes) = (load_some::<L>(rest), [0u8; 16]);
        (if multiply { v * factor } else { v / factor }).level_codes(&mut bytes);
        out_rest.copy_from_slice(&bytes[..rest.len()]);
    }
}

/// See [`super::Encoders::pack_high`].
#[inline(always)]
pub(crate) fn pack_high(codes: &[u8], out: &mut [u8]) {
    for (byte, [first, second]) in out.iter_mut().zip(codes.as_chunks::<2>().0) {
        *byte = first << 4 | second;
    }
}
