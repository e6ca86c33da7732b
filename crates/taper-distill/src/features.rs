//! A pair of student and teacher features, and which parts of them count.
//!
//! Features are whatever lies inside the models: hidden states [batch, sequence, width], sentence embeddings
//! [batch, width], attention scores [batch, heads, sequence, sequence], feature maps [batch, channels, height, width],
//! queries, keys or values. Neighbours: `loss` (what is computed from them), `objective` (features by name).

use crate::{
    Error, Result,
    labels::{IGNORE_INDEX, counted, read_labels, select_rows},
    precision::{widen, working_dtype},
};
use candle_core::Tensor;

#[derive(Debug, Clone)]
enum Valid {
    All,
    Labels(Tensor),
    Lengths(Vec<usize>),
}

/// The same place in student and teacher.
#[derive(Debug, Clone)]
pub struct Features {
    student: Tensor,
    teacher: Tensor,
    valid: Valid,
}

/// Sequences [batch, length, width] with the number of positions that count in each.
#[derive(Debug, Clone)]
pub struct Sequences {
    /// The student's, in f32 or f64.
    pub student: Tensor,
    /// The teacher's, in the student's type, detached; its width may differ.
    pub teacher: Tensor,
    /// How many leading positions of each sequence count.
    pub lengths: Vec<usize>,
}

impl Features {
    /// Pairs the student's features with the teacher's, which are detached. All parts count.
    #[must_use]
    pub fn new(student: &Tensor, teacher: &Tensor) -> Self {
        Self { student: student.clone(), teacher: teacher.detach(), valid: Valid::All }
    }

    /// Counts only positions whose label is not -100: integer labels of the features' shape but for the last dimension.
    #[must_use]
    pub fn labels(mut self, labels: &Tensor) -> Self {
        self.valid = Valid::Labels(labels.clone());
        self
    }

    /// Counts only the first `lengths[b]` positions of sequence b, for features [batch, sequence, width].
    #[must_use]
    pub fn lengths(mut self, lengths: &[usize]) -> Self {
        self.valid = Valid::Lengths(lengths.to_vec());
        self
    }

    /// The student's features as they were given.
    #[must_use]
    pub fn student(&self) -> &Tensor {
        &self.student
    }

    /// The teacher's features as they were given, detached.
    #[must_use]
    pub fn teacher(&self) -> &Tensor {
        &self.teacher
    }

    /// The positions that count, [n, width] of student and teacher, each in its own type; `None` where none counts.
    /// The widths may differ.
    ///
    /// # Errors
    /// All dimensions but the last must be equal; labels or lengths must fit them.
    pub fn token_rows(&self) -> Result<Option<(Tensor, Tensor)>> {
        let (dims, dims_teacher) = (self.student.dims(), self.teacher.dims());
        if dims.len() < 2 || dims.len() != dims_teacher.len() || leading(dims) != leading(dims_teacher) {
            return Err(Error::shapes(
                ("student features", dims),
                ("teacher features", dims_teacher),
                "all dimensions but the last must be equal, and there must be at least two",
            ));
        }
        let all: usize = leading(dims).iter().product();
        let kept = self.counted_rows(all)?;
        if kept.is_empty() {
            return Ok(None);
        }
        let rows = |x: &Tensor| {
            let flat = x.reshape((all, x.dims()[x.rank() - 1]))?;
            select_rows(&flat, &kept, x.device())
        };
        Ok(Some((rows(&self.student)?, rows(&self.teacher)?)))
    }

    fn counted_rows(&self, all: usize) -> Result<Vec<u32>> {
        let dims = self.student.dims();
        match &self.valid {
            Valid::All => Ok((0..all as u32).collect()),
            Valid::Labels(labels) => {
                Ok(counted(&read_labels(labels, "student features without width", leading(dims))?))
            }
            Valid::Lengths(lengths) => {
                let length = self.check_lengths(lengths)?;
                let labels = lengths
                    .iter()
                    .flat_map(|&valid| (0..length).map(move |s| if s < valid { 0 } else { IGNORE_INDEX }));
                Ok(counted(&labels.collect::<Vec<_>>()))
            }
        }
    }

    /// The lengths must fit [batch, sequence, width]; returns `sequence`.
    fn check_lengths(&self, lengths: &[usize]) -> Result<usize> {
        let &[batch, length, _] = self.student.dims() else {
            let expected = "[batch, sequence, width] where lengths are given";
            return Err(Error::rank("student features", self.student.dims(), expected));
        };
        if lengths.len() != batch || lengths.iter().any(|valid| *valid > length) {
            return Err(Error::shapes(
                ("lengths", lengths),
                ("student features", self.student.dims()),
                "there must be one length per sequence, none longer than the sequences",
            ));
        }
        Ok(length)
    }

    /// Student and teacher whole, in f32 or f64 (the student's), for losses whose rows are samples.
    ///
    /// # Errors
    /// Labels and lengths are refused, since such a loss has no positions to leave out.
    pub fn samples(&self) -> Result<(Tensor, Tensor)> {
        if !matches!(self.valid, Valid::All) {
            return Err(Error::BadOption {
                option: "features",
                value: "given with labels or lengths".into(),
                expected: "whole samples, since this loss has no positions to leave out",
            });
        }
        self.working(&self.student, &self.teacher)
    }

    /// Sequences and their lengths, for losses that compare the positions of a sequence with each other.
    ///
    /// # Errors
    /// Features must be [batch, sequence, width] with equal batch and sequence, with lengths or without, not with labels.
    pub fn sequences(&self) -> Result<Sequences> {
        let (dims, dims_teacher) = (self.student.dims(), self.teacher.dims());
        let &[batch, length, _] = dims else {
            return Err(Error::rank("student features", dims, "[batch, sequence, width]"));
        };
        if dims_teacher.len() != 3 || leading(dims) != leading(dims_teacher) {
            return Err(Error::shapes(
                ("student features", dims),
                ("teacher features", dims_teacher),
                "both must be [batch, sequence, width] and differ at most in width",
            ));
        }
        let lengths = match &self.valid {
            Valid::All => vec![length; batch],
            Valid::Lengths(lengths) => {
                self.check_lengths(lengths)?;
                lengths.clone()
            }
            Valid::Labels(_) => {
                return Err(Error::BadOption {
                    option: "features",
                    value: "given with labels".into(),
                    expected: "`lengths`, since this loss compares the positions of a sequence",
                });
            }
        };
        let (student, teacher) = self.working(&self.student, &self.teacher)?;
        Ok(Sequences { student, teacher, lengths })
    }

    /// Both in the student's working type.
    pub(crate) fn working(&self, student: &Tensor, teacher: &Tensor) -> Result<(Tensor, Tensor)> {
        let student = widen("student features", student)?;
        working_dtype("teacher features", teacher)?;
        let teacher = teacher.to_dtype(student.dtype())?;
        Ok((student, teacher))
    }
}

fn leading(dims: &[usize]) -> &[usize] {
    dims.split_last().map_or(&[], |(_, leading)| leading)
}
