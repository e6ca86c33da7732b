//! Student and teacher logits, checked and prepared once, then shared by every loss over them.
//!
//! ```text
//! [.., V_s], [.., V_t]  ─ cut vocabulary ─ align with labels ─ drop ignored rows ─ widen ─▶ [n, V], [n, V]
//! ```
//!
//! A logit of −∞, or at most −1e30 as masks of `f32::MIN` are, excludes a class (padded vocabulary entries, constrained decoding). Losses that compare the two
//! models look at the classes that *both* allow, and both distributions are renormalised over those; an excluded
//! class adds nothing to the value and gets a gradient of exactly zero. Neighbours: `labels`, `log_space`, `loss`.

use crate::{
    Error, Result, Temperature,
    labels::{classes_of, counted, read_labels, select_rows},
    log_space::{FLOOR, floor_where, log_softmax},
    precision::working_dtype,
};
use candle_core::{D, DType, Tensor};

/// How many classes the two models have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Vocabulary {
    /// Student and teacher have the same number of classes; anything else is an error.
    #[default]
    Equal,
    /// Ids from this one on are padding in both models and are cut off before the softmax.
    Truncate(usize),
}

/// Which label judges which position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Alignment {
    /// Logits at position i belong to label i.
    #[default]
    SamePosition,
    /// Logits at position i predict label i + 1, as in language models: the last position
    /// of the logits [batch, sequence, V] and the first label [batch, sequence] are dropped.
    NextToken,
}

/// What to prepare; made by [`Logits::of`].
#[derive(Debug, Clone)]
#[must_use = "call `prepare` to check and prepare the logits"]
pub struct LogitsBuilder {
    student: Tensor,
    teacher: Option<Tensor>,
    labels: Option<Tensor>,
    vocabulary: Vocabulary,
    alignment: Alignment,
}

/// Checked logits of the rows that count.
#[derive(Debug, Clone)]
pub struct Logits {
    given: Tensor,
    rows: usize,
    student: Tensor,
    teacher: Option<Tensor>,
    targets: Option<Tensor>,
    student_excluded: Option<Tensor>,
    excluded: Option<Tensor>,
}

impl LogitsBuilder {
    /// The teacher's logits, of the student's shape (but for padding of the last dimension). They are detached.
    pub fn teacher(mut self, teacher: &Tensor) -> Self {
        self.teacher = Some(teacher.detach());
        self
    }

    /// Integer labels, one per row of the logits; -100 marks rows that do not count.
    pub fn labels(mut self, labels: &Tensor) -> Self {
        self.labels = Some(labels.clone());
        self
    }

    /// How many classes the two models have in common.
    pub fn vocabulary(mut self, vocabulary: Vocabulary) -> Self {
        self.vocabulary = vocabulary;
        self
    }

    /// Which label judges which position.
    pub fn alignment(mut self, alignment: Alignment) -> Self {
        self.alignment = alignment;
        self
    }

    /// Checks and prepares. Reads the labels to the host, and two flags per model where the logits hold −∞.
    ///
    /// # Errors
    /// Shapes that do not match, vocabularies of unequal size without [`Vocabulary::Truncate`], labels that are
    /// no class, types that are not floating point, rows in which no class is left.
    pub fn prepare(self) -> Result<Logits> {
        let given = self.student.clone();
        let (student, teacher) = self.cut()?;
        let (student, teacher, labels) = self.aligned(student, teacher)?;
        let (leading, classes) = leading_and_last(&student);
        let labels = labels.map(|labels| read_labels(&labels, "student logits without classes", leading));
        let labels = labels.transpose()?;

        let all = leading.iter().product::<usize>();
        let kept = labels.as_deref().map_or_else(|| (0..all as u32).collect(), counted);
        let targets = labels.as_deref().map(|labels| classes_of(labels, classes)).transpose()?;
        let dtype = working_dtype("student logits", &student)?;
        let device = student.device().clone();
        if kept.is_empty() {
            return Ok(Logits::without_rows(given, student, teacher, targets.is_some()));
        }

        let rows_of = |x: &Tensor| -> Result<Tensor> {
            Ok(select_rows(&x.reshape((all, classes))?, &kept, &device)?.to_dtype(dtype)?)
        };
        let student = rows_of(&student)?;
        let teacher = teacher.as_ref().map(rows_of).transpose()?;
        let targets = targets.map(|targets| Tensor::new(targets, &device)).transpose()?;
        Logits { given, rows: kept.len(), student, teacher, targets, student_excluded: None, excluded: None }
            .with_exclusions()
    }

    /// Both logits, cut to the common vocabulary.
    fn cut(&self) -> Result<(Tensor, Option<Tensor>)> {
        let student = truncated("student", &self.student, self.vocabulary)?;
        let Some(teacher) = &self.teacher else { return Ok((student, None)) };
        let teacher = truncated("teacher", teacher, self.vocabulary)?;
        working_dtype("teacher logits", &teacher)?;
        let ((rows, v_student), (rows_teacher, v_teacher)) =
            (leading_and_last(&student), leading_and_last(&teacher));
        if rows != rows_teacher {
            return Err(Error::shapes(
                ("student logits", self.student.dims()),
                ("teacher logits", teacher.dims()),
                "all dimensions but the last must be equal",
            ));
        }
        if v_student != v_teacher {
            return Err(Error::VocabularyMismatch { student: v_student, teacher: v_teacher });
        }
        Ok((student, Some(teacher)))
    }

    /// Logits and labels, shifted against each other where the alignment says so.
    fn aligned(
        &self,
        student: Tensor,
        teacher: Option<Tensor>,
    ) -> Result<(Tensor, Option<Tensor>, Option<Tensor>)> {
        if self.alignment == Alignment::SamePosition {
            return Ok((student, teacher, self.labels.clone()));
        }
        let (_, length, _) = student.dims3().map_err(|_| {
            let expected = "[batch, sequence, classes] for `Alignment::NextToken`";
            Error::rank("student logits", self.student.dims(), expected)
        })?;
        let labels = self
            .labels
            .as_ref()
            .ok_or_else(|| Error::missing("labels", "`Alignment::NextToken` needs `.labels(&labels)`"))?;
        if labels.dims() != &student.dims()[..2] {
            return Err(Error::shapes(
                ("labels", labels.dims()),
                ("student logits", student.dims()),
                "labels must be [batch, sequence]",
            ));
        }
        let kept = length.saturating_sub(1);
        let student = student.narrow(1, 0, kept)?;
        let teacher = teacher.map(|teacher| teacher.narrow(1, 0, kept)).transpose()?;
        Ok((student, teacher, Some(labels.narrow(1, length - kept, kept)?)))
    }
}

impl Logits {
    /// Starts from the student's logits [.., classes] of rank two or more.
    pub fn of(student: &Tensor) -> LogitsBuilder {
        LogitsBuilder {
            student: student.clone(),
            teacher: None,
            labels: None,
            vocabulary: Vocabulary::Equal,
            alignment: Alignment::SamePosition,
        }
    }

    fn without_rows(given: Tensor, student: Tensor, teacher: Option<Tensor>, labelled: bool) -> Self {
        let targets = labelled.then(|| student.clone());
        Self { given, rows: 0, student, teacher, targets, student_excluded: None, excluded: None }
    }

    fn with_exclusions(mut self) -> Result<Self> {
        self.student_excluded = exclusions(&self.student)?;
        let teacher_excluded = match &self.teacher {
            Some(teacher) => exclusions(teacher)?,
            None => None,
        };
        require_support(self.student_excluded.as_ref(), "student logits")?;
        self.excluded = match (&self.student_excluded, teacher_excluded) {
            (Some(student), Some(teacher)) => Some((student + teacher)?),
            (Some(one), None) => Some(one.clone()),
            (None, other) => other,
        };
        require_support(self.excluded.as_ref(), "both models at once")?;
        Ok(self)
    }

    /// How many rows count; with 0, every loss is 0 and its gradient exactly 0.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The student's logits as they were given, before rows and classes were dropped.
    #[must_use]
    pub fn given(&self) -> &Tensor {
        &self.given
    }

    /// The student's logits `[rows, classes]`, in f32 or f64.
    #[must_use]
    pub fn student(&self) -> &Tensor {
        &self.student
    }

    /// The teacher's logits `[rows, classes]`, in the student's type, detached.
    ///
    /// # Errors
    /// They must have been given.
    pub fn teacher(&self) -> Result<&Tensor> {
        self.teacher.as_ref().ok_or_else(|| {
            Error::missing("teacher logits", "give them with `Logits::of(&student).teacher(&teacher)`")
        })
    }

    /// Ones (u8) where a class is excluded in either model `[rows, classes]`; `None` where no logit is −∞.
    #[must_use]
    pub fn excluded(&self) -> Option<&Tensor> {
        self.excluded.as_ref()
    }

    /// The class of each row, `[rows]` of u32, each allowed by both models.
    ///
    /// # Errors
    /// Labels must have been given, and no label may be excluded.
    pub fn targets(&self) -> Result<&Tensor> {
        self.targets_within(self.excluded.as_ref(), "one of the models")
    }

    /// The class of each row, `[rows]` of u32, each allowed by the student.
    ///
    /// # Errors
    /// Labels must have been given, and none may have a student logit of −∞.
    pub fn student_targets(&self) -> Result<&Tensor> {
        self.targets_within(self.student_excluded.as_ref(), "the student")
    }

    fn targets_within(&self, excluded: Option<&Tensor>, whose: &'static str) -> Result<&Tensor> {
        let targets = self.targets.as_ref().ok_or_else(|| {
            Error::missing("labels", "give them with `Logits::of(&student).labels(&labels)`")
        })?;
        let Some(excluded) = excluded else { return Ok(targets) };
        let hits: Vec<u8> = excluded.gather(&targets.unsqueeze(1)?, 1)?.flatten_all()?.to_vec1()?;
        match hits.iter().position(|hit| *hit != 0) {
            Some(row) => Err(Error::ImpossibleLabel { row, whose }),
            None => Ok(targets),
        }
    }

    /// log softmax(z/T) of the student alone `[rows, classes]`; classes that it excludes hold a huge negative number.
    ///
    /// # Errors
    /// Passes on candle's.
    pub fn student_log_probs(&self, temperature: Temperature) -> Result<Tensor> {
        log_probs(&self.student, self.student_excluded.as_ref(), temperature)
    }

    /// log softmax(z/T) of student and teacher `[rows, classes]`, both over the classes that both allow;
    /// excluded classes hold a huge negative number.
    ///
    /// # Errors
    /// The teacher's logits must have been given.
    pub fn log_probs(&self, temperature: Temperature) -> Result<(Tensor, Tensor)> {
        let student = log_probs(&self.student, self.excluded.as_ref(), temperature)?;
        let teacher = log_probs(self.teacher()?, self.excluded.as_ref(), temperature)?;
        Ok((student, teacher))
    }
}

fn log_probs(x: &Tensor, excluded: Option<&Tensor>, temperature: Temperature) -> Result<Tensor> {
    let scaled = (x / temperature.value())?;
    match excluded {
        Some(excluded) => log_softmax(&floor_where(excluded, &scaled)?),
        None => log_softmax(&scaled),
    }
}

fn leading_and_last(x: &Tensor) -> (&[usize], usize) {
    let (last, leading) = x.dims().split_last().map_or((0, &[][..]), |(last, rest)| (*last, rest));
    (leading, last)
}

fn truncated(whose: &'static str, logits: &Tensor, vocabulary: Vocabulary) -> Result<Tensor> {
    let (leading, classes) = leading_and_last(logits);
    if leading.is_empty() || classes == 0 {
        let what = if whose == "student" { "student logits" } else { "teacher logits" };
        return Err(Error::rank(what, logits.dims(), "[.., classes] with at least one class"));
    }
    match vocabulary {
        Vocabulary::Equal => Ok(logits.clone()),
        Vocabulary::Truncate(0) => Err(Error::bad_option("Vocabulary::Truncate", 0, "at least one class")),
        Vocabulary::Truncate(truncate) if truncate > classes => {
            Err(Error::VocabularyTooSmall { whose, classes, truncate })
        }
        Vocabulary::Truncate(truncate) => Ok(logits.narrow(D::Minus1, 0, truncate)?),
    }
}

/// Ones (u8) where `x` excludes a class; `None` where it nowhere is, which saves every loss two passes over the logits.
fn exclusions(x: &Tensor) -> Result<Option<Tensor>> {
    let mask = x.detach().le(FLOOR)?;
    let any = mask.flatten_all()?.max(0)?.to_scalar::<u8>()? != 0;
    Ok(any.then_some(mask))
}

fn require_support(excluded: Option<&Tensor>, whose: &'static str) -> Result<()> {
    let Some(excluded) = excluded else { return Ok(()) };
    let full: Vec<u8> = excluded.ne(0u8)?.min(1)?.to_vec1()?;
    match full.iter().position(|full| *full != 0) {
        Some(row) => Err(Error::NoSupport { row, whose }),
        None => Ok(()),
    }
}

/// Ones in the working type where a class is allowed by both models.
pub(crate) fn support(excluded: &Tensor, dtype: DType) -> Result<Tensor> {
    Ok(excluded.eq(0u8)?.to_dtype(dtype)?)
}
