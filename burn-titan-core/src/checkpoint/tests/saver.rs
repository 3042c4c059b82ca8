//! Saving behind the run's back.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::*;
use crate::config::schema::AsyncMode;

/// One writer that goes on only when it is let.
struct Gated {
    gate: Receiver<()>,
}

impl Writers for Gated {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn gather_to_first(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, ExchangeError> {
        self.gate.recv_timeout(Duration::from_secs(60)).map_err(ExchangeError::new)?;
        Ok(vec![bytes])
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>, ExchangeError> {
        Ok(bytes)
    }
}

fn gated(folder: &Path) -> (Saver, Sender<()>) {
    let (open, gate) = channel();
    let saver = Saver::new(folder.to_path_buf(), 2, AsyncMode::Async, Box::new(Gated { gate }));
    (saver, open)
}

fn content(step: u64, model: Vec<DeferredTensor<'_>>) -> CheckpointContent<'_> {
    const STATE: &serde_json::Value = &serde_json::Value::Null;
    CheckpointContent {
        step,
        model,
        optimizer: None,
        state: STATE,
        config_yaml: "",
        further_files: &[("tokenizer.json", b"a further file")],
        layout: Layout::default(),
    }
}

#[test]
fn a_save_goes_on_behind_the_run() {
    let folder = tempdir().unwrap();
    let step = |step: u64| folder.path().join(format!("step-{step:08}"));
    let (mut saver, open_gate) = gated(folder.path());
    let mut weights = vec![1.0; 5];
    saver
        .save(content(1, vec![DeferredTensor::f32("w", &[5], || weights.clone()).unwrap()]))
        .unwrap();
    assert!(!step(1).exists(), "the save waits for its gate");
    assert_eq!(saver.completed().unwrap(), None);
    // The run goes on, which the checkpoint must not see.
    weights.fill(2.0);
    open_gate.send(()).unwrap();
    // The second save asks for its tensors when the first one is complete.
    let values = || {
        assert!(step(1).exists());
        weights.clone()
    };
    saver.save(content(2, vec![DeferredTensor::f32("w", &[5], values).unwrap()])).unwrap();
    assert_eq!(saver.completed().unwrap(), Some(step(1)));
    assert!(!step(2).exists());
    open_gate.send(()).unwrap();
    assert_eq!(saver.finish().unwrap(), Some(step(2)));
    for (number, value) in [(1, 1.0), (2, 2.0)] {
        let checkpoint = open(&step(number)).unwrap();
        checkpoint.verify().unwrap();
        assert_eq!(checkpoint.tensor("w").unwrap().to_f32().unwrap(), [value; 5]);
    }
}

#[test]
fn what_fails_behind_the_run_is_said_once() {
    let folder = tempdir().unwrap();
    let (mut saver, open_gate) = gated(folder.path());
    let failing = || {
        let read = || Err(CheckpointError::Thread("as the test wants it".into()));
        vec![DeferredTensor::new("w", HostDtype::F32, &[1], read).unwrap()]
    };
    let cause = "no thread writes checkpoints: as the test wants it";
    saver.save(content(1, failing())).unwrap();
    open_gate.send(()).unwrap();
    assert_eq!(saver.save(content(2, vec![])).unwrap_err().to_string(), cause);
    open_gate.send(()).unwrap();
    saver.save(content(3, vec![])).unwrap();
    open_gate.send(()).unwrap();
    saver.save(content(4, failing())).unwrap();
    assert_eq!(saver.finish().unwrap_err().to_string(), cause);
    assert_eq!(names_below(folder.path()), [".lock", "step-00000003"]);
}

#[test]
fn a_saver_that_is_dropped_completes_its_save() {
    let folder = tempdir().unwrap();
    let (mut saver, open_gate) = gated(folder.path());
    saver.save(content(1, deferred(tensors("w", 1)))).unwrap();
    open_gate.send(()).unwrap();
    drop(saver);
    load(&folder.path().join("step-00000001")).unwrap();
}

#[test]
fn a_save_that_is_not_asynchronous_is_there_at_once() {
    let folder = tempdir().unwrap();
    let writers = Box::new(OneWriter);
    let mut saver = Saver::new(folder.path().to_path_buf(), 1, AsyncMode::Disabled, writers);
    for step in 1..=2 {
        saver.save(content(step, deferred(tensors("w", step)))).unwrap();
        let path = folder.path().join(format!("step-{step:08}"));
        load(&path).unwrap();
        assert_eq!(saver.completed().unwrap(), Some(path));
    }
    assert_eq!(steps(folder.path()), [2]);
    let blocked = folder.path().join("file");
    fs::write(&blocked, "").unwrap();
    let mut saver = Saver::new(blocked, 1, AsyncMode::Disabled, Box::new(OneWriter));
    assert!(saver.save(content(1, vec![])).is_err());
}
