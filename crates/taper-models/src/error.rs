//! Everything that can go wrong here besides what core already names.
//!
//! Models read their `config.json` and weights with core's errors ([`taper_core::Error::BadConfig`] and its like).
//! Tokenizing, generating and judging have the errors below. Each converts into the other, so `?` works both ways.

use std::path::PathBuf;

/// The result of tokenizing, generating and judging.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What failed, and what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of core, unchanged.
    #[error(transparent)]
    Core(#[from] taper_core::Error),

    /// A tokenizer file is missing or does not parse.
    #[error("`{}` is not a readable tokenizer: {message}; a `tokenizer.json` is needed", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },

    /// A text could not be encoded, or tokens not decoded.
    #[error("{operation}: {message}")]
    Tokenize {
        /// What was asked for.
        operation: &'static str,
        /// What the tokenizer said.
        message: String,
    },

    /// A text that does not fill one window.
    #[error(
        "the text has {tokens} tokens, less than one window of {window}; give a longer text or a smaller window"
    )]
    TextTooShort {
        /// Tokens in the text.
        tokens: usize,
        /// Tokens asked for per window.
        window: usize,
    },

    /// A model's output of another shape than the judge expects.
    #[error("the model gave {what} of shape {found:?}, expected {expected}")]
    BadOutput {
        /// What the model gave.
        what: &'static str,
        /// What was expected.
        expected: String,
        /// The shape found.
        found: Vec<usize>,
    },

    /// A model gave values that are NaN or infinite.
    #[error("the model gave {what} that are not finite at {place}; a damaged checkpoint does that")]
    NotFinite {
        /// What the model gave.
        what: &'static str,
        /// Where: which window, sentence or step.
        place: String,
    },

    /// A file of test data does not hold what it should.
    #[error("`{}`: {message}", path.display())]
    BadData {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        message: String,
    },

    /// Too little to compute a figure from.
    #[error("{figure} of {found} {what}; at least {least} are needed")]
    TooFew {
        /// The figure.
        figure: &'static str,
        /// What is counted.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many are needed.
        least: usize,
    },

    /// A model of another kind than the task needs.
    #[error("the checkpoint holds a {found}, the task needs a {needed}")]
    WrongKind {
        /// What the checkpoint holds.
        found: &'static str,
        /// What the task needs.
        needed: &'static str,
    },
}

impl Error {
    /// An error about a file of test data.
    pub(crate) fn bad_data(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self::BadData { path: path.into(), message: message.into() }
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Core(error.into())
    }
}

impl From<Error> for taper_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Core(inner) => inner,
            other => taper_core::Error::other(other),
        }
    }
}
