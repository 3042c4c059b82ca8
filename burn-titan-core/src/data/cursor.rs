//! Where a stream of samples stands, and what it was made of.

use std::fmt::{Debug, Display};
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::DataError;

/// Where a stream of samples stands, for a checkpoint. It holds no tokens: a stream that continues
/// from it reads its current documents again. It is global, so any number of ranks may continue
/// from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Samples given so far, over all ranks.
    pub samples: u64,
    /// Where each source stands.
    pub sources: Vec<SourceCursor>,
    /// What the stream is made of.
    #[serde(with = "shared")]
    pub identity: Arc<StreamIdentity>,
}

/// Where one source stands: at the next token that no sample has taken yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceCursor {
    /// Whole passes over the source before this one.
    pub epoch: u64,
    /// Units (documents, or chunks of a token file) of this pass that are used up, in the shuffled
    /// order. The block of the shuffle is this number divided by its size.
    pub document: u64,
    /// Tokens of the current unit that are used up.
    pub token: u64,
}

/// Everything that a cursor's meaning depends on. Weights are not part of it: they may change at a
/// resume, and count from there on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamIdentity {
    /// Seed of the order.
    pub seed: u64,
    /// Length of a sample, in tokens that a model is given.
    pub seq_len: usize,
    /// Whether documents are packed.
    pub pack: bool,
    /// Documents that are shuffled among each other; `None` if they are not.
    pub shuffle_buffer: Option<usize>,
    /// Token before each document.
    pub bos: Option<u32>,
    /// Token after each document.
    pub eos: Option<u32>,
    /// Hash of the tokenizer's file.
    pub tokenizer: Option<String>,
    /// The sources' files.
    pub sources: Vec<SourceFingerprint>,
}

/// The files of a source, as far as a resume checks them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceFingerprint {
    /// The path as configured. It is not compared, so that data may move.
    pub path: String,
    /// The files in reading order.
    pub files: Vec<FileFingerprint>,
}

/// Name and size of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileFingerprint {
    /// Name without its folder.
    pub name: String,
    /// Size on disk, in bytes.
    pub bytes: u64,
}

impl Cursor {
    /// Checks that there is a place for each source; one without would start again.
    ///
    /// # Errors
    /// [`DataError::CursorPlaces`].
    pub(crate) fn check_places(&self) -> Result<(), DataError> {
        let (places, sources) = (self.sources.len(), self.identity.sources.len());
        if places == sources {
            return Ok(());
        }
        Err(DataError::CursorPlaces { places, sources })
    }
}

impl StreamIdentity {
    /// Checks that a stream which was made of `self` can go on as one that is made of `now`.
    ///
    /// # Errors
    /// The first setting or file that differs, by name.
    pub fn check(&self, now: &Self) -> Result<(), DataError> {
        same("training.seed", &self.seed, &now.seed)?;
        same("training.seq_len", &self.seq_len, &now.seq_len)?;
        same("data.pack", &self.pack, &now.pack)?;
        let buffer = |size: Option<usize>| size.map_or("off".into(), |size| size.to_string());
        let shuffle = "data.shuffle (with data.shuffle_buffer)";
        same(shuffle, &buffer(self.shuffle_buffer), &buffer(now.shuffle_buffer))?;
        let token = |id: Option<u32>| id.map_or("none".into(), |id| format!("token {id}"));
        same("data.bos_token", &token(self.bos), &token(now.bos))?;
        same("data.eos_token", &token(self.eos), &token(now.eos))?;
        let hash = |hash: &Option<String>| {
            hash.as_ref().map_or("none".into(), |hash| format!("a file with hash {hash}"))
        };
        same("data.tokenizer", &hash(&self.tokenizer), &hash(&now.tokenizer))?;
        same("the number of sources in data.train", &self.sources.len(), &now.sources.len())?;
        self.sources.iter().zip(&now.sources).try_for_each(|(saved, now)| saved.check(now))
    }
}

impl SourceFingerprint {
    fn check(&self, now: &Self) -> Result<(), DataError> {
        let changed = |change| DataError::ChangedFiles { path: PathBuf::from(&now.path), change };
        for (saved, now) in self.files.iter().zip(&now.files) {
            if saved.name != now.name {
                return Err(changed(format!(
                    "the file {:?} has taken the place of {:?}",
                    now.name, saved.name
                )));
            }
            if saved.bytes != now.bytes {
                return Err(changed(format!(
                    "the file {:?} has changed from {} to {} bytes",
                    now.name, saved.bytes, now.bytes
                )));
            }
        }
        if let Some(gone) = self.files.get(now.files.len()) {
            return Err(changed(format!("the file {:?} is gone", gone.name)));
        }
        match now.files.get(self.files.len()) {
            Some(new) => Err(changed(format!("the file {:?} has been added", new.name))),
            None => Ok(()),
        }
    }
}

fn same<T: PartialEq + Display>(name: &'static str, saved: &T, now: &T) -> Result<(), DataError> {
    if saved == now {
        return Ok(());
    }
    Err(DataError::ChangedSetting { name, saved: saved.to_string(), now: now.to_string() })
}

/// Writes what an `Arc` holds: one identity is shared by the cursors of all batches.
mod shared {
    use super::{Arc, StreamIdentity};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        value: &Arc<StreamIdentity>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_ref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<StreamIdentity>, D::Error> {
        StreamIdentity::deserialize(deserializer).map(Arc::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> StreamIdentity {
        let file = |name: &str, bytes| FileFingerprint { name: name.into(), bytes };
        StreamIdentity {
            seed: 1,
            seq_len: 8,
            pack: true,
            shuffle_buffer: Some(100),
            bos: Some(0),
            eos: None,
            tokenizer: Some("ab12".into()),
            sources: vec![SourceFingerprint {
                path: "corpus".into(),
                files: vec![file("a.jsonl", 10), file("b.jsonl", 20)],
            }],
        }
    }

    fn refusal(change: impl FnOnce(&mut StreamIdentity)) -> String {
        let mut now = identity();
        change(&mut now);
        identity().check(&now).unwrap_err().to_string()
    }

    #[test]
    fn the_same_is_accepted_wherever_it_lies() {
        let mut now = identity();
        now.sources[0].path = "elsewhere/corpus".into();
        identity().check(&now).unwrap();
    }

    #[test]
    fn changed_settings_are_refused_by_name() {
        let message = |name: &str, saved: &str, now: &str| {
            format!(
                "cannot continue the stream of data: {name} was {saved} when the checkpoint was \
                 written and is {now} now: set it back, or start a new run"
            )
        };
        assert_eq!(refusal(|now| now.seed = 2), message("training.seed", "1", "2"));
        assert_eq!(refusal(|now| now.seq_len = 16), message("training.seq_len", "8", "16"));
        assert_eq!(refusal(|now| now.pack = false), message("data.pack", "true", "false"));
        assert_eq!(
            refusal(|now| now.shuffle_buffer = None),
            message("data.shuffle (with data.shuffle_buffer)", "100", "off")
        );
        assert_eq!(refusal(|now| now.bos = None), message("data.bos_token", "token 0", "none"));
        assert_eq!(refusal(|now| now.eos = Some(1)), message("data.eos_token", "none", "token 1"));
        assert_eq!(
            refusal(|now| now.tokenizer = None),
            message("data.tokenizer", "a file with hash ab12", "none")
        );
        assert_eq!(
            refusal(|now| now.sources.clear()),
            message("the number of sources in data.train", "1", "0")
        );
    }

    #[test]
    fn changed_files_are_refused_by_name() {
        let message = |change: &str| {
            format!(
                "cannot continue the stream of data: corpus: the file {change} since the \
                 checkpoint was written: restore the files, or start a new run"
            )
        };
        let files = |change: fn(&mut Vec<FileFingerprint>)| {
            refusal(|now| change(&mut now.sources[0].files))
        };
        assert_eq!(
            files(|files| files[1].bytes = 21),
            message("\"b.jsonl\" has changed from 20 to 21 bytes")
        );
        assert_eq!(
            files(|files| files[0].name = "0.jsonl".into()),
            message("\"0.jsonl\" has taken the place of \"a.jsonl\"")
        );
        assert_eq!(files(|files| files.truncate(1)), message("\"b.jsonl\" is gone"));
        assert_eq!(
            files(|files| files.push(FileFingerprint { name: "c.jsonl".into(), bytes: 1 })),
            message("\"c.jsonl\" has been added")
        );
    }

    #[test]
    fn a_source_without_a_place_is_refused() {
        let cursor = |places| Cursor {
            samples: 0,
            sources: vec![SourceCursor::default(); places],
            identity: Arc::new(identity()),
        };
        cursor(1).check_places().unwrap();
        for places in [0, 2] {
            assert_eq!(
                cursor(places).check_places().unwrap_err().to_string(),
                format!(
                    "the checkpoint's data cursor has places in {places} sources, but was made of \
                     1: the checkpoint was altered, so restore it, or start a new run"
                )
            );
        }
    }

    #[test]
    fn survives_json() {
        let cursor = Cursor {
            samples: 3,
            sources: vec![SourceCursor { epoch: 1, document: 2, token: 3 }],
            identity: Arc::new(identity()),
        };
        let json = serde_json::to_string(&cursor).unwrap();
        assert_eq!(serde_json::from_str::<Cursor>(&json).unwrap(), cursor);
    }
}
