//! AWQ's second step: how far to clip each group, judged by what that costs at the outputs.
//!
//! ```text
//! limit of a group g of a row = argmin over p in {1, 0.95, …, 0.55} of  e_g G_gg e_gᵀ,   e = Q(clip(W·s, p·max|W·s|_g))/s − W
//! ```
//!
//! G_gg is the square of the Gram matrix that belongs to the group's inputs. The clipped values are stored: the encoder that
//! comes next fits its grid to them. Neighbour: [`super::awq`] finds s first.

use rayon::prelude::*;
use std::sync::Arc;
use taper_core::Result;

use super::{
    awq::{rounded, scaled},
    round_nearest::{Number, RoundNearest},
};
use crate::equivalence::{Fold, Proxy};

/// Steps of clipping, a twentieth of the range each; half of the range is as far as the original goes.
const STEPS: u8 = 10;

/// Rows that are judged at a time.
const BATCH: usize = 64;

/// Columns that share a scale.
pub(super) fn span(number: Number, cols: usize) -> usize {
    match number {
        Number::Int(scheme) => scheme.granularity.span(cols).min(cols.max(1)),
        Number::Nf4(scheme) => scheme.block.get().min(cols.max(1)),
    }
}

/// The limits of every group of a weight whose columns are multiplied by `columns` first.
pub(super) fn limits(
    values: &[f32],
    columns: &[f32],
    rounding: &RoundNearest,
    proxy: &Proxy,
) -> Result<Fold> {
    let cols = columns.len();
    let span = span(rounding.number(), cols);
    let blocks: Vec<Vec<f32>> = (0..cols)
        .step_by(span)
        .map(|start| proxy.block(start, span.min(cols - start)))
        .collect::<Result<_>>()?;
    let found: Vec<crate::Result<Vec<f32>>> = values
        .par_chunks((BATCH * cols).max(1))
        .map(|rows| batch(rows, columns, span, rounding, &blocks))
        .collect();
    let limits: Vec<f32> = found.into_iter().collect::<crate::Result<Vec<_>>>()?.concat();
    Ok(Fold::Clip { span, limits: Arc::from(limits) })
}

/// The limits of a few rows.
fn batch(
    rows: &[f32],
    columns: &[f32],
    span: usize,
    rounding: &RoundNearest,
    blocks: &[Vec<f32>],
) -> crate::Result<Vec<f32>> {
    let cols = columns.len();
    let scaled = scaled(rows, columns);
    let groups = || scaled.chunks(cols).flat_map(|row| row.chunks(span));
    let peaks: Vec<f32> = groups().map(|g| g.iter().fold(0f32, |m, w| m.max(w.abs()))).collect();
    let mut best = vec![(f32::INFINITY, f32::INFINITY); peaks.len()];
    for step in 0..STEPS {
        let share = 1.0 - f32::from(step) / 20.0;
        let clipped: Vec<f32> = groups()
            .zip(&peaks)
            .flat_map(|(g, peak)| g.iter().map(move |w| w.clamp(-share * peak, share * peak)))
            .collect();
        let decoded = rounded(&clipped, cols, rounding)?;
        let errors: Vec<f32> =
            decoded.iter().zip(rows).zip(columns.iter().cycle()).map(|((q, w), s)| q / s - w).collect();
        let errors = errors.chunks(cols).flat_map(|row| row.chunks(span).zip(blocks));
        for ((best, (e, block)), peak) in best.iter_mut().zip(errors).zip(&peaks) {
            let cost = quadratic(e, block);
            if cost < best.0 {
                // Not clipped at all is no limit, whatever a product rounds to.
                *best = (cost, if step == 0 { f32::INFINITY } else { share * peak });
            }
        }
    }
    Ok(best.into_iter().map(|(_, limit)| limit).collect())
}

/// e G eᵀ.
fn quadratic(e: &[f32], block: &[f32]) -> f32 {
    block.chunks(e.len().max(1)).zip(e).map(|(row, &x)| x * taper_core::weight::rows::dot(row, e)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fit::Fit;

    #[test]
    fn an_outlier_is_clipped_where_its_input_is_silent_and_kept_where_it_is_loud() {
        // One value six times the others: clipping it pays unless its input is loud.
        let mut values: Vec<f32> = (0..32).map(|i| ((i * 7) % 13) as f32 / 6.0 - 1.0).collect();
        values[5] = 6.0;
        let rounding =
            RoundNearest::int(3, crate::Granularity::group(32).unwrap()).unwrap().with_fit(Fit::MinMax);
        let limit = |loud: f32| {
            let mut diagonal = vec![1.0; 32];
            diagonal[5] = loud;
            match limits(&values, &[1.0; 32], &rounding, &Proxy::Diagonal(diagonal)).unwrap() {
                Fold::Clip { limits, .. } => limits[0],
                other => panic!("{other:?}"),
            }
        };
        assert!(limit(0.0) < 3.5, "{}", limit(0.0));
        assert_eq!(limit(1000.0), f32::INFINITY);
    }
}
