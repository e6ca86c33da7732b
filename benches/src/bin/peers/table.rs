//! Rows for people: aligned columns, or the tables of `docs/performance.md`.

use std::io::{self, Write};
use taper_benches::kernel::Limits;

use crate::row::Row;

/// How rows are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// One object per row.
    Json,
    /// Columns, as rows come.
    Plain,
    /// Tables at the end.
    Markdown,
}

/// Tables of the page: a title and what job names begin with.
const SECTIONS: [(&str, &[&str]); 9] = [
    ("One token, weights from memory", &["-cold"]),
    ("Products with 4-bit weights", &["int4-"]),
    ("Products with 8-bit weights", &["int8-"]),
    ("Products with NF4 weights", &["nf4-"]),
    ("Products with dense weights", &["dense-"]),
    ("Encoding and decoding", &["encode-", "decode-", "tensor-"]),
    ("Whole models", &["llama-", "bert-"]),
    ("With a third busy thread", &["busy-"]),
    ("The first product, and memory held after it", &["first-"]),
];

fn belongs(job: &str, marks: &[&str]) -> bool {
    marks.iter().any(|mark| job.starts_with(mark) || (mark.starts_with('-') && job.ends_with(mark)))
}

/// A number in four digits or so, or a dash.
fn figure(value: Option<f64>) -> String {
    match value {
        None => "–".into(),
        Some(v) if v >= 100.0 => format!("{v:.0}"),
        Some(v) if v >= 10.0 => format!("{v:.1}"),
        Some(v) if v >= 1.0 => format!("{v:.2}"),
        Some(v) => format!("{v:.3}"),
    }
}

/// Bytes per second where they are what is asked for, else operations.
fn speed(row: &Row) -> String {
    match (row.gbps, row.gflops) {
        (Some(bytes), ops) if row.batch <= 1 || ops.is_none() => format!("{} GB/s", figure(Some(bytes))),
        (_, Some(ops)) => format!("{} GFLOP/s", figure(Some(ops))),
        _ => "–".into(),
    }
}

fn tokens_per_second(row: &Row) -> Option<String> {
    let tokens = row.more.get("tokens")?.as_f64()?;
    Some(format!("{:.0} tok/s", tokens / row.taper_ms * 1e3))
}

fn cells(row: &Row) -> [String; 11] {
    let met = row.target_ms.map_or("–", |ms| if row.taper_ms <= ms { "yes" } else { "no" });
    [
        row.job.clone(),
        format!("{}×{}", row.rows, row.cols),
        row.batch.to_string(),
        row.threads.to_string(),
        figure(Some(row.taper_ms)),
        figure(row.candle_ms),
        row.peer.clone().unwrap_or_else(|| "–".into()),
        row.ratio.map_or("–".into(), |r| format!("{}×", figure(Some(r)))),
        tokens_per_second(row).unwrap_or_else(|| speed(row)),
        row.of_limit.map_or("–".into(), |part| format!("{:.0} %", 100.0 * part)),
        format!("{} ({met})", figure(row.target_ms)),
    ]
}

const HEAD: [&str; 11] = [
    "job",
    "weight",
    "tokens",
    "threads",
    "taper ms",
    "candle ms",
    "peer",
    "faster",
    "speed",
    "of limit",
    "target ms",
];
const WIDTHS: [usize; 11] = [28, 11, 6, 7, 8, 9, 12, 7, 13, 8, 14];

/// One row of aligned columns; `None` for the head.
pub(crate) fn plain(out: &mut impl Write, row: Option<&Row>) -> io::Result<()> {
    let cells = row.map_or_else(|| HEAD.map(String::from), cells);
    for (cell, width) in cells.iter().zip(WIDTHS) {
        write!(out, "{cell:<width$} ")?;
    }
    writeln!(out)?;
    out.flush()
}

/// All tables of the page.
pub(crate) fn markdown(out: &mut impl Write, limits: &[Limits], rows: &[Row]) -> io::Result<()> {
    writeln!(out, "### Limits of the machine\n")?;
    limits_table(out, limits)?;
    let mut left: Vec<&Row> = rows.iter().collect();
    for (title, marks) in SECTIONS {
        let (here, rest): (Vec<&Row>, Vec<&Row>) = left.into_iter().partition(|row| belongs(&row.job, marks));
        left = rest;
        section(out, title, &here)?;
    }
    section(out, "Cost against size", &left)?;
    errors(out, rows)
}

fn section(out: &mut impl Write, title: &str, rows: &[&Row]) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n### {title}\n\n| {} |\n|{}", HEAD.join(" | "), "---|".repeat(HEAD.len()))?;
    for row in rows {
        writeln!(out, "| {} |", cells(row).join(" | "))?;
    }
    for row in rows {
        let notes = row.more.iter().filter(|(key, _)| !key.ends_with("_ms") || key.contains("undisturbed"));
        let notes: Vec<String> =
            notes.map(|(key, value)| format!("{key} {}", figure(value.as_f64()))).collect();
        if !notes.is_empty() && !row.more.contains_key("tokens") {
            writeln!(out, "\n`{}` × {}, {} threads: {}.", row.job, row.batch, row.threads, notes.join(", "))?;
        }
    }
    Ok(())
}

/// One limit, in units per second.
type Limit = fn(&Limits) -> Option<f64>;

fn limits_table(out: &mut impl Write, limits: &[Limits]) -> io::Result<()> {
    writeln!(
        out,
        "| | {} |",
        limits.iter().map(|l| format!("{} threads", l.threads)).collect::<Vec<_>>().join(" | ")
    )?;
    writeln!(out, "|---|{}", "---|".repeat(limits.len()))?;
    let lines: [(&str, Limit); 6] = [
        ("memory read, 1 GiB, GB/s", |l| Some(l.memory)),
        ("cache read, 8 MiB, GB/s", |l| Some(l.cache)),
        ("copy, read and written bytes, GB/s", |l| Some(l.copy)),
        ("f32 multiply-adds, GFLOP/s", |l| l.f32),
        ("bf16 dot products, GFLOP/s", |l| l.bf16),
        ("int8 dot products, GOP/s", |l| l.int8),
    ];
    for (name, of) in lines {
        let cells: Vec<String> = limits.iter().map(|l| figure(of(l).map(|v| v / 1e9))).collect();
        writeln!(out, "| {name} | {} |", cells.join(" | "))?;
    }
    Ok(())
}

/// What the arithmetic adds to products of the decoded weight.
fn errors(out: &mut impl Write, rows: &[Row]) -> io::Result<()> {
    let products =
        rows.iter().filter(|row| row.gflops.is_some() && row.batch == 1 && row.threads == rows[0].threads);
    let mut lines = Vec::new();
    for row in products {
        let error = |e: Option<f64>| e.map_or("–".into(), |e| format!("{:.1e}", e.sqrt()));
        let line = (row.job.clone(), error(Some(row.error)), error(row.candle_error));
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n### Error added by the arithmetic\n\n| job | taper | candle |\n|---|---|---|")?;
    lines.iter().try_for_each(|(job, ours, theirs)| writeln!(out, "| {job} | {ours} | {theirs} |"))
}
