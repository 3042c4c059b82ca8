//! What local ranks print: whole lines, each with the rank in front, rank 0 first of those that wait.
//!
//! Readers hand lines to a thread that writes, so that a terminal that stands still holds up neither
//! signals nor the watch over the ranks; the queue between them is bounded, so that it holds up the ranks
//! that print, and memory does not grow.

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// A longer line is cut in pieces of this many bytes.
const LONGEST_LINE: u64 = 1 << 20;
/// Lines that may wait.
const WAITING: usize = 1024;

/// The parent's stream that a line goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Error,
}

/// One line, without its end.
pub(super) struct Line {
    /// Whose line; `None` is the launcher.
    pub(super) rank: Option<usize>,
    pub(super) stream: Stream,
    pub(super) bytes: Vec<u8>,
}

/// The way of lines from the ranks to the parent's streams.
pub(super) struct Output {
    lines: mpsc::Sender<Line>,
    readers: JoinSet<()>,
    written: oneshot::Receiver<()>,
}

impl Output {
    /// Starts the thread that writes.
    pub(super) fn new() -> io::Result<Self> {
        let (lines, waiting) = mpsc::channel(WAITING);
        let (done, written) = oneshot::channel();
        thread::Builder::new().name("rank-output".to_string()).spawn(move || {
            write_all(waiting, &mut io::stdout(), &mut io::stderr());
            // The other end may have given up.
            let _ = done.send(());
        })?;
        Ok(Self { lines, readers: JoinSet::new(), written })
    }

    /// Forwards a rank's stream.
    pub(super) fn read(
        &mut self,
        rank: usize,
        stream: Stream,
        from: impl AsyncRead + Send + Unpin + 'static,
    ) {
        let lines = self.lines.clone();
        self.readers.spawn(forward(rank, stream, from, lines));
    }

    /// A line of the launcher's own, on standard error.
    pub(super) fn tell(&mut self, text: String) {
        let line = Line { rank: None, stream: Stream::Error, bytes: text.into_bytes() };
        let lines = self.lines.clone();
        // Beside the readers, as it may have to wait for its turn.
        self.readers.spawn(async move {
            let _ = lines.send(line).await;
        });
    }

    /// Waits until all is read and written. A stream that something else than the ranks holds open is
    /// given up after `idle`.
    pub(super) async fn finish(mut self, idle: Duration) {
        while !self.readers.is_empty() {
            let full = self.lines.capacity() == 0;
            if timeout(idle, self.readers.join_next()).await.is_err() && !full {
                self.readers.abort_all();
            }
        }
        drop(self.lines);
        let _ = self.written.await;
    }
}

/// Cuts a stream in lines.
async fn forward(
    rank: usize,
    stream: Stream,
    from: impl AsyncRead + Unpin,
    lines: mpsc::Sender<Line>,
) {
    let mut from = BufReader::new(from);
    loop {
        let mut bytes = Vec::new();
        let read = (&mut from).take(LONGEST_LINE).read_until(b'\n', &mut bytes).await;
        // A pipe that breaks has ended.
        if !matches!(read, Ok(length) if length > 0) {
            return;
        }
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        if lines.send(Line { rank: Some(rank), stream, bytes }).await.is_err() {
            return;
        }
    }
}

/// Writes lines until there are no more: of those that wait, rank 0's first.
fn write_all(mut lines: mpsc::Receiver<Line>, out: &mut impl Write, error: &mut impl Write) {
    let mut batch = Vec::new();
    while let Some(line) = lines.blocking_recv() {
        batch.push(line);
        while batch.len() < WAITING
            && let Ok(line) = lines.try_recv()
        {
            batch.push(line);
        }
        // Stable: the lines of a rank stay in order. The launcher's come behind what they are about.
        batch.sort_by_key(|line| line.rank.unwrap_or(usize::MAX));
        for line in batch.drain(..) {
            // Nobody may be listening any more; the ranks go on.
            let _ = match line.stream {
                Stream::Out => write_line(out, &line),
                Stream::Error => write_line(error, &line),
            };
        }
        let _ = out.flush();
    }
}

/// One write for the whole line, so that nothing else comes between.
fn write_line(to: &mut impl Write, line: &Line) -> io::Result<()> {
    let mut whole = match line.rank {
        Some(rank) => format!("[rank {rank}] ").into_bytes(),
        None => b"[launcher] ".to_vec(),
    };
    whole.extend_from_slice(&line.bytes);
    whole.push(b'\n');
    to.write_all(&whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(rank: Option<usize>, stream: Stream, text: &str) -> Line {
        Line { rank, stream, bytes: text.as_bytes().to_vec() }
    }

    #[test]
    fn of_the_lines_that_wait_rank_0_comes_first_and_each_rank_in_order() {
        let (sender, lines) = mpsc::channel(16);
        for (rank, stream, text) in [
            (Some(2), Stream::Out, "a"),
            (Some(0), Stream::Error, "b"),
            (Some(1), Stream::Out, "c"),
            (Some(2), Stream::Out, "d"),
            (Some(0), Stream::Out, "e"),
            (None, Stream::Error, "f"),
            (Some(0), Stream::Out, "g"),
        ] {
            assert!(sender.try_send(line(rank, stream, text)).is_ok());
        }
        drop(sender);
        let (mut out, mut error) = (Vec::new(), Vec::new());
        write_all(lines, &mut out, &mut error);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "[rank 0] e\n[rank 0] g\n[rank 1] c\n[rank 2] a\n[rank 2] d\n"
        );
        assert_eq!(String::from_utf8(error).unwrap(), "[rank 0] b\n[launcher] f\n");
    }

    fn forwarded(bytes: &[u8]) -> Vec<Vec<u8>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (sender, mut lines) = mpsc::channel(16);
            forward(3, Stream::Out, bytes, sender).await;
            let mut got = Vec::new();
            while let Some(line) = lines.recv().await {
                assert_eq!(line.rank, Some(3));
                got.push(line.bytes);
            }
            got
        })
    }

    #[test]
    fn streams_are_cut_in_lines() {
        let lines: Vec<Vec<u8>> =
            vec![b"one".to_vec(), Vec::new(), vec![0xff, b'x'], b"end".to_vec()];
        assert_eq!(forwarded(b"one\n\n\xffx\nend"), lines);
        assert!(forwarded(b"").is_empty());
        let long = vec![b'x'; LONGEST_LINE as usize + 2];
        let lengths: Vec<usize> = forwarded(&long).iter().map(Vec::len).collect();
        assert_eq!(lengths, [LONGEST_LINE as usize, 2]);
    }

    #[test]
    fn a_stream_that_breaks_stops_no_other() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let (sender, lines) = mpsc::channel(16);
        assert!(sender.try_send(line(Some(0), Stream::Out, "lost")).is_ok());
        assert!(sender.try_send(line(Some(1), Stream::Error, "kept")).is_ok());
        drop(sender);
        let mut error = Vec::new();
        write_all(lines, &mut Broken, &mut error);
        assert_eq!(error, b"[rank 1] kept\n");
    }
}
