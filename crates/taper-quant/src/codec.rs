//! Files: how weights of this crate are stored, found and read.
//!
//! | id | family | what |
//! |---|---|---|
//! | `pack-quantized`, `int-quantized` | compressed-tensors | integers in matrices |
//! | `bitsandbytes-nf4` | bitsandbytes | NF4, any shape |
//! | `bitsandbytes-int8` | bitsandbytes | 8 bits per row |
//! | `taper-int` | none | integers where no standard fits: short last groups, convolutions |
//! | `taper-trellis` | none | trellis codes, matrices |
//!
//! A weight's encoding names the codec that writes it. Readers check types, shapes and sizes once, with checked
//! arithmetic, and answer hostile files with errors; decoding afterwards cannot fail.
//!
//! Neighbours: [`crate::layout`] states the arrays of integer weights; [`compressed_tensors`] and [`targets`] speak
//! `quantization_config`.

pub mod bitsandbytes_int8;
pub mod bitsandbytes_nf4;
pub mod compressed_tensors;
mod computing;
pub mod int_quantized;
pub mod integer;
pub mod pack_quantized;
pub mod taper_int;
pub mod targets;
pub mod trellis;

pub use bitsandbytes_int8::BitsAndBytesInt8;
pub use bitsandbytes_nf4::BitsAndBytesNf4;
pub use int_quantized::IntQuantized;
pub use pack_quantized::PackQuantized;
pub use taper_int::TaperInt;
pub use trellis::TaperTrellis;

pub(crate) use integer::to_parts as int_parts;

use computing::Computing;

use safetensors::Dtype;
use std::sync::Arc;
use taper_core::{Codecs, Part, Parts, Result, weight::checked_elements};

use crate::{kernel::Arithmetic, layout::IntLayout};

/// All codecs of this crate.
#[must_use]
pub fn codecs() -> Codecs {
    Codecs::new()
        .with(PackQuantized)
        .with(IntQuantized)
        .with(BitsAndBytesNf4)
        .with(BitsAndBytesInt8)
        .with(TaperInt)
        .with(TaperTrellis)
}

/// All codecs of this crate, whose weights are multiplied with this arithmetic, whatever they say themselves.
///
/// Trellis codes know exact products only.
#[must_use]
pub fn codecs_with(arithmetic: Arithmetic) -> Codecs {
    macro_rules! integers {
        ($codec:expr, $layout:ident) => {
            Computing {
                codec: $codec,
                arithmetic,
                read: |weight, parts, arithmetic| {
                    let read = integer::read(weight, parts, IntLayout::$layout)?;
                    Ok(Arc::new(read.with_arithmetic(arithmetic)))
                },
            }
        };
    }
    let nf4 = Computing {
        codec: BitsAndBytesNf4,
        arithmetic,
        read: |weight, parts, arithmetic| {
            Ok(Arc::new(bitsandbytes_nf4::read(weight, parts)?.with_arithmetic(arithmetic)))
        },
    };
    codecs()
        .with(integers!(PackQuantized, PackQuantized))
        .with(integers!(IntQuantized, IntQuantized))
        .with(integers!(BitsAndBytesInt8, BitsAndBytes))
        .with(integers!(TaperInt, Taper))
        .with(nf4)
}

/// The array of a role: its type, its number of elements, and as many bytes as those make. Its shape may differ, because
/// programs disagree on `[n]` and `[n, 1]`.
pub(crate) fn array<'a>(
    parts: &'a Parts,
    weight: &str,
    role: &str,
    dtype: Dtype,
    shape: &[usize],
) -> Result<&'a Part> {
    let part = parts.part(weight, role)?;
    let wanted = checked_elements(shape).and_then(|n| n.checked_mul(dtype.bitsize() / 8));
    let stated = checked_elements(&part.shape).and_then(|n| n.checked_mul(part.dtype.bitsize() / 8));
    if part.dtype == dtype && stated == wanted && wanted == Some(part.data.len()) {
        return Ok(part);
    }
    let message = format!(
        "`{role}` is {:?} {:?} of {} bytes, expected {dtype:?} {shape:?}",
        part.dtype,
        part.shape,
        part.data.len()
    );
    Err(parts.bad(weight, message))
}

/// A module's name: that of its weight without `.weight`.
pub(crate) fn module(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}
