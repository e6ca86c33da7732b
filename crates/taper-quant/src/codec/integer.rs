//! Reading and writing integer weights, whatever their layout.
//!
//! Attributes: `bits`, `symmetric`, `granularity` (`tensor`, `channel`, `group`) and, for groups, `group`; `activations`
//! (`dynamic`, `static`) where inputs are rounded to eight bits.
//!
//! Neighbours: [`crate::layout`] says what must be there; [`super::pack_quantized`] has the zero points packed along
//! rows and the old bit layout.

use safetensors::Dtype;
use serde_json::{Map, Value};
use taper_core::{Encoding, Part, Parts, Result, Weight, weight::checked_elements};

use super::{array, pack_quantized};
use crate::{
    Error,
    kernel::{ActivationScale, store::Store},
    layout::{CODES, GROUP_INDEX, INPUT, IntLayout, ORDER, SCALE, SHAPE, ZERO},
    packed_int::{self, IntRows, PackedInt, Stored, columns},
    scales::Scales,
    scheme::{Activations, Bits, Granularity, ScaleType, Scheme, Symmetry},
};

/// The attributes of a scheme.
#[must_use]
pub fn attributes(scheme: &Scheme) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("bits".into(), u64::from(scheme.bits).into());
    map.insert("symmetric".into(), scheme.is_symmetric().into());
    let granularity = match scheme.granularity {
        Granularity::Tensor => "tensor",
        Granularity::Channel => "channel",
        Granularity::Group(size) => {
            map.insert("group".into(), size.get().into());
            "group"
        }
    };
    map.insert("granularity".into(), granularity.into());
    // Weights alone are the rule, of which files say nothing.
    match scheme.activations {
        Activations::Float => None,
        Activations::Dynamic => map.insert(ACTIVATIONS.into(), "dynamic".into()),
        Activations::Static => map.insert(ACTIVATIONS.into(), "static".into()),
    };
    map
}

const ACTIVATIONS: &str = "activations";

/// The scheme that attributes state, with scales of type `scales`.
///
/// # Errors
/// What is wrong with the attributes, for people.
pub fn scheme(attributes: &Map<String, Value>, scales: ScaleType) -> Result<Scheme, String> {
    let whole = |key: &str| {
        attributes
            .get(key)
            .and_then(Value::as_u64)
            .ok_or_else(|| format!("no whole number `{key}` among its attributes"))
    };
    let bits = Bits::new(whole("bits")?).map_err(|e| e.to_string())?;
    let symmetry = match attributes.get("symmetric").and_then(Value::as_bool) {
        Some(true) => Symmetry::Symmetric,
        Some(false) => Symmetry::Asymmetric,
        None => return Err("no true or false `symmetric` among its attributes".into()),
    };
    let granularity = match attributes.get("granularity").and_then(Value::as_str) {
        Some("tensor") => Granularity::Tensor,
        Some("channel") => Granularity::Channel,
        Some("group") => {
            let size = usize::try_from(whole("group")?).map_err(|e| e.to_string())?;
            Granularity::group(size).map_err(|e| e.to_string())?
        }
        other => return Err(format!("`granularity` is {other:?}, expected tensor, channel or group")),
    };
    let activations = match attributes.get(ACTIVATIONS).map(Value::as_str) {
        None => Activations::Float,
        Some(Some("dynamic")) => Activations::Dynamic,
        Some(Some("static")) => Activations::Static,
        Some(other) => return Err(format!("`{ACTIVATIONS}` is {other:?}, expected dynamic or static")),
    };
    Ok(Scheme { bits, symmetry, granularity, scales, activations })
}

/// The parts of a weight, in its own layout.
///
/// # Errors
/// Where the scheme wants a static scale of inputs and the weight has none.
pub(crate) fn to_parts(weight: &PackedInt) -> Result<Parts> {
    let stored = weight.stored();
    let (rows, cols) = (stored.shape.first().copied().unwrap_or(1), columns(&stored.shape));
    let (reordered, held) = (stored.column_groups.is_some(), weight.rows_form());
    let arrays = stored.layout.arrays(rows, cols, &stored.scheme, reordered).unwrap_or_default();
    let input = match (stored.scheme.activations, weight.activation_scale()) {
        (Activations::Static, ActivationScale::Dynamic) => return Err(Error::ActivationScale.into()),
        (_, ActivationScale::Static(scale)) => scale,
        (_, ActivationScale::Dynamic) => 0.0,
    };
    let tensors = arrays
        .into_iter()
        .map(|(role, (dtype, shape))| {
            let part = match role.as_str() {
                CODES => Part { dtype, shape, data: held.codes.clone() },
                SCALE => held.scales.to_part(shape),
                ZERO => zero_part(stored, &held, dtype, shape),
                SHAPE => Part::from_values(dtype, shape, &[rows as i64, cols as i64]),
                GROUP_INDEX => {
                    Part::from_values(dtype, shape, stored.column_groups.as_deref().unwrap_or_default())
                }
                INPUT => Part::from_values(dtype, shape, &[input]),
                // The order of rows: always row-major.
                _ => Part::from_values(dtype, shape, &[0u8]),
            };
            (role, part)
        })
        .collect();
    Ok(Parts {
        encoding: weight.encoding(),
        shape: stored.shape.clone(),
        attributes: attributes(&stored.scheme),
        tensors,
    })
}

/// The stated scale of inputs: one number, above 0.
fn input_scale(parts: &Parts, weight: &str) -> Result<f32> {
    let part = parts.part(weight, INPUT)?;
    let stated = Scales::from_part(part).filter(|_| checked_elements(&part.shape) == Some(1));
    let stated = stated.filter(|s| part.data.len() == part.dtype.bitsize() / 8 && s.all_finite());
    stated
        .map(|s| s.get(0))
        .filter(|scale| *scale > 0.0)
        .ok_or_else(|| parts.bad(weight, format!("`{INPUT}` is not one finite number above 0")))
}

fn zero_part(stored: &Stored, held: &IntRows, dtype: Dtype, shape: Vec<usize>) -> Part {
    let zeros = held.zeros.as_deref().unwrap_or_default();
    match dtype {
        Dtype::I32 => pack_quantized::pack_zeros(zeros, stored.shape[0], stored.scheme.bits, shape),
        _ => Part::from_values(dtype, shape, zeros),
    }
}

/// Validates the parts of a weight and makes it.
pub(crate) fn read(weight: &str, parts: &Parts, layout: IntLayout) -> Result<PackedInt> {
    let bad = |message: String| parts.bad(weight, message);
    let scales = Scales::from_part(parts.part(weight, SCALE)?)
        .ok_or_else(|| bad("its scales are none of f16, bf16 and f32".into()))?;
    let mut scheme = scheme(&parts.attributes, scales.stored()).map_err(bad)?;
    if layout == IntLayout::BitsAndBytes {
        scheme = Scheme::int8().with_scales(scales.stored());
    }
    if layout == IntLayout::IntQuantized {
        // One byte per code, however few bits were used.
        scheme.bits = Bits::EIGHT;
    }
    if checked_elements(&parts.shape).is_none_or(|n| n == 0)
        || !layout.holds(".weight", &parts.shape, &scheme)
    {
        return Err(bad(format!("this encoding cannot hold {scheme} of shape {:?}", parts.shape)));
    }
    let (rows, cols) = (parts.shape.first().copied().unwrap_or(1), columns(&parts.shape));
    let reordered = parts.tensors.contains_key(GROUP_INDEX);
    let arrays = layout
        .arrays(rows, cols, &scheme, reordered)
        .ok_or_else(|| bad(format!("its sizes overflow: {scheme} of shape {:?}", parts.shape)))?;
    let expect = |role: &str| {
        let (dtype, shape) = arrays.get(role).ok_or_else(|| bad(format!("`{role}` has no place in it")))?;
        array(parts, weight, role, *dtype, shape)
    };
    expect(SCALE)?;
    if !scales.all_finite() {
        return Err(bad("a scale is not finite".into()));
    }
    let (codes, old) = match layout {
        IntLayout::PackQuantized => pack_quantized::codes(parts, weight, rows, cols, scheme.bits)?,
        _ => (expect(CODES)?.data.clone(), false),
    };
    if layout == IntLayout::PackQuantized {
        pack_quantized::check_shape(parts, weight)?;
    }
    if let (IntLayout::BitsAndBytes, true) = (layout, parts.tensors.contains_key(ORDER))
        && expect(ORDER)?.data.iter().any(|&order| order != 0)
    {
        return Err(bad("its rows are stored in a device's own order; only row-major (0) is read".into()));
    }
    let row_bytes = layout.align().row_bytes(cols, scheme.bits).unwrap_or(0);
    let inputs = match scheme.activations {
        Activations::Static => ActivationScale::Static(input_scale(parts, weight)?),
        Activations::Dynamic | Activations::Float => ActivationScale::Dynamic,
    };
    let read = PackedInt::from_stored(Stored {
        shape: parts.shape.clone(),
        scheme,
        layout,
        row_bytes,
        groups: cols.div_ceil(scheme.granularity.span(cols)),
        column_groups: if reordered {
            pack_quantized::column_groups(parts, weight, cols, &scheme)?
        } else {
            None
        },
        store: Store::new(IntRows {
            codes,
            scales,
            zeros: zeros(parts, weight, &scheme, layout, (rows, cols), old)?,
        }),
    });
    Ok(read.with_activation_scale(inputs))
}

/// The zero points, one per scale. Symmetric weights may carry zero points that are all 0.
fn zeros(
    parts: &Parts,
    weight: &str,
    scheme: &Scheme,
    layout: IntLayout,
    (rows, cols): (usize, usize),
    old: bool,
) -> Result<Option<Vec<i8>>> {
    if scheme.is_symmetric() && !parts.tensors.contains_key(ZERO) {
        return Ok(None);
    }
    let part = parts.part(weight, ZERO)?;
    let shape = scheme.granularity.scale_shape(rows, cols);
    let zeros = if layout == IntLayout::PackQuantized && part.dtype == Dtype::I32 {
        let groups = shape.get(1).copied().unwrap_or(1);
        pack_quantized::unpack_zeros(parts, weight, rows, groups, scheme.bits, old)?
    } else {
        array(parts, weight, ZERO, Dtype::I8, &shape)?.values::<i8>()
    };
    if scheme.is_symmetric() {
        return if zeros.iter().all(|&z| z == 0) {
            Ok(None)
        } else {
            Err(parts.bad(weight, "it is symmetric and yet has zero points other than 0"))
        };
    }
    let range = scheme.bits.lowest()..=scheme.bits.highest();
    if zeros.iter().all(|&z| range.contains(&i32::from(z))) {
        Ok(Some(zeros))
    } else {
        Err(parts.bad(weight, format!("a zero point is outside {} to {}", range.start(), range.end())))
    }
}

/// The encoding that a claim states, before scales are read.
pub(crate) fn encoding(layout: IntLayout, scheme: &Scheme) -> Encoding {
    Encoding::new(layout.codec(), packed_int::format(scheme))
}
