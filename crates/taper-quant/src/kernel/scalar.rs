//! The specification: every kernel in plain Rust.
//!
//! Also the bodies that compilers vectorise well on their own; other tables compile them again for their instructions.
//!
//! Neighbours: [`super::conform`] compares the other tables with this one.

use half::f16;

use super::{Isa, Kernels, Levels, PanelF32, RowF32, RowI8, Stream, TileI8};
use crate::{pack, scheme::Bits};

/// Rows of a panel: one cache line of f32.
const LANES: usize = 16;

pub(crate) static TABLE: Kernels = Kernels {
    isa: Isa::Scalar,
    lanes: LANES,
    tokens_f32: 4,
    tokens_i8: 4,
    prefetch: |_| {},
    unpack,
    widen,
    decode,
    lookup,
    row_f32,
    sliced_f32: None,
    panel_f32,
    tile_f32,
    quantize,
    row_i8,
    nibbles_i8: None,
    panel_i8,
    panel_nibbles: None,
    tile_i8,
};

/// See [`Kernels::unpack`].
#[inline(always)]
pub(super) fn unpack(row: &[u8], stream: Stream, out: &mut [u8]) {
    let (present, absent) = out.split_at_mut(out.len().min(row.len() * 8 / stream.bits()));
    absent.fill(0);
    match stream {
        Stream::Low(bits) => {
            let bits = Bits::new(bits as u64).unwrap_or(Bits::EIGHT);
            pack::unpack(row, bits, present, |code| code);
        }
        Stream::High => {
            for (pair, byte) in present.chunks_mut(2).zip(row) {
                pair[0] = byte >> 4;
                if let [_, second] = pair {
                    *second = byte & 15;
                }
            }
        }
        Stream::Signed => present.iter_mut().zip(row).for_each(|(out, byte)| *out = byte ^ 0x80),
    }
}

fn widen(halves: &[f16], out: &mut [f32]) {
    out.iter_mut().zip(halves).for_each(|(out, half)| *out = half.to_f32());
}

/// See [`Kernels::decode`].
#[inline(always)]
pub(super) fn decode(codes: &[u8], center: f32, scale: f32, out: &mut [f32]) {
    for (out, &code) in out.iter_mut().zip(codes) {
        *out = (f32::from(code) - center) * scale;
    }
}

/// See [`Kernels::lookup`].
#[inline(always)]
pub(super) fn lookup(codes: &[u8], levels: &[f32; 16], scale: f32, out: &mut [f32]) {
    for (out, &code) in out.iter_mut().zip(codes) {
        *out = levels[usize::from(code & 15)] * scale;
    }
}

fn row_f32(job: &RowF32<'_>) -> f32 {
    let mut total = 0f32;
    for (g, (codes, x)) in job.codes.chunks(job.span).zip(job.x.chunks(job.span)).enumerate() {
        let level = |code: u8| match job.levels {
            Levels::Integers => f32::from(code) - job.centers[g],
            Levels::Table(table) => table[usize::from(code & 15)],
        };
        let sum: f32 = codes.iter().zip(x).map(|(&code, x)| level(code) * x).sum();
        total += sum * job.scales[g];
    }
    total
}

/// See [`Kernels::panel_f32`].
#[inline(always)]
pub(super) fn panel_f32_by<const N: usize>(job: &PanelF32<'_>, out: &mut [f32]) {
    for (k, (out, &g)) in out.as_chunks_mut::<N>().0.iter_mut().zip(job.groups).enumerate() {
        let start = g as usize * N;
        let (scales, centers) = (&job.scales[start..start + N], &job.centers[start..start + N]);
        for lane in 0..N {
            let code = job.codes[lane * job.depth + k];
            let level = match job.levels {
                Levels::Integers => f32::from(code) - centers[lane],
                Levels::Table(table) => table[usize::from(code & 15)],
            };
            out[lane] = level * scales[lane];
        }
    }
}

fn panel_f32(job: &PanelF32<'_>, out: &mut [f32]) {
    panel_f32_by::<LANES>(job, out);
}

fn tile_f32(a: &[f32], panel: &[f32], c: &mut [f32]) {
    let tokens = c.len() / LANES;
    for (a, w) in a.chunks_exact(tokens).zip(panel.as_chunks::<LANES>().0) {
        for (a, c) in a.iter().zip(c.as_chunks_mut::<LANES>().0) {
            c.iter_mut().zip(w).for_each(|(c, w)| *c += a * w);
        }
    }
}

/// See [`Kernels::quantize`].
#[inline(always)]
pub(super) fn quantize(x: &[f32], out: &mut [i8]) -> f32 {
    // Among absolute values, bits sort as numbers do, with infinity and NaN on top.
    let peak = x.iter().fold(0u32, |peak, x| peak.max(x.to_bits() & 0x7fff_ffff));
    let peak = f32::from_bits(peak);
    if !peak.is_finite() || peak == 0.0 {
        out.fill(0);
        return if peak == 0.0 { 0.0 } else { f32::NAN };
    }
    // Below 127 / f32::MAX the inverse overflows: such groups are as good as zero.
    let inverse = 127.0 / peak;
    if !inverse.is_finite() {
        out.fill(0);
        return 0.0;
    }
    for (out, x) in out.iter_mut().zip(x) {
        // |x · inverse| ≤ 127.00002, so that the low byte is the nearest integer, half to even.
        *out = ((x * inverse + crate::fit::ROUND).to_bits() as u8).cast_signed();
    }
    peak / 127.0
}

fn row_i8(job: &RowI8<'_>) -> f32 {
    let mut total = 0f32;
    let token = job.token;
    for (g, (codes, a)) in job.codes.chunks(job.span).zip(token.bytes.chunks_exact(token.stride)).enumerate()
    {
        let dot: i32 = codes.iter().zip(a).map(|(&code, &a)| i32::from(code) * i32::from(a)).sum();
        let sum = dot - job.centers[g] * token.sums[g];
        total += sum as f32 * (job.scales[g] * token.steps[g]);
    }
    total
}

/// See [`Kernels::panel_i8`].
#[inline(always)]
pub(super) fn panel_i8_by<const N: usize>(codes: &[u8], depth: usize, out: &mut [u8]) {
    for (lane, codes) in codes.chunks_exact(depth).enumerate() {
        for (q, quad) in codes.as_chunks::<4>().0.iter().enumerate() {
            out[(q * N + lane) * 4..][..4].copy_from_slice(quad);
        }
    }
}

fn panel_i8(codes: &[u8], depth: usize, out: &mut [u8]) {
    panel_i8_by::<LANES>(codes, depth, out);
}

fn tile_i8(job: &TileI8<'_>, c: &mut [f32]) {
    let (tokens, quads) = (job.tokens, job.quads);
    let groups = job.a.chunks_exact(quads * tokens * 4).zip(job.panel.chunks_exact(quads * LANES * 4));
    for (g, (a, panel)) in groups.enumerate() {
        for t in 0..tokens {
            let mut sums = [0i32; LANES];
            for (a, panel) in
                a.as_chunks::<4>().0.iter().skip(t).step_by(tokens).zip(panel.chunks_exact(LANES * 4))
            {
                for (sum, w) in sums.iter_mut().zip(panel.as_chunks::<4>().0) {
                    *sum += w.iter().zip(a).map(|(&w, &a)| i32::from(w) * i32::from(a)).sum::<i32>();
                }
            }
            let (step, total) = (job.steps[g * tokens + t], job.sums[g * tokens + t]);
            for (lane, sum) in sums.iter().enumerate() {
                let at = g * LANES + lane;
                c[t * LANES + lane] += (sum - job.centers[at] * total) as f32 * step * job.scales[at];
            }
        }
    }
}
