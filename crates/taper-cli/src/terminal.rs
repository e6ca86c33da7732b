//! How results reach standard output: a text for people or one JSON object, never both.

use serde::Serialize;
use std::io::{self, Write};

use crate::failure::Failure;

/// What standard output is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Terminal {
    /// Texts for people.
    Text,
    /// One JSON object.
    Json,
}

impl Terminal {
    pub(crate) fn new(json: bool) -> Self {
        if json { Self::Json } else { Self::Text }
    }

    /// The result of a command: `object` as JSON, or `text`.
    pub(crate) fn show(self, object: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
        let mut shown = match self {
            Self::Text => text(),
            Self::Json => serde_json::to_string(object).map_err(taper::Error::other)?,
        };
        if !shown.ends_with('\n') {
            shown.push('\n');
        }
        self.write(&shown)
    }

    /// A piece of the result of a command that shows it as it comes; nothing in JSON.
    pub(crate) fn piece(self, text: &str) -> Result<(), Failure> {
        if self == Self::Text { self.write(text) } else { Ok(()) }
    }

    fn write(self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::Output)
    }

    /// A remark for people, on standard error; nothing in JSON.
    pub(crate) fn note(self, text: &str) {
        if self == Self::Text {
            // Nobody listens to standard error: then nobody misses the remark.
            drop(writeln!(io::stderr(), "{text}"));
        }
    }

    /// The end of a command that failed.
    pub(crate) fn fail(self, failure: &Failure) {
        if failure.is_closed_output() {
            return;
        }
        drop(writeln!(io::stderr(), "error: {failure}"));
        if self == Self::Json {
            self.error_object(&failure.to_string());
        }
    }

    /// `{"error": …}` on standard output.
    pub(crate) fn error_object(self, message: &str) {
        drop(writeln!(io::stdout(), "{}", serde_json::json!({ "error": message })));
    }
}
