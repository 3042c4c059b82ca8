//! What to do about a value or a key that the schema does not allow.

use super::node::{Kind, Node};
use super::shape::{self, Section, Shape};
use super::source::{child, shorten};
use super::suggest::nearest;

/// Sections that may be named for a key that stands in the wrong one.
const MAX_PLACES: usize = 3;

/// The names in backticks, with commas.
pub(super) fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// What to do about a value of the wrong kind; `raw` is its source text.
pub(super) fn for_mismatch(shape: &Shape, node: &Node, raw: &str) -> Option<String> {
    match (shape, &node.kind) {
        (_, Kind::Null) => Some("give it a value, or remove the key".to_owned()),
        (Shape::Choice(choices), Kind::String(value)) => {
            let names = choices.iter().map(|choice| choice.name.as_str());
            nearest(value, names).map(|name| format!("did you mean `{name}`?"))
        }
        (Shape::Bool, Kind::String(value)) => {
            let value = match value.to_lowercase().as_str() {
                "true" | "yes" | "y" | "on" => "true",
                "false" | "no" | "n" | "off" => "false",
                _ => return None,
            };
            Some(format!("did you mean `{value}`?"))
        }
        (Shape::Integer(bounds), Kind::Float(value)) if value.fract() == 0.0 => {
            let whole = *value as i128;
            let fits = bounds.contains(whole);
            let large = whole > u64::MAX.into() || whole < i64::MIN.into();
            match (fits, large) {
                (true, _) => Some(format!("write it as `{whole}`")),
                (_, true) => Some("it does not fit in 64 bits".to_owned()),
                _ => None,
            }
        }
        (Shape::Integer(_) | Shape::Number(_), Kind::String(value)) => {
            let quoted = raw.starts_with(['"', '\'']);
            let number = value.trim().parse::<f64>().is_ok_and(f64::is_finite);
            (quoted && number).then(|| "remove the quotes".to_owned())
        }
        (Shape::Text { .. }, Kind::Bool(_) | Kind::Int(_) | Kind::Float(_)) => {
            Some(format!("put it in quotes: `\"{}\"`", shorten(raw, 40)))
        }
        (Shape::List { item, .. }, _) => Some(format!("write it as `[{}]`", example(item))),
        (Shape::Section(_), Kind::String(_)) => Some(format!("write it as `{}`", example(shape))),
        _ => None,
    }
}

/// How a value of this shape is written.
fn example(shape: &Shape) -> String {
    match shape {
        Shape::Section(section) => {
            let field = section.fields.iter().find(|f| f.required).or(section.fields.first());
            field.map_or_else(|| "{}".to_owned(), |field| format!("{{{}: ...}}", field.key))
        }
        _ => "...".to_owned(),
    }
}

/// What to do about a key that the section does not have, and the keys it may have meant.
pub(super) fn for_unknown_key(section: &Section, key: &str, path: &str) -> (String, Vec<String>) {
    let elsewhere = same_key_elsewhere(key);
    if (1..=MAX_PLACES).contains(&elsewhere.len()) {
        let names: Vec<_> = elsewhere.iter().map(|path| format!("`{path}`")).collect();
        return (format!("did you mean {}?", names.join(" or ")), elsewhere);
    }
    if let Some(name) = nearest(key, section.keys()) {
        return (format!("did you mean `{name}`?"), vec![child(path, name)]);
    }
    if !path.is_empty() && shape::root().field(key).is_some() {
        let hint = format!("`{key}` is a section of its own, so indent it less");
        return (hint, vec![key.to_owned()]);
    }
    let hint = match path {
        "" => format!("the sections are {}", list(section.keys())),
        _ => format!("its keys are {}", list(section.keys())),
    };
    (hint, vec![])
}

/// Where other sections have a key of exactly this name.
fn same_key_elsewhere(key: &str) -> Vec<String> {
    let sections = shape::root().fields.iter().filter_map(|field| match &field.shape {
        Shape::Section(section) => Some((field, section)),
        _ => None,
    });
    let found = sections.filter(|(_, section)| section.field(key).is_some());
    found.map(|(field, _)| child(&field.key, key)).collect()
}
