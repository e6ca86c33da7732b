//! Rows as they come: a Markdown table, or one JSON object a line.

use serde_json::{Map, Value};

/// A table with named columns, printed row by row so that a long run can be watched.
pub(crate) struct Table {
    columns: Vec<String>,
    json: bool,
}

impl Table {
    /// Begins a table.
    pub(crate) fn new(columns: &[&str], json: bool) -> Self {
        if !json {
            println!("| {} |\n|{}", columns.join(" | "), "---|".repeat(columns.len()));
        }
        Self { columns: columns.iter().map(ToString::to_string).collect(), json }
    }

    /// Prints a row: a name, then numbers with their digits; NaN where there is none.
    pub(crate) fn row(&self, name: &str, numbers: &[(f64, usize)]) {
        if self.json {
            let mut row = Map::new();
            row.insert(self.columns[0].clone(), name.into());
            for (column, (number, _)) in self.columns[1..].iter().zip(numbers) {
                row.insert(column.clone(), (*number).into());
            }
            println!("{}", Value::Object(row));
        } else {
            let cells: Vec<String> = numbers
                .iter()
                .map(|(n, digits)| if n.is_nan() { "–".to_owned() } else { format!("{n:.digits$}") })
                .collect();
            println!("| {name} | {} |", cells.join(" | "));
        }
    }
}
