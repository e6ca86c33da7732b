//! What can be wrong with a recipe, where, and what would be right.

use std::{fmt, path::PathBuf};
use taper_core::Stage;

/// A line of a recipe, and the pass that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The line, from 1.
    pub line: usize,
    /// The pass, where it is within one.
    pub pass: Option<Box<PlacedPass>>,
}

/// A pass of a recipe, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedPass {
    /// Its number, from 1.
    pub number: usize,
    /// Its name; empty where it has none.
    pub name: String,
}

impl Place {
    /// The line of a byte of `text`.
    pub(super) fn at(text: &str, offset: usize) -> Self {
        let before = &text.as_bytes()[..offset.min(text.len())];
        Self { line: 1 + before.iter().filter(|&&b| b == b'\n').count(), pass: None }
    }

    /// The same line, of a pass.
    pub(super) fn of_pass(self, number: usize, name: &str) -> Self {
        Self { pass: Some(Box::new(PlacedPass { number, name: name.to_owned() })), ..self }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.line)?;
        match self.pass.as_deref() {
            Some(pass) if pass.name.is_empty() => write!(f, ", pass {}", pass.number),
            Some(pass) => write!(f, ", pass {} `{}`", pass.number, pass.name),
            None => Ok(()),
        }
    }
}

/// What is wrong with a recipe.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// The file could not be read.
    #[error("recipe `{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },

    /// Neither a file nor a shipped recipe.
    #[error(
        "recipe `{name}` is neither a file nor a shipped recipe{}; `taper recipes` lists those",
        did_you_mean(nearest)
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// The most similar name of a shipped recipe.
        nearest: Option<String>,
    },

    /// What is wrong stands in this file.
    #[error("recipe `{}`, {source}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<RecipeError>,
    },

    /// It is not TOML.
    #[error("{place}: not valid TOML: {message}")]
    Syntax {
        /// Where.
        place: Place,
        /// What the parser said.
        message: String,
    },

    /// It has no passes.
    #[error("it has no passes; add at least one `[[pass]]` with a `name`")]
    Empty,

    /// Passes to run and formats to choose from, in one recipe.
    #[error("{place}: a recipe has passes to run or formats to choose from, not both; remove `{key}`")]
    Both {
        /// Where.
        place: Place,
        /// What stands there too.
        key: &'static str,
    },

    /// A key that nobody knows.
    #[error("{place}: unknown key `{key}`{}; {owner} takes {known}", did_you_mean(nearest))]
    UnknownKey {
        /// Where.
        place: Place,
        /// The key.
        key: String,
        /// Whose key it would be.
        owner: String,
        /// The most similar key that there is.
        nearest: Option<String>,
        /// All keys that there are.
        known: String,
    },

    /// A pass without a name.
    #[error("{place}: a `[[pass]]` needs a `name`, one of {known}")]
    NoName {
        /// Where.
        place: Place,
        /// All names that there are.
        known: String,
    },

    /// A pass that nobody knows.
    #[error("{place}: no such pass{}; passes are {known}", did_you_mean(nearest))]
    UnknownPass {
        /// Where; it has the name.
        place: Place,
        /// The most similar name that there is.
        nearest: Option<String>,
        /// All names that there are.
        known: String,
    },

    /// A value of a wrong type or outside its range.
    #[error("{place}: `{key}` is {found}; expected {expected}")]
    BadValue {
        /// Where.
        place: Place,
        /// The key.
        key: String,
        /// What stands there.
        found: String,
        /// What would be right.
        expected: String,
    },

    /// Options that the pass refuses.
    #[error("{place}: {message}; its options are {known}")]
    BadSettings {
        /// Where.
        place: Place,
        /// What the pass said.
        message: String,
        /// All options that there are.
        known: String,
    },

    /// A pattern that is none.
    #[error("{place}: {source}")]
    BadPattern {
        /// Where.
        place: Place,
        /// What is wrong with it.
        source: Box<taper_core::Error>,
    },

    /// A selection for a pass that cuts along the model's couplings.
    #[error("{place}: takes no `{key}`, because it cuts along the couplings that the architecture declares")]
    NotSelectable {
        /// Where.
        place: Place,
        /// `select` or `exclude`.
        key: String,
    },

    /// Passes in an order that would undo one another.
    #[error(
        "{place} ({stage}) stands after {earlier} ({earlier_stage}); the order is shape, then value, then encode: move it up"
    )]
    OutOfOrder {
        /// The later pass.
        place: Place,
        /// Its stage.
        stage: Stage,
        /// The earlier pass.
        earlier: Place,
        /// Its stage.
        earlier_stage: Stage,
    },
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or_else(String::new, |name| format!(", did you mean `{name}`?"))
}
