//! Arrays of `taper-trellis`: rates by column, segments, signs.
#![no_main]

use libfuzzer_sys::{arbitrary::Unstructured, fuzz_target};
use taper::quant::codec::TaperTrellis;
use taper_fuzz::{Result, foreign, read};

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    let parts = foreign::trellis(input)?;
    read::damaged(&TaperTrellis, parts, input)
}

fuzz_target!(|bytes: &[u8]| {
    // Input that ends early is no failure.
    let _ = run(&mut Unstructured::new(bytes));
});
