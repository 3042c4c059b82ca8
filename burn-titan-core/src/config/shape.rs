//! The JSON Schema of a config, read into the form that the checks and the reference page walk.
//!
//! The schema is derived from the types of `schema.rs`, so names, types, bounds, defaults and
//! help each have one source.

use std::fmt::{self, Display};
use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::reference::json_schema;

/// The shape of a whole config.
pub(super) fn root() -> &'static Section {
    static ROOT: LazyLock<Section> = LazyLock::new(|| {
        let schema = json_schema();
        Reader { defs: schema.get("$defs").and_then(Value::as_object) }.section("", &schema)
    });
    &ROOT
}

/// What a value must look like.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Shape {
    Bool,
    Integer(Integer),
    Number(Number),
    Text {
        non_empty: bool,
    },
    Choice(Vec<Choice>),
    List {
        item: Box<Shape>,
        non_empty: bool,
    },
    Section(Section),
    /// Anything that JSON can say.
    Any,
}

/// Bounds of an integer, both included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Integer {
    pub(super) min: i128,
    pub(super) max: i128,
}

/// Bounds of a finite number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Number {
    min: Option<f64>,
    max: Option<f64>,
    above: Option<f64>,
    below: Option<f64>,
}

/// One value of an enum.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Choice {
    pub(super) name: String,
    pub(super) doc: String,
}

/// A mapping with known keys.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Section {
    /// Name of the Rust type, for telling sections of one type apart from others.
    pub(super) name: String,
    pub(super) doc: String,
    pub(super) fields: Vec<Field>,
    /// Whether other keys, with any value, are allowed.
    pub(super) open: bool,
}

/// A key of a section.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Field {
    pub(super) key: String,
    pub(super) doc: String,
    pub(super) required: bool,
    /// Whether `null` is a value, with the meaning of the key left out.
    pub(super) nullable: bool,
    pub(super) default: Option<Value>,
    pub(super) shape: Shape,
}

impl Section {
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|field| field.key.as_str())
    }

    pub(super) fn field(&self, key: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.key == key)
    }
}

impl Integer {
    pub(super) fn contains(&self, value: i128) -> bool {
        (self.min..=self.max).contains(&value)
    }
}

impl Number {
    pub(super) fn contains(&self, value: f64) -> bool {
        value.is_finite()
            && self.min.is_none_or(|min| value >= min)
            && self.max.is_none_or(|max| value <= max)
            && self.above.is_none_or(|above| value > above)
            && self.below.is_none_or(|below| value < below)
    }
}

/// As in "expected ...".
impl Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Bool => f.write_str("`true` or `false`"),
            Self::Integer(Integer { min, max }) => {
                let (no_min, no_max) = (*min == i64::MIN.into(), *max >= i64::MAX.into());
                match (no_min, no_max) {
                    (true, true) => f.write_str("an integer"),
                    (false, true) => write!(f, "an integer of at least {min}"),
                    (true, false) => write!(f, "an integer of at most {max}"),
                    (false, false) => write!(f, "an integer from {min} to {max}"),
                }
            }
            Self::Number(bounds) => write!(f, "a number{bounds}"),
            Self::Text { non_empty: true } => f.write_str("a non-empty string"),
            Self::Text { non_empty: false } => f.write_str("a string"),
            Self::Choice(choices) => {
                let names: Vec<_> = choices.iter().map(|c| format!("`{}`", c.name)).collect();
                match names.as_slice() {
                    [name] => f.write_str(name),
                    names => write!(f, "one of {}", names.join(", ")),
                }
            }
            Self::List { .. } => f.write_str("a sequence"),
            Self::Section(_) => f.write_str("a mapping"),
            Self::Any => f.write_str("any value"),
        }
    }
}

impl Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if let (Some(min), Some(max)) = (self.min, self.max) {
            return write!(f, " from {min} to {max}");
        }
        let bounds = [
            ("of at least", self.min),
            ("above", self.above),
            ("of at most", self.max),
            ("below", self.below),
        ];
        let given = bounds.iter().filter_map(|(word, bound)| Some((word, (*bound)?)));
        for (i, (word, bound)) in given.enumerate() {
            let and = if i > 0 { " and" } else { "" };
            write!(f, "{and} {word} {bound}")?;
        }
        Ok(())
    }
}

struct Reader<'a> {
    defs: Option<&'a Map<String, Value>>,
}

impl<'a> Reader<'a> {
    /// The schema that `$ref` names, with the type's name; the schema itself where it has none.
    fn resolve(&self, schema: &'a Value) -> (&'a str, &'a Value) {
        let name = schema.get("$ref").and_then(Value::as_str);
        let name = name.and_then(|target| target.strip_prefix("#/$defs/"));
        let target = name.and_then(|name| Some((name, self.defs?.get(name)?)));
        target.unwrap_or(("", schema))
    }

    fn shape(&self, schema: &'a Value) -> Shape {
        if let Some(options) = schema.get("anyOf").and_then(Value::as_array) {
            let other = options.iter().find(|option| !allows_null(option));
            return other.map_or(Shape::Any, |option| self.shape(option));
        }
        let (name, target) = self.resolve(schema);
        if let Some(values) = target.get("oneOf").and_then(Value::as_array) {
            return Shape::Choice(values.iter().filter_map(choice).collect());
        }
        match type_of(target) {
            Some("boolean") => Shape::Bool,
            Some("integer") => Shape::Integer(integer(target)),
            Some("number") => Shape::Number(number(target)),
            Some("string") => Shape::Text { non_empty: at_least_one(target, "minLength") },
            Some("array") => Shape::List {
                item: Box::new(target.get("items").map_or(Shape::Any, |item| self.shape(item))),
                non_empty: at_least_one(target, "minItems"),
            },
            Some("object") => Shape::Section(self.section(name, target)),
            _ => Shape::Any,
        }
    }

    fn section(&self, name: &str, schema: &'a Value) -> Section {
        let required = schema.get("required").and_then(Value::as_array);
        let is_required = |key: &str| required.is_some_and(|keys| keys.iter().any(|k| k == key));
        let fields = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
        Section {
            name: name.to_owned(),
            doc: description(schema),
            fields: fields
                .map(|(key, schema)| Field {
                    key: key.clone(),
                    doc: description(schema),
                    required: is_required(key),
                    nullable: allows_null(schema),
                    default: schema.get("default").cloned(),
                    shape: self.shape(schema),
                })
                .collect(),
            open: schema.get("additionalProperties") != Some(&Value::Bool(false)),
        }
    }
}

/// The docstring as one line.
fn description(schema: &Value) -> String {
    let text = schema.get("description").and_then(Value::as_str).unwrap_or("");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn choice(schema: &Value) -> Option<Choice> {
    let name = schema.get("const")?.as_str()?.to_owned();
    Some(Choice { name, doc: description(schema) })
}

/// The type of a schema, `null` aside.
fn type_of(schema: &Value) -> Option<&str> {
    match schema.get("type")? {
        Value::Array(types) => types.iter().filter_map(Value::as_str).find(|t| *t != "null"),
        other => other.as_str(),
    }
}

fn allows_null(schema: &Value) -> bool {
    match (schema.get("type"), schema.get("anyOf")) {
        (Some(Value::Array(types)), _) => types.iter().any(|t| t == "null"),
        (Some(Value::String(name)), _) => name == "null",
        (_, Some(Value::Array(options))) => options.iter().any(allows_null),
        _ => false,
    }
}

fn integer(schema: &Value) -> Integer {
    let signed = schema.get("format").and_then(Value::as_str) == Some("int64");
    let (least, most) =
        if signed { (i64::MIN.into(), i64::MAX.into()) } else { (0, u64::MAX.into()) };
    // Bounds are written as floats where the attribute was one; they are small and whole.
    let bound = |name: &str| Some(schema.get(name)?.as_f64()? as i128);
    Integer { min: bound("minimum").unwrap_or(least), max: bound("maximum").unwrap_or(most) }
}

fn number(schema: &Value) -> Number {
    let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
    Number {
        min: bound("minimum"),
        max: bound("maximum"),
        above: bound("exclusiveMinimum"),
        below: bound("exclusiveMaximum"),
    }
}

fn at_least_one(schema: &Value, name: &str) -> bool {
    schema.get(name).and_then(Value::as_u64).is_some_and(|least| least > 0)
}
