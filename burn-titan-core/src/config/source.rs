//! The texts of a config and the place of every key in them.

use std::collections::BTreeMap;

use super::node::{Fault, Kind, Node, Span};
use super::problem::{ConfigErrors, Excerpt, Origin, Problem, Problems, is_printable, printable};

/// Characters of a line that are shown; longer lines are cut around the underlined part.
const EXCERPT_WIDTH: usize = 100;
/// Characters of an override that are shown.
const WORD_WIDTH: usize = 60;

/// Where each key of a config was written, and the texts themselves.
///
/// Keys are paths as in messages: `training.steps`, `data.train[0].path`,
/// `model.overrides.n_heads`.
#[derive(Debug, Clone, Default)]
pub struct SourceMap {
    name: String,
    /// The file, then the overrides.
    texts: Vec<Text>,
    places: BTreeMap<String, Place>,
}

#[derive(Debug, Clone)]
struct Text {
    text: String,
    /// First byte of each line.
    lines: Vec<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    /// Absent for elements of a sequence.
    key: Option<Span>,
    value: Span,
    scalar: bool,
}

impl SourceMap {
    /// A map of the texts without any keys yet.
    pub(super) fn new(name: &str, text: &str, overrides: &[String]) -> Self {
        let texts = std::iter::once(text).chain(overrides.iter().map(String::as_str));
        Self {
            name: printable(name),
            texts: texts.map(Text::new).collect(),
            places: BTreeMap::new(),
        }
    }

    /// The file as it was named.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text of the file, without a byte order mark.
    pub fn text(&self) -> &str {
        self.texts.first().map_or("", |text| &text.text)
    }

    /// Whether the file or an override gives this key.
    pub fn contains(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }

    /// A problem with the value of `key`, for example `model.overrides.n_heads`.
    ///
    /// It points at the key where the file or an override gives it, else at the nearest section
    /// around it, else at the file as a whole.
    pub fn problem(&self, key: &str, message: &str, hint: Option<&str>) -> Problem {
        self.problem_of(&[key], message, hint)
    }

    /// A problem with several keys; it points at the first that is given.
    pub(super) fn problem_of(&self, keys: &[&str], message: &str, hint: Option<&str>) -> Problem {
        let given = keys.iter().find_map(|key| self.places.get(*key));
        let around = || ancestors(keys.first()?).find_map(|key| self.places.get(key));
        let span = given.or_else(around).map(Place::shown);
        self.problem_at(span, message, hint)
    }

    /// A problem at a place, or with the file as a whole.
    pub(super) fn problem_at(
        &self,
        span: Option<Span>,
        message: &str,
        hint: Option<&str>,
    ) -> Problem {
        let place = span.and_then(|span| Some((span, self.texts.get(span.source)?)));
        let (origin, order, excerpt) = match place {
            None => (Origin::WholeFile { name: self.name.clone() }, (0, 0), None),
            Some((span, text)) => {
                let (line, column) = text.position(span.start);
                let origin = match span.source {
                    0 => Origin::File { name: self.name.clone(), line, column },
                    _ => Origin::Override { word: shorten(&text.text, WORD_WIDTH) },
                };
                let number = (span.source == 0).then_some(line);
                (origin, (span.source, span.start), Some(text.excerpt(span, line, number)))
            }
        };
        Problem { origin, message: printable(message), hint: hint.map(printable), order, excerpt }
    }

    pub(super) fn problem_from(&self, fault: &Fault) -> Problem {
        self.problem_at(Some(fault.span), &fault.message, fault.hint.as_deref())
    }

    /// The text of a span; empty where the span is none of this map's.
    pub(super) fn slice(&self, span: Span) -> &str {
        self.texts
            .get(span.source)
            .and_then(|text| text.text.get(span.start..span.end))
            .unwrap_or("")
    }

    /// The line of a place, from 1, if it lies in the file.
    pub(super) fn line(&self, span: Span) -> Option<usize> {
        let text = self.texts.get(span.source).filter(|_| span.source == 0)?;
        Some(text.position(span.start).0)
    }

    /// Notes the place of every key of the tree.
    pub(super) fn index(&mut self, root: &Node) {
        self.index_node(root, String::new(), None);
    }

    fn index_node(&mut self, node: &Node, path: String, key: Option<Span>) {
        match &node.kind {
            Kind::Sequence(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.index_node(item, element(&path, i), None);
                }
            }
            Kind::Mapping(entries) => {
                for entry in entries {
                    self.index_node(&entry.value, child(&path, &entry.key), Some(entry.key_span));
                }
            }
            _ => {}
        }
        if !path.is_empty() {
            let scalar = !matches!(node.kind, Kind::Sequence(_) | Kind::Mapping(_));
            self.places.insert(path, Place { key, value: node.span, scalar });
        }
    }
}

impl ConfigErrors {
    /// One problem with the value of `key`; see [`SourceMap::problem`].
    pub fn at(source: &SourceMap, key: &str, message: &str, hint: Option<&str>) -> Self {
        let mut problems = Problems::new(&source.name);
        problems.push(|| source.problem(key, message, hint));
        problems.into_errors()
    }
}

impl Place {
    /// What is underlined: `key: value` where that fits, else the key.
    fn shown(&self) -> Span {
        match self.key {
            Some(key) if self.scalar && key.source == self.value.source => {
                Span { end: self.value.end.max(key.end), ..key }
            }
            Some(key) => key,
            None => self.value,
        }
    }
}

impl Text {
    fn new(text: &str) -> Self {
        let ends = text.match_indices('\n').map(|(at, _)| at + 1);
        Self { text: text.to_owned(), lines: std::iter::once(0).chain(ends).collect() }
    }

    /// Line and column (in characters) of a byte, both from 1.
    fn position(&self, at: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|start| *start <= at).max(1);
        let start = self.lines.get(line - 1).copied().unwrap_or(0);
        let before = self.text.get(start..at).unwrap_or("");
        (line, before.chars().count() + 1)
    }

    /// The first line of a span, cut to a readable width, with control characters made visible.
    fn excerpt(&self, span: Span, line: usize, number: Option<usize>) -> Excerpt {
        let start = self.lines.get(line - 1).copied().unwrap_or(0);
        let text = self.text.get(start..).unwrap_or("");
        let text = text.split('\n').next().unwrap_or("").trim_end_matches('\r');
        let within = |at: usize| at.saturating_sub(start).min(text.len());
        let head = text.get(..within(span.start)).unwrap_or("");
        let marked = text.get(within(span.start)..within(span.end)).unwrap_or("").trim_end();
        let mut before: Vec<char> = head.chars().rev().take(EXCERPT_WIDTH / 2 + 1).collect();
        before.reverse();
        let cut = if before.len() > EXCERPT_WIDTH / 2 { "..." } else { "" };
        before.drain(..cut.len().min(1));
        let room = EXCERPT_WIDTH - before.len();
        let after: String = text.get(head.len()..).unwrap_or("").chars().take(room).collect();
        let more = if head.len() + after.len() < text.len() { "..." } else { "" };
        let shown = before.iter().copied().chain(after.chars()).map(one_column);
        Excerpt {
            line: number,
            text: format!("{cut}{}{more}", shown.collect::<String>().trim_end()),
            skip: cut.len() + before.len(),
            width: marked.chars().take(room).count().max(1),
        }
    }
}

/// Itself, or a space for a tab or another control character.
fn one_column(c: char) -> char {
    if is_printable(c) { c } else { ' ' }
}

/// The path of a key of a mapping.
pub(super) fn child(path: &str, key: &str) -> String {
    match path.is_empty() {
        true => key.to_owned(),
        false => format!("{path}.{key}"),
    }
}

/// The path of an element of a sequence.
pub(super) fn element(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}

/// The paths around a path, from the inside out, ending with the empty path.
pub(super) fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| match path.rfind(['.', '[']) {
        Some(at) => path.get(..at),
        None => (!path.is_empty()).then_some(""),
    })
    .skip(1)
}

/// Text from outside on one line, at most `width` characters long.
pub(super) fn shorten(text: &str, width: usize) -> String {
    let text = printable(text);
    match text.char_indices().nth(width) {
        Some((at, _)) => format!("{}...", text.get(..at).unwrap_or("")),
        None => text,
    }
}
