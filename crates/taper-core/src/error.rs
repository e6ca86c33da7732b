//! Everything that can go wrong in core, as one enum with fields.
//!
//! Wording: lower case, names in backticks, what failed, then what would be right. Sibling crates have an
//! enum of their own and pass through here as [`Error::Other`].

use std::path::PathBuf;

/// The result of everything in core.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What failed, and what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of candle; shown without the backtrace that candle attaches where `RUST_BACKTRACE` is set.
    #[error("{}", without_backtrace(.0))]
    Candle(#[from] candle_core::Error),

    /// A file could not be read or written.
    #[error("`{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },

    /// A JSON file does not parse, or lacks something.
    #[error("`{}`: {message}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },

    /// A file does not hold what its format promises.
    #[error("`{}` is not a valid safetensors file: {message}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },

    /// No checkpoint is where one was expected.
    #[error("`{}` holds no checkpoint: {message}", path.display())]
    NoCheckpoint {
        /// The directory.
        path: PathBuf,
        /// What was looked for.
        message: String,
    },

    /// A weight's stored parts contradict its encoding.
    #[error("weight `{weight}` stored as `{codec}`: {message}")]
    BadParts {
        /// The weight.
        weight: String,
        /// The encoding that refused it.
        codec: String,
        /// What is wrong.
        message: String,
    },

    /// A weight's encoding has no reader here.
    #[error(
        "weight `{weight}` is stored as `{codec}`, which no registered codec reads (known: {known}); open it with the codecs of the crate that wrote it"
    )]
    UnknownCodec {
        /// The weight.
        weight: String,
        /// The encoding's id.
        codec: String,
        /// What is registered.
        known: String,
    },

    /// A name that is not in the checkpoint.
    #[error("no weight `{name}` in the checkpoint{}", suggestions(.nearest))]
    MissingWeight {
        /// What was asked for.
        name: String,
        /// The most similar names there are.
        nearest: Vec<String>,
    },

    /// A weight of another shape than the model asks for.
    #[error("weight `{name}` has shape {found:?}, the model asks for {expected:?}")]
    ShapeMismatch {
        /// The weight.
        name: String,
        /// What the model asks for.
        expected: Vec<usize>,
        /// What is stored.
        found: Vec<usize>,
    },

    /// An operation that this weight's shape or type does not allow.
    #[error("{operation} of a weight of shape {shape:?} ({format}): {message}")]
    Unsupported {
        /// What was asked for.
        operation: &'static str,
        /// The weight's logical shape.
        shape: Vec<usize>,
        /// The weight's encoding, for people.
        format: String,
        /// What would be right.
        message: String,
    },

    /// A pattern that does not parse.
    #[error("pattern `{pattern}`: {message}")]
    BadPattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        message: String,
    },

    /// A pass selected nothing.
    #[error(
        "pass `{pass}` selects no weight with {select}; the checkpoint has {weights} weights, such as {examples}"
    )]
    NothingSelected {
        /// The pass.
        pass: String,
        /// Its selector.
        select: String,
        /// How many weights there are.
        weights: usize,
        /// A few of their names.
        examples: String,
    },

    /// Passes in an order that would undo one another.
    #[error(
        "pass `{second}` ({second_stage}) stands after `{first}` ({first_stage}); the order is shape, then value, then encode: put `{second}` before `{first}`"
    )]
    OutOfOrder {
        /// The earlier pass.
        first: String,
        /// Its stage.
        first_stage: crate::Stage,
        /// The later pass, which belongs before it.
        second: String,
        /// Its stage.
        second_stage: crate::Stage,
    },

    /// A pipeline without passes.
    #[error("the pipeline has no passes; add at least one with `.then(pass)`")]
    EmptyPipeline,

    /// A pass needs calibration that the run does not have.
    #[error(
        "pass `{pass}` needs {needs} and the run has none; calibrate with `Run::with_calibration`, or give saved statistics with `Run::with_stats`"
    )]
    NeedsStats {
        /// The pass.
        pass: String,
        /// What it needs.
        needs: crate::Needs,
    },

    /// A pass would use statistics of inputs that an earlier pass has scaled or turned.
    #[error(
        "pass `{pass}` needs {needs}, but `{changer}` before it changes the coordinates of inputs, so statistics from before are of something else; run up to `{changer}` first, calibrate its result, then run the rest"
    )]
    StaleStats {
        /// The pass that changes coordinates.
        changer: String,
        /// The later pass.
        pass: String,
        /// What it needs.
        needs: crate::Needs,
    },

    /// A pass failed on a weight.
    #[error("pass `{pass}`, weight `{weight}`: {source}")]
    Pass {
        /// The pass.
        pass: String,
        /// The weight, or `*` where the pass looks at the whole checkpoint.
        weight: String,
        /// What failed.
        source: Box<Error>,
    },

    /// A pass broke one of the rules that every pass must keep.
    #[error("pass `{pass}` broke a rule at weight `{weight}`: {rule}")]
    RuleBroken {
        /// The pass.
        pass: String,
        /// The weight.
        weight: String,
        /// The rule and how it was broken.
        rule: String,
    },

    /// A weight has NaN or infinite values.
    #[error(
        "weight `{weight}` has {count} values that are not finite, the first at index {first}; repair the checkpoint or exclude the weight"
    )]
    NotFinite {
        /// The weight.
        weight: String,
        /// How many values are NaN or infinite.
        count: usize,
        /// The flat index of the first.
        first: usize,
    },

    /// Too little was compressed.
    #[error(
        "the run compressed {reached:.1} % of the eligible bytes, less than the floor of {floor:.1} %: {left}"
    )]
    CoverageTooLow {
        /// Percent reached.
        reached: f64,
        /// Percent asked for.
        floor: f64,
        /// What was left, and why.
        left: String,
    },

    /// Every selected weight was left as it is.
    #[error("no weight was changed: {left}; select other weights, or begin with another checkpoint")]
    NothingChanged {
        /// Some of the weights, and why each stays.
        left: String,
    },

    /// An exclusion matches no weight.
    #[error(
        "pass `{pass}`: nothing is called `{pattern}`, which it excludes; the checkpoint has {weights} weights, such as {examples}"
    )]
    NothingExcluded {
        /// The pass.
        pass: String,
        /// The pattern.
        pattern: String,
        /// How many weights there are.
        weights: usize,
        /// Some of their names.
        examples: String,
    },

    /// The output is already there.
    #[error("`{}` exists already; choose another output directory or remove it", path.display())]
    OutputExists {
        /// The directory.
        path: PathBuf,
    },

    /// An unfinished run stands in the way.
    #[error(
        "`{}` holds an unfinished run; continue it with resume, or remove that directory to start afresh",
        path.display()
    )]
    UnfinishedRun {
        /// The partial directory.
        path: PathBuf,
    },

    /// There is nothing to resume.
    #[error("nothing to resume: `{}` does not exist; run without resume", path.display())]
    NothingToResume {
        /// The partial directory that was looked for.
        path: PathBuf,
    },

    /// The unfinished run was another run.
    #[error(
        "the unfinished run in `{}` had another {what}; remove that directory to start afresh",
        path.display()
    )]
    ResumeMismatch {
        /// The partial directory.
        path: PathBuf,
        /// What differs.
        what: String,
    },

    /// Somebody asked to stop.
    #[error("cancelled")]
    Cancelled,

    /// Statistics that contradict themselves or the model.
    #[error("statistics of `{site}`: {message}")]
    Stats {
        /// The layer.
        site: String,
        /// What is wrong.
        message: String,
    },

    /// An option outside its range.
    #[error("`{option}` is {value}; {expected}")]
    BadOption {
        /// The option.
        option: String,
        /// Its value.
        value: String,
        /// What would be right.
        expected: String,
    },

    /// A model's configuration lacks something or asks for something that is not built.
    #[error("config `{key}`: {message}")]
    BadConfig {
        /// The key.
        key: String,
        /// What is wrong, and what would be right.
        message: String,
    },

    /// An error of another crate.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

fn without_backtrace(error: &candle_core::Error) -> String {
    let text = error.to_string();
    text.split("\n   0: ").next().unwrap_or_default().trim_end().to_owned()
}

fn suggestions(names: &[String]) -> String {
    if names.is_empty() {
        return String::new();
    }
    let quoted: Vec<String> = names.iter().map(|n| format!("`{n}`")).collect();
    format!("; nearest: {}", quoted.join(", "))
}

impl Error {
    /// Wraps an error of a sibling crate or of a user's pass.
    pub fn other(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Other(Box::new(source))
    }

    /// An option outside its range: its name, its value, and what would be right.
    pub fn bad_option(option: impl Into<String>, value: impl ToString, expected: impl Into<String>) -> Self {
        Self::BadOption { option: option.into(), value: value.to_string(), expected: expected.into() }
    }

    /// A file error with its path.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// Names the pass and the weight that an error arose at.
    #[must_use]
    pub fn in_pass(self, pass: &str, weight: &str) -> Self {
        match self {
            // Cancelling is nobody's fault, and an error already placed keeps its place.
            Self::Cancelled | Self::Pass { .. } | Self::RuleBroken { .. } => self,
            other => Self::Pass { pass: pass.to_owned(), weight: weight.to_owned(), source: Box::new(other) },
        }
    }

    /// True where somebody asked the work to stop, however deep that happened.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        match self {
            Self::Cancelled => true,
            Self::Pass { source, .. } => source.is_cancelled(),
            _ => false,
        }
    }
}

/// Lets a Taper layer stand where candle expects its own: the error keeps its type inside
/// `candle_core::Error::WrappedContext`, so that a caller can downcast it again.
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(inner) => inner,
            other => {
                let context = other.to_string();
                candle_core::Error::WrappedContext { wrapped: Box::new(other), context }
            }
        }
    }
}
