//! The model, the text and the recipes that come with Taper, so that it can be tried without downloading anything.
//!
//! The model is a Llama of 1.3 million parameters in bf16, trained for this project on 18 English novels; it and the text,
//! a chapter in their manner that it never saw, are in the public domain (CC0).

use std::{io, path::Path};

/// The files of the model directory.
pub const FILES: [(&str, &[u8]); 4] = [
    ("config.json", include_bytes!("../assets/novels-1m/config.json")),
    ("model.safetensors", include_bytes!("../assets/novels-1m/model.safetensors")),
    ("tokenizer.json", include_bytes!("../assets/novels-1m/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../assets/novels-1m/tokenizer_config.json")),
];

/// A chapter of 12 kB that the model never saw: what `taper demo` measures perplexity on.
pub const TEXT: &str = include_str!("../assets/evening.txt");

/// Recipes that suit it, by name: what `taper demo` shows.
pub const RECIPES: [(&str, &str); 6] = [
    ("int8", include_str!("../recipes/int8.toml")),
    ("int4", include_str!("../recipes/int4.toml")),
    ("nf4", include_str!("../recipes/nf4.toml")),
    ("two-of-four-int4", include_str!("../recipes/two-of-four-int4.toml")),
    ("magnitude-50", include_str!("../recipes/magnitude-50.toml")),
    ("structured-25", include_str!("../recipes/structured-25.toml")),
];

/// Writes the model directory `dir`, which is made where it does not exist.
///
/// Errors where a file cannot be written, or is there already: nothing is overwritten.
pub fn write_to(dir: impl AsRef<Path>) -> io::Result<()> {
    let dir = dir.as_ref();
    std::fs::create_dir_all(dir)?;
    for (name, bytes) in FILES {
        let mut file = std::fs::File::create_new(dir.join(name))?;
        io::Write::write_all(&mut file, bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_directory_is_whole_and_never_overwritten() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let model = dir.path().join("model");
        write_to(&model)?;
        for (name, bytes) in FILES {
            assert_eq!(std::fs::read(model.join(name))?, bytes);
        }
        assert_eq!(write_to(&model).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        Ok(())
    }
}
