//! A pass of a report as a table: the most damaged weights first, then a line for each other outcome.

use taper::{
    Outcome,
    report::{PassReport, Row},
};

use crate::table::{Side, Table, shape, thousands};

/// A pass, and at most so many of the weights that it changed.
pub(super) fn table_of(pass: &PassReport, most: usize) -> String {
    let mut text = format!("{} ({}), {:.2} s\n", pass.name, pass.stage, pass.seconds);
    let changed = pass.by_damage();
    let mut table = Table::new([
        ("  weight", Side::Left),
        ("shape", Side::Right),
        ("from", Side::Left),
        ("to", Side::Left),
        ("bytes", Side::Right),
        ("bits/weight", Side::Right),
        ("nMSE", Side::Right),
        ("output error", Side::Right),
        ("", Side::Left),
    ]);
    for row in changed.iter().take(most) {
        let Some(after) = &row.after else { continue };
        let figure = |number: Option<f64>| number.map_or_else(|| "-".to_owned(), |n| format!("{n:.3e}"));
        table.row([
            format!("  {}", row.weight),
            shape(&after.shape),
            row.before.format.clone(),
            after.format.clone(),
            thousands(after.bytes),
            format!("{:.3}", after.bits_per_weight),
            figure(row.damage.map(|d| d.normalised_mse)),
            figure(row.damage.and_then(|d| d.output_error)),
            measures(row),
        ]);
    }
    text += &table.to_string();
    if changed.len() > most {
        text += &format!("  and {} weights with less damage\n", changed.len() - most);
    }
    let removed = pass.rows.iter().filter(|r| r.outcome == Outcome::Removed).count();
    if removed > 0 {
        text += &format!("  removed {removed} weights\n");
    }
    for row in &pass.rows {
        if let Outcome::Left { why } = &row.outcome {
            text += &format!("  left {}: {why}\n", row.weight);
        }
    }
    text
}

/// What the pass itself had to say.
fn measures(row: &Row) -> String {
    row.measures.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
