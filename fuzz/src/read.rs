//! Everything that can be done with what a reader has accepted.

use super::{Result, Unstructured, damage};
use std::path::Path;
use taper::{
    Codec, Parts, Weight,
    candle::{DType, Device, Tensor},
    weight::checked_elements,
};

/// Weights of more elements are not decoded: 64 MB of f32.
const LARGEST: usize = 1 << 24;

/// Damages the parts of a valid weight, reads them, and uses what was read.
///
/// # Panics
/// Where nothing is damaged and yet it cannot be read.
pub fn damaged(codec: &dyn Codec, mut parts: Parts, input: &mut Unstructured<'_>) -> Result<()> {
    let whole = input.is_empty();
    damage::parts(&mut parts, input)?;
    match codec.read("layer.weight", parts) {
        Ok(weight) => exercise(weight.as_ref()),
        Err(error) => assert!(!whole, "what nobody damaged can be read: {error}"),
    }
    Ok(())
}

/// Opens a model directory with every codec and uses each weight; returns how many could be read.
///
/// # Panics
/// Where a listed weight has no facts.
pub fn directory(dir: &Path) -> usize {
    let Ok(checkpoint) = taper::open(dir) else { return 0 };
    let mut read = 0;
    for name in checkpoint.names() {
        checkpoint.info(&name).expect("a listed weight has facts");
        if let Ok(weight) = checkpoint.get(&name) {
            exercise(weight.as_ref());
            read += 1;
        }
    }
    read
}

/// Decodes, multiplies, looks up and writes back; what fits in memory must not fail in any other way than by an error.
///
/// # Panics
/// Where a decoded weight has another shape than it says, or its parts another size.
pub fn exercise(weight: &dyn Weight) {
    let shape = weight.shape().to_vec();
    if checked_elements(&shape).is_none_or(|n| n > LARGEST) {
        return;
    }
    if let Ok(dense) = weight.dense() {
        assert_eq!(dense.dims(), shape);
    }
    if let Ok(parts) = weight.to_parts() {
        assert_eq!((parts.nbytes(), &parts.shape), (weight.nbytes(), &shape));
    }
    if let &[out, inner] = shape.as_slice()
        && out <= LARGEST
        && inner <= LARGEST
    {
        // Errors (an empty weight, a type without arithmetic) are fine; panics are not.
        drop(Tensor::ones((1, inner), DType::F32, &Device::Cpu).map(|x| weight.matmul(&x).is_ok()));
        let last = u32::try_from(out.saturating_sub(1)).unwrap_or(u32::MAX);
        drop(Tensor::new(&[0u32, last], &Device::Cpu).map(|ids| weight.gather(&ids).is_ok()));
    }
}
