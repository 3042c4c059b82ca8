//! What a rank did when: the actions of its training thread, and the exchanges on its progress threads.
//!
//! A trace is recorded for as long as it is asked for, and costs next to nothing otherwise. On devices that work
//! behind the program's back, an action's span is the time to hand its work over.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Something that was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The thread that did it, by what it is for.
    pub lane: String,
    /// What was done.
    pub name: String,
    /// When it began, after the recording began.
    pub start: Duration,
    /// How long it took.
    pub duration: Duration,
}

/// The trace of one rank. Clones record into the same.
#[derive(Debug, Clone, Default)]
pub struct Trace(Arc<Recorder>);

#[derive(Debug, Default)]
struct Recorder {
    recording: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    began: Option<Instant>,
    spans: Vec<Span>,
}

impl Trace {
    /// Begins to record.
    pub fn start(&self) {
        *self.state() = State { began: Some(Instant::now()), spans: vec![] };
        self.0.recording.store(true, Ordering::Release);
    }

    /// Ends the recording and gives what was done, each lane in its order.
    pub fn stop(&self) -> Vec<Span> {
        self.0.recording.store(false, Ordering::Release);
        std::mem::take(&mut *self.state()).spans
    }

    /// Does something, and records it as `name()` of a lane.
    pub fn span<T>(
        &self,
        lane: &str,
        name: impl FnOnce() -> String,
        work: impl FnOnce() -> T,
    ) -> T {
        if !self.0.recording.load(Ordering::Acquire) {
            return work();
        }
        let start = Instant::now();
        let done = work();
        self.record(lane, name, start);
        done
    }

    /// Records what a lane has done since `start`, as `name()`, if that is asked for.
    pub fn record(&self, lane: &str, name: impl FnOnce() -> String, start: Instant) {
        if !self.0.recording.load(Ordering::Acquire) {
            return;
        }
        let duration = start.elapsed();
        let mut state = self.state();
        if let Some(began) = state.began {
            let start = start.saturating_duration_since(began);
            state.spans.push(Span { lane: lane.into(), name: name(), start, duration });
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Spans of a rank in the format of Chrome's trace viewer and of Perfetto.
pub fn chrome_trace(rank: usize, spans: &[Span]) -> Value {
    let mut lanes: Vec<&str> = Vec::new();
    for span in spans {
        if !lanes.contains(&span.lane.as_str()) {
            lanes.push(&span.lane);
        }
    }
    let number = |lane: &str| lanes.iter().position(|other| *other == lane);
    let names = lanes.iter().enumerate().map(|(tid, lane)| {
        json!({"ph": "M", "name": "thread_name", "pid": rank, "tid": tid, "args": {"name": lane}})
    });
    let events = spans.iter().map(|span| {
        let microseconds = |time: Duration| time.as_secs_f64() * 1e6;
        json!({
            "ph": "X", "name": span.name, "pid": rank, "tid": number(&span.lane),
            "ts": microseconds(span.start), "dur": microseconds(span.duration),
        })
    });
    json!({"displayTimeUnit": "ms", "traceEvents": names.chain(events).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_while_it_is_asked_to() {
        let trace = Trace::default();
        let other = trace.clone();
        let done = |name: &'static str| other.span("lane", move || name.into(), || 7);
        assert_eq!(done("before"), 7);
        trace.start();
        assert_eq!(done("first"), 7);
        std::thread::scope(|scope| scope.spawn(|| done("second")).join().unwrap());
        let spans = trace.stop();
        done("after");
        let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
        assert_eq!(names, ["first", "second"]);
        assert!(spans[0].start + spans[0].duration <= spans[1].start);
        assert!(trace.stop().is_empty());
        let json = chrome_trace(3, &spans);
        assert_eq!(json["traceEvents"].as_array().unwrap().len(), 3);
        assert_eq!(json["traceEvents"][0]["args"]["name"], "lane");
        assert_eq!(json["traceEvents"][1]["pid"], 3);
    }
}
