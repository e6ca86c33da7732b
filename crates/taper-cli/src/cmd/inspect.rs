//! `taper inspect`: what is in a model directory, from its headers alone.

use serde::Serialize;
use std::{collections::BTreeMap, path::Path};
use taper::{WeightInfo, models::Family, report::Totals};

use crate::{
    args::Inspect,
    failure::Failure,
    table::{Side, Table, shape, thousands},
    terminal::Terminal,
};

#[derive(Serialize)]
struct Shown<'a> {
    dir: &'a Path,
    /// What kind of model, where it is known.
    model: Option<&'static str>,
    weights: Vec<Row>,
    formats: Vec<Format>,
    total: Size,
}

#[derive(Serialize)]
struct Row {
    name: String,
    shape: Vec<usize>,
    codec: String,
    format: String,
    bytes: u64,
    bits_per_weight: f64,
}

#[derive(Serialize)]
struct Format {
    format: String,
    #[serde(flatten)]
    size: Size,
}

#[derive(Serialize)]
struct Size {
    weights: usize,
    elements: u64,
    bytes: u64,
    bits_per_weight: f64,
}

impl From<&Totals> for Size {
    fn from(totals: &Totals) -> Self {
        Self {
            weights: totals.weights,
            elements: totals.elements,
            bytes: totals.bytes,
            bits_per_weight: totals.bits_per_weight(),
        }
    }
}

pub(crate) fn run(args: &Inspect, terminal: Terminal) -> Result<(), Failure> {
    let checkpoint = taper::open(&args.dir)?;
    let mut total = Totals::default();
    let mut formats: BTreeMap<String, Totals> = BTreeMap::new();
    let mut weights = Vec::new();
    for name in checkpoint.names() {
        let info = checkpoint.info(&name)?;
        total.add(&info);
        formats.entry(info.encoding.format.clone()).or_default().add(&info);
        weights.push(row(name, info));
    }
    let shown = Shown {
        dir: &args.dir,
        model: Family::of(&checkpoint).ok().map(Family::purpose),
        weights,
        formats: formats.iter().map(|(f, t)| Format { format: f.clone(), size: t.into() }).collect(),
        total: (&total).into(),
    };
    terminal.show(&shown, || text(&shown))
}

fn row(name: String, info: WeightInfo) -> Row {
    Row {
        name,
        bytes: info.nbytes as u64,
        bits_per_weight: info.bits_per_weight(),
        codec: info.encoding.codec.into_owned(),
        format: info.encoding.format,
        shape: info.shape,
    }
}

fn text(shown: &Shown<'_>) -> String {
    let mut table = Table::new([
        ("weight", Side::Left),
        ("shape", Side::Right),
        ("encoding", Side::Left),
        ("bytes", Side::Right),
        ("bits/weight", Side::Right),
    ]);
    for row in &shown.weights {
        let bits = format!("{:.3}", row.bits_per_weight);
        table.row([row.name.clone(), shape(&row.shape), row.format.clone(), thousands(row.bytes), bits]);
    }
    let mut totals = Table::new([
        ("encoding", Side::Left),
        ("weights", Side::Right),
        ("elements", Side::Right),
        ("bytes", Side::Right),
        ("bits/weight", Side::Right),
    ]);
    let all = [("total".to_owned(), &shown.total)];
    for (name, size) in shown.formats.iter().map(|f| (f.format.clone(), &f.size)).chain(all) {
        totals.row([
            name,
            thousands(size.weights as u64),
            thousands(size.elements),
            thousands(size.bytes),
            format!("{:.3}", size.bits_per_weight),
        ]);
    }
    let kind = shown.model.map_or_else(String::new, |m| format!(" ({m})"));
    format!("{}{kind}\n\n{table}\n{totals}", shown.dir.display())
}
