//! Environment variables, injected, read by type, and remembered for what is printed.

use std::collections::BTreeMap;
use std::fmt;

use super::error::LaunchError;

/// The most ranks of a world: enough for any machine, and small enough that products fit.
pub const MOST_RANKS: usize = 1 << 20;

/// The environment that is read.
#[derive(Debug, Clone, Default)]
pub struct Variables(BTreeMap<String, String>);

impl Variables {
    /// The environment of this process. A value that is no Unicode keeps what can be read of it.
    pub fn of_process() -> Self {
        std::env::vars_os()
            .map(|(name, value)| {
                (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
            })
            .collect()
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Those of `names` that are set.
    pub(super) fn settings(&self, names: &[&'static str]) -> Vec<Setting> {
        names
            .iter()
            .filter_map(|name| self.get(name).map(|value| Setting::new(name, value)))
            .collect()
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Variables {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// A variable or a flag, and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// `SLURM_PROCID` or `--rank`.
    pub name: &'static str,
    /// The value as it was given.
    pub value: String,
}

impl Setting {
    pub(super) fn new(name: &'static str, value: impl ToString) -> Self {
        Self { name, value: value.to_string() }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let between = if self.name.starts_with("--") { " " } else { "=" };
        write!(f, "{}{between}{}", self.name, self.value)
    }
}

/// `RANK=3, WORLD_SIZE=2`.
pub(super) fn listed(settings: &[Setting]) -> String {
    settings.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Reads variables and remembers those that were set.
pub(super) struct Reader<'a> {
    variables: &'a Variables,
    pub(super) used: Vec<Setting>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(variables: &'a Variables) -> Self {
        Self { variables, used: Vec::new() }
    }

    /// The value without white space around it; an empty one is refused.
    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<&'a str>, LaunchError> {
        let Some(value) = self.variables.get(name).map(str::trim) else { return Ok(None) };
        if value.is_empty() {
            return Err(LaunchError::Empty { name });
        }
        self.used.push(Setting::new(name, value));
        Ok(Some(value))
    }

    /// A rank or another count from zero.
    pub(super) fn index(&mut self, name: &'static str) -> Result<Option<usize>, LaunchError> {
        self.number(name, 0, MOST_RANKS - 1)
    }

    /// A number of ranks, hosts or tasks.
    pub(super) fn count(&mut self, name: &'static str) -> Result<Option<usize>, LaunchError> {
        self.number(name, 1, MOST_RANKS)
    }

    /// The number of a job or of a step.
    pub(super) fn job(&mut self, name: &'static str) -> Result<Option<u64>, LaunchError> {
        Ok(self.number(name, 0, usize::MAX)?.map(|number| number as u64))
    }

    /// A TCP port.
    pub(super) fn port(&mut self, name: &'static str) -> Result<Option<u16>, LaunchError> {
        Ok(self.number(name, 1, u16::MAX.into())?.map(|port| port as u16))
    }

    /// A host name or an address.
    pub(super) fn host(&mut self, name: &'static str) -> Result<Option<String>, LaunchError> {
        match self.text(name)? {
            Some(value) => Ok(Some(host(name, value)?)),
            None => Ok(None),
        }
    }

    fn number(
        &mut self,
        name: &'static str,
        least: usize,
        most: usize,
    ) -> Result<Option<usize>, LaunchError> {
        let Some(value) = self.text(name)? else { return Ok(None) };
        match value.parse() {
            Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => Err(LaunchError::NotANumber {
                setting: Setting::new(name, value),
                expected: format!("a whole number from {least} to {most}"),
            }),
        }
    }
}

/// Refuses what can be neither a host name nor an address.
pub(super) fn host(name: &'static str, value: &str) -> Result<String, LaunchError> {
    // `_` is in no host name of the standards, but in many of real clusters; `%` is for IPv6 zones.
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
    if value.is_empty() {
        return Err(LaunchError::Empty { name });
    }
    if !value.chars().all(allowed) {
        return Err(LaunchError::NotAHost { setting: Setting::new(name, value) });
    }
    Ok(value.to_string())
}
