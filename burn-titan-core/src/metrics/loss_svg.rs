//! `loss.svg`: the loss curve as one picture, without scripts or outside files.
//!
//! Colours are of middle lightness on a transparent ground, so that the picture reads on white and on
//! black. Long runs are thinned to what the width can show, so that it stays small.

use std::fmt::Write;
use std::path::Path;

use super::jsonl::{MetricsError, StepMetrics};
use crate::checkpoint::{FileError, write_file};

const WIDTH: f64 = 880.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 52.0;

/// Columns that a curve is thinned to.
const COLUMNS: usize = 600;
/// Validation points that are drawn as dots; more than that are thinned.
const MAX_DOTS: usize = 200;
/// Share of the steps whose training losses are clipped at the top and the bottom, each.
const CLIPPED_SHARE: f64 = 0.005;

const TEXT: &str = "#768390";
const TRAINING: &str = "#3b82f6";
const VALIDATION: &str = "#ea580c";

/// Draws the losses of `steps` and writes the picture to `path`, replacing an older one at once.
///
/// # Errors
/// [`MetricsError::File`].
pub fn write_loss_svg(path: &Path, title: &str, steps: &[StepMetrics]) -> Result<(), MetricsError> {
    let aside = path.with_extension("svg.partial");
    write_file(&aside, render_loss_svg(title, steps).as_bytes())?;
    std::fs::rename(&aside, path).map_err(|e| FileError::new(path, "replace the file", e))?;
    Ok(())
}

/// The losses of `steps` as SVG: training loss (every step faint, smoothed strong) and validation
/// loss, over the steps. Losses that are not finite leave a gap and are counted in a note.
pub fn render_loss_svg(title: &str, steps: &[StepMetrics]) -> String {
    let training: Vec<Point> = steps.iter().map(|m| Point::new(m.step, m.loss)).collect();
    let validation: Vec<Point> = steps
        .iter()
        .filter_map(|m| Some(Point::new(m.step, m.validation_loss?)))
        .filter(|point| point.loss.is_finite())
        .collect();
    let smoothed = smooth(&training);
    let axes = Axes::new(&training, &smoothed, &validation);
    let mut svg = String::new();
    head(&mut svg, title);
    axes.draw(&mut svg);
    if training.is_empty() {
        text(&mut svg, WIDTH / 2.0, HEIGHT / 2.0, "middle", 14, "no steps yet");
    }
    axes.draw_curve(&mut svg, &training, TRAINING, "stroke-opacity=\"0.3\"");
    axes.draw_curve(&mut svg, &smoothed, TRAINING, "stroke-width=\"2\"");
    axes.draw_curve(&mut svg, &validation, VALIDATION, "stroke-width=\"1.5\"");
    axes.draw_dots(&mut svg, &validation);
    let gaps = training.iter().filter(|point| !point.loss.is_finite()).count();
    legend(&mut svg, training.last(), validation.last(), gaps);
    svg.push_str("</svg>\n");
    svg
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Point {
    step: f64,
    loss: f64,
}

impl Point {
    fn new(step: u64, loss: f64) -> Self {
        Self { step: step as f64, loss }
    }
}

/// The exponential moving average over about 2% of the steps, without the pull of its start to zero
/// (as in Adam's bias correction).
fn smooth(points: &[Point]) -> Vec<Point> {
    let keep = 1.0 - 1.0 / (points.len() as f64 * 0.02).max(1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let finite = points.iter().filter(|point| point.loss.is_finite());
    finite
        .map(|point| {
            sum = keep * sum + (1.0 - keep) * point.loss;
            weight = keep * weight + (1.0 - keep);
            Point { step: point.step, loss: sum / weight }
        })
        .collect()
}

/// The lowest and the highest point of each of [`COLUMNS`] columns, in their order; a gap stays one.
fn thin(points: &[Point]) -> Vec<Point> {
    if points.len() <= 2 * COLUMNS {
        return points.to_vec();
    }
    let column = points.len().div_ceil(COLUMNS);
    let mut thinned = Vec::with_capacity(2 * COLUMNS);
    for column in points.chunks(column) {
        let finite = || (0..column.len()).filter(|&i| column[i].loss.is_finite());
        let by_loss = |a: &usize, b: &usize| column[*a].loss.total_cmp(&column[*b].loss);
        match (finite().min_by(by_loss), finite().max_by(by_loss)) {
            (Some(low), Some(high)) if low != high => {
                thinned.extend([column[low.min(high)], column[low.max(high)]]);
            }
            (Some(only), _) => thinned.push(column[only]),
            _ => thinned.extend(column.first()),
        }
    }
    thinned
}

/// Round numbers from at most `low` to at least `high`, about `count` steps of 1, 2 or 5 tenths apart.
fn round_ticks(low: f64, high: f64, count: f64) -> Vec<f64> {
    let rough = ((high - low) / count).max(f64::MIN_POSITIVE);
    let magnitude = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * magnitude);
    let step = step.into_iter().find(|step| *step >= rough * 0.999).unwrap_or(rough);
    let (first, last) = ((low / step).floor(), (high / step).ceil());
    // Far more than `count` come only where the range is too narrow for f64.
    (0..=(last - first).min(50.0) as usize).map(|i| (first + i as f64) * step).collect()
}

struct Axes {
    steps: Vec<f64>,
    losses: Vec<f64>,
    last_step: f64,
}

impl Axes {
    fn new(training: &[Point], smoothed: &[Point], validation: &[Point]) -> Self {
        let last_step = training.iter().map(|point| point.step).fold(1.0, f64::max);
        let mut steps = round_ticks(0.0, last_step, 8.0);
        steps.retain(|step| *step <= last_step && step.fract() == 0.0);
        let mut raw: Vec<f64> = training.iter().map(|p| p.loss).filter(|l| l.is_finite()).collect();
        raw.sort_unstable_by(f64::total_cmp);
        let cut = (raw.len() as f64 * CLIPPED_SHARE) as usize;
        let raw = [raw.get(cut), raw.iter().rev().nth(cut)].into_iter().flatten().copied();
        let shown = smoothed.iter().chain(validation).map(|point| point.loss).chain(raw);
        let (low, high) = shown.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), loss| {
            (low.min(loss), high.max(loss))
        });
        let (low, high) = match high - low {
            range if range > high.abs() * 1e-9 && range.is_finite() => (low, high),
            // One value only, or none.
            _ if low.is_finite() => (low - 0.5, low + 0.5),
            _ => (0.0, 1.0),
        };
        Self { steps, losses: round_ticks(low, high, 6.0), last_step }
    }

    fn x(&self, step: f64) -> f64 {
        LEFT + step / self.last_step * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, loss: f64) -> f64 {
        let (low, high) = match self.losses.as_slice() {
            [low, .., high] => (*low, *high),
            _ => (0.0, 1.0),
        };
        // Far outside is clipped in any case, and must not print as an endless number.
        let share = ((loss - low) / (high - low)).clamp(-2.0, 3.0);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }

    fn draw(&self, svg: &mut String) {
        let bottom = HEIGHT - BOTTOM;
        let mut grid = String::new();
        for loss in &self.losses {
            let y = self.y(*loss);
            let _ = write!(grid, "M{LEFT} {y:.1}H{:.0}", WIDTH - RIGHT);
            text(svg, LEFT - 8.0, y + 4.0, "end", 12, &tick_label(*loss, &self.losses));
        }
        for step in &self.steps {
            let x = self.x(*step);
            let _ = write!(grid, "M{x:.1} {TOP}V{bottom}");
            text(svg, x, bottom + 18.0, "middle", 12, &tick_label(*step, &self.steps));
        }
        let style = "fill=\"none\" stroke-opacity=\"0.25\"";
        let _ = writeln!(svg, "<path d=\"{grid}\" stroke=\"{TEXT}\" {style}/>");
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {TOP}V{bottom}H{:.0}\" fill=\"none\" stroke=\"{TEXT}\"/>",
            WIDTH - RIGHT
        );
        text(svg, (LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 14.0, "middle", 13, "step");
        let middle = (TOP + bottom) / 2.0;
        let _ = writeln!(
            svg,
            "<text x=\"18\" y=\"{middle}\" text-anchor=\"middle\" font-size=\"13\" \
             transform=\"rotate(-90 18 {middle})\">loss (nats per token)</text>"
        );
    }

    fn draw_curve(&self, svg: &mut String, points: &[Point], colour: &str, style: &str) {
        let mut path = String::new();
        let mut pen_down = false;
        for point in thin(points) {
            let finite = point.loss.is_finite();
            if finite {
                let command = if pen_down { 'L' } else { 'M' };
                let (x, y) = (self.x(point.step), self.y(point.loss));
                let _ = write!(path, "{command}{x:.1} {y:.1}");
            }
            pen_down = finite;
        }
        if points.len() == 1 && pen_down {
            // A dot: a line of no length with a round cap.
            path.push_str("h0");
        }
        if !path.is_empty() {
            let _ = writeln!(
                svg,
                "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-linejoin=\"round\" \
                 stroke-linecap=\"round\" clip-path=\"url(#plot)\" {style}/>"
            );
        }
    }

    fn draw_dots(&self, svg: &mut String, points: &[Point]) {
        for point in points.iter().step_by(points.len().div_ceil(MAX_DOTS).max(1)) {
            let (x, y) = (self.x(point.step), self.y(point.loss));
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{VALIDATION}\"/>"
            );
        }
    }
}

fn head(svg: &mut String, title: &str) {
    let (width, height) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
    let title = escape(title);
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" font-family=\"system-ui,sans-serif\" fill=\"{TEXT}\" role=\"img\">\n\
         <title>{title}</title>\n\
         <clipPath id=\"plot\"><rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{width}\" height=\"{height}\"/>\
         </clipPath>\n\
         <text x=\"{LEFT}\" y=\"32\" font-size=\"17\" font-weight=\"600\">{title}</text>"
    );
}

fn legend(svg: &mut String, training: Option<&Point>, validation: Option<&Point>, gaps: usize) {
    let mut x = WIDTH - RIGHT;
    let mut entry = |label: String, colour: Option<&str>| {
        // The labels stand right to left, about 6.5 units a letter.
        text(svg, x, 32.0, "end", 12, &label);
        x -= 6.5 * label.chars().count() as f64 + 8.0;
        if let Some(colour) = colour {
            let line = format!("M{:.0} 28h16", x - 16.0);
            let style = "stroke-width=\"3\" stroke-linecap=\"round\"";
            let _ = writeln!(svg, "<path d=\"{line}\" stroke=\"{colour}\" {style}/>");
            x -= 16.0;
        }
        x -= 20.0;
    };
    if gaps > 0 {
        let steps = if gaps == 1 { "step" } else { "steps" };
        entry(format!("{gaps} {steps} not finite"), None);
    }
    if let Some(point) = validation {
        entry(format!("validation {}", loss_label(point.loss)), Some(VALIDATION));
    }
    if let Some(point) = training {
        entry(format!("training {}", loss_label(point.loss)), Some(TRAINING));
    }
}

fn loss_label(loss: f64) -> String {
    if loss.abs() < 1e5 { format!("{loss:.3}") } else { format!("{loss:.2e}") }
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, size: u32, content: &str) {
    let content = escape(content);
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{content}</text>"
    );
}

/// A tick with as many decimals as tell it from its neighbours; thousands as `k` and `M`.
fn tick_label(value: f64, ticks: &[f64]) -> String {
    let step = match ticks {
        [first, second, ..] => second - first,
        _ => 1.0,
    };
    let (unit, suffix) = match value.abs() {
        size if size >= 1e12 => return format!("{value:.1e}"),
        size if size >= 1e6 => (1e6, "M"),
        size if size >= 1e4 => (1e3, "k"),
        _ => (1.0, ""),
    };
    let decimals = (-(step / unit).log10() - 1e-9).ceil().clamp(0.0, 9.0) as usize;
    format!("{:.decimals$}{suffix}", value / unit)
}

/// Text for XML; control characters, which XML forbids, become spaces.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            letter if letter.is_control() => escaped.push(' '),
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(losses: impl IntoIterator<Item = f64>) -> Vec<StepMetrics> {
        (1..)
            .zip(losses)
            .map(|(step, loss)| StepMetrics { step, loss, ..Default::default() })
            .collect()
    }

    /// Well-formed as far as this file's output goes: tags close, no number that is none.
    fn check(svg: &str) {
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        let legend_less = svg.replace("training NaN", "").replace("training inf", "");
        let legend_less = legend_less.replace("training -inf", "");
        for word in ["NaN", "inf", "<script", "href"] {
            assert!(!legend_less.contains(word), "{word}");
        }
        let opened = svg.matches("<text").count();
        assert_eq!(opened, svg.matches("</text>").count());
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
        assert!(svg.len() < 100_000, "{} bytes", svg.len());
    }

    fn noisy(count: usize) -> Vec<StepMetrics> {
        let mut steps = steps((0..count).map(|i| {
            let noise = (i * 7919 % 1000) as f64 / 1000.0 - 0.5;
            4.0 + 4.0 * (-(i as f64) * 5.0 / count as f64).exp() + noise
        }));
        for metrics in steps.iter_mut().filter(|metrics| metrics.step % 10 == 0) {
            metrics.validation_loss = Some(metrics.loss + 0.1);
        }
        steps
    }

    #[test]
    fn any_number_of_steps_is_small_and_whole() {
        for count in [0, 1, 2, 3, 100, 1200, 1201, 250_000] {
            let svg = render_loss_svg("llama3_debug", &noisy(count));
            check(&svg);
            assert_eq!(svg.contains("no steps yet"), count == 0);
            assert_eq!(svg.matches(TRAINING).count(), if count == 0 { 0 } else { 3 });
        }
    }

    #[test]
    fn odd_losses_do_not_break_it() {
        let nan = f64::NAN;
        check(&render_loss_svg("x", &steps([nan])));
        check(&render_loss_svg("x", &steps([nan, f64::INFINITY, f64::NEG_INFINITY])));
        check(&render_loss_svg("x", &steps([3.0; 5])));
        check(&render_loss_svg("x", &steps([0.0; 5])));
        check(&render_loss_svg("x", &steps([1e300, -1e300, 1e-300])));
        check(&render_loss_svg("x", &steps([1.0, 1.0 + 1e-15])));
        check(&render_loss_svg("a <b> & \"c\" \u{1}", &steps([1.0])));
        let svg = render_loss_svg("x", &steps([4.0, nan, 3.0, 2.0]));
        assert!(svg.contains("1 step not finite"));
        let raw = svg.lines().find(|line| line.contains("stroke-opacity=\"0.3\"")).unwrap();
        assert_eq!((raw.matches('M').count(), raw.matches('L').count()), (2, 1), "{raw}");
        let mut many = noisy(10_000);
        many.iter_mut().for_each(|metrics| metrics.step = u64::MAX);
        check(&render_loss_svg("x", &many));
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(round_ticks(2.3, 7.9, 6.0), [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(round_ticks(0.0, 300.0, 8.0), [0.0, 50.0, 100.0, 150.0, 200.0, 250.0, 300.0]);
        let ticks = [4.0, 4.5];
        assert_eq!(tick_label(4.5, &ticks), "4.5");
        assert_eq!(tick_label(20_000.0, &[0.0, 20_000.0]), "20k");
        assert_eq!(tick_label(2_500_000.0, &[0.0, 500_000.0]), "2.5M");
        assert_eq!(tick_label(200.0, &[0.0, 100.0]), "200");
    }

    #[test]
    fn thinning_keeps_the_extremes() {
        let mut points: Vec<Point> = (0..50_000).map(|i| Point::new(i, 3.0)).collect();
        points[12_345].loss = 9.0;
        points[23_456].loss = 1.0;
        let thinned = thin(&points);
        assert!(thinned.len() <= 2 * COLUMNS);
        assert!(thinned.contains(&points[12_345]) && thinned.contains(&points[23_456]));
        assert!(thinned.is_sorted_by(|a, b| a.step < b.step));
        let smoothed = smooth(&points[..100]);
        assert!(smoothed.iter().all(|point| (point.loss - 3.0).abs() < 1e-12));
    }

    #[test]
    fn one_outlier_does_not_flatten_the_curve() {
        let mut metrics = noisy(1000);
        metrics[500].loss = 1e6;
        let axes = |metrics: &[StepMetrics]| {
            let points: Vec<Point> = metrics.iter().map(|m| Point::new(m.step, m.loss)).collect();
            Axes::new(&points, &[], &[]).losses
        };
        assert!(axes(&metrics).last().unwrap() < &10.0);
    }

    #[test]
    fn an_older_picture_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss.svg");
        write_loss_svg(&path, "x", &noisy(5)).unwrap();
        write_loss_svg(&path, "x", &noisy(50)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), render_loss_svg("x", &noisy(50)));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
