//! Dense bit packing: one packer for every integer format of the ecosystem.
//!
//! ```text
//! code i occupies bits i·b .. (i+1)·b of a little-endian bit stream, whatever b is
//! ```
//!
//! Eight codes of b bits fill exactly b bytes, so the packer works on runs of eight through one 64-bit word. The stream is
//! the same whether it is cut into bytes or into little-endian 32-bit words; [`RowAlign`] says to what a row is padded.
//!
//! Checkpoints of compressed-tensors until October 2025 stored 3, 5, 6 and 7 bits differently: ⌊32/b⌋ codes per word, none
//! across a boundary. [`unpack_words_old`] reads them; nothing here writes them.

use crate::scheme::Bits;

/// To what the packed bytes of a row are padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RowAlign {
    /// To a whole byte.
    Byte,
    /// To a whole 32-bit word, as compressed-tensors does.
    Word,
}

impl RowAlign {
    /// Bytes of a packed row of `cols` codes; `None` where that overflows.
    #[must_use]
    pub fn row_bytes(self, cols: usize, bits: Bits) -> Option<usize> {
        let bytes = cols.checked_mul(bits.get())?.div_ceil(8);
        match self {
            Self::Byte => Some(bytes),
            Self::Word => bytes.checked_next_multiple_of(4),
        }
    }
}

/// Packs codes (each below 2^b) densely into `out`; bits beyond the last code are zero.
///
/// `out` has at least ⌈codes · b / 8⌉ bytes; codes that find no room are dropped.
#[inline(always)]
pub fn pack(codes: &[u8], bits: Bits, out: &mut [u8]) {
    match bits.get() {
        2 => pack_by::<2>(codes, out),
        3 => pack_by::<3>(codes, out),
        4 => pack_halves(codes, out),
        5 => pack_by::<5>(codes, out),
        6 => pack_by::<6>(codes, out),
        7 => pack_by::<7>(codes, out),
        _ => pack_by::<8>(codes, out),
    }
}

#[inline(always)]
fn pack_by<const B: usize>(codes: &[u8], out: &mut [u8]) {
    let (runs, rest) = codes.as_chunks::<8>();
    let split = (runs.len() * B).min(out.len());
    let (body, tail) = out.split_at_mut(split);
    for (run, bytes) in runs.iter().zip(body.chunks_exact_mut(B)) {
        bytes.copy_from_slice(&word::<B>(*run).to_le_bytes()[..B]);
    }
    let mut last = [0u8; 8];
    last[..rest.len()].copy_from_slice(rest);
    let last = word::<B>(last).to_le_bytes();
    let used = (rest.len() * B).div_ceil(8).min(tail.len());
    tail[..used].copy_from_slice(&last[..used]);
    tail[used..].fill(0);
}

/// Eight codes in the low 8·B bits: neighbours are pushed together, then pairs, then fours.
#[inline(always)]
fn word<const B: usize>(codes: [u8; 8]) -> u64 {
    let word = u64::from_le_bytes(codes);
    let word = word & 0x00ff_00ff_00ff_00ff | (word & 0xff00_ff00_ff00_ff00) >> (8 - B);
    let word = word & 0x0000_ffff_0000_ffff | (word & 0xffff_0000_ffff_0000) >> (16 - 2 * B);
    word & 0xffff_ffff | (word >> 32) << (4 * B)
}

/// Four bits, byte by byte: a shape that compilers vectorise.
#[inline(always)]
fn pack_halves(codes: &[u8], out: &mut [u8]) {
    let (pairs, last) = codes.as_chunks::<2>();
    let (body, tail) = out.split_at_mut(pairs.len().min(out.len()));
    for (byte, [low, high]) in body.iter_mut().zip(pairs) {
        *byte = low | high << 4;
    }
    tail.fill(0);
    if let (Some(byte), [code]) = (tail.first_mut(), last) {
        *byte = *code;
    }
}

/// Unpacks dense codes into `out`, through `of`, as many as `out` holds.
///
/// Codes beyond the end of `packed` are left as they were; validate lengths first.
#[inline]
pub fn unpack<T>(packed: &[u8], bits: Bits, out: &mut [T], of: impl Fn(u8) -> T + Copy) {
    match bits.get() {
        2 => quarters(packed, out, of),
        3 => unpack_by::<3, T>(packed, out, of),
        4 => halves(packed, out, of),
        5 => unpack_by::<5, T>(packed, out, of),
        6 => unpack_by::<6, T>(packed, out, of),
        7 => unpack_by::<7, T>(packed, out, of),
        _ => {
            for (out, &code) in out.iter_mut().zip(packed) {
                *out = of(code);
            }
        }
    }
}

/// Four bits, byte by byte: a shape that compilers vectorise.
#[inline]
fn halves<T>(packed: &[u8], out: &mut [T], of: impl Fn(u8) -> T) {
    let (pairs, last) = out.as_chunks_mut::<2>();
    for ([low, high], &byte) in pairs.iter_mut().zip(packed) {
        (*low, *high) = (of(byte & 15), of(byte >> 4));
    }
    if let ([low], Some(&byte)) = (last, packed.get(pairs.len())) {
        *low = of(byte & 15);
    }
}

/// Two bits, byte by byte.
#[inline]
fn quarters<T>(packed: &[u8], out: &mut [T], of: impl Fn(u8) -> T) {
    for (run, &byte) in out.chunks_mut(4).zip(packed) {
        if let [a, b, c, d] = run {
            (*a, *b, *c, *d) = (of(byte & 3), of(byte >> 2 & 3), of(byte >> 4 & 3), of(byte >> 6));
        } else {
            run.iter_mut().enumerate().for_each(|(i, out)| *out = of(byte >> (2 * i) & 3));
        }
    }
}

#[inline]
fn unpack_by<const B: usize, T>(packed: &[u8], out: &mut [T], of: impl Fn(u8) -> T + Copy) {
    let (runs, rest) = out.as_chunks_mut::<8>();
    let split = (runs.len() * B).min(packed.len());
    let (body, tail) = packed.split_at(split);
    for (run, bytes) in runs.iter_mut().zip(body.chunks_exact(B)) {
        spread::<B, T>(bytes, run, of);
    }
    spread::<B, T>(&tail[..tail.len().min(B)], rest, of);
}

#[inline]
fn spread<const B: usize, T>(bytes: &[u8], out: &mut [T], of: impl Fn(u8) -> T) {
    let mut padded = [0u8; 8];
    padded[..bytes.len()].copy_from_slice(bytes);
    let word = u64::from_le_bytes(padded);
    for (i, out) in out.iter_mut().enumerate() {
        *out = of((word >> (i * B)) as u8 & (u8::MAX >> (8 - B)));
    }
}

/// Words that `count` codes take in the old compressed-tensors layout, ⌊32/b⌋ codes each.
#[must_use]
pub fn old_words(count: usize, bits: Bits) -> usize {
    count.div_ceil(32 / bits.get())
}

/// Words that `count` codes take in a dense stream; `None` where that overflows.
#[must_use]
pub fn dense_words(count: usize, bits: Bits) -> Option<usize> {
    Some(count.checked_mul(bits.get())?.div_ceil(32))
}

/// Unpacks the old compressed-tensors layout: ⌊32/b⌋ codes per little-endian word, low bits first, none straddling.
///
/// `packed` holds [`old_words`] words of 4 bytes; codes beyond its end are left as they were.
pub fn unpack_words_old(packed: &[u8], bits: Bits, out: &mut [u8]) {
    let (per_word, bits) = (32 / bits.get(), bits.get());
    for (out, bytes) in out.chunks_mut(per_word).zip(packed.as_chunks::<4>().0) {
        let word = u32::from_le_bytes(*bytes);
        for (i, out) in out.iter_mut().enumerate() {
            *out = (word >> (i * bits)) as u8 & (u8::MAX >> (8 - bits));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(codes: &[i32], bits: u64) -> Vec<u32> {
        let bits = Bits::new(bits).unwrap();
        let offset: Vec<u8> = codes.iter().map(|q| (q - bits.lowest()) as u8).collect();
        let mut out = vec![0xaa; RowAlign::Word.row_bytes(codes.len(), bits).unwrap()];
        pack(&offset, bits, &mut out);
        out.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
    }

    #[test]
    fn packs_the_published_vectors() {
        assert_eq!(words(&(-8..0).collect::<Vec<_>>(), 4), [0x7654_3210]);
        assert_eq!(words(&[7, -8, 0, 1, -1, 3, -4, 5], 4), [0xd4b7_980f]);
        assert_eq!(words(&(0..16).map(|i| i % 4 - 2).collect::<Vec<_>>(), 2), [0xe4e4_e4e4]);
        let three: Vec<i32> = (0..32).map(|i| i % 8 - 4).collect();
        assert_eq!(words(&three, 3), [0x88fa_c688, 0xc688_fac6, 0xfac6_88fa]);
        let five: Vec<i32> = (0..32).map(|i| i % 32 - 16).collect();
        assert_eq!(words(&five, 5), [0x8a41_8820, 0xc5a9_2839, 0xca30_7b9a, 0x38bd_ab49, 0xffbb_cdeb]);
        let six: Vec<i32> = (0..32).map(|i| (2 * i) % 64 - 32).collect();
        let six_words = [0x8818_4080, 0x4490_38c2, 0x79c6_9859, 0xa89a_48a0, 0x4cb0_baca, 0xfbce_b8db];
        assert_eq!(words(&six, 6), six_words);
    }

    #[test]
    fn reads_the_old_three_bit_vector() {
        let old: Vec<u8> =
            [0x8fa_c688u32, 0x1a23_eb1a, 0x2c68_8fac, 0x3e].iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(old_words(32, Bits::THREE), 4);
        let mut codes = [0u8; 32];
        unpack_words_old(&old, Bits::THREE, &mut codes);
        assert_eq!(codes.to_vec(), (0..32).map(|i| i % 8).collect::<Vec<u8>>());
    }

    proptest! {
        #[test]
        fn unpacking_undoes_packing(bits in 2u64..=8, raw in prop::collection::vec(any::<u8>(), 0..70), word in any::<bool>()) {
            let bits = Bits::new(bits).unwrap();
            let codes: Vec<u8> = raw.iter().map(|c| c & (u8::MAX >> (8 - bits.get()))).collect();
            let align = if word { RowAlign::Word } else { RowAlign::Byte };
            let mut packed = vec![0xff; align.row_bytes(codes.len(), bits).unwrap()];
            pack(&codes, bits, &mut packed);
            let mut back = vec![0u8; codes.len()];
            unpack(&packed, bits, &mut back, |c| c);
            prop_assert_eq!(&back, &codes);
            // The independent statement of the layout, bit by bit.
            for (i, code) in codes.iter().enumerate() {
                for j in 0..bits.get() {
                    let at = i * bits.get() + j;
                    prop_assert_eq!(packed[at / 8] >> (at % 8) & 1, code >> j & 1);
                }
            }
        }
    }
}
