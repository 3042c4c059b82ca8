//! `section.key=value` words of the command line.
//!
//! A word is put into the tree of the file before anything is checked, so its value goes through
//! the same checks, with the word as the place of an error. The key is a path, `data.train.0.weight`
//! or `data.train[0].weight`; the value is YAML, mostly a scalar or a flow collection
//! (`data.train=[{path: a.jsonl}]`). An empty value is null.

use super::node::{self, Entry, Fault, Kind, Node, Span};

/// One step of a path.
struct Part<'a> {
    name: &'a str,
    span: Span,
}

/// Puts `word`, the text with index `source`, into the tree.
///
/// # Errors
/// The word is no `key=value`, its value is not YAML, or its path leads outside a sequence.
/// Whether the keys exist is checked later, for file and overrides alike.
pub(super) fn apply(root: &mut Node, source: usize, word: &str) -> Result<(), Fault> {
    let whole = Span { source, start: 0, end: word.len() };
    let Some((path, value)) = word.split_once('=') else {
        let hint = "write it as `section.key=value`, for example `training.steps=100`";
        return Err(fault(whole, "expected `=` between a key and its value".into(), Some(hint)));
    };
    let path = parts(path, source)?;
    let base = word.len() - value.len();
    let mut value = node::parse(value, source, base)?;
    if value.span.start == value.span.end {
        value.span = Span { start: base, ..whole };
    }
    set(root, &path, value, "")
}

fn fault(span: Span, message: String, hint: Option<&str>) -> Fault {
    Fault { span, message, hint: hint.map(str::to_owned) }
}

/// Cuts `a.b[0].c` or `a.b.0.c` into its steps.
fn parts(path: &str, source: usize) -> Result<Vec<Part<'_>>, Fault> {
    let mut parts = Vec::new();
    let mut start = 0;
    for piece in path.split(['.', '[']) {
        let end = start + piece.len();
        let name = piece.strip_suffix(']').unwrap_or(piece);
        let span = Span { source, start, end: start + name.len() };
        if name.trim().is_empty() {
            let whole = Span { source, start: 0, end: path.len() };
            return Err(fault(whole, format!("the key `{path}` has an empty part"), None));
        }
        parts.push(Part { name, span });
        start = end + 1;
    }
    Ok(parts)
}

fn set(node: &mut Node, path: &[Part], value: Node, before: &str) -> Result<(), Fault> {
    let Some((part, rest)) = path.split_first() else {
        *node = value;
        return Ok(());
    };
    let here = super::source::child(before, part.name);
    if let Kind::Sequence(items) = &mut node.kind {
        let count = items.len();
        let Some(item) = part.name.parse().ok().and_then(|i: usize| items.get_mut(i)) else {
            return Err(outside(part, before, count));
        };
        return set(item, rest, value, &here);
    }
    if !matches!(node.kind, Kind::Mapping(_)) {
        *node = Node { span: part.span, kind: Kind::Mapping(vec![]) };
    }
    let Kind::Mapping(entries) = &mut node.kind else { return Ok(()) };
    match entries.iter_mut().find(|entry| entry.key == part.name) {
        Some(entry) => {
            if rest.is_empty() {
                entry.key_span = part.span;
            }
            set(&mut entry.value, rest, value, &here)
        }
        None => {
            let mut new = Node { span: part.span, kind: Kind::Null };
            set(&mut new, rest, value, &here)?;
            entries.push(Entry { key: part.name.into(), key_span: part.span, value: new });
            Ok(())
        }
    }
}

fn outside(part: &Part, list: &str, count: usize) -> Fault {
    let plural = if count == 1 { "" } else { "s" };
    let message =
        format!("`{}` is no element of `{list}`, which has {count} element{plural}", part.name);
    let hint = match count {
        0 => format!("give the whole list, as in `{list}=[...]`"),
        1 => "its only element is 0".to_owned(),
        _ => format!("use an index from 0 to {}", count - 1),
    };
    fault(part.span, message, Some(&hint))
}
