//! A block of 32 positions of a packed cache: how lines of 32 numbers become codes, and codes numbers again.
//!
//! ```text
//! x̂ = low + step · code      low = min x, step = (max x − low) / (2^b − 1), both in f16; code = round((x − low) / step)
//!
//! keys    [d, 32]            a line is one channel over the block's positions
//! values  [⌈d / 32⌉, 32, 32] a line is 32 channels of one position; what the last line lacks is 0
//! ```
//!
//! Channels of keys differ in size far more than positions do, those of values do not (KIVI, Liu et al., arXiv:2402.02750,
//! section 3), hence the two directions. Four-bit lines hold code i in the low half of byte i, code i + 16 in the high half.
//!
//! Neighbours: [`super::packed`] attends over blocks.

use half::f16;

/// Positions of a block, and numbers of a line.
pub(crate) const BLOCK: usize = 32;

/// Numbers of a line.
pub(super) type Lanes = [f32; BLOCK];

/// `low` and `step` of a line, the bits of f16 each.
pub(super) type Grid = [u16; 2];

/// Bits of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CodeBits {
    /// Bytes.
    Eight,
    /// Halves of bytes.
    Four,
}

impl CodeBits {
    /// Bytes of a line.
    pub(super) const fn line(self) -> usize {
        match self {
            Self::Eight => BLOCK,
            Self::Four => BLOCK / 2,
        }
    }

    /// The largest code.
    const fn most(self) -> f32 {
        match self {
            Self::Eight => 255.0,
            Self::Four => 15.0,
        }
    }

    /// Appends a line; `None` where a number is not finite or too large for f16.
    pub(super) fn pack(self, line: &Lanes, codes: &mut Vec<u8>, grids: &mut Vec<Grid>) -> Option<()> {
        let (mut least, mut most) = (f32::INFINITY, f32::NEG_INFINITY);
        for &x in line {
            if !x.is_finite() {
                return None;
            }
            (least, most) = (least.min(x), most.max(x));
        }
        let low = f16::from_f32(least);
        let step = f16::from_f32((most - low.to_f32()).max(0.0) / self.most());
        if !low.is_finite() || !step.is_finite() {
            return None;
        }
        grids.push([low.to_bits(), step.to_bits()]);
        let (low, step) = (low.to_f32(), step.to_f32());
        let code = |x: f32| {
            let code = if step > 0.0 { ((x - low) / step).round_ties_even() } else { 0.0 };
            code.clamp(0.0, self.most()) as u8
        };
        match self {
            Self::Eight => codes.extend(line.iter().map(|&x| code(x))),
            Self::Four => {
                let (first, second) = line.split_at(BLOCK / 2);
                codes.extend(first.iter().zip(second).map(|(&a, &b)| code(a) | code(b) << 4));
            }
        }
        Some(())
    }
}

/// A line as products read it: the numbers are `low + step · lanes`.
#[derive(Clone, Copy)]
pub(super) struct Line {
    pub(super) lanes: Lanes,
    pub(super) low: f32,
    pub(super) step: f32,
}

/// The keys and values of a block.
pub(super) trait Block {
    /// Channel `i` of the keys.
    fn key(&self, i: usize) -> Line;

    /// Channels `32 g …` of the value at position `j`.
    fn value(&self, g: usize, j: usize) -> Line;
}

/// A block that is not whole yet.
pub(super) struct Fresh<'a> {
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
}

impl Fresh<'_> {
    #[inline(always)]
    fn line(numbers: &[f32], index: usize) -> Line {
        let lanes = numbers.as_chunks::<BLOCK>().0[index];
        Line { lanes, low: 0.0, step: 1.0 }
    }
}

impl Block for Fresh<'_> {
    #[inline(always)]
    fn key(&self, i: usize) -> Line {
        Self::line(self.keys, i)
    }

    #[inline(always)]
    fn value(&self, g: usize, j: usize) -> Line {
        Self::line(self.values, g * BLOCK + j)
    }
}

/// How codes lie in a line.
pub(super) trait Codes {
    const BITS: CodeBits;

    /// The codes of a line.
    fn lanes(line: &[u8]) -> Lanes;
}

/// Bytes.
pub(super) struct Bytes;

impl Codes for Bytes {
    const BITS: CodeBits = CodeBits::Eight;

    #[inline(always)]
    fn lanes(line: &[u8]) -> Lanes {
        let mut lanes = [0.0; BLOCK];
        lanes.iter_mut().zip(line).for_each(|(lane, &code)| *lane = f32::from(code));
        lanes
    }
}

/// Halves of bytes.
pub(super) struct Nibbles;

impl Codes for Nibbles {
    const BITS: CodeBits = CodeBits::Four;

    #[inline(always)]
    fn lanes(line: &[u8]) -> Lanes {
        let mut lanes = [0.0; BLOCK];
        let (first, second) = lanes.split_at_mut(BLOCK / 2);
        for ((first, second), &byte) in first.iter_mut().zip(second).zip(line) {
            (*first, *second) = (f32::from(byte & 15), f32::from(byte >> 4));
        }
        lanes
    }
}

/// A whole block, packed.
pub(super) struct Packed<'a, C> {
    /// Lines of keys, then of values.
    pub(super) codes: &'a [u8],
    pub(super) grids: &'a [Grid],
    /// Lines of keys.
    pub(super) dim: usize,
    pub(super) form: std::marker::PhantomData<C>,
}

impl<C: Codes> Packed<'_, C> {
    #[inline(always)]
    fn line(&self, index: usize) -> Line {
        let [low, step] = self.grids[index];
        let lanes = C::lanes(&self.codes[index * C::BITS.line()..][..C::BITS.line()]);
        Line { lanes, low: widened(low), step: widened(step) }
    }
}

impl<C: Codes> Block for Packed<'_, C> {
    #[inline(always)]
    fn key(&self, i: usize) -> Line {
        self.line(i)
    }

    #[inline(always)]
    fn value(&self, g: usize, j: usize) -> Line {
        self.line(self.dim + g * BLOCK + j)
    }
}

/// f16 to f32, exactly, without asking for instructions: the exponent's bias differs by 112.
#[inline(always)]
fn widened(half: u16) -> f32 {
    const POWER: f32 = f32::from_bits((112 + 127) << 23);
    let size = f32::from_bits(u32::from(half & 0x7fff) << 13) * POWER;
    f32::from_bits(size.to_bits() | u32::from(half & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_half_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let half = f16::from_bits(bits);
            if half.is_finite() {
                assert_eq!(widened(bits).to_bits(), half.to_f32().to_bits(), "{bits:#x}");
            }
        }
    }

    fn line(bits: CodeBits, numbers: &Lanes) -> Option<Lanes> {
        let (mut codes, mut grids) = (Vec::new(), Vec::new());
        bits.pack(numbers, &mut codes, &mut grids)?;
        assert_eq!((codes.len(), grids.len()), (bits.line(), 1));
        let line = match bits {
            CodeBits::Eight => {
                Packed::<Bytes> { codes: &codes, grids: &grids, dim: 1, form: Default::default() }.key(0)
            }
            CodeBits::Four => {
                Packed::<Nibbles> { codes: &codes, grids: &grids, dim: 1, form: Default::default() }.key(0)
            }
        };
        Some(line.lanes.map(|code| line.low + line.step * code))
    }

    #[test]
    fn numbers_are_off_by_half_a_step_and_the_rounding_of_the_grid() {
        let numbers: Lanes = std::array::from_fn(|i| (i as f32 * 2.3).sin() * 5.0 + 40.0);
        let (least, most) =
            (numbers.iter().copied().fold(f32::MAX, f32::min), numbers.iter().copied().fold(0.0, f32::max));
        for (bits, levels) in [(CodeBits::Eight, 255.0), (CodeBits::Four, 15.0)] {
            let step = (most - least) / levels;
            // f16 has 11 bits: the low end and the span are off by 2⁻¹² of their size.
            let bound = 0.5 * step + (most + (most - least)) / 4096.0;
            for (found, x) in line(bits, &numbers).unwrap().iter().zip(numbers) {
                assert!((found - x).abs() <= bound, "{bits:?} {x} {found} {bound}");
            }
        }
        assert_eq!(line(CodeBits::Four, &[3.5; BLOCK]).unwrap(), [3.5; BLOCK]);
        let grid: Lanes = std::array::from_fn(|i| 0.25 * (i % 16) as f32 - 1.0);
        assert_eq!(line(CodeBits::Four, &grid).unwrap(), grid);
    }

    #[test]
    fn what_no_grid_can_hold_is_refused() {
        for wrong in [f32::NAN, f32::INFINITY, -1e6, 1e8] {
            let mut numbers = [0.0; BLOCK];
            numbers[7] = wrong;
            assert!(line(CodeBits::Four, &numbers).is_none(), "{wrong}");
        }
    }
}
