//! The JSON Schema of a config and the reference page, both derived from the types of `schema.rs`.

use serde_json::{Map, Value, json};

use super::schema::Config;
use super::shape::{self, Field, Section, Shape};

/// The JSON Schema (draft 2020-12) of a config, for editors and for the checks.
///
/// Every key has its help as `description`, its default, its bounds and its choices. A section as a
/// whole has no default of its own: its keys have theirs.
pub fn json_schema() -> Value {
    let mut schema = schemars::schema_for!(Config).to_value();
    let mut required_in = Vec::new();
    if let Some(defs) = schema.get_mut("$defs").and_then(Value::as_object_mut) {
        for (name, def) in defs {
            if finish_section(def) {
                required_in.push(json!(format!("#/$defs/{name}")));
            }
        }
    }
    finish_section(&mut schema);
    require_sections(&mut schema, &required_in);
    if let Some(root) = schema.as_object_mut() {
        root.insert("title".into(), "burn-titan config".into());
    }
    schema
}

/// Titles the keys of a section; a list that must not be empty loses its empty default and becomes
/// required. True if that happened.
fn finish_section(section: &mut Value) -> bool {
    let Some(keys) = section.get_mut("properties").and_then(Value::as_object_mut) else {
        return false;
    };
    let mut required = Vec::new();
    for (key, field) in keys.iter_mut() {
        let Some(field) = field.as_object_mut() else { continue };
        let empty = field.get("default") == Some(&json!([]));
        if empty && field.contains_key("minItems") {
            required.push(json!(key));
        }
        if required.last() == Some(&json!(key)) || is_section_default(field) {
            field.shift_remove("default");
        }
        field.shift_insert(0, "title".into(), key.as_str().into());
    }
    let found = !required.is_empty();
    require(section, required);
    found
}

fn is_section_default(field: &Map<String, Value>) -> bool {
    field.contains_key("$ref") && field.get("default").is_some_and(Value::is_object)
}

/// Makes the root require each section that requires a key.
fn require_sections(schema: &mut Value, targets: &[Value]) {
    let sections = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
    let names = sections
        .filter(|(_, field)| field.get("$ref").is_some_and(|target| targets.contains(target)))
        .map(|(name, _)| json!(name))
        .collect();
    require(schema, names);
}

fn require(section: &mut Value, names: Vec<Value>) {
    if let (Some(section), false) = (section.as_object_mut(), names.is_empty()) {
        let list = section.entry("required").or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.extend(names);
        }
    }
}

/// The head of `docs/configuration.md`.
const PAGE_HEAD: &str = "\
<!-- Generated: do not edit. Renew it with `burn-titan schema --markdown > docs/configuration.md`. -->

# Configuration

A run is one YAML file. `burn-titan validate FILE` checks it and shows every error at once;
`burn-titan schema` prints a JSON Schema for editors. Any key can be changed on the command line by a
word after the file, `section.key=value`, where the value is YAML: `training.steps=20`,
`data.train.0.weight=2`, `data.train=[{path: a.jsonl}]`.

Relative paths start at the working directory. `null` for a key whose type says \"or `null`\" is the
same as leaving it out. Unknown keys are errors.
";

/// The reference page of all keys, in Markdown.
///
/// One section for each section of the config and one table row for each key: type, default and
/// help, with the meaning of each choice.
pub fn markdown() -> String {
    let root = shape::root();
    let mut page = PAGE_HEAD.to_owned();
    for field in &root.fields {
        if let Shape::Section(section) = &field.shape {
            page += &format!("\n## `{}`\n\n{}\n\n{}", field.key, section.doc, table(section));
        }
    }
    for (section, keys) in element_sections(root) {
        let keys: Vec<_> = keys.iter().map(|key| format!("`{key}`")).collect();
        let keys = keys.join(" and of ");
        page += &format!("\n## Each element of {keys}\n\n{}\n\n{}", section.doc, table(section));
    }
    page
}

/// The sections that are elements of lists, with the lists' paths.
fn element_sections(root: &Section) -> Vec<(&Section, Vec<String>)> {
    let mut found: Vec<(&Section, Vec<String>)> = Vec::new();
    for outer in &root.fields {
        let Shape::Section(section) = &outer.shape else { continue };
        for field in &section.fields {
            let Shape::List { item, .. } = &field.shape else { continue };
            let Shape::Section(element) = &**item else { continue };
            let path = format!("{}.{}", outer.key, field.key);
            match found.iter_mut().find(|(known, _)| known.name == element.name) {
                Some((_, paths)) => paths.push(path),
                None => found.push((element, vec![path])),
            }
        }
    }
    found
}

fn table(section: &Section) -> String {
    let mut table = "| key | type | default | meaning |\n|---|---|---|---|\n".to_owned();
    for field in &section.fields {
        let cells =
            [kind(field), default(field), meaning(field)].map(|cell| cell.replace('|', "\\|"));
        table += &format!("| `{}` | {} |\n", field.key, cells.join(" | "));
    }
    table
}

fn kind(field: &Field) -> String {
    let kind = match &field.shape {
        Shape::Choice(_) => "choice".to_owned(),
        Shape::List { item, .. } if matches!(**item, Shape::Section(_)) => {
            "sequence of mappings".to_owned()
        }
        Shape::List { .. } => "sequence".to_owned(),
        Shape::Bool => "`true` or `false`".to_owned(),
        shape => {
            let text = shape.to_string();
            let bare = text.strip_prefix("an ").or(text.strip_prefix("a ")).unwrap_or(&text);
            bare.to_owned()
        }
    };
    match field.nullable {
        true => format!("{kind}, or `null`"),
        false => kind,
    }
}

fn default(field: &Field) -> String {
    match (&field.default, field.required) {
        (_, true) => "required".to_owned(),
        (None | Some(Value::Null), false) => "`null`".to_owned(),
        (Some(value), false) => format!("`{value}`"),
    }
}

fn meaning(field: &Field) -> String {
    let mut text = field.doc.clone();
    if let Shape::Choice(choices) = &field.shape {
        for choice in choices {
            text += &format!("<br>`{}`: {}", choice.name, choice.doc);
        }
    }
    text
}
