//! Arrays of sparse weights.
#![no_main]

use libfuzzer_sys::{arbitrary::Unstructured, fuzz_target};
use taper::{candle::DType, prune::codec::BitmaskCodec};
use taper_fuzz::{Result, foreign, read};

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    let shape = [input.int_in_range(1..=9)?, input.int_in_range(1..=40)?];
    let dtype = *input.choose(&[DType::F32, DType::F16, DType::BF16])?;
    read::damaged(&BitmaskCodec, foreign::bitmask(&shape, dtype), input)
}

fuzz_target!(|bytes: &[u8]| {
    // Input that ends early is no failure.
    let _ = run(&mut Unstructured::new(bytes));
});
