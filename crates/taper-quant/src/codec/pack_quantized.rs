//! `pack-quantized` of compressed-tensors: codes in 32-bit words.
//!
//! ```text
//! X.weight_packed      I32 [out, ⌈in·b/32⌉]      code = q + 2^(b−1), low bits first, each row from a fresh word
//! X.weight_scale       f16 | bf16 | f32          [out, groups], [out, 1] or [1]
//! X.weight_zero_point  I32 [⌈out·b/32⌉, groups]  asymmetric only; packed along out. One scale for all: I8 [1]
//! X.weight_shape       I64 [2]
//! X.weight_g_idx       I32 [in]                  only where columns were reordered: the group of each column
//! X.input_scale        f16 | bf16 | f32 [1]      the scale by which inputs are rounded, where that is static
//! ```
//!
//! Until October 2025 rows of 3, 5, 6 and 7 bits held ⌊32/b⌋ codes per word; such files are told apart by their number
//! of words, and read.

use safetensors::Dtype;
use serde_json::{Map, Value};
use std::sync::Arc;
use taper_core::{Claim, Codec, Part, Parts, Result, SharedWeight, StoredWeight, store::Listing};

use super::{array, compressed_tensors, integer, module};
use crate::{
    layout::{CODES, GROUP_INDEX, INPUT, IntLayout, SCALE, SHAPE, ZERO},
    pack::{self, RowAlign},
    scheme::{Bits, Granularity, Scheme},
};

/// The codec of `pack-quantized`.
#[derive(Debug, Clone, Copy, Default)]
pub struct PackQuantized;

impl Codec for PackQuantized {
    fn id(&self) -> &str {
        IntLayout::PackQuantized.codec()
    }

    fn part_name(&self, weight: &str, role: &str) -> String {
        let suffix = match role {
            CODES => "packed",
            SCALE => "scale",
            ZERO => "zero_point",
            SHAPE => "shape",
            GROUP_INDEX => "g_idx",
            INPUT => return format!("{}.input_scale", module(weight)),
            other => other,
        };
        format!("{weight}_{suffix}")
    }

    fn claim(&self, listing: &Listing, config: &Map<String, Value>) -> Result<Vec<Claim>> {
        compressed_tensors::claim(self, IntLayout::PackQuantized, listing, config)
    }

    fn read(&self, weight: &str, parts: Parts) -> Result<SharedWeight> {
        Ok(Arc::new(integer::read(weight, &parts, IntLayout::PackQuantized)?))
    }

    fn family(&self) -> &str {
        compressed_tensors::FAMILY
    }

    fn config(&self, stored: &[StoredWeight<'_>], left_dense: &[&str]) -> Result<Option<Value>> {
        compressed_tensors::config(stored, left_dense)
    }
}

/// The codes in the dense layout, and whether the file had the old one.
pub(crate) fn codes(
    parts: &Parts,
    weight: &str,
    rows: usize,
    cols: usize,
    bits: Bits,
) -> Result<(Arc<[u8]>, bool)> {
    let dense = pack::dense_words(cols, bits).unwrap_or(usize::MAX);
    let (old, stated) = (pack::old_words(cols, bits), parts.part(weight, CODES)?.shape.last().copied());
    if stated != Some(old) || old == dense {
        return Ok((array(parts, weight, CODES, Dtype::I32, &[rows, dense])?.data.clone(), false));
    }
    let part = array(parts, weight, CODES, Dtype::I32, &[rows, old])?;
    let row_bytes = RowAlign::Word.row_bytes(cols, bits).unwrap_or(0);
    let (mut packed, mut row) = (vec![0u8; rows * row_bytes], vec![0u8; cols]);
    if old > 0 {
        for (out, words) in packed.chunks_exact_mut(row_bytes).zip(part.data.chunks_exact(old * 4)) {
            pack::unpack_words_old(words, bits, &mut row);
            pack::pack(&row, bits, out);
        }
    }
    Ok((packed.into(), true))
}

/// Checks that the stored shape is the logical one.
pub(crate) fn check_shape(parts: &Parts, weight: &str) -> Result<()> {
    let part = parts.part(weight, SHAPE)?;
    let found: Option<Vec<usize>> = shape_of(part.dtype, &part.data);
    if found.as_deref() == Some(&parts.shape[..]) {
        return Ok(());
    }
    Err(parts.bad(weight, format!("`{SHAPE}` says {found:?}, the weight has shape {:?}", parts.shape)))
}

/// A shape stored as an array of I64 or I32; `None` where it is neither, or negative.
pub(crate) fn shape_of(dtype: Dtype, bytes: &[u8]) -> Option<Vec<usize>> {
    match dtype {
        Dtype::I64 => {
            let (values, rest) = bytes.as_chunks::<8>();
            let of = |b: &[u8; 8]| usize::try_from(i64::from_le_bytes(*b)).ok();
            rest.is_empty().then(|| values.iter().map(of).collect())?
        }
        Dtype::I32 => {
            let (values, rest) = bytes.as_chunks::<4>();
            let of = |b: &[u8; 4]| usize::try_from(i32::from_le_bytes(*b)).ok();
            rest.is_empty().then(|| values.iter().map(of).collect())?
        }
        _ => None,
    }
}

/// Zero points `[rows, groups]` as words packed along rows.
pub(crate) fn pack_zeros(zeros: &[i8], rows: usize, bits: Bits, shape: Vec<usize>) -> Part {
    let (words, groups) = (shape[0], shape[1]);
    let mut out = vec![0u8; words * groups * 4];
    let (mut column, mut packed) = (vec![0u8; rows], vec![0u8; words * 4]);
    for group in 0..groups {
        for (code, row) in column.iter_mut().zip(zeros.chunks_exact(groups.max(1))) {
            *code = (i32::from(row[group]) - bits.lowest()) as u8;
        }
        pack::pack(&column, bits, &mut packed);
        for (word, bytes) in packed.chunks_exact(4).enumerate() {
            let at = (word * groups + group) * 4;
            out[at..at + 4].copy_from_slice(bytes);
        }
    }
    Part { dtype: Dtype::I32, shape, data: out.into() }
}

/// Undoes [`pack_zeros`]; `old` where the weight's codes have the old layout, which its zero points then share.
pub(crate) fn unpack_zeros(
    parts: &Parts,
    weight: &str,
    rows: usize,
    groups: usize,
    bits: Bits,
    old: bool,
) -> Result<Vec<i8>> {
    let words =
        if old { pack::old_words(rows, bits) } else { pack::dense_words(rows, bits).unwrap_or(usize::MAX) };
    let part = array(parts, weight, ZERO, Dtype::I32, &[words, groups])?;
    // As many zero points as scales, whose array has been checked: no overflow here.
    let mut zeros = vec![0i8; rows * groups];
    let (mut column, mut packed) = (vec![0u8; rows], vec![0u8; words * 4]);
    for group in 0..groups {
        for (word, bytes) in packed.chunks_exact_mut(4).enumerate() {
            let at = (word * groups + group) * 4;
            bytes.copy_from_slice(&part.data[at..at + 4]);
        }
        if old {
            pack::unpack_words_old(&packed, bits, &mut column);
        } else {
            pack::unpack(&packed, bits, &mut column, |code| code);
        }
        for (row, code) in zeros.chunks_exact_mut(groups.max(1)).zip(&column) {
            row[group] = (i32::from(*code) + bits.lowest()) as i8;
        }
    }
    Ok(zeros)
}

/// The group of each column; `None` where the index says nothing (all −1, as compressed-tensors initialises it).
pub(crate) fn column_groups(
    parts: &Parts,
    weight: &str,
    cols: usize,
    scheme: &Scheme,
) -> Result<Option<Vec<u32>>> {
    let index = array(parts, weight, GROUP_INDEX, Dtype::I32, &[cols])?.values::<i32>();
    if index.iter().all(|&g| g == -1) {
        return Ok(None);
    }
    let Granularity::Group(size) = scheme.granularity else {
        return Err(parts.bad(weight, "it has a group for each column but no groups"));
    };
    let groups = cols.div_ceil(size.get());
    let valid = |&g: &i32| u32::try_from(g).ok().filter(|&g| (g as usize) < groups);
    index
        .iter()
        .map(valid)
        .collect::<Option<Vec<u32>>>()
        .map(Some)
        .ok_or_else(|| parts.bad(weight, format!("a column's group is outside 0 to {}", groups.max(1) - 1)))
}
