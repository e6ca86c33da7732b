//! Arrays of bitsandbytes: NF4 with plain and double quantized scales, and int8.
#![no_main]

use libfuzzer_sys::{arbitrary::Unstructured, fuzz_target};
use taper::quant::{
    IntLayout, Nf4Scheme,
    codec::{BitsAndBytesInt8, BitsAndBytesNf4},
};
use taper_fuzz::{Result, foreign, read};

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    if input.ratio(1, 4)? {
        let parts = foreign::int(IntLayout::BitsAndBytes, input)?;
        return read::damaged(&BitsAndBytesInt8, parts, input);
    }
    let shape = [input.int_in_range(1..=9)?, input.int_in_range(1..=40)?];
    let plain = Nf4Scheme::new(input.int_in_range(1..=70)?).expect("a block");
    let scheme = if input.arbitrary()? { plain.double_quant() } else { plain };
    read::damaged(&BitsAndBytesNf4, foreign::nf4(&shape, scheme), input)
}

fuzz_target!(|bytes: &[u8]| {
    // Input that ends early is no failure.
    let _ = run(&mut Unstructured::new(bytes));
});
