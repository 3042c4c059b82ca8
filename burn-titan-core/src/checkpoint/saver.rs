//! Saving behind the run's back.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use serde_json::Value;

use super::deferred::FetchedTensor;
use super::error::CheckpointError;
use super::rank_files::Layout;
use super::save::{CheckpointContent, save_among};
use super::writers::Writers;
use crate::config::schema::AsyncMode;

type Saved = Result<PathBuf, CheckpointError>;

/// Saves the checkpoints of a run. With [`AsyncMode::Async`], a save takes the caller no longer than the
/// copy of the tensors to the host; a thread writes them, one checkpoint at a time. All ranks of a run
/// call [`save`](Self::save) for the same steps in the same order.
///
/// A saver that is dropped waits for the save under way, whose failure is lost then: call
/// [`finish`](Self::finish).
pub struct Saver {
    folder: PathBuf,
    keep_latest_k: usize,
    mode: AsyncMode,
    /// Used by one save at a time.
    writers: Arc<Mutex<Box<dyn Writers>>>,
    under_way: Option<JoinHandle<Saved>>,
    completed: Option<PathBuf>,
}

/// A [`CheckpointContent`] that belongs to nobody else.
struct FetchedContent {
    step: u64,
    model: Vec<FetchedTensor>,
    optimizer: Option<Vec<FetchedTensor>>,
    state: Value,
    config_yaml: String,
    further_files: Vec<(String, Vec<u8>)>,
    layout: Layout,
}

impl Saver {
    /// A saver to `folder`, which keeps `keep_latest_k` checkpoints (0: all); `writers` are used by no one
    /// else.
    pub fn new(
        folder: PathBuf,
        keep_latest_k: usize,
        mode: AsyncMode,
        writers: Box<dyn Writers>,
    ) -> Self {
        let writers = Arc::new(Mutex::new(writers));
        Self { folder, keep_latest_k, mode, writers, under_way: None, completed: None }
    }

    /// Saves a checkpoint, once the save before it is done. What is there when this returns:
    /// with [`AsyncMode::Disabled`] the checkpoint, with [`AsyncMode::Async`] a copy of all that it needs.
    ///
    /// # Errors
    /// Those of [`save_among`], of this save or of the one before it; this one is not begun then.
    pub fn save(&mut self, content: CheckpointContent<'_>) -> Result<(), CheckpointError> {
        self.wait()?;
        match self.mode {
            AsyncMode::Disabled => {
                let writers = self.writers.lock().map_err(died)?;
                let path = save_among(&**writers, &self.folder, self.keep_latest_k, content)?;
                drop(writers);
                self.completed = Some(path);
                Ok(())
            }
            AsyncMode::Async => self.begin(FetchedContent::of(content)),
        }
    }

    /// The newest checkpoint that was completed since the last call, without waiting.
    ///
    /// # Errors
    /// Those of [`save_among`], of a save that has ended.
    pub fn completed(&mut self) -> Result<Option<PathBuf>, CheckpointError> {
        if self.under_way.as_ref().is_some_and(JoinHandle::is_finished) {
            self.wait()?;
        }
        Ok(self.completed.take())
    }

    /// Waits for the save under way; gives what [`completed`](Self::completed) would.
    ///
    /// # Errors
    /// Those of [`save_among`].
    pub fn finish(&mut self) -> Result<Option<PathBuf>, CheckpointError> {
        self.wait()?;
        Ok(self.completed.take())
    }

    fn begin(&mut self, content: FetchedContent) -> Result<(), CheckpointError> {
        let writers = self.writers.clone();
        let (folder, keep_latest_k) = (self.folder.clone(), self.keep_latest_k);
        let save = move || {
            let writers = writers.lock().map_err(died)?;
            content.save(&**writers, &folder, keep_latest_k)
        };
        let thread = Builder::new().name("checkpoint".into()).spawn(save);
        self.under_way = Some(thread.map_err(|e| CheckpointError::Thread(e.to_string()))?);
        Ok(())
    }

    fn wait(&mut self) -> Result<(), CheckpointError> {
        if let Some(thread) = self.under_way.take() {
            let died = |_| CheckpointError::Thread("it has died, see above".into());
            self.completed = Some(thread.join().map_err(died)??);
        }
        Ok(())
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        // The run has failed for another reason, which its caller will hear of.
        let _ = self.wait();
    }
}

fn died<T>(_: PoisonError<T>) -> CheckpointError {
    CheckpointError::Thread("it has died in an earlier save".into())
}

impl FetchedContent {
    /// A copy of all that a save needs.
    fn of(content: CheckpointContent<'_>) -> Self {
        let fetch = |tensors: Vec<_>| -> Vec<FetchedTensor> {
            tensors.into_iter().map(super::DeferredTensor::fetch).collect()
        };
        let further = content.further_files.iter();
        Self {
            step: content.step,
            model: fetch(content.model),
            optimizer: content.optimizer.map(fetch),
            state: content.state.clone(),
            config_yaml: content.config_yaml.into(),
            further_files: further.map(|(name, data)| (name.to_string(), data.to_vec())).collect(),
            layout: content.layout,
        }
    }

    fn save(self, writers: &dyn Writers, folder: &std::path::Path, keep_latest_k: usize) -> Saved {
        let deferred = |tensors: Vec<FetchedTensor>| tensors.into_iter().map(Into::into).collect();
        let further: Vec<(&str, &[u8])> = self
            .further_files
            .iter()
            .map(|(name, data)| (name.as_str(), data.as_slice()))
            .collect();
        let content = CheckpointContent {
            step: self.step,
            model: deferred(self.model),
            optimizer: self.optimizer.map(deferred),
            state: &self.state,
            config_yaml: &self.config_yaml,
            further_files: &further,
            layout: self.layout,
        };
        save_among(writers, folder, keep_latest_k, content)
    }
}
