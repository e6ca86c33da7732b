//! `config.json` of a Llama: a valid one, damaged; then the model is built over weights that may not fit it.
#![no_main]

use libfuzzer_sys::{arbitrary::Unstructured, fuzz_target};
use serde_json::{Value, from_slice};
use taper::{bundled, models::LlamaConfig};
use taper_fuzz::{Result, damage, put, scratch};

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    let (_, text) = bundled::FILES[0];
    let mut config: Value = from_slice(text).expect("the bundled config is JSON");
    while !input.is_empty() {
        damage::json(&mut config, input)?;
    }
    if let Some(keys) = config.as_object() {
        drop(LlamaConfig::from_json(keys));
    }
    put("config.json", config.to_string());
    if let Ok(checkpoint) = taper::open(scratch()) {
        drop(taper::build(&checkpoint));
    }
    Ok(())
}

fuzz_target!(init: put("model.safetensors", bundled::FILES[1].1), |bytes: &[u8]| {
    // Input that ends early is no failure.
    let _ = run(&mut Unstructured::new(bytes));
});
