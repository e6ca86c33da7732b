//! Arrays of compressed-tensors: `pack-quantized` and `int-quantized`.
#![no_main]

use libfuzzer_sys::{arbitrary::Unstructured, fuzz_target};
use taper::quant::{
    IntLayout,
    codec::{IntQuantized, PackQuantized},
};
use taper_fuzz::{Result, foreign, read};

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    if input.ratio(3, 4)? {
        let parts = foreign::int(IntLayout::PackQuantized, input)?;
        return read::damaged(&PackQuantized, parts, input);
    }
    let parts = foreign::int(IntLayout::IntQuantized, input)?;
    read::damaged(&IntQuantized, parts, input)
}

fuzz_target!(|bytes: &[u8]| {
    // Input that ends early is no failure.
    let _ = run(&mut Unstructured::new(bytes));
});
