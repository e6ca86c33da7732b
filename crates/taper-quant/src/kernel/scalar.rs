//! The specification: every kernel in plain Rust.
//!
//! Also the bodies that compilers vectorise well on their own; other tables compile them again for their instructions.
//!
//! Neighbours: [`super::conform`] compares the other tables with this one.

use half::f16;

use super::{
    Cells, CodeForm, Expand, ExpandFloat, Isa, Kernels, Levels, Stream, TileI8,
    tiles::{LANES, LINE, planes, unit},
};
use crate::{pack, scheme::Bits};

/// Without bf16 products: other machines round to bf16 and multiply f32, and so does the specification.
pub(crate) static TABLE: Kernels = Kernels {
    isa: Isa::Scalar,
    tokens: 4,
    tokens_i8: [4; 2],
    unpack,
    widen,
    decode,
    lookup,
    quantize,
    expand,
    expand_f32,
    bf16: None,
    unpacks_along: false,
    tile_i8,
    wide: None,
    few_f32: None,
    tile_f32,
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

/// See [`Kernels::expand`].
#[inline(always)]
pub(super) fn expand(job: &Expand<'_>, out: &mut [u8]) {
    let (unit, mut lines) = (unit(job.bits), job.codes.as_chunks::<LINE>().0.iter());
    for quads in out.as_chunks_mut::<LINE>().0.chunks_exact_mut(unit / 4) {
        quads.as_flattened_mut().fill(0);
        for &(width, base) in planes(job.bits) {
            let mask = ((1u32 << width) - 1) as u8;
            for (quads, line) in quads.chunks_exact_mut((8 / width) as usize).zip(lines.by_ref()) {
                for (s, quad) in quads.iter_mut().enumerate() {
                    let down = width * s as u32;
                    quad.iter_mut().zip(line).for_each(|(out, code)| *out |= ((code >> down) & mask) << base);
                }
            }
        }
    }
    if let Some(table) = job.table {
        out.iter_mut().for_each(|code| *code = table[usize::from(*code & 15)]);
    }
}

/// See [`Kernels::expand_f32`].
#[inline(always)]
pub(super) fn expand_f32(job: &ExpandFloat<'_>, out: &mut [f32]) {
    let mut lines = job.codes.as_chunks::<LINE>().0.iter();
    let mut out = out.as_chunks_mut::<LANES>().0.as_chunks_mut::<4>().0.iter_mut();
    for (s, &quads) in job.quads.iter().enumerate() {
        let scales = &job.scales[s * LANES..(s + 1) * LANES];
        let mut center = [job.offset as f32; LANES];
        if let Some(centers) = job.centers {
            center.iter_mut().zip(&centers[s * LANES..]).for_each(|(out, center)| *out = *center as f32);
        }
        for (line, out) in lines.by_ref().zip(out.by_ref()).take(quads as usize) {
            for (j, out) in out.iter_mut().enumerate() {
                for (lane, out) in out.iter_mut().enumerate() {
                    let code = line[lane * 4 + j];
                    let level = match job.levels {
                        Levels::Integers => f32::from(code) - center[lane],
                        Levels::Table(table) => table[usize::from(code & 15)],
                    };
                    *out = level * scales[lane];
                }
            }
        }
    }
}

fn tile_f32(a: &[f32], panels: &[f32], stride: usize, c: &mut Cells<'_>) {
    for p in 0..c.panels {
        let tokens = c.tokens;
        let cells = c.panel(p);
        for (a, w) in a.chunks_exact(tokens).zip(panels[p * stride..].as_chunks::<LANES>().0) {
            for (a, c) in a.iter().zip(cells.iter_mut()) {
                c.iter_mut().zip(w).for_each(|(c, w)| *c += a * w);
            }
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

fn tile_i8(job: &TileI8<'_>, c: &mut Cells<'_>) {
    let tokens = c.tokens;
    for p in 0..c.panels {
        let mut codes = job.codes.bytes[p * job.codes.stride..].as_chunks::<LINE>().0.iter();
        let mut a = job.a.as_chunks::<4>().0.chunks_exact(tokens);
        for (s, &quads) in job.quads.iter().enumerate() {
            let at = p * job.grids.stride + s * LANES;
            let mut sums = [[0i32; LANES]; 16];
            for (sums, start) in sums.iter_mut().zip(&job.starts[s * tokens..(s + 1) * tokens]) {
                for (lane, sum) in sums.iter_mut().enumerate() {
                    *sum = job.grids.centers.map_or(*start, |centers| start * centers[at + lane]);
                }
            }
            let (mut left, mut line) = (quads, [0u8; LINE]);
            while left > 0 {
                let high = (quads - left) % 2 == 1;
                if !high || matches!(job.codes.form, CodeForm::Bytes) {
                    line = codes.next().copied().unwrap_or([0; LINE]);
                }
                let quad = line.map(|code| match (job.codes.form, high) {
                    (CodeForm::Bytes, _) => code,
                    (CodeForm::Nibbles, false) => code & 15,
                    (CodeForm::Nibbles, true) => code >> 4,
                    (CodeForm::Table(table), false) => table[usize::from(code & 15)],
                    (CodeForm::Table(table), true) => table[usize::from(code >> 4)],
                });
                for (sums, a) in sums.iter_mut().zip(a.next().unwrap_or_default()) {
                    for (sum, w) in sums.iter_mut().zip(quad.as_chunks::<4>().0) {
                        *sum += w.iter().zip(a).map(|(&w, &a)| i32::from(w) * i32::from(a)).sum::<i32>();
                    }
                }
                left -= 1;
            }
            let (scales, stride) = (&job.grids.scales[at..at + LANES], c.stride);
            for (t, sums) in sums.iter().enumerate().take(tokens) {
                let cells = &mut c.values[p * stride + t * LANES..];
                for ((c, sum), scale) in cells.iter_mut().zip(sums).zip(scales) {
                    *c += *sum as f32 * (scale * job.steps[s * tokens + t]);
                }
            }
        }
    }
}
