//! What can go wrong in the command, and the exit status of each.

use std::path::PathBuf;
use taper::{Error, RecipeError, models};

/// What failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// An error of the library.
    #[error(transparent)]
    Core(#[from] Error),

    /// Tokenizing, generating or judging failed.
    #[error(transparent)]
    Models(#[from] models::Error),

    /// The recipe is wrong.
    #[error(transparent)]
    Recipe(Box<RecipeError>),

    /// A file of the command's own could not be read or written.
    #[error("`{}`: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },

    /// Standard output could not be written.
    #[error("standard output: {0}")]
    Output(std::io::Error),

    /// Two options that do not fit, which the parser cannot tell.
    #[error("{0}")]
    Usage(String),

    /// Ctrl-C, and what can be done now.
    #[error("cancelled{0}")]
    Cancelled(String),

    /// A panic somewhere: a bug.
    #[error("internal error, please report it: {0}")]
    Bug(String),
}

impl Failure {
    /// A file error with its path.
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }

    /// True where somebody asked to stop.
    pub(crate) fn is_cancelled(&self) -> bool {
        match self {
            Self::Cancelled(_) => true,
            Self::Core(error) | Self::Models(models::Error::Core(error)) => error.is_cancelled(),
            _ => false,
        }
    }

    /// True where the reader of standard output has left, as `taper inspect … | head` does.
    pub(crate) fn is_closed_output(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
    }

    /// 0 where the reader has what it wanted, 1 for an error, 2 for wrong usage, 130 where cancelled.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            _ if self.is_cancelled() => 130,
            _ if self.is_closed_output() => 0,
            _ => 1,
        }
    }
}

impl From<RecipeError> for Failure {
    fn from(error: RecipeError) -> Self {
        Self::Recipe(Box::new(error))
    }
}
