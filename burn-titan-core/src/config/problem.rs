//! One thing wrong with a config, and the list of all of them.

use std::fmt::{self, Display, Write};

/// Most problems that are kept; a file with more is not a config.
const MAX_PROBLEMS: usize = 100;

/// Where a problem lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// At a place in the file.
    File {
        /// The file as it was named.
        name: String,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
    },
    /// In the file as a whole: it cannot be read, or the key is in neither file nor overrides.
    WholeFile {
        /// The file as it was named.
        name: String,
    },
    /// In a `section.key=value` word of the command line.
    Override {
        /// The word.
        word: String,
    },
}

impl Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::File { name, line, column } => write!(f, "{name}:{line}:{column}"),
            Self::WholeFile { name } => f.write_str(name),
            Self::Override { word } => write!(f, "override `{word}`"),
        }
    }
}

/// One thing wrong with a config: where, what, and what to do about it.
///
/// `Display` gives one line, `place: message; hint`. [`Problem::render`] adds the underlined source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it lies.
    pub origin: Origin,
    /// What was expected and what was found. No control characters.
    pub message: String,
    /// What to do about it, for example "did you mean `seq_len`?". No control characters.
    pub hint: Option<String>,
    /// Sorts problems: the text, then the place in it.
    pub(super) order: (usize, usize),
    /// The source line, with the part that is underlined.
    pub(super) excerpt: Option<Excerpt>,
}

/// A line of source and the part of it that is underlined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Excerpt {
    /// Number of the line, from 1; a word of the command line has none.
    pub(super) line: Option<usize>,
    /// The line, or a piece of a long one. Each character is one column wide.
    pub(super) text: String,
    /// Characters before the underline.
    pub(super) skip: usize,
    /// Characters underlined, at least 1.
    pub(super) width: usize,
}

impl Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl Problem {
    /// The problem in several lines, with the source underlined.
    ///
    /// `color` switches ANSI colours on; ask for it only where the output is a terminal.
    ///
    /// ```text
    /// error: unknown key `seq_length` in `training`
    ///  --> configs/a.yaml:5:3
    ///   |
    /// 5 |   seq_length: 512
    ///   |   ^^^^^^^^^^
    ///   = help: did you mean `seq_len`?
    /// ```
    pub fn render(&self, color: bool) -> String {
        let paint = Paint { color };
        let number = self.excerpt.as_ref().and_then(|excerpt| excerpt.line);
        let number = number.map_or_else(String::new, |line| line.to_string());
        let margin = " ".repeat(number.len().max(1));
        let bar = paint.blue("|");
        let mut out = format!("{}: {}\n", paint.red("error"), paint.bold(&self.message));
        out += &format!("{margin}{} {}\n", paint.blue("-->"), self.origin);
        if let Some(excerpt) = &self.excerpt {
            let (skip, mark) = (" ".repeat(excerpt.skip), "^".repeat(excerpt.width));
            let number = paint.blue(&format!("{number:margin$}", margin = margin.len()));
            out += &format!("{margin} {bar}\n{number} {bar} {}\n", excerpt.text);
            out += &format!("{margin} {bar} {skip}{}\n", paint.red(&mark));
        }
        if let Some(hint) = &self.hint {
            out += &format!("{margin} {} {}: {hint}\n", paint.blue("="), paint.bold("help"));
        }
        out
    }
}

/// ANSI colours, or none.
struct Paint {
    color: bool,
}

impl Paint {
    fn with(&self, code: &str, text: &str) -> String {
        match self.color {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    fn red(&self, text: &str) -> String {
        self.with("1;31", text)
    }

    fn blue(&self, text: &str) -> String {
        self.with("1;34", text)
    }

    fn bold(&self, text: &str) -> String {
        self.with("1", text)
    }
}

/// Makes text from outside safe for a terminal: control characters are written as escapes.
pub(super) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match is_printable(c) {
            true => out.push(c),
            false => out.extend(c.escape_default()),
        }
    }
    out
}

/// Whether a terminal shows a character as itself: no control, line or direction character.
pub(super) fn is_printable(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// All that is wrong with a config, in the order of the file, then of the overrides.
///
/// Never empty. `Display` shows each problem as [`Problem::render`] does, without colours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.render(false))]
pub struct ConfigErrors(Box<Problems>);

/// Problems as they are collected; the first [`MAX_PROBLEMS`] are kept and the rest counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problems {
    /// The file as it was named.
    name: String,
    list: Vec<Problem>,
    omitted: usize,
}

impl Problems {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), list: vec![], omitted: 0 }
    }

    /// Takes in a problem; it is only worked out if it will be kept.
    pub(super) fn push(&mut self, problem: impl FnOnce() -> Problem) {
        match self.list.len() < MAX_PROBLEMS {
            true => self.list.push(problem()),
            false => self.omitted += 1,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The errors, sorted. `self` must not be empty.
    pub(super) fn into_errors(mut self) -> ConfigErrors {
        self.list.sort_by_key(|problem| problem.order);
        ConfigErrors(Box::new(self))
    }

    fn render(&self, color: bool) -> String {
        let mut out = String::new();
        for problem in &self.list {
            out += &problem.render(color);
            out.push('\n');
        }
        let count = self.list.len() + self.omitted;
        let plural = if count == 1 { "" } else { "s" };
        let _ = write!(out, "{count} error{plural} in {}", self.name);
        if self.omitted > 0 {
            let _ = write!(out, " (the first {MAX_PROBLEMS} are shown)");
        }
        out
    }
}

impl ConfigErrors {
    /// The problems, at least one and at most 100.
    pub fn problems(&self) -> &[Problem] {
        &self.0.list
    }

    /// All problems with their source underlined, and a last line that counts them.
    ///
    /// `color` switches ANSI colours on; ask for it only where the output is a terminal.
    pub fn render(&self, color: bool) -> String {
        self.0.render(color)
    }
}
