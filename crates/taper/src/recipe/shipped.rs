//! The recipes that come with Taper, by name: `crates/taper/recipes/NAME.toml`.
//!
//! The first line of each says in a comment what it does.

use std::path::Path;

use super::{Recipe, RecipeError, spelling::nearest};

/// A recipe that comes with Taper.
#[derive(Debug, Clone, Copy)]
pub struct Shipped {
    /// Its name: the file's, without `.toml`.
    pub name: &'static str,
    /// The file's text.
    pub text: &'static str,
}

impl Shipped {
    /// What it does, in one line.
    #[must_use]
    pub fn what(&self) -> &'static str {
        self.text.lines().next().unwrap_or_default().trim_start_matches('#').trim()
    }
}

macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        /// All of them, sorted by name.
        pub const ALL: &[Shipped] =
            &[$(Shipped { name: $name, text: include_str!(concat!("../../recipes/", $name, ".toml")) }),*];
    };
}

shipped!(
    "awq-int2-g64",
    "awq-int3-g128",
    "awq-int4-g128",
    "awq-int4-g32",
    "best-2bit",
    "best-3bit",
    "best-4bit",
    "budget",
    "budget-best",
    "budget-trellis",
    "gptaq-int2-g64",
    "gptaq-int3-g128",
    "gptaq-int4-g128",
    "gptaq-int4-g32",
    "gptaq-nf4",
    "gptq-int2-g64",
    "gptq-int3-g128",
    "gptq-int4-g128",
    "gptq-int4-g32",
    "gptq-nf4",
    "hqq-int2-g64",
    "hqq-int3-g128",
    "hqq-int4-g128",
    "hqq-int4-g32",
    "int4",
    "int8",
    "magnitude-50",
    "nf4",
    "rtn-int2-g64",
    "rtn-int3-g128",
    "rtn-int4-g128",
    "rtn-int4-g32",
    "search-int2-g64",
    "search-int3-g128",
    "search-int4-g128",
    "search-int4-g32",
    "smoothquant-w8a8",
    "smoothquant-w8a8-dynamic",
    "structured-25",
    "tuned-int2-g64",
    "tuned-int3-g128",
    "tuned-int4-g128",
    "tuned-int4-g32",
    "two-of-four-int4",
    "w8a8",
    "w8a8-dynamic",
);

/// The recipe of a name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Shipped> {
    ALL.iter().find(|r| r.name == name)
}

impl Recipe {
    /// Reads a recipe by the path of its file, or else the shipped one of this name.
    ///
    /// # Errors
    /// [`RecipeError::Unknown`] where there is neither.
    pub fn find(name: impl AsRef<Path>) -> Result<Self, RecipeError> {
        let path = name.as_ref();
        if path.exists() {
            return Self::open(path);
        }
        let name = path.to_string_lossy();
        if let Some(shipped) = find(&name) {
            return Self::parse(shipped.text);
        }
        let names: Vec<&str> = ALL.iter().map(|r| r.name).collect();
        // What looks like a path was meant as one.
        if path.extension().is_some() || path.components().count() > 1 {
            return Self::open(path);
        }
        Err(RecipeError::Unknown { nearest: nearest(&name, &names), name: name.into_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_shipped_recipe_reads_and_says_what_it_does() {
        for recipe in ALL {
            Recipe::parse(recipe.text).unwrap_or_else(|e| panic!("{}: {e}", recipe.name));
            assert!(
                recipe.text.starts_with("# ") && recipe.what().ends_with(['.', ','])
                    || recipe.what().len() > 20
            );
        }
    }

    #[test]
    fn every_file_of_the_folder_is_shipped() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
        let files: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(files, ALL.iter().map(|r| r.name.to_owned()).collect());
        assert!(ALL.is_sorted_by_key(|r| r.name));
    }

    #[test]
    fn names_and_paths_are_told_apart() {
        assert_eq!(Recipe::find("search-int4-g32").unwrap().pipeline().passes().len(), 1);
        let message = Recipe::find("serch-int4-g32").unwrap_err().to_string();
        assert!(message.contains("did you mean `search-int4-g32`?"), "{message}");
        assert!(matches!(Recipe::find("missing.toml"), Err(RecipeError::Io { .. })));
    }
}
