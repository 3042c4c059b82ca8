//! Checks the tree of a config against its shape and finds everything that is wrong at once.
//!
//! A broken value does not end the walk: it is noted, left out (so that the default takes its
//! place) and its key is marked, so that the rules across fields can still run on the rest.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::node::{Entry, Kind, Node, Span};
use super::problem::Problems;
use super::remedy;
use super::shape::{self, Field, Section, Shape};
use super::source::{SourceMap, ancestors, child, element, shorten};

/// Characters of a key that are shown.
const KEY_WIDTH: usize = 40;

/// Keys whose values are not what the file meant, because they are wrong, missing or misspelt.
#[derive(Debug, Clone, Default)]
pub(super) struct Broken(BTreeSet<String>);

impl Broken {
    pub(super) fn insert(&mut self, path: String) {
        self.0.insert(path);
    }

    /// Whether the key or a section around it is broken.
    pub(super) fn covers(&self, path: &str) -> bool {
        self.0.contains(path) || ancestors(path).any(|around| self.0.contains(around))
    }

    /// Whether anything at or below the key, or around it, is broken.
    pub(super) fn touches(&self, path: &str) -> bool {
        let below =
            |key: &String| key.strip_prefix(path).is_some_and(|rest| rest.starts_with(['.', '[']));
        self.covers(path) || self.0.iter().any(below)
    }
}

/// Checks the root of a config; what is sound comes back as JSON that the schema's types accept.
pub(super) fn check(
    root: &Node,
    source: &SourceMap,
    problems: &mut Problems,
    broken: &mut Broken,
) -> Value {
    let mut walk = Walk { source, problems, broken };
    let section = shape::root();
    match &root.kind {
        Kind::Mapping(entries) => walk.section(section, entries, ""),
        _ => {
            let message = format!("expected a mapping of sections, found {}", walk.found(root));
            let hint = format!("the sections are {}", remedy::list(section.keys()));
            walk.problems.push(|| source.problem_at(Some(root.span), &message, Some(&hint)));
            walk.broken.insert(String::new());
            placeholder_section(section)
        }
    }
}

struct Walk<'a> {
    source: &'a SourceMap,
    problems: &'a mut Problems,
    broken: &'a mut Broken,
}

impl Walk<'_> {
    /// The value as JSON, or nothing where it is not what the shape says.
    fn value(&mut self, shape: &Shape, nullable: bool, node: &Node, path: &str) -> Option<Value> {
        match (shape, &node.kind) {
            (Shape::Any, _) => return self.any(node, path),
            (_, Kind::Null) if nullable => return Some(Value::Null),
            (Shape::Section(section), Kind::Mapping(entries)) => {
                return Some(self.section(section, entries, path));
            }
            (Shape::List { item, non_empty }, Kind::Sequence(items))
                if !(*non_empty && items.is_empty()) =>
            {
                return Some(self.list(item, items, path));
            }
            (Shape::Bool, Kind::Bool(value)) => return Some((*value).into()),
            (Shape::Integer(bounds), Kind::Int(value)) if bounds.contains(*value) => {
                return integer(*value);
            }
            (Shape::Number(bounds), Kind::Int(value)) if bounds.contains(*value as f64) => {
                return Some((*value as f64).into());
            }
            (Shape::Number(bounds), Kind::Float(value)) if bounds.contains(*value) => {
                return Some((*value).into());
            }
            (Shape::Text { non_empty }, Kind::String(value))
                if !(*non_empty && value.is_empty()) =>
            {
                return Some(value.as_str().into());
            }
            (Shape::Choice(choices), Kind::String(value))
                if choices.iter().any(|choice| choice.name == *value) =>
            {
                return Some(value.as_str().into());
            }
            _ => {}
        }
        self.mismatch(shape, node, path);
        None
    }

    fn mismatch(&mut self, shape: &Shape, node: &Node, path: &str) {
        self.broken.insert(path.to_owned());
        let expected = match (shape, &node.kind) {
            (Shape::List { .. }, Kind::Sequence(_)) => "at least one element".to_owned(),
            _ => shape.to_string(),
        };
        let found = self.found(node);
        let raw = self.source.slice(node.span);
        let hint = remedy::for_mismatch(shape, node, raw);
        let message = format!("`{}`: expected {expected}, found {found}", shorten(path, 80));
        self.problem_with(node, path, &message, hint.as_deref());
    }

    /// A problem that points at a scalar itself, and at the key of anything else.
    fn problem_with(&mut self, node: &Node, path: &str, message: &str, hint: Option<&str>) {
        let source = self.source;
        let scalar = !matches!(node.kind, Kind::Null | Kind::Sequence(_) | Kind::Mapping(_));
        self.problems.push(|| match scalar && node.span.start < node.span.end {
            true => source.problem_at(Some(node.span), message, hint),
            false => source.problem(path, message, hint),
        });
    }

    /// As in "found ...".
    fn found(&self, node: &Node) -> String {
        let raw = shorten(self.source.slice(node.span), KEY_WIDTH);
        match &node.kind {
            Kind::Null => "nothing".to_owned(),
            Kind::Bool(_) => format!("`{raw}`"),
            Kind::Int(_) => format!("the integer `{raw}`"),
            Kind::Float(value) if value.is_finite() => format!("the number `{raw}`"),
            Kind::Float(_) => format!("`{raw}`, which is not a finite number"),
            Kind::String(value) if value.is_empty() => "an empty string".to_owned(),
            Kind::String(value) => format!("the string `{}`", shorten(value, KEY_WIDTH)),
            Kind::Sequence(items) if items.is_empty() => "an empty sequence".to_owned(),
            Kind::Sequence(_) => "a sequence".to_owned(),
            Kind::Mapping(_) => "a mapping".to_owned(),
        }
    }

    fn list(&mut self, item: &Shape, items: &[Node], path: &str) -> Value {
        let one = |(i, node): (usize, &Node)| {
            let value = self.value(item, false, node, &element(path, i));
            value.unwrap_or_else(|| placeholder(item))
        };
        items.iter().enumerate().map(one).collect()
    }

    fn section(&mut self, section: &Section, entries: &[Entry], path: &str) -> Value {
        let mut out = Map::new();
        let given = self.without_repeats(entries, path);
        for entry in given.values() {
            let here = child(path, &entry.key);
            let value = match section.field(&entry.key) {
                Some(field) => self.value(&field.shape, field.nullable, &entry.value, &here),
                None if section.open => self.any(&entry.value, &here),
                None => {
                    self.unknown(section, entry, path);
                    None
                }
            };
            if let Some(value) = value {
                out.insert(entry.key.clone(), value);
            }
        }
        for field in section.fields.iter().filter(|field| field.required) {
            if !given.contains_key(field.key.as_str()) {
                self.missing(field, entries, path);
            }
            if !out.contains_key(&field.key) {
                out.insert(field.key.clone(), placeholder(&field.shape));
            }
        }
        Value::Object(out)
    }

    /// The entries by key. A key that is given again is a problem.
    fn without_repeats<'n>(
        &mut self,
        entries: &'n [Entry],
        path: &str,
    ) -> BTreeMap<&'n str, &'n Entry> {
        let mut given: BTreeMap<&str, &Entry> = BTreeMap::new();
        let source = self.source;
        for entry in entries {
            let Some(first) = given.get(entry.key.as_str()) else {
                given.insert(&entry.key, entry);
                continue;
            };
            self.broken.insert(child(path, &entry.key));
            let first = source.line(first.key_span);
            let hint = first.map(|line| format!("the first is on line {line}; remove one of them"));
            let message = format!("the key `{}` is given twice", shorten(&entry.key, KEY_WIDTH));
            let span = Some(entry.key_span);
            self.problems.push(|| source.problem_at(span, &message, hint.as_deref()));
        }
        given
    }

    fn unknown(&mut self, section: &Section, entry: &Entry, path: &str) {
        let (hint, meant) = remedy::for_unknown_key(section, &entry.key, path);
        // What was meant is no longer known, so no rule may judge its default.
        for path in meant {
            self.broken.insert(path);
        }
        let key = shorten(&entry.key, KEY_WIDTH);
        let message = match path {
            "" => format!("unknown key `{key}`"),
            _ => format!("unknown key `{key}` in `{path}`"),
        };
        let (source, span) = (self.source, Some(entry.key_span));
        self.problems.push(|| source.problem_at(span, &message, Some(&hint)));
    }

    fn missing(&mut self, field: &Field, entries: &[Entry], path: &str) {
        let here = child(path, &field.key);
        if self.broken.covers(&here) {
            return;
        }
        if let Shape::Section(section) = &field.shape {
            self.section(section, &[], &here);
            return;
        }
        let message = format!("`{here}` is missing, and it has no default");
        let hint = format!("`{}`: {}", field.key, field.doc);
        let (source, first) = (self.source, entries.first().map(|entry| entry.key_span));
        // Elements of a sequence have no key to point at, so their first key is taken.
        let span: Option<Span> = first.filter(|_| path.ends_with(']'));
        self.problems.push(|| match span {
            Some(_) => source.problem_at(span, &message, Some(&hint)),
            None => source.problem(&here, &message, Some(&hint)),
        });
        self.broken.insert(here);
    }

    /// A value whose shape is free: anything that JSON can say.
    fn any(&mut self, node: &Node, path: &str) -> Option<Value> {
        match &node.kind {
            Kind::Null => Some(Value::Null),
            Kind::Bool(value) => Some((*value).into()),
            Kind::Int(value) => integer(*value),
            Kind::Float(value) if value.is_finite() => Some((*value).into()),
            Kind::Float(_) => {
                let message =
                    format!("`{}`: expected a finite number, found {}", path, self.found(node));
                self.problem_with(node, path, &message, None);
                self.broken.insert(path.to_owned());
                None
            }
            Kind::String(value) => Some(value.as_str().into()),
            Kind::Sequence(items) => {
                let items = items.iter().enumerate();
                let values = items.map(|(i, item)| self.any(item, &element(path, i)));
                Some(values.map(Option::unwrap_or_default).collect())
            }
            Kind::Mapping(entries) => {
                let given = self.without_repeats(entries, path);
                let values = given.iter().filter_map(|(key, entry)| {
                    let value = self.any(&entry.value, &child(path, key))?;
                    Some(((*key).to_owned(), value))
                });
                Some(Value::Object(values.collect()))
            }
        }
    }
}

fn integer(value: i128) -> Option<Value> {
    let unsigned = u64::try_from(value).ok().map(Value::from);
    unsigned.or_else(|| i64::try_from(value).ok().map(Value::from))
}

/// Stands in for a required value that is missing or broken.
fn placeholder(shape: &Shape) -> Value {
    match shape {
        Shape::Text { .. } => Value::String(String::new()),
        Shape::List { .. } => Value::Array(vec![]),
        Shape::Section(section) => placeholder_section(section),
        _ => Value::Null,
    }
}

fn placeholder_section(section: &Section) -> Value {
    let required = section.fields.iter().filter(|field| field.required);
    Value::Object(required.map(|f| (f.key.clone(), placeholder(&f.shape))).collect())
}
