//! Drawings of a time line, simulated or measured: time to the right, one row a rank.
//!
//! A step is named by the letter of its kind and its micro-batch, `F3`, and where a rank has several stages by its
//! stage as well, `1F3`.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::lower::Value;
use super::schedule::{Kind, Step};
use super::simulate::{Span, TimeLine};

/// What the letters mean, in the order of [`Kind::ALL`].
const MEANINGS: [&str; 4] =
    ["forward", "backward", "backward for the input", "backward for the weights"];

/// `line` as text of at most `columns` characters of time a row. Each row ends with the part of the time in which
/// the rank is idle, and the messages that it sends.
///
/// Steps too short for their name show their letter; steps shorter than a character may be hidden.
pub fn text(line: &TimeLine, columns: usize) -> String {
    let names = Names::new(line);
    let (start, end) = line.extent();
    let scale = characters_per_time(line, &names, columns);
    let column = |time: f64| ((time - start) * scale).round() as usize;
    let width = column(end).min(columns);
    let mut drawing = String::new();
    let digits = line.ranks.len().saturating_sub(1).to_string().len();
    for (rank, spans) in line.ranks.iter().enumerate() {
        let mut row = vec!['.'; width];
        for span in spans {
            let (from, to) = (column(span.start).min(width), column(span.end).min(width));
            fill(&mut row[from..to.max(from)], span.step, &names);
        }
        let row: String = row.into_iter().collect();
        let sends = line.transfers.iter().filter(|transfer| transfer.from == rank).count();
        let idle = percent(line.bubble(rank));
        writes(
            &mut drawing,
            format_args!("rank {rank:>digits$} |{row}| idle {idle}, sends {sends}\n"),
        );
    }
    let kinds = names.kinds.iter().map(|kind| format!("{} {}", kind.letter(), meaning(*kind)));
    let legend = kinds.collect::<Vec<_>>().join(", ");
    let order = if names.stages { "stage, kind, micro-batch" } else { "kind, micro-batch" };
    let (time, bubble) = (number(line.makespan()), percent(line.mean_bubble()));
    writes(
        &mut drawing,
        format_args!("time {time}, bubble {bubble}; {order}: {legend}; . waits\n"),
    );
    drawing
}

/// Writes a step over its part of the row, with a gap at the end where there is room.
fn fill(cell: &mut [char], step: Step, names: &Names) {
    let name = names.of(step);
    let room = if cell.len() > 1 { cell.len() - 1 } else { cell.len() };
    let name = if name.len() <= room { name } else { step.kind.letter().to_string() };
    let shown = name.chars().chain(std::iter::repeat('-')).take(room);
    for (place, character) in cell.iter_mut().zip(shown.chain(std::iter::once(' '))) {
        *place = character;
    }
}

/// As many as the shortest step needs for its name, but no more than fit.
fn characters_per_time(line: &TimeLine, names: &Names, columns: usize) -> f64 {
    let spans = || line.ranks.iter().flatten();
    let shortest =
        spans().map(|span| span.end - span.start).filter(|time| *time > 0.0).reduce(f64::min);
    let longest_name = spans().map(|span| names.of(span.step).len()).max().unwrap_or(0);
    let makespan = line.makespan();
    match shortest {
        Some(shortest) if makespan.is_finite() => {
            ((longest_name + 1) as f64 / shortest).min(columns as f64 / makespan)
        }
        _ => 0.0,
    }
}

/// What the names of steps say.
struct Names {
    /// Whether a rank has several stages.
    stages: bool,
    /// The kinds of steps that occur.
    kinds: BTreeSet<Kind>,
}

impl Names {
    fn new(line: &TimeLine) -> Self {
        let kinds = line.ranks.iter().flatten().map(|span| span.step.kind).collect();
        Self { stages: line.ranks.iter().any(|spans| stages(spans).len() > 1), kinds }
    }

    fn of(&self, step: Step) -> String {
        if self.stages { step.to_string() } else { format!("{}{}", step.kind.letter(), step.micro) }
    }
}

fn meaning(kind: Kind) -> &'static str {
    let place = Kind::ALL.iter().position(|other| *other == kind);
    place.map_or("", |place| MEANINGS[place])
}

/// The stages of a rank, in order.
fn stages(spans: &[Span]) -> Vec<usize> {
    let stages: BTreeSet<usize> = spans.iter().map(|span| span.step.stage).collect();
    stages.into_iter().collect()
}

fn percent(part: f64) -> String {
    format!("{:.1}%", 100.0 * part)
}

/// With four digits after the point at most.
fn number(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

const LEFT: f64 = 64.0;
const RIGHT: f64 = 64.0;
const TOP: f64 = 60.0;
const ROW: f64 = 24.0;
const GAP: f64 = 8.0;
const BOTTOM: f64 = 28.0;
/// Least and most pixels of time.
const TIME: (f64, f64) = (640.0, 2400.0);
/// Pixels of a character of a name.
const CHARACTER: f64 = 6.5;
const TEXT: &str = "#768390";

/// Red, green and blue, of middle lightness so that the picture reads on white and on black.
fn colour(kind: Kind) -> [u8; 3] {
    match kind {
        Kind::Forward => [59, 130, 246],
        Kind::Backward => [22, 163, 74],
        Kind::BackwardInput => [13, 148, 136],
        Kind::BackwardWeight => [217, 119, 6],
    }
}

/// The colour of a kind, the darker the later the stage is among the `stages` of its rank.
fn shade(kind: Kind, place: usize, stages: usize) -> String {
    let light = 1.0 - 0.5 * place as f64 / stages.max(1) as f64;
    let [red, green, blue] = colour(kind).map(|part| (f64::from(part) * light).round() as u8);
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// Time lines with their titles as an SVG without scripts or outside files, one above the other at one scale. Steps are
/// coloured by kind, darker for a rank's later stages; where the pale ground of a row shows, the rank waits; lines are
/// messages, in the colour of the step that made them; the part of the time in which a rank is idle stands behind its
/// row.
pub fn svg(lines: &[(&str, &TimeLine)]) -> String {
    let mut pictures: Vec<_> = lines.iter().map(|(_, line)| Picture::new(line)).collect();
    let scale = pictures.iter().map(|picture| picture.scale).reduce(f64::min).unwrap_or(0.0);
    let mut top = 0.0;
    for picture in &mut pictures {
        (picture.top, picture.scale) = (top, scale);
        picture.width = scale * picture.line.makespan();
        top = picture.y(picture.line.ranks.len()) + BOTTOM;
    }
    let width = pictures.iter().map(|picture| picture.width).fold(TIME.0, f64::max);
    let (width, height) = (LEFT + width + RIGHT, top);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"10\">\n"
    );
    for (picture, (title, line)) in pictures.iter().zip(lines) {
        picture.head(&mut svg, title);
        picture.rows(&mut svg);
        picture.messages(&mut svg);
        let ranks = line.ranks.iter().enumerate();
        ranks.for_each(|(rank, spans)| picture.steps(&mut svg, rank, spans));
    }
    svg.push_str("</svg>\n");
    svg
}

struct Picture<'a> {
    line: &'a TimeLine,
    names: Names,
    /// Pixels above it.
    top: f64,
    start: f64,
    /// Pixels of a unit of time.
    scale: f64,
    /// Pixels of the whole time.
    width: f64,
}

impl<'a> Picture<'a> {
    fn new(line: &'a TimeLine) -> Self {
        let names = Names::new(line);
        // A name takes about as many pixels as a character of text, and a margin.
        let wanted = characters_per_time(line, &names, usize::MAX) * CHARACTER;
        let makespan = line.makespan();
        let width = (wanted * makespan).clamp(TIME.0, TIME.1);
        let scale = if makespan > 0.0 { width / makespan } else { 0.0 };
        Self { line, names, top: 0.0, start: line.extent().0, scale, width }
    }

    fn x(&self, time: f64) -> f64 {
        LEFT + (time - self.start) * self.scale
    }

    fn y(&self, rank: usize) -> f64 {
        self.top + TOP + rank as f64 * (ROW + GAP)
    }

    fn head(&self, svg: &mut String, title: &str) {
        let heading = format!("{title}: bubble {}", percent(self.line.mean_bubble()));
        label(
            svg,
            LEFT,
            self.top + 18.0,
            "start",
            &format!("fill=\"{TEXT}\" font-size=\"14\""),
            &heading,
        );
        let mut x = LEFT;
        for kind in &self.names.kinds {
            let fill = shade(*kind, 0, 1);
            rectangle(svg, x, self.top + 30.0, 12.0, 12.0, &format!("fill=\"{fill}\""));
            let text = format!("{} {}", kind.letter(), meaning(*kind));
            label(svg, x + 17.0, self.top + 40.0, "start", &format!("fill=\"{TEXT}\""), &text);
            x += 34.0 + CHARACTER * text.len() as f64;
        }
        if self.names.stages {
            let note = "darker: a later stage of the rank";
            label(svg, x, self.top + 40.0, "start", &format!("fill=\"{TEXT}\""), note);
        }
    }

    fn rows(&self, svg: &mut String) {
        let text = format!("fill=\"{TEXT}\"");
        for rank in 0..self.line.ranks.len() {
            let (y, baseline) = (self.y(rank), self.y(rank) + 0.65 * ROW);
            let ground = format!("fill=\"{TEXT}\" fill-opacity=\"0.15\"");
            rectangle(svg, LEFT, y, self.width, ROW, &ground);
            label(svg, LEFT - 8.0, baseline, "end", &text, &format!("rank {rank}"));
            let idle = percent(self.line.bubble(rank));
            label(svg, LEFT + self.width + 8.0, baseline, "start", &text, &idle);
        }
        let y = self.y(self.line.ranks.len()) + 8.0;
        label(svg, LEFT, y, "start", &text, "0");
        label(svg, LEFT + self.width, y, "end", &text, &number(self.line.makespan()));
    }

    /// Under the steps, so that a message between ranks far apart does not hide those between.
    fn messages(&self, svg: &mut String) {
        for transfer in &self.line.transfers {
            let kind = match transfer.message.value {
                Value::Activation => Kind::Forward,
                Value::Gradient => Kind::Backward,
            };
            // From the edge of the one row to the edge of the other.
            let edges = if transfer.from < transfer.to { (ROW, 0.0) } else { (0.0, ROW) };
            writes(
                svg,
                format_args!(
                    "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{}\" stroke-opacity=\"0.6\"/>\n",
                    self.x(transfer.start),
                    self.y(transfer.from) + edges.0,
                    self.x(transfer.end),
                    self.y(transfer.to) + edges.1,
                    shade(kind, 0, 1),
                ),
            );
        }
    }

    fn steps(&self, svg: &mut String, rank: usize, spans: &[Span]) {
        let stages = stages(spans);
        for span in spans {
            let place = stages.binary_search(&span.step.stage).unwrap_or(0);
            let fill = shade(span.step.kind, place, stages.len());
            let (x, width) = (self.x(span.start), (span.end - span.start) * self.scale);
            rectangle(
                svg,
                x,
                self.y(rank),
                (width - 0.6).max(0.2),
                ROW,
                &format!("fill=\"{fill}\""),
            );
            let name = self.names.of(span.step);
            if width >= CHARACTER * name.len() as f64 {
                let y = self.y(rank) + 0.65 * ROW;
                label(svg, x + width / 2.0, y, "middle", "fill=\"#fff\"", &name);
            }
        }
    }
}

fn rectangle(svg: &mut String, x: f64, y: f64, width: f64, height: f64, style: &str) {
    writes(
        svg,
        format_args!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" {style}/>\n"
        ),
    );
}

fn label(svg: &mut String, x: f64, y: f64, anchor: &str, style: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    writes(
        svg,
        format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {style}>{text}</text>\n"
        ),
    );
}

/// Writing to a string cannot fail.
fn writes(to: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _ = to.write_fmt(arguments);
}
