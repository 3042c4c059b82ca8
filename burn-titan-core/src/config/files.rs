//! Whether the files that a config names are there, and which were probably meant.

use std::fs;
use std::path::{Path, PathBuf};

use super::suggest::nearest;

/// Most names of a folder that are compared with a missing one.
const MAX_NAMES: usize = 1000;

/// What a path must lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    File,
    Folder,
    Either,
}

/// What is wrong with a path, and what to do about it; nothing if it leads to what is wanted.
pub(super) fn check(path: &Path, wanted: Wanted) -> Option<(String, Option<String>)> {
    let shown = path.display();
    let Ok(metadata) = fs::metadata(path) else {
        let hint = similar(path).or_else(|| {
            let folder = std::env::current_dir().ok().filter(|_| path.is_relative())?;
            Some(format!("relative paths start at the working directory, `{}`", folder.display()))
        });
        return Some((format!("`{shown}` does not exist"), hint));
    };
    match wanted {
        Wanted::File if !metadata.is_file() => {
            Some((format!("`{shown}` is a folder, expected a file"), None))
        }
        Wanted::Folder if !metadata.is_dir() => {
            Some((format!("`{shown}` is a file, expected a folder"), None))
        }
        _ => None,
    }
}

/// "did you mean ...?" for a path that does not exist: its first wrong part, put right.
pub(super) fn similar(path: &Path) -> Option<String> {
    let parent = path.ancestors().skip(1).find(|around| folder(around).is_dir())?;
    let wrong = path.strip_prefix(parent).ok()?.components().next()?;
    let entries = fs::read_dir(folder(parent)).ok()?.take(MAX_NAMES).filter_map(Result::ok);
    let mut names: Vec<_> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    let name = nearest(wrong.as_os_str().to_str()?, names.iter().map(String::as_str))?;
    let rest = path.strip_prefix(parent.join(wrong)).ok()?;
    let found = match rest.as_os_str().is_empty() {
        true => parent.join(name),
        false => parent.join(name).join(rest),
    };
    let shown = if found.exists() { found } else { parent.join(name) };
    Some(format!("did you mean `{}`?", shown.display()))
}

/// The empty path before a plain name is the working directory.
fn folder(path: &Path) -> PathBuf {
    match path.as_os_str().is_empty() {
        true => PathBuf::from("."),
        false => path.to_owned(),
    }
}
