//! The curve as a picture: bits per weight against KL on a logarithmic axis, formats as dots, plans as a line.

use crate::budget::Point;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const MARGIN: f64 = 60.0;

/// The picture as an SVG file.
pub(crate) fn svg(uniform: &[Point], planned: &[Point]) -> String {
    let all = || uniform.iter().chain(planned).filter(|p| p.kl > 0.0);
    let range = |of: fn(&Point) -> f64| {
        all().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (bits, kl) = (range(|p| p.bits), range(|p| p.kl.log10()));
    let along = |v: f64, (low, high): (f64, f64), from: f64, to: f64| {
        from + (v - low) / (high - low).max(1e-9) * (to - from)
    };
    let x = |p: &Point| along(p.bits, bits, MARGIN, WIDTH - MARGIN);
    let y = |p: &Point| along(p.kl.log10(), kl, HEIGHT - MARGIN, MARGIN / 2.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n"
    );
    let line: Vec<String> =
        planned.iter().filter(|p| p.kl > 0.0).map(|p| format!("{:.1},{:.1}", x(p), y(p))).collect();
    svg += &format!(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#4878a8\" stroke-width=\"2\"/>\n",
        line.join(" ")
    );
    // Formats are labelled above their dots and plans below theirs, so that neighbours do not meet.
    for (points, colour, dx, dy, anchor) in
        [(planned, "#4878a8", -6.0, 14.0, "end"), (uniform, "#c2571a", 6.0, -6.0, "start")]
    {
        for p in points.iter().filter(|p| p.kl > 0.0) {
            let (x, y) = (x(p), y(p));
            svg += &format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>\n");
            let (x, y) = (x + dx, y + dy);
            svg += &format!(
                "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{:.2e}</text>\n",
                p.kl
            );
        }
    }
    for tick in (bits.0.ceil() as u32)..=(bits.1.floor() as u32) {
        let (x, y) = (along(f64::from(tick), bits, MARGIN, WIDTH - MARGIN), HEIGHT - MARGIN + 28.0);
        svg += &format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{tick}</text>\n");
    }
    let words = "bits per weight; KL (nats, logarithmic): one format (dots), a format per weight (line)";
    svg += &format!("<text x=\"{MARGIN}\" y=\"{:.1}\">{words}</text>\n", HEIGHT - 16.0);
    svg + "</svg>\n"
}
