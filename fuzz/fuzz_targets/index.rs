//! `model.safetensors.index.json`: a valid one, damaged, or arbitrary bytes.
#![no_main]

use libfuzzer_sys::{arbitrary::Unstructured, fuzz_target};
use serde_json::json;
use taper_fuzz::{Result, damage, foreign, put, read, scratch};

const NAMES: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    let whole = input.is_empty();
    let mut index = json!({ "metadata": { "total_size": 80 }, "weight_map": {
        "a.weight.codes": NAMES[0], "a.weight.scale": NAMES[0], "b.weight": NAMES[0], "c.weight": NAMES[1],
    }});
    if !input.ratio(7, 8)? {
        put("model.safetensors.index.json", input.bytes(input.len())?);
    } else {
        while !input.is_empty() {
            damage::json(&mut index, input)?;
        }
        put("model.safetensors.index.json", index.to_string());
    }
    let read = read::directory(scratch());
    assert!(!whole || read == 3, "what nobody damaged can be read");
    Ok(())
}

fn shards() {
    let header = r#"{"c.weight":{"dtype":"F32","shape":[10],"data_offsets":[0,40]}}"#;
    put("config.json", "{}");
    put(NAMES[0], foreign::valid_file());
    put(NAMES[1], foreign::framed(header.as_bytes(), foreign::DATA));
}

fuzz_target!(init: shards(), |bytes: &[u8]| {
    let _ = run(&mut Unstructured::new(bytes));
});
