//! `quantization_config` of foreign checkpoints: valid ones, damaged, or arbitrary JSON, with all arrays present.
#![no_main]

use libfuzzer_sys::{arbitrary::Unstructured, fuzz_target};
use serde_json::json;
use std::sync::OnceLock;
use taper_fuzz::{Result, damage, foreign, put, read, scratch};

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    static CHECKPOINTS: OnceLock<Vec<foreign::Foreign>> = OnceLock::new();
    let foreign = input.choose(CHECKPOINTS.get_or_init(foreign::checkpoints))?;
    let mut config = foreign.config.clone();
    let whole = input.is_empty();
    if !input.ratio(7, 8)? {
        config = serde_json::from_slice(input.bytes(input.len())?).unwrap_or_default();
    }
    while !input.is_empty() {
        damage::json(&mut config, input)?;
    }
    put("model.safetensors", &foreign.file);
    put("config.json", json!({ "quantization_config": config }).to_string());
    let read = read::directory(scratch());
    assert!(!whole || read == 1, "what nobody damaged can be read");
    Ok(())
}

fuzz_target!(|bytes: &[u8]| {
    let _ = run(&mut Unstructured::new(bytes));
});
