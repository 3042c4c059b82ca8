//! A config while it is read, checked and complained about.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::diagnose::{self, Broken};
use super::node::{self, Kind, Node, Span};
use super::problem::{ConfigErrors, Problems, printable};
use super::schema::Config;
use super::source::SourceMap;
use super::{files, overrides, rules};

/// Largest config that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Which checks are made beside those of the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checks {
    /// Whether the files and folders that the config names must exist.
    pub files: bool,
    /// Ranks that are started; `None` where that is not known: then any number that the degrees of the
    /// parallelism make is right.
    pub ranks: Option<usize>,
}

impl Default for Checks {
    fn default() -> Self {
        Self { files: true, ranks: None }
    }
}

/// A sound config and the places of its keys.
#[derive(Debug, Clone)]
pub struct LoadedConfig {
    /// The config.
    pub config: Config,
    /// Where each key was written, for errors that are found later.
    pub source: SourceMap,
}

/// A config with the problems found so far.
///
/// Reading never fails at once: what is wrong is collected, and others (the model's own rules) add
/// to the list before [`Draft::finish`] turns it into an error.
///
/// ```
/// use burn_titan_core::config::{Checks, Draft};
/// let checks = Checks { files: false, ..Checks::default() };
/// let text = "data: {train: [{path: a.bin}]}\nmodel: {overrides: {n_heads: 7}}\n";
/// let mut draft = Draft::parse("a.yaml", text, &[], checks);
/// if draft.is_sound("model") {
///     draft.report("model.overrides.n_heads", "7 heads do not divide dim = 256", None);
/// }
/// let errors = draft.finish().unwrap_err();
/// assert_eq!(
///     errors.problems()[0].to_string(),
///     "a.yaml:2:21: 7 heads do not divide dim = 256"
/// );
/// ```
#[derive(Debug, Clone)]
pub struct Draft {
    config: Config,
    source: SourceMap,
    broken: Broken,
    problems: Problems,
}

impl Draft {
    /// Reads and checks a file, with `section.key=value` overrides put into it first.
    pub fn read(path: &Path, overrides: &[String], checks: Checks) -> Self {
        let name = path.to_string_lossy();
        match read_text(path) {
            Ok(text) => Self::parse(&name, &text, overrides, checks),
            Err((message, hint)) => {
                let source = SourceMap::new(&name, "", overrides);
                let mut draft = Self::empty(source);
                draft.broken.insert(String::new());
                let source = &draft.source;
                draft.problems.push(|| source.problem_at(None, &message, hint.as_deref()));
                draft
            }
        }
    }

    /// Checks the text of a file; `file_name` is only shown.
    pub fn parse(file_name: &str, text: &str, overrides: &[String], checks: Checks) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut draft = Self::empty(SourceMap::new(file_name, text, overrides));
        let root = draft.tree(text, overrides);
        draft.source.index(&root);
        let Self { source, broken, problems, .. } = &mut draft;
        let value = diagnose::check(&root, source, problems, broken);
        match serde_json::from_value(value) {
            Ok(config) => draft.config = config,
            Err(error) => {
                // Not reached while the checks follow the schema; if they ever differ, serde's
                // word counts.
                broken.insert(String::new());
                if problems.is_empty() {
                    problems.push(|| source.problem_at(None, &error.to_string(), None));
                }
            }
        }
        rules::check(&draft.config, &draft.source, &draft.broken, &mut draft.problems, checks);
        draft
    }

    fn empty(source: SourceMap) -> Self {
        let problems = Problems::new(source.name());
        Self { config: Config::default(), source, broken: Broken::default(), problems }
    }

    /// The tree of the file with the overrides in it.
    fn tree(&mut self, text: &str, overrides: &[String]) -> Node {
        let empty =
            Node { span: Span { source: 0, start: 0, end: 0 }, kind: Kind::Mapping(vec![]) };
        let mut root = match node::parse(text, 0, 0) {
            Ok(Node { kind: Kind::Null, .. }) => empty,
            Ok(root) => root,
            Err(fault) => {
                self.broken.insert(String::new());
                self.problems.push(|| self.source.problem_from(&fault));
                empty
            }
        };
        for (i, word) in overrides.iter().enumerate() {
            // A file that is no mapping has one problem; the words would only hide it.
            if !matches!(root.kind, Kind::Mapping(_)) {
                break;
            }
            if let Err(fault) = overrides::apply(&mut root, i + 1, word) {
                let key = word.split('=').next().unwrap_or(word);
                self.broken.insert(key.to_owned());
                self.problems.push(|| self.source.problem_from(&fault));
            }
        }
        root
    }

    /// The config so far; keys with problems have their defaults.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where each key was written.
    pub fn source(&self) -> &SourceMap {
        &self.source
    }

    /// Whether nothing is wrong with the key or section, nor with anything in or around it.
    pub fn is_sound(&self, key: &str) -> bool {
        !self.broken.touches(key)
    }

    /// Adds a problem with the value of `key`; see [`SourceMap::problem`].
    pub fn report(&mut self, key: &str, message: &str, hint: Option<&str>) {
        self.problems.push(|| self.source.problem(key, message, hint));
    }

    /// The config, if nothing was wrong with it.
    ///
    /// # Errors
    /// Everything that was found.
    pub fn finish(self) -> Result<LoadedConfig, ConfigErrors> {
        match self.problems.is_empty() {
            true => Ok(LoadedConfig { config: self.config, source: self.source }),
            false => Err(self.problems.into_errors()),
        }
    }
}

/// The text of a config file, or what is wrong with it and what to do.
fn read_text(path: &Path) -> Result<String, (String, Option<String>)> {
    let cannot = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => ("no such file".to_owned(), files::similar(path)),
        _ => (printable(&format!("cannot be read: {error}")), None),
    };
    if path.is_dir() {
        let hint = "name one YAML file in it".to_owned();
        return Err(("is a folder; a config is one YAML file".to_owned(), Some(hint)));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(cannot)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(("is larger than 1 MiB, which no config is".to_owned(), None));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let before = error.as_bytes().get(..valid).unwrap_or(&[]);
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        let hint = "save the file as UTF-8".to_owned();
        (format!("line {line} is not UTF-8 text (byte {valid} of the file)"), Some(hint))
    })
}
