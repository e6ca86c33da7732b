//! `model.safetensors`: a valid header, damaged; or arbitrary bytes, bare or with a length before them that fits.
#![no_main]

use libfuzzer_sys::{arbitrary::Unstructured, fuzz_target};
use taper_fuzz::{Result, damage, foreign, put, read, scratch};

fn file(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let values = vec![1; input.arbitrary::<u8>()?.into()];
    match input.int_in_range(0..=9)? {
        9 => Ok(input.bytes(input.len())?.to_vec()),
        8 => Ok(foreign::framed(input.bytes(input.len())?, &values)),
        _ => {
            let (mut header, mut ours) = foreign::header();
            while !input.is_empty() {
                damage::json(if input.arbitrary()? { &mut header } else { &mut ours }, input)?;
            }
            Ok(foreign::file(header, &ours))
        }
    }
}

fuzz_target!(init: put("config.json", "{}"), |bytes: &[u8]| {
    if let Ok(file) = file(&mut Unstructured::new(bytes)) {
        put("model.safetensors", file);
        let read = read::directory(scratch());
        assert!(!bytes.is_empty() || read == 2, "what nobody damaged can be read");
    }
});
