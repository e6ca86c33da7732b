//! The journal of an unfinished run: a valid one, damaged, or arbitrary bytes after its first line.
#![no_main]

use libfuzzer_sys::{arbitrary::Unstructured, fuzz_target};
use taper_fuzz::{Result, unfinished::Unfinished};

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    let unfinished = Unfinished::get();
    let journal = if !input.ratio(7, 8)? {
        [unfinished.first_line(), input.bytes(input.len())?].concat()
    } else {
        unfinished.damaged_journal(input)?
    };
    unfinished.resume(&journal);
    Ok(())
}

fuzz_target!(|bytes: &[u8]| {
    // Input that ends early is no failure.
    let _ = run(&mut Unstructured::new(bytes));
});
