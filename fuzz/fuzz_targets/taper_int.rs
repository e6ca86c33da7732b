//! Arrays of `taper-int`: short last groups, convolutions.
#![no_main]

use libfuzzer_sys::{arbitrary::Unstructured, fuzz_target};
use taper::quant::{IntLayout, codec::TaperInt};
use taper_fuzz::{Result, foreign, read};

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    let parts = foreign::int(IntLayout::Taper, input)?;
    read::damaged(&TaperInt, parts, input)
}

fuzz_target!(|bytes: &[u8]| {
    // Input that ends early is no failure.
    let _ = run(&mut Unstructured::new(bytes));
});
