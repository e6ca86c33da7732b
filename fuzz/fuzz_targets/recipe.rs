//! Recipes: arbitrary TOML.
#![no_main]

use libfuzzer_sys::fuzz_target;
use taper::Recipe;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        match Recipe::parse(text) {
            Ok(recipe) => assert!(!recipe.pipeline().recipe().is_null()),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
});
