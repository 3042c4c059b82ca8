//! Patterns of parameter names, as in `layers.*.attention.w{q,k,v}.weight`.

use std::fmt::{self, Display};

/// A pattern that picks parameters by their dot-separated names.
///
/// - `*` stands for any run of characters, also none, within one part of the name;
/// - `**`, alone between dots, stands for any number of parts, also none;
/// - `{a,b}` stands for `a` or `b`, within one part; braces do not nest.
///
/// All else stands for itself, and the whole name must match.
///
/// ```
/// use burn_titan_core::config::NamePattern;
/// let pattern = NamePattern::parse("layers.*.w{q,k}.**").unwrap();
/// assert!(pattern.matches("layers.11.wq.weight"));
/// assert!(!pattern.matches("layers.11.wv.weight"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern {
    text: String,
    parts: Vec<Part>,
}

/// A pattern that cannot be read: what is wrong with it and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the name pattern `{pattern}` {reason}")]
pub struct PatternError {
    /// The pattern.
    pub pattern: String,
    /// What is wrong, for example "has an empty part".
    pub reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// `**`
    AnyParts,
    One(Vec<Token>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// `*`
    AnyText,
    /// Literal text, or the alternatives of a brace.
    Either(Vec<String>),
}

impl NamePattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// An empty part, braces that nest or do not pair, `*` or `.` inside braces, `**` beside other
    /// characters.
    pub fn parse(pattern: &str) -> Result<Self, PatternError> {
        let error = |reason| PatternError { pattern: pattern.to_owned(), reason };
        let mut braced = false;
        for c in pattern.chars() {
            match (c, braced) {
                ('{', false) => braced = true,
                ('{', true) => return Err(error("has braces inside braces")),
                ('}', true) => braced = false,
                ('}', false) => return Err(error("has a `}` without a `{`")),
                ('.', true) => return Err(error("has a `.` inside braces")),
                ('*', true) => return Err(error("has a `*` inside braces")),
                _ => {}
            }
        }
        if braced {
            return Err(error("has a `{` without a `}`"));
        }
        let parts: Result<_, _> = pattern.split('.').map(part).collect();
        Ok(Self { text: pattern.to_owned(), parts: parts.map_err(error)? })
    }

    /// Whether the pattern matches the whole of `name`.
    pub fn matches(&self, name: &str) -> bool {
        let names: Vec<&str> = name.split('.').collect();
        // reach[i]: the pattern so far can match the first i parts of the name.
        let mut reach = vec![false; names.len() + 1];
        reach[0] = true;
        for part in &self.parts {
            reach = match part {
                Part::AnyParts => fill(&reach),
                Part::One(tokens) => {
                    let step = |(from, name): (&bool, &&str)| *from && matches_part(tokens, name);
                    std::iter::once(false).chain(reach.iter().zip(&names).map(step)).collect()
                }
            };
        }
        reach.last().copied().unwrap_or(false)
    }
}

impl Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Everything from the first place reached.
fn fill(reach: &[bool]) -> Vec<bool> {
    let mut reached = false;
    reach
        .iter()
        .map(|here| {
            reached |= here;
            reached
        })
        .collect()
}

/// Reads one part, whose braces are known to pair.
fn part(text: &str) -> Result<Part, &'static str> {
    match text {
        "" => return Err("has an empty part"),
        "**" => return Ok(Part::AnyParts),
        _ if text.contains("**") => {
            return Err("has a `**` that does not stand alone between dots");
        }
        _ => {}
    }
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = match first {
            '*' => 1,
            '{' => rest.find('}').map_or(rest.len(), |at| at + 1),
            _ => rest.find(['*', '{']).unwrap_or(rest.len()),
        };
        let (token, after) = rest.split_at(end);
        tokens.push(match first {
            '*' => Token::AnyText,
            '{' => {
                let inner = token.trim_start_matches('{').trim_end_matches('}');
                Token::Either(inner.split(',').map(str::to_owned).collect())
            }
            _ => Token::Either(vec![token.to_owned()]),
        });
        rest = after;
    }
    Ok(Part::One(tokens))
}

/// Follows all ways to match at once, so that no pattern takes exponential time.
fn matches_part(tokens: &[Token], name: &str) -> bool {
    let mut reach = vec![false; name.len() + 1];
    reach[0] = true;
    for token in tokens {
        reach = match token {
            Token::AnyText => fill(&reach),
            Token::Either(texts) => {
                let mut next = vec![false; reach.len()];
                for at in (0..reach.len()).filter(|at| reach[*at]) {
                    for text in texts {
                        if name.as_bytes()[at..].starts_with(text.as_bytes()) {
                            next[at + text.len()] = true;
                        }
                    }
                }
                next
            }
        };
    }
    reach[name.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_names() {
        for (pattern, name, expected) in [
            ("layers.*.attention.w{q,k,v}.weight", "layers.0.attention.wq.weight", true),
            ("layers.*.attention.w{q,k,v}.weight", "layers.12.attention.wo.weight", false),
            ("layers.*.weight", "layers.0.attention.weight", false),
            ("layers.**.weight", "layers.0.attention.weight", true),
            ("layers.**.weight", "layers.weight", true),
            ("**", "anything.at.all", true),
            ("**.bias", "bias", true),
            ("**.bias", "head.biases", false),
            ("**.norm*.**", "a.b.norm_1.c", true),
            ("*norm", "attention_norm", true),
            ("*norm", "norm.weight", false),
            ("{embedding,head}.weight", "head.weight", true),
            ("{embedding,head}.weight", "heads.weight", false),
            ("w{,_bias}", "w", true),
            ("w{,_bias}", "w_bias", true),
            ("a*b*c", "a_b_b_c", true),
            ("a*b*c", "a_b_b", false),
            ("é{ü,ß}*", "éßx", true),
            ("weight", "", false),
            ("*", "", true),
            ("**.**.a.**", "x.a", true),
        ] {
            let parsed = NamePattern::parse(pattern).unwrap();
            assert_eq!(parsed.matches(name), expected, "{pattern} on {name}");
            assert_eq!(parsed.to_string(), pattern);
        }
    }

    #[test]
    fn refuses_broken_patterns() {
        for (pattern, reason) in [
            ("", "has an empty part"),
            ("a..b", "has an empty part"),
            ("a.", "has an empty part"),
            ("a.{b", "has a `{` without a `}`"),
            ("a}b", "has a `}` without a `{`"),
            ("{a,{b,c}}", "has braces inside braces"),
            ("{a.b,c}", "has a `.` inside braces"),
            ("{a*,c}", "has a `*` inside braces"),
            ("a**", "has a `**` that does not stand alone between dots"),
            ("a.***.b", "has a `**` that does not stand alone between dots"),
        ] {
            let error = NamePattern::parse(pattern).unwrap_err();
            assert_eq!(error.to_string(), format!("the name pattern `{pattern}` {reason}"));
        }
    }

    #[test]
    fn no_pattern_takes_long() {
        let pattern = NamePattern::parse(&"*a".repeat(200)).unwrap();
        assert!(!pattern.matches(&"a".repeat(199)));
        let pattern = NamePattern::parse(&["**", "a"].repeat(100).join(".")).unwrap();
        assert!(!pattern.matches(&["a"; 99].join(".")));
    }
}
