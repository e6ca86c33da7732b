//! Everything that can go wrong with a loss, as one enum with fields.
//!
//! Wording: lower case, names in backticks, what failed, then what would be right.

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What failed, and what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of candle, unchanged.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),

    /// A tensor of a rank that the loss does not take.
    #[error("`{what}` has shape {found:?}; expected {expected}")]
    Rank {
        /// The tensor.
        what: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// What would be right.
        expected: &'static str,
    },

    /// Two tensors that do not belong together.
    #[error("`{first}` has shape {first_shape:?} and `{second}` {second_shape:?}; {rule}")]
    Shapes {
        /// One tensor.
        first: &'static str,
        /// Its shape.
        first_shape: Vec<usize>,
        /// The other.
        second: &'static str,
        /// Its shape.
        second_shape: Vec<usize>,
        /// The rule that they break.
        rule: String,
    },

    /// Student and teacher have different numbers of classes.
    #[error(
        "student logits have {student} classes and teacher logits {teacher}; where the extra ids are only padding, cut both with `Vocabulary::Truncate({})` or the true vocabulary size", student.min(teacher)
    )]
    VocabularyMismatch {
        /// The student's number of classes.
        student: usize,
        /// The teacher's number of classes.
        teacher: usize,
    },

    /// A vocabulary that is cut to more classes than it has.
    #[error("`Vocabulary::Truncate({truncate})` asks for more classes than {whose} logits have ({classes})")]
    VocabularyTooSmall {
        /// `student` or `teacher`.
        whose: &'static str,
        /// How many classes there are.
        classes: usize,
        /// How many were asked for.
        truncate: usize,
    },

    /// A tensor of a type that no loss can be computed in.
    #[error("`{what}` is {dtype:?}; expected {expected}")]
    DType {
        /// The tensor.
        what: &'static str,
        /// Its type.
        dtype: candle_core::DType,
        /// What would be right.
        expected: &'static str,
    },

    /// A label that is neither a class nor the ignore index.
    #[error(
        "label {label} of row {row} is no class; expected 0..{classes}, or -100 for a row that does not count"
    )]
    LabelOutOfRange {
        /// The flat index of the row.
        row: usize,
        /// The label.
        label: i64,
        /// The number of classes after cutting the vocabulary.
        classes: usize,
    },

    /// A label that a model excludes with a logit of −∞.
    #[error(
        "the label of counted row {row} has logit -inf in {whose}, so its loss is infinite; unmask that class or ignore the row (-100)"
    )]
    ImpossibleLabel {
        /// The index among the rows that count.
        row: usize,
        /// Whose logits exclude it.
        whose: &'static str,
    },

    /// A row in which every class is −∞ in one of the models.
    #[error(
        "counted row {row} has no class with finite logits in {whose}; ignore the row (-100) or repair the mask"
    )]
    NoSupport {
        /// The index among the rows that count.
        row: usize,
        /// Whose logits leave nothing.
        whose: &'static str,
    },

    /// An input that a term needs and the caller did not give.
    #[error("{what} missing; {remedy}")]
    Missing {
        /// What is missing.
        what: String,
        /// How to give it.
        remedy: String,
    },

    /// An option outside its range.
    #[error("`{option}` is {value}; expected {expected}")]
    BadOption {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        expected: &'static str,
    },

    /// An objective that cannot be evaluated as it was put together.
    #[error("objective: {message}")]
    Objective {
        /// What is wrong, and what would be right.
        message: String,
    },

    /// A term failed.
    #[error("term `{term}`: {source}")]
    Term {
        /// The term.
        term: String,
        /// What failed.
        source: Box<Error>,
    },

    /// A term is NaN or infinite.
    #[error("term `{term}` is {value}; look for NaN or infinite values in what it is computed from")]
    NotFinite {
        /// The term.
        term: String,
        /// Its value.
        value: f64,
    },

    /// Trainable variables that the backward pass did not reach.
    #[error(
        "{} of {total} trainable variables got no gradient: {}; an operation without a backward pass (fused softmax, norm or rope, rounding, detach) stands between them and the loss, or the model does not use them",
        missing.len(), quoted(missing)
    )]
    NoGradient {
        /// Their names, in the order given.
        missing: Vec<String>,
        /// How many variables were checked.
        total: usize,
    },
}

fn quoted(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

impl Error {
    /// Names the term that an error arose in.
    #[must_use]
    pub fn in_term(self, term: &str) -> Self {
        Self::Term { term: term.to_owned(), source: Box::new(self) }
    }

    pub(crate) fn rank(what: &'static str, found: &[usize], expected: &'static str) -> Self {
        Self::Rank { what, found: found.to_vec(), expected }
    }

    pub(crate) fn shapes(
        (first, first_shape): (&'static str, &[usize]),
        (second, second_shape): (&'static str, &[usize]),
        rule: impl Into<String>,
    ) -> Self {
        let (first_shape, second_shape) = (first_shape.to_vec(), second_shape.to_vec());
        Self::Shapes { first, first_shape, second, second_shape, rule: rule.into() }
    }

    pub(crate) fn bad_option(option: &'static str, value: impl ToString, expected: &'static str) -> Self {
        Self::BadOption { option, value: value.to_string(), expected }
    }

    pub(crate) fn missing(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Missing { what: what.into(), remedy: remedy.into() }
    }
}

/// Lets a loss stand where core expects its own errors, such as in a pass that trains.
impl From<Error> for taper_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(inner) => Self::Candle(inner),
            other => Self::other(other),
        }
    }
}
