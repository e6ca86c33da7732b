//! A small picture: size of the file against perplexity, one point per row. Both axes are logarithmic.

use super::Row;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const MARGIN: f64 = 60.0;
/// Air around the outermost points, as a share of the range.
const AIR: f64 = 0.12;

/// An axis from the logarithms of values to pixels.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (low, high) = values
            .map(f64::ln)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        let air = AIR * (high - low).max(0.01);
        Self { low: low - air, high: high + air, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        self.from + (value.ln() - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// Five values, equally far apart on the axis.
    fn ticks(&self) -> impl Iterator<Item = f64> {
        (0..5).map(|i| (self.low + f64::from(i) / 4.0 * (self.high - self.low)).exp())
    }
}

/// The chart as an SVG file.
pub(super) fn svg(rows: &[Row]) -> String {
    let x = Axis::over(rows.iter().map(|r| r.file_bytes as f64), MARGIN, WIDTH - MARGIN);
    let y = Axis::over(rows.iter().map(|r| r.perplexity), HEIGHT - MARGIN, MARGIN / 2.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n"
    );
    let (left, bottom) = (MARGIN, HEIGHT - MARGIN);
    svg += &format!(
        "<path d=\"M{left} {} V{bottom} H{}\" fill=\"none\" stroke=\"#888\"/>\n",
        MARGIN / 2.0,
        WIDTH - MARGIN
    );
    for tick in x.ticks() {
        svg += &label(x.at(tick), bottom + 18.0, "middle", "#666", &format!("{:.2} MB", tick / 1e6));
    }
    for tick in y.ticks() {
        svg += &label(left - 6.0, y.at(tick) + 4.0, "end", "#666", &format!("{tick:.1}"));
    }
    svg += &label(WIDTH / 2.0, HEIGHT - 16.0, "middle", "#222", "size of the file");
    svg += &label(left, MARGIN / 2.0 - 8.0, "middle", "#222", "perplexity");
    for (i, row) in rows.iter().enumerate() {
        let (cx, cy) = (x.at(row.file_bytes as f64), y.at(row.perplexity));
        svg += &format!("<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"5\" fill=\"#c2571a\"/>\n");
        // To the left of points in the right half, so that names stay in the picture.
        let (tx, anchor) = if cx > WIDTH / 2.0 { (cx - 9.0, "end") } else { (cx + 9.0, "start") };
        // Above and below by turns, because neighbours in the table are often neighbours in the picture.
        let ty = if i % 2 == 0 { cy - 6.0 } else { cy + 15.0 };
        svg += &label(tx, ty, anchor, "#222", &row.title);
    }
    svg + "</svg>\n"
}

fn label(x: f64, y: f64, anchor: &str, colour: &str, text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{text}</text>\n")
}
