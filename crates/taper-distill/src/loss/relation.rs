//! Relational knowledge distillation: Park et al. 2019, arXiv 1904.05068.
//!
//! ```text
//! distance   ψ_ij  = ‖x_i − x_j‖ / mean over pairs                    mean over n² of δ(ψ(s) − ψ(t))
//! angle      ψ_ijk = ⟨e_ij, e_ik⟩,  e_ij = (x_j − x_i)/‖x_j − x_i‖     mean over n³ of δ(ψ(s) − ψ(t))
//! δ(d) = ½ d² for |d| < 1, |d| − ½ otherwise
//! ```
//!
//! Only relations between samples are compared, so the widths of student and teacher need not agree. Distances are
//! taken from differences, not from ‖x‖² + ‖y‖² − 2⟨x, y⟩, which in f32 loses all digits for near neighbours.

use super::FeatureLoss;
use crate::{
    Error, Features, Result, RowLoss, Unit,
    geometry::{direction, sqrt_at_least},
    log_space::fill_where,
};
use candle_core::{D, Tensor};

/// Distances between all pairs of samples [batch, ..]. Couples the rows: one value for the batch.
///
/// A batch of one has no pairs: the loss is 0. The published recipe weighs it by 25. Memory: batch² · width.
#[derive(Debug, Clone, Copy, Default)]
pub struct RelationalDistance;

/// Angles in all triples of samples [batch, ..]. Couples the rows: one value for the batch.
///
/// A batch of one has no angles: the loss is 0. Samples that coincide have no direction and get no gradient from each other.
/// The published recipe weighs it by 50. Memory: batch² · width + batch³.
#[derive(Debug, Clone, Copy, Default)]
pub struct RelationalAngle;

impl FeatureLoss for RelationalDistance {
    fn rows(&self, features: &Features) -> Result<RowLoss> {
        compare(features, relative_distances)
    }
}

impl FeatureLoss for RelationalAngle {
    fn rows(&self, features: &Features) -> Result<RowLoss> {
        compare(features, angles)
    }
}

fn compare(features: &Features, relation: fn(&Tensor) -> Result<Tensor>) -> Result<RowLoss> {
    let (student, teacher) = features.samples()?;
    let ok = student.rank() >= 2 && teacher.rank() >= 2 && student.dim(0)? == teacher.dim(0)?;
    if !ok {
        return Err(Error::shapes(
            ("student features", student.dims()),
            ("teacher features", teacher.dims()),
            "both must be [batch, ..] with the same batch",
        ));
    }
    let samples = student.dim(0)?;
    if samples < 2 {
        return Ok(RowLoss::none(features.student(), Unit::Sample));
    }
    let student = relation(&student.flatten_from(1)?)?;
    let teacher = relation(&teacher.flatten_from(1)?)?;
    RowLoss::coupled(smooth_l1(&(student - teacher)?)?.mean_all()?, samples, Unit::Sample)
}

/// [n, n, d]: x_j − x_i.
fn differences(x: &Tensor) -> Result<Tensor> {
    Ok(x.unsqueeze(0)?.broadcast_sub(&x.unsqueeze(1)?)?)
}

/// [n, n]: distances over their mean; the diagonal is 0.
fn relative_distances(x: &Tensor) -> Result<Tensor> {
    let n = x.dim(0)?;
    let squared = differences(x)?.sqr()?.sum(D::Minus1)?;
    // The diagonal leaves before the root, whose derivative at 0 is infinite.
    let diagonal = Tensor::eye(n, candle_core::DType::U8, x.device())?;
    let off_diagonal = fill_where(&diagonal, &squared, 1.0)?;
    let distances = fill_where(&diagonal, &sqrt_at_least(&off_diagonal, 1e-12)?, 0.0)?;
    let mean = (distances.sum_all()? / (n * (n - 1)) as f64)?;
    Ok(distances.broadcast_div(&mean)?)
}

/// [n, n, n]: the cosine of the angle at i between j and k.
fn angles(x: &Tensor) -> Result<Tensor> {
    let unit = direction(&differences(x)?)?;
    Ok(unit.matmul(&unit.transpose(1, 2)?.contiguous()?)?)
}

/// Huber's loss with threshold 1, elementwise.
fn smooth_l1(d: &Tensor) -> Result<Tensor> {
    let size = d.abs()?;
    Ok(size.lt(1.0)?.where_cond(&(d.sqr()? * 0.5)?, &(size - 0.5)?)?)
}
