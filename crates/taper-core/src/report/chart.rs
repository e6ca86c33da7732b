//! A report as a picture: bits and damage of each weight, side by side, in the order of the model.
//!
//! ```text
//! weight            bits per weight        damage (logarithmic)
//! layers.0.q_proj   ████▌ 4.13             ███████ 3.1e-3
//! layers.0.k_proj   ███▎  3.13             █████████ 9.8e-3
//! ```
//!
//! Damage is the error of the layer's output where calibration measured it, and the normalised squared error of the
//! weight where not; the bar's colour says which. Plain SVG, no scripts.

use std::{collections::BTreeMap, fmt::Write};

use super::{Outcome, Report, Row};

const ROW: f64 = 16.0;
const TOP: f64 = 64.0;
const NAMES: f64 = 280.0;
const PANEL: f64 = 260.0;
const GAP: f64 = 80.0;
const WIDTH: f64 = NAMES + 2.0 * PANEL + 2.0 * GAP;
/// Decades that the damage axis shows at least: bars that differ by little should look so.
const DECADES: f64 = 2.0;

const BITS: &str = "#4878a8";
const OUTPUT: &str = "#c2571a";
const WEIGHT: &str = "#b89a2c";

/// One weight of the picture.
struct Bar<'a> {
    name: &'a str,
    bits: f64,
    damage: Option<(f64, &'static str)>,
}

/// The picture of a report as an SVG file.
pub(super) fn svg(report: &Report) -> String {
    let bars = bars(report);
    let most_bits = bars.iter().map(|b| b.bits).fold(1.0, f64::max);
    let axis = Logarithmic::over(bars.iter().filter_map(|b| b.damage).map(|(damage, _)| damage));
    let height = TOP + ROW * bars.len() as f64 + ROW;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    heading(&mut svg, report);
    for (i, bar) in bars.iter().enumerate() {
        let y = TOP + ROW * i as f64;
        text(&mut svg, NAMES - 8.0, y + 11.0, "end", bar.name);
        strip(&mut svg, NAMES, y, PANEL * bar.bits / most_bits, BITS, &format!("{:.3}", bar.bits));
        if let Some((damage, colour)) = bar.damage {
            let length = PANEL * axis.share(damage);
            strip(&mut svg, NAMES + PANEL + GAP, y, length, colour, &format!("{damage:.2e}"));
        }
    }
    svg + "</svg>\n"
}

/// The weights that were changed, by the last pass that did, in the order of the model.
fn bars(report: &Report) -> Vec<Bar<'_>> {
    let mut last: BTreeMap<Vec<Piece<'_>>, &Row> = BTreeMap::new();
    let rows = report.passes.iter().flat_map(|p| &p.rows);
    for row in rows.filter(|r| r.outcome == Outcome::Done) {
        last.insert(pieces(&row.weight), row);
    }
    last.into_values().filter_map(bar).collect()
}

fn bar(row: &Row) -> Option<Bar<'_>> {
    let after = row.after.as_ref()?;
    let damage = row.damage.map(|d| match d.output_error {
        Some(error) => (error, OUTPUT),
        None => (d.normalised_mse, WEIGHT),
    });
    let damage = damage.filter(|(size, _)| *size > 0.0 && size.is_finite());
    Some(Bar { name: &row.weight, bits: after.bits_per_weight, damage })
}

/// Part of a name; numbers are ordered as numbers.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Piece<'a> {
    Number(u64),
    Word(&'a str),
}

fn pieces(name: &str) -> Vec<Piece<'_>> {
    name.split('.').map(|word| word.parse().map_or(Piece::Word(word), Piece::Number)).collect()
}

/// From the smallest value to the largest, on a logarithmic scale.
struct Logarithmic {
    low: f64,
    high: f64,
}

impl Logarithmic {
    fn over(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values
            .map(f64::log10)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        if low > high {
            return Self { low: 0.0, high: DECADES };
        }
        Self { low: low.min(high - DECADES), high }
    }

    /// 5 to 100 % of a panel, so that the smallest is visible.
    fn share(&self, value: f64) -> f64 {
        0.05 + 0.95 * (value.log10() - self.low) / (self.high - self.low)
    }
}

fn heading(svg: &mut String, report: &Report) {
    let title = format!(
        "{:.3} to {:.3} bits per weight over the whole model, {} bytes",
        report.input.bits_per_weight(),
        report.output.bits_per_weight(),
        report.output.bytes
    );
    text(svg, 8.0, 20.0, "start", &title);
    text(svg, NAMES, TOP - 12.0, "start", "bits per weight");
    text(svg, NAMES + PANEL + GAP, TOP - 12.0, "start", "damage: output error");
    legend(svg, NAMES + PANEL + GAP + 140.0, OUTPUT, "measured");
    legend(svg, NAMES + PANEL + GAP + 210.0, WEIGHT, "weight only");
}

fn legend(svg: &mut String, x: f64, colour: &str, words: &str) {
    square(svg, x, TOP - 20.0, 8.0, 8.0, colour);
    text(svg, x + 12.0, TOP - 12.0, "start", words);
}

/// A bar and its number.
fn strip(svg: &mut String, x: f64, y: f64, length: f64, colour: &str, number: &str) {
    square(svg, x, y + 2.0, length, ROW - 4.0, colour);
    text(svg, x + length + 4.0, y + 11.0, "start", number);
}

fn square(svg: &mut String, x: f64, y: f64, width: f64, height: f64, colour: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(
        svg,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>"
    );
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let words = escaped(words);
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>");
}

/// Text that XML can hold: markup as entities, control characters (which XML has no way to write) as a replacement.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Stage,
        report::{Damage, PassReport, Stored, Totals},
    };

    fn row(weight: &str, bits: f64, damage: Option<Damage>, outcome: Outcome) -> Row {
        let stored = Stored { shape: vec![2, 2], format: "f32".into(), bytes: 16, bits_per_weight: bits };
        Row {
            weight: weight.into(),
            outcome,
            before: stored.clone(),
            after: Some(stored),
            damage,
            measures: Vec::new(),
            seconds: 0.0,
        }
    }

    fn report(rows: Vec<Row>) -> Report {
        let pass =
            PassReport { name: "p".into(), stage: Stage::Encode, settings: 0.into(), rows, seconds: 0.0 };
        Report {
            version: String::new(),
            passes: vec![pass],
            input: Totals::default(),
            output: Totals::default(),
            calibration: None,
            covered_bytes: 0,
            eligible_bytes: 0,
            seconds: 0.0,
        }
    }

    fn damage(normalised_mse: f64, output_error: Option<f64>) -> Option<Damage> {
        Some(Damage { normalised_mse, max_error: 1.0, output_error })
    }

    #[test]
    fn the_picture_is_xml_with_a_line_for_each_changed_weight() {
        let rows = vec![
            row("l.10.<&\">\u{1}", 3.125, damage(0.1, Some(0.01)), Outcome::Done),
            row("l.2.w", 4.125, damage(0.2, None), Outcome::Done),
            row("l.3.w", 2.0, None, Outcome::Done),
            row("l.4.left", 32.0, None, Outcome::Left { why: "so".into() }),
        ];
        let svg = svg(&report(rows));
        let document = roxmltree::Document::parse(&svg).unwrap();
        let texts: Vec<&str> = document.descendants().filter_map(|n| n.text()).map(str::trim).collect();
        let place = |name: &str| texts.iter().position(|t| *t == name);
        // In the order of numbers, not of characters.
        assert!(place("l.2.w").unwrap() < place("l.3.w").unwrap());
        assert!(place("l.3.w").unwrap() < place("l.10.<&\">\u{fffd}").unwrap());
        assert_eq!(place("l.4.left"), None);
        let bars = |colour| {
            let rects = document.descendants().filter(|n| n.attribute("fill") == Some(colour));
            rects.map(|n| n.attribute("width").unwrap().parse::<f64>().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(bars(BITS), [PANEL, 126.1, 197.0]);
        // One measured, one not, and the legend's two.
        assert_eq!((bars(OUTPUT).len(), bars(WEIGHT).len()), (2, 2));
    }

    #[test]
    fn a_report_of_nothing_is_a_picture_too() {
        roxmltree::Document::parse(&svg(&report(Vec::new()))).unwrap();
    }
}
