//! Double quantization: the scales of NF4 blocks as bytes.
//!
//! ```text
//! absmax[i] = map[codes[i]] · scales[i / 256] + offset        offset = mean of the exact scales
//! ```
//!
//! `map` is bitsandbytes' signed dynamic type: fine near zero, coarse near ±1. A zero block keeps codes of zero, so its
//! values stay zero whatever its scale is read back as.
//!
//! Neighbours: [`super::nf4`] chooses the exact scales and reads these.

/// Blocks that share one nested scale.
pub const NESTED_BLOCK: usize = 256;

/// Doubly quantized scales: absmax\[i\] = map\[codes\[i\]\] · scales\[i / block\] + offset.
#[derive(Debug, Clone, PartialEq)]
pub struct Nested {
    /// One byte per block.
    pub codes: Vec<u8>,
    /// One f32 per `block` bytes.
    pub scales: Vec<f32>,
    /// The 256 values that bytes stand for.
    pub map: Vec<f32>,
    /// Bytes that share a scale; [`NESTED_BLOCK`] when written here.
    pub block: usize,
    /// The mean of the original scales.
    pub offset: f32,
}

impl Nested {
    /// Quantizes scales to bytes: less their mean, in blocks of 256, to the nearest value of [`dynamic_map`].
    #[must_use]
    pub fn encode(absmax: &[f32]) -> Self {
        let mean = absmax.iter().map(|&a| f64::from(a)).sum::<f64>() / absmax.len().max(1) as f64;
        let (offset, map) = (mean as f32, dynamic_map());
        let mut codes = Vec::with_capacity(absmax.len());
        let mut scales = Vec::with_capacity(absmax.len().div_ceil(NESTED_BLOCK));
        for block in absmax.chunks(NESTED_BLOCK) {
            let largest = block.iter().fold(0f32, |m, a| m.max((a - offset).abs()));
            let scale = if largest > 0.0 { largest } else { 1.0 };
            scales.push(largest);
            codes.extend(block.iter().map(|a| nearest_in(&map, (a - offset) / scale)));
        }
        Self { codes, scales, map, block: NESTED_BLOCK, offset }
    }

    /// The scale of a block; 0 beyond the last.
    #[inline]
    #[must_use]
    pub fn get(&self, block: usize) -> f32 {
        let (Some(&code), Some(&scale)) = (self.codes.get(block), self.scales.get(block / self.block.max(1)))
        else {
            return 0.0;
        };
        self.map.get(usize::from(code)).copied().unwrap_or(0.0) * scale + self.offset
    }
}

/// Index of the nearest value of a sorted map; of two equally near ones the lower.
fn nearest_in(map: &[f32], u: f32) -> u8 {
    let above = map.partition_point(|m| *m < u).clamp(1, map.len() - 1);
    let below = above - 1;
    let upper = f64::from(map[above]) - f64::from(u) < f64::from(u) - f64::from(map[below]);
    u8::try_from(if upper { above } else { below }).unwrap_or(u8::MAX)
}

/// The 256 values of bitsandbytes' signed dynamic 8-bit type, sorted.
///
/// For i = 0..=6: the 2^i midpoints of even steps over 0.1..=1, times 10^(i−6), with both signs; and 0 and 1.
#[must_use]
pub fn dynamic_map() -> Vec<f32> {
    let mut map = vec![0.0f32, 1.0];
    for i in 0..=6i32 {
        let intervals = 1 << i;
        let step = 0.9 / f64::from(intervals);
        for j in 0..intervals {
            let middle = (0.1 + (f64::from(j) + 0.5) * step) * 10f64.powi(i - 6);
            map.extend([middle as f32, -middle as f32]);
        }
    }
    map.sort_by(f32::total_cmp);
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dynamic_map_has_the_published_marks() {
        let map = dynamic_map();
        assert_eq!(map.len(), 256);
        assert_eq!((map[0], map[127], map[128], map[255]), (-0.992_968_75, 0.0, 5.5e-7, 1.0));
    }
}
