//! `bench summary`: what `scripts/gpu-check` has measured so far, as one JSON and one page of tables.
//!
//! The folder holds `about.tsv` (a name and a value on each line), `steps.tsv` (name, seconds, exit code and title of
//! each step) and `parts/`: what the steps have written, as `bench ... --json` and `doctor --kernels --json` do, and
//! `peer.json` of `benchmarks/gpu/peer.py`. All of it may be missing.

mod goals;
mod tables;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use burn_titan_core::trainer::TrainError;
use serde_json::{Map, Value, json};

use super::arguments::SummaryArguments;
use super::report::write_json;
use crate::output;

pub fn run(arguments: &SummaryArguments) -> Result<(), TrainError> {
    let measured = Measured::read(&arguments.folder)?;
    let page = tables::page(&measured);
    write_json(Some(&arguments.folder.join("report.json")), &measured.to_json())?;
    let path = arguments.folder.join("report.md");
    fs::write(&path, &page).map_err(|error| failed(&path, "cannot write the report", &error))?;
    output::write(&page)
}

/// The contents of a folder.
#[derive(Debug, Default)]
struct Measured {
    /// Names and values.
    about: Vec<(String, String)>,
    steps: Vec<Step>,
    /// What steps have written, by their names.
    parts: BTreeMap<String, Value>,
}

/// A step of the script.
#[derive(Debug, PartialEq)]
struct Step {
    name: String,
    seconds: f64,
    /// 124 where its time was over, 125 where it was left out.
    code: i64,
    title: String,
}

impl Measured {
    fn read(folder: &Path) -> Result<Self, TrainError> {
        let about = lines(&folder.join("about.tsv"))?;
        let about = about.iter().filter_map(|line| line.split_once('\t'));
        let steps = lines(&folder.join("steps.tsv"))?;
        Ok(Self {
            about: about.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            steps: steps.iter().filter_map(|line| Step::of(line)).collect(),
            parts: parts(&folder.join("parts"))?,
        })
    }

    fn to_json(&self) -> Value {
        let about: Map<String, Value> =
            self.about.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        let steps: Vec<Value> = self.steps.iter().map(Step::to_json).collect();
        json!({ "about": about, "steps": steps, "parts": self.parts })
    }
}

impl Step {
    /// What a line says; `None` for one that was not written to its end.
    fn of(line: &str) -> Option<Self> {
        let mut cells = line.splitn(4, '\t');
        Some(Self {
            name: cells.next()?.to_owned(),
            seconds: cells.next()?.parse().ok()?,
            code: cells.next()?.parse().ok()?,
            title: cells.next()?.to_owned(),
        })
    }

    fn verdict(&self) -> String {
        match self.code {
            0 => "ok".into(),
            124 => "**time over**".into(),
            125 => "left out".into(),
            code => format!("**failed ({code})**"),
        }
    }

    fn to_json(&self) -> Value {
        let Self { name, seconds, code, title } = self;
        json!({ "name": name, "seconds": seconds, "exit_code": code, "title": title })
    }
}

/// The lines of a file; none where there is no such file.
fn lines(path: &Path) -> Result<Vec<String>, TrainError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(path, "cannot read it", &error)),
    }
}

/// The JSON files of a folder. One that is no JSON, as of a step that was cut off, is left out.
fn parts(folder: &Path) -> Result<BTreeMap<String, Value>, TrainError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(failed(folder, "cannot read the folder", &error)),
    };
    let mut parts = BTreeMap::new();
    for entry in entries {
        let path = entry.map_err(|error| failed(folder, "cannot read the folder", &error))?.path();
        let name = path.file_stem().map(|name| name.to_string_lossy().into_owned());
        let (Some(name), Some("json")) = (name, path.extension().and_then(|it| it.to_str())) else {
            continue;
        };
        let text = fs::read(&path).map_err(|error| failed(&path, "cannot read it", &error))?;
        if let Ok(value) = serde_json::from_slice(&text) {
            parts.insert(name, value);
        }
    }
    Ok(parts)
}

fn failed(path: &Path, what: &str, error: &std::io::Error) -> TrainError {
    TrainError::File { path: path.display().to_string(), cause: format!("{what}: {error}") }
}
