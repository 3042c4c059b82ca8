//! Lines of a JSONL file, and the text of a line.

use std::fmt;
use std::io::BufRead;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::error::DataError;
use super::source::DataFile;

/// Reads the lines of a file that are not blank, one at a time.
pub(crate) struct LineReader {
    file: DataFile,
    reader: Box<dyn BufRead + Send>,
    line: u64,
}

impl LineReader {
    /// Opens the file, decompressing by its name.
    pub(crate) fn open(file: DataFile) -> Result<Self, DataError> {
        let reader = file.open()?;
        Ok(Self { file, reader, line: 0 })
    }

    /// Reads the next line that is not blank into `buffer` and gives its number, counted from 1, or
    /// `None` at the end.
    pub(crate) fn next(&mut self, buffer: &mut Vec<u8>) -> Result<Option<u64>, DataError> {
        loop {
            buffer.clear();
            let read = self.reader.read_until(b'\n', buffer);
            if read.map_err(|source| self.file.read_error(self.line, source))? == 0 {
                return Ok(None);
            }
            self.line += 1;
            if !buffer.trim_ascii().is_empty() {
                return Ok(Some(self.line));
            }
        }
    }
}

/// The string under `key` in one line of JSONL; other keys are passed over without being built.
pub(crate) fn text_of_line(
    bytes: &[u8],
    key: &str,
    file: &std::path::Path,
    line: u64,
) -> Result<String, DataError> {
    let path = || file.to_path_buf();
    let text = std::str::from_utf8(bytes).map_err(|error| DataError::LineNotUtf8 {
        path: path(),
        line,
        byte: error.valid_up_to(),
    })?;
    // With its end, an error there would be on the next line, in column 0.
    let text = text.trim_end_matches(['\n', '\r']);
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let found = KeySeed { key }
        .deserialize(&mut deserializer)
        .and_then(|found| deserializer.end().map(|()| found));
    match found {
        Ok(Some(Value::String(text))) => Ok(text),
        Ok(Some(other)) => {
            let (key, found) = (key.to_owned(), kind_of(&other));
            Err(DataError::NotAString { path: path(), line, key, found })
        }
        Ok(None) => {
            let (key, keys) = (key.to_owned(), keys_of(text));
            Err(DataError::MissingKey { path: path(), line, key, keys })
        }
        Err(error) => Err(match serde_json::from_str::<Value>(text) {
            Ok(other) => {
                let (key, found) = (key.to_owned(), kind_of(&other));
                DataError::NotAnObject { path: path(), line, key, found }
            }
            Err(_) => {
                let cause = error.to_string();
                // The line number that serde_json counts is always 1 here.
                let cause = cause.split(" at line ").next().unwrap_or(&cause).to_owned();
                DataError::Json { path: path(), line, column: error.column(), cause }
            }
        }),
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The first keys of an object, for a message.
fn keys_of(text: &str) -> String {
    const SHOWN: usize = 8;
    let Ok(Value::Object(object)) = serde_json::from_str(text) else { return "none".into() };
    let mut keys: Vec<_> = object.keys().take(SHOWN).map(|key| format!("{key:?}")).collect();
    if object.len() > SHOWN {
        keys.push("...".into());
    }
    if keys.is_empty() { "none".into() } else { keys.join(", ") }
}

/// Picks the value of one key from a map.
struct KeySeed<'k> {
    key: &'k str,
}

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for KeySeed<'_> {
    type Value = Option<Value>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "a JSON object with the key {:?}", self.key)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(matches) = map.next_key_seed(SameSeed(self.key))? {
            if matches {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Whether a key is the given one, without building a string for it.
struct SameSeed<'k>(&'k str);

impl<'de> DeserializeSeed<'de> for SameSeed<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for SameSeed<'_> {
    type Value = bool;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn text(line: &str) -> Result<String, String> {
        text_of_line(line.as_bytes(), "text", Path::new("a.jsonl"), 7).map_err(|e| e.to_string())
    }

    #[test]
    fn finds_the_text() {
        assert_eq!(text(r#"{"a": [1, {"text": 2}], "text": "x\ny\u00e9"}"#).unwrap(), "x\ny\u{e9}");
        assert_eq!(text("  {\"text\":\"\"}\r\n").unwrap(), "");
        assert_eq!(text(r#"{"te\u0078t": "escaped key"}"#).unwrap(), "escaped key");
    }

    #[test]
    fn refuses_other_lines() {
        let cases = [
            (
                r#"{"text": "a""#,
                "a.jsonl: line 7, column 12: bad JSON: EOF while parsing an object: each line must \
                 be one JSON object",
            ),
            (
                r#"{"text": "a"} x"#,
                "a.jsonl: line 7, column 15: bad JSON: trailing characters: each line must be one \
                 JSON object",
            ),
            (
                "{\"text\": \"torn\r\n",
                "a.jsonl: line 7, column 14: bad JSON: EOF while parsing a string: each line must \
                 be one JSON object",
            ),
            (
                "[1]",
                r#"a.jsonl: line 7: expected a JSON object with the key "text", found an array"#,
            ),
            ("3", r#"a.jsonl: line 7: expected a JSON object with the key "text", found a number"#),
            (
                r#"{"content": "a", "id": 3}"#,
                "a.jsonl: line 7: no key \"text\" in the JSON object (its keys: \"content\", \
                 \"id\"): set the source's `text_key` to the key that holds the text",
            ),
            (
                "{}",
                "a.jsonl: line 7: no key \"text\" in the JSON object (its keys: none): set the \
                 source's `text_key` to the key that holds the text",
            ),
            (
                r#"{"text": null}"#,
                "a.jsonl: line 7: the key \"text\" holds null, expected a string: set the source's \
                 `text_key` to the key that holds the text",
            ),
        ];
        for (line, message) in cases {
            assert_eq!(text(line).unwrap_err(), message, "{line}");
        }
        let error =
            text_of_line(b"{\"text\": \"\xff\"}", "text", Path::new("a.jsonl"), 2).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a.jsonl: line 2: not UTF-8 (byte 10 of the line): convert the file to UTF-8"
        );
    }
}
