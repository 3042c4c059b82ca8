//! A YAML document as a tree that knows where each part stands in its text.
//!
//! serde types forget positions, and serde stops at the first error; the checks need every position
//! and every error. So a config is read into this tree first. Scalars follow YAML 1.2: `yes`, `on`
//! and `0755` are strings; `1e-3` and `8.0e-4` are floats. Anchors, aliases and merge keys (`<<`)
//! are expanded within narrow limits, so that a small file cannot grow into a large tree.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::{
    DuplicateKeyPolicy, Error, Location, MessageFormatter, NonFiniteFloatPolicy, Spanned,
    UserMessageFormatter,
};

/// Deepest nesting of sequences and mappings that is read; a config needs six.
const MAX_DEPTH: usize = 32;
/// Most nodes that are read, aliases not counted.
const MAX_NODES: usize = 50_000;
/// Most parser events that aliases may add.
const MAX_ALIAS_EVENTS: usize = 10_000;

/// A range of bytes in one of the texts of a config.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// Index of the text: 0 is the file, `i + 1` is override `i`.
    pub(super) source: usize,
    /// First byte.
    pub(super) start: usize,
    /// The byte after the last one.
    pub(super) end: usize,
}

/// A value and the place it was written at (for an alias: the place of its anchor).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) span: Span,
    pub(super) kind: Kind,
}

/// What a node holds.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Null,
    Bool(bool),
    /// Within the range of `i64` and `u64`: a larger integer is read as a float.
    Int(i128),
    Float(f64),
    String(String),
    Sequence(Vec<Node>),
    /// In the order of the text; keys may repeat.
    Mapping(Vec<Entry>),
}

/// A key of a mapping and its value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_span: Span,
    pub(super) value: Node,
}

/// An error at a place in a text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fault {
    pub(super) span: Span,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

/// Reads `text`, which starts at byte `base` of the text with index `source`.
///
/// # Errors
/// Anything that is not exactly one YAML document within the limits of this module.
pub(super) fn parse(text: &str, source: usize, base: usize) -> Result<Node, Fault> {
    let options = serde_yaml::options! {
        budget: serde_yaml::budget! { max_depth: MAX_DEPTH, max_nodes: MAX_NODES },
        alias_limits: serde_yaml::alias_limits! { max_total_replayed_events: MAX_ALIAS_EVENTS },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        with_snippet: false,
    };
    let origin = Origin { source, base, text };
    serde_yaml::from_str_with_options::<Spanned<Raw>>(text, options)
        .map(|raw| origin.node(raw))
        .map_err(|error| origin.fault(&error))
}

/// Where a parsed text lies among the texts of a config.
struct Origin<'a> {
    source: usize,
    base: usize,
    text: &'a str,
}

impl Origin<'_> {
    fn span(&self, location: Location) -> Span {
        let span = location.span();
        let start = match span.byte_offset() {
            Some(at) => (at as usize).min(self.text.len()),
            None => self.offset_of(location),
        };
        let len = span.byte_len().map_or(0, |len| len as usize);
        let end = start + len.min(self.text.len() - start);
        Span { source: self.source, start: self.base + start, end: self.base + end }
    }

    /// Byte offset of a line and column: the scanner's own errors know no more.
    fn offset_of(&self, location: Location) -> usize {
        let before = (location.line() as usize).saturating_sub(1);
        let mut lines = self.text.split_inclusive('\n');
        let start: usize = lines.clone().take(before).map(str::len).sum();
        let line = lines.nth(before).unwrap_or("").trim_end_matches(['\r', '\n']);
        let column = (location.column() as usize).saturating_sub(1);
        start + line.char_indices().nth(column).map_or(line.len(), |(at, _)| at)
    }

    fn node(&self, raw: Spanned<Raw>) -> Node {
        let kind = match raw.value {
            Raw::Null => Kind::Null,
            Raw::Bool(value) => Kind::Bool(value),
            Raw::Int(value) => Kind::Int(value),
            Raw::Float(value) => Kind::Float(value),
            Raw::String(value) => Kind::String(value),
            Raw::Sequence(items) => {
                Kind::Sequence(items.into_iter().map(|item| self.node(item)).collect())
            }
            Raw::Mapping(entries) => {
                Kind::Mapping(entries.into_iter().map(|entry| self.entry(entry)).collect())
            }
        };
        Node { span: self.span(raw.defined), kind }
    }

    fn entry(&self, (key, value): (Spanned<String>, Spanned<Raw>)) -> Entry {
        Entry { key_span: self.span(key.defined), key: key.value, value: self.node(value) }
    }

    fn fault(&self, error: &Error) -> Fault {
        let error = innermost(error);
        let (message, hint) = match error {
            Error::MultipleDocuments { .. } => (
                "expected one YAML document, found a second one".to_owned(),
                Some("remove the `---` between them, or split the file"),
            ),
            Error::Budget { .. }
            | Error::AliasReplayLimitExceeded { .. }
            | Error::AliasExpansionLimitExceeded { .. }
            | Error::AliasReplayStackDepthExceeded { .. } => (
                format!(
                    "too large for a config: at most {MAX_DEPTH} levels, {MAX_NODES} values and \
                     {MAX_ALIAS_EVENTS} parts repeated by aliases are read"
                ),
                None,
            ),
            Error::NullIntoString { .. } => ("a key must not be empty".to_owned(), None),
            other => {
                let cause = UserMessageFormatter.format_message(other);
                (format!("not valid YAML: {cause}"), remedy(&cause))
            }
        };
        let span = match error.location() {
            Some(location) => self.span(location),
            None => Span { source: self.source, start: self.base, end: self.base },
        };
        Fault { span, message, hint: hint.map(str::to_owned) }
    }
}

/// The error itself, without the notes on where an alias was used.
fn innermost(mut error: &Error) -> &Error {
    while let Error::AliasError { error: inner, .. } | Error::WithSnippet { error: inner, .. } =
        error
    {
        error = inner;
    }
    error
}

/// What to do about the slips that are made most often.
fn remedy(cause: &str) -> Option<&'static str> {
    if cause.starts_with("tabs disallowed") {
        Some("indent with spaces")
    } else if cause.starts_with("mapping values are not allowed") {
        Some("check the indentation of this line, or quote a value that contains `: `")
    } else if cause.starts_with("reference to unknown") {
        Some("write `&name` before `*name` uses it, or quote a value that starts with `*`")
    } else if cause.starts_with("unexpected character") {
        Some("quote a value that starts with this character")
    } else {
        None
    }
}

/// A node as serde hands it over, before its place is worked out.
enum Raw {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    String(String),
    Sequence(Vec<Spanned<Raw>>),
    Mapping(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Int(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::Sequence(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Mapping(entries))
    }
}
