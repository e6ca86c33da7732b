//! Importance matrices: what is read is written back to the same bytes, unless it ends as the oldest files do.
#![no_main]

use libfuzzer_sys::fuzz_target;
use taper::stats::importance::Importance;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(read) = Importance::read(bytes) {
        let written = read.to_bytes().expect("what was read can be written");
        assert!(written.starts_with(bytes));
    }
});
