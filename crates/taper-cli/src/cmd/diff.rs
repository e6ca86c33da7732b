//! `taper diff`: how far each weight of one model directory is from its namesake in another.
//!
//! ```text
//! nMSE = Σ (a − b)² / Σ a²      signal to noise = −10 log₁₀ nMSE  dB
//! ```

use serde::Serialize;
use std::{path::Path, sync::Arc};
use taper::{Checkpoint, SharedWeight, WeightInfo, candle::DType, core::verify};

use crate::{
    args::Diff,
    failure::Failure,
    interrupt,
    table::{Side, Table, shape, thousands},
    terminal::Terminal,
};

#[derive(Serialize)]
struct Shown<'a> {
    a: &'a Path,
    b: &'a Path,
    /// Weights that both have, the most damaged first.
    weights: Vec<Row>,
    /// Weights of one shape here and another there.
    reshaped: Vec<Reshaped>,
    only_in_a: Vec<String>,
    only_in_b: Vec<String>,
    bytes_a: u64,
    bytes_b: u64,
}

#[derive(Serialize)]
struct Row {
    name: String,
    shape: Vec<usize>,
    format_a: String,
    format_b: String,
    bytes_a: u64,
    bytes_b: u64,
    normalised_mse: f64,
    max_error: f64,
    /// Absent where nothing moved.
    snr_db: Option<f64>,
}

#[derive(Serialize)]
struct Reshaped {
    name: String,
    shape_a: Vec<usize>,
    shape_b: Vec<usize>,
}

pub(crate) fn run(args: &Diff, terminal: Terminal) -> Result<(), Failure> {
    let (a, b) = (taper::open(&args.a)?, taper::open(&args.b)?);
    let mut shown = Shown {
        a: &args.a,
        b: &args.b,
        weights: Vec::new(),
        reshaped: Vec::new(),
        only_in_a: a.names().into_iter().filter(|n| !b.contains(n)).collect(),
        only_in_b: b.names().into_iter().filter(|n| !a.contains(n)).collect(),
        bytes_a: bytes(&a)?,
        bytes_b: bytes(&b)?,
    };
    for name in a.names().into_iter().filter(|n| b.contains(n)) {
        interrupt::check()?;
        let (of_a, of_b) = (a.info(&name)?, b.info(&name)?);
        if of_a.shape == of_b.shape {
            shown.weights.push(row(name, (&a, of_a), (&b, of_b))?);
        } else {
            shown.reshaped.push(Reshaped { name, shape_a: of_a.shape, shape_b: of_b.shape });
        }
    }
    shown.weights.sort_by(|x, y| y.normalised_mse.total_cmp(&x.normalised_mse));
    terminal.show(&shown, || text(&shown))
}

fn bytes(checkpoint: &Checkpoint) -> taper::Result<u64> {
    checkpoint.names().iter().map(|n| Ok(checkpoint.info(n)?.nbytes as u64)).sum()
}

fn row(
    name: String,
    (a, of_a): (&Checkpoint, WeightInfo),
    (b, of_b): (&Checkpoint, WeightInfo),
) -> taper::Result<Row> {
    let (before, after) = (values(a, &name, &of_a)?, values(b, &name, &of_b)?);
    let damage = verify::damage(before.as_ref(), after.as_ref())?;
    Ok(Row {
        name,
        shape: of_a.shape,
        format_a: of_a.encoding.format,
        format_b: of_b.encoding.format,
        bytes_a: of_a.nbytes as u64,
        bytes_b: of_b.nbytes as u64,
        normalised_mse: damage.normalised_mse,
        max_error: damage.max_error,
        snr_db: Some(damage.signal_to_noise_db()).filter(|db| db.is_finite()),
    })
}

/// A weight, all finite; whole numbers (position ids and the like) as f32.
fn values(checkpoint: &Checkpoint, name: &str, info: &WeightInfo) -> taper::Result<SharedWeight> {
    let weight = checkpoint.get(name)?;
    if !verify::is_float(info) {
        return Ok(Arc::new(weight.dense()?.to_dtype(DType::F32)?));
    }
    verify::finite(name, weight.as_ref())?;
    Ok(weight)
}

fn text(shown: &Shown<'_>) -> String {
    let mut table = Table::new([
        ("weight", Side::Left),
        ("shape", Side::Right),
        ("a", Side::Left),
        ("b", Side::Left),
        ("bytes in b", Side::Right),
        ("nMSE", Side::Right),
        ("max error", Side::Right),
        ("SNR dB", Side::Right),
    ]);
    for row in shown.weights.iter().filter(|r| r.max_error > 0.0) {
        table.row([
            row.name.clone(),
            shape(&row.shape),
            row.format_a.clone(),
            row.format_b.clone(),
            thousands(row.bytes_b),
            format!("{:.3e}", row.normalised_mse),
            format!("{:.2e}", row.max_error),
            row.snr_db.map_or_else(|| "-".to_owned(), |db| format!("{db:.2}")),
        ]);
    }
    let mut lines = vec![table.to_string()];
    let same = shown.weights.iter().filter(|r| r.max_error == 0.0).count();
    lines.push(format!("{same} of {} weights in both are equal", shown.weights.len()));
    for r in &shown.reshaped {
        lines.push(format!("reshaped {}: {} -> {}", r.name, shape(&r.shape_a), shape(&r.shape_b)));
    }
    lines.extend(shown.only_in_a.iter().map(|n| format!("only in {}: {n}", shown.a.display())));
    lines.extend(shown.only_in_b.iter().map(|n| format!("only in {}: {n}", shown.b.display())));
    let ratio = shown.bytes_a as f64 / shown.bytes_b.max(1) as f64;
    lines.push(format!("{} -> {} bytes, {ratio:.2}×", thousands(shown.bytes_a), thousands(shown.bytes_b)));
    lines.join("\n")
}
