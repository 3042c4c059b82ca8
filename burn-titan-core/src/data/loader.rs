//! A background thread that keeps batches ready.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::cursor::Cursor;
use super::documents::DocumentRef;
use super::error::DataError;
use super::pack::Rows;
use super::stream::{SampleStream, StreamOptions};
use crate::quiet;

/// What a [`Loader`] loads.
#[derive(Debug, Clone)]
pub struct LoaderOptions {
    /// The stream of samples.
    pub stream: StreamOptions,
    /// Rows of a batch, in sequences.
    pub local_batch_size: usize,
    /// This rank among those that share the data.
    pub rank: usize,
    /// Ranks that share the data.
    pub world: usize,
    /// Batches that are kept ready.
    pub prefetch_batches: usize,
    /// Where the stream continues; `None` for its start.
    pub cursor: Option<Cursor>,
}

impl LoaderOptions {
    fn check(&self) -> Result<(), DataError> {
        let wrong = |name, cause: String| Err(DataError::Option { name, cause });
        if self.local_batch_size == 0 {
            return wrong("training.local_batch_size", "expected at least 1".into());
        }
        if self.rank >= self.world {
            let cause = format!("rank {} of {} data-parallel ranks", self.rank, self.world);
            return wrong("rank", cause);
        }
        Ok(())
    }
}

/// One micro-batch of a rank. The four arrays are `[batch, seq]`, row-major.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Rows.
    pub batch: usize,
    /// Tokens in a row.
    pub seq: usize,
    /// Inputs; [`PAD`](super::PAD) where a row has fewer.
    pub tokens: Vec<u32>,
    /// The next tokens; [`IGNORE`](super::IGNORE) where the next token belongs to another document
    /// or is padding.
    pub targets: Vec<u32>,
    /// Place of each token in its document, as far as the document lies in the row: from 0 at each
    /// document's start and at the row's.
    pub positions: Vec<u32>,
    /// Document of each token, numbered from 0 in each row; padding is a document of its own.
    pub document_ids: Vec<u32>,
    /// Targets that count. It can be 0 if documents are not packed, or at the end of a single pass.
    pub valid_tokens: usize,
    /// Where the global stream stands after the batches of all ranks in this step.
    pub cursor_after: Cursor,
    /// The documents in the batch, in order.
    pub documents: Vec<DocumentRef>,
}

/// What the thread sends: a batch, or `None` at the end of a single pass.
type Delivery = Result<Option<Batch>, DataError>;

/// Reads, tokenizes, packs and batches on a background thread.
///
/// Of every `world * local_batch_size` consecutive samples of the global stream, rank `r` gets
/// those from `r * local_batch_size` on. At the end of a single pass, rows (and whole batches)
/// without a sample are padding, so that all ranks get equally many batches. The thread sleeps
/// while `prefetch_batches` batches are ready; it ends when the loader is dropped.
#[derive(Debug)]
pub struct Loader {
    receiver: Option<Receiver<Delivery>>,
    thread: Option<JoinHandle<()>>,
    /// Whether a single pass has come to its end.
    ended: bool,
}

impl Loader {
    /// Opens the sources and starts the thread.
    ///
    /// # Errors
    /// Options that make no sense, and sources or a cursor that cannot be used. What is wrong
    /// inside a text file comes with the batch that meets it.
    pub fn spawn(options: LoaderOptions) -> Result<Self, DataError> {
        options.check()?;
        let stream = SampleStream::open(&options.stream, options.cursor.as_ref())?;
        let batches = Batches { stream, options };
        Self::spawn_with(batches.options.prefetch_batches, batches)
    }

    fn spawn_with(
        ready: usize,
        batches: impl Iterator<Item = Delivery> + Send + 'static,
    ) -> Result<Self, DataError> {
        // One batch more than the channel holds is ready in the thread's hand.
        let (sender, receiver) = sync_channel(ready.saturating_sub(1));
        let thread = thread::Builder::new()
            .name("data".into())
            .spawn(move || deliver(batches, &sender))
            .map_err(DataError::Thread)?;
        Ok(Self { receiver: Some(receiver), thread: Some(thread), ended: false })
    }

    /// Waits for the next batch. `None` at the end of a single pass.
    ///
    /// # Errors
    /// What went wrong in the thread, once; after that [`DataError::Stopped`].
    #[expect(clippy::should_implement_trait, reason = "errors come as `Result<Option>`, for `?`")]
    pub fn next(&mut self) -> Result<Option<Batch>, DataError> {
        if self.ended {
            return Ok(None);
        }
        let delivery = self.receiver.as_ref().and_then(|receiver| receiver.recv().ok());
        let batch = delivery.unwrap_or(Err(DataError::Stopped))?;
        self.ended = batch.is_none();
        Ok(batch)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // Without a receiver the thread's next send fails, and it ends.
        self.receiver = None;
        if let Some(thread) = self.thread.take() {
            // A panic was caught and delivered inside the thread.
            let _ = thread.join();
        }
    }
}

/// Sends batches until the receiver is gone, the pass has ended, or something went wrong.
fn deliver(mut batches: impl Iterator<Item = Delivery>, sender: &SyncSender<Delivery>) {
    loop {
        let delivery = quiet::catch_message(|| batches.next().unwrap_or(Ok(None)));
        let delivery = delivery.unwrap_or_else(|message| Err(DataError::Panicked { message }));
        let last = !matches!(delivery, Ok(Some(_)));
        if sender.send(delivery).is_err() || last {
            return;
        }
    }
}

/// The batches of one rank.
struct Batches {
    stream: SampleStream,
    options: LoaderOptions,
}

impl Iterator for Batches {
    type Item = Delivery;

    fn next(&mut self) -> Option<Delivery> {
        Some(self.batch())
    }
}

impl Batches {
    fn batch(&mut self) -> Delivery {
        let (batch, seq) = (self.options.local_batch_size, self.options.stream.seq_len);
        let mut rows = Rows::with_capacity(batch, seq);
        let mut documents = Vec::new();
        let (mut valid_tokens, mut any) = (0, false);
        for rank in 0..self.options.world {
            for _ in 0..batch {
                if rank != self.options.rank {
                    any |= self.stream.skip_sample()?;
                    continue;
                }
                let sample = self.stream.next_sample()?;
                any |= sample.is_some();
                let sample = sample.unwrap_or_default();
                valid_tokens += rows.push(&sample, seq);
                documents.extend(sample.documents);
            }
        }
        documents.dedup();
        let Rows { tokens, targets, positions, document_ids } = rows;
        let cursor_after = self.stream.cursor();
        Ok(any.then_some(Batch {
            batch,
            seq,
            tokens,
            targets,
            positions,
            document_ids,
            valid_tokens,
            cursor_after,
            documents,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_in_the_thread_is_delivered() {
        let mut deliveries = 0;
        let batches = std::iter::from_fn(move || {
            deliveries += 1;
            if deliveries > 1 {
                panic!("broken on purpose");
            }
            Some(Err(DataError::Stopped))
        });
        // The first error ends the thread, so the panic is not reached.
        let mut loader = Loader::spawn_with(2, batches).unwrap();
        assert!(matches!(loader.next(), Err(DataError::Stopped)));
        assert!(matches!(loader.next(), Err(DataError::Stopped)));

        let mut loader =
            Loader::spawn_with(2, std::iter::from_fn(|| panic!("broken on {}", "purpose")))
                .unwrap();
        assert_eq!(
            loader.next().unwrap_err().to_string(),
            "the data thread panicked: broken on purpose: this is a defect of burn-titan, please \
             report it"
        );
        assert_eq!(
            loader.next().unwrap_err().to_string(),
            "the data thread has stopped after the error that was reported before"
        );
    }
}
