//! What a crash or a damage leaves behind, and what readers make of it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::config::schema::Resume;

mod crash;
mod damage;
mod ranks;
mod region;
mod saver;
mod scale;
mod spread;
mod version1;

/// A folder in memory where the system has one: these tests sync and rewrite files many thousand times.
fn tempdir() -> std::io::Result<TempDir> {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())
}

fn tensors(prefix: &str, step: u64) -> Vec<HostTensor> {
    (0..5)
        .map(|i| {
            let values: Vec<f32> = (0..7).map(|v| step as f32 + (i * 10 + v) as f32).collect();
            HostTensor::from_f32(format!("{prefix}{i}"), &[7], &values).unwrap()
        })
        .collect()
}

fn deferred(tensors: Vec<HostTensor>) -> Vec<DeferredTensor<'static>> {
    tensors.into_iter().map(DeferredTensor::from).collect()
}

fn save_step(folder: &Path, keep: usize, step: u64) -> Result<PathBuf, CheckpointError> {
    let content = CheckpointContent {
        step,
        model: deferred(tensors("layers.", step)),
        optimizer: Some(deferred(tensors("exp_avg.", step))),
        state: &json!({"cursor": step * 8}),
        config_yaml: "run:\n  name: x\n",
        further_files: &[("tokenizer.json", b"a further file")],
        layout: Layout { max_file_bytes: 70, chunk_bytes: 50 },
    };
    save(folder, keep, content)
}

fn steps(folder: &Path) -> Vec<u64> {
    list(folder).unwrap().iter().map(|entry| entry.step).collect()
}

/// Opens and reads everything, as a resume does.
fn load(path: &Path) -> Result<(), CheckpointError> {
    let checkpoint = open(path)?;
    checkpoint.verify()?;
    checkpoint.state::<serde_json::Value>()?;
    checkpoint.config_yaml()?;
    checkpoint.further_file("tokenizer.json")?;
    let names: Vec<String> = checkpoint
        .model_tensors()
        .chain(checkpoint.optimizer_tensors())
        .map(|entry| entry.name.to_string())
        .collect();
    names.iter().try_for_each(|name| checkpoint.tensor(name).map(|_| ()))
}

fn names_below(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn saved(step: u64) -> (TempDir, PathBuf) {
    let folder = tempdir().unwrap();
    let path = save_step(folder.path(), 0, step).unwrap();
    (folder, path)
}

#[test]
fn what_is_saved_is_read() {
    let (folder, path) = saved(100);
    assert_eq!(path, folder.path().join("step-00000100"));
    assert_eq!(
        names_below(&path),
        [
            "config.yaml",
            "index.json",
            "model-00001-of-00003.safetensors",
            "model-00002-of-00003.safetensors",
            "model-00003-of-00003.safetensors",
            "optimizer-00001-of-00003.safetensors",
            "optimizer-00002-of-00003.safetensors",
            "optimizer-00003-of-00003.safetensors",
            "state.json",
            "tokenizer.json",
        ]
    );
    let checkpoint = open(&path).unwrap();
    checkpoint.verify().unwrap();
    assert_eq!(checkpoint.step(), 100);
    assert_eq!(checkpoint.config_yaml().unwrap(), "run:\n  name: x\n");
    assert_eq!(checkpoint.state::<serde_json::Value>().unwrap(), json!({"cursor": 800}));
    assert_eq!(checkpoint.further_file("tokenizer.json").unwrap().unwrap(), b"a further file");
    let further = checkpoint.further_file_path("tokenizer.json").unwrap();
    assert_eq!(further, Some(path.join("tokenizer.json")));
    assert_eq!(checkpoint.further_file("vocabulary.txt").unwrap(), None);
    assert_eq!(checkpoint.model_tensors().count(), 5);
    for tensor in tensors("layers.", 100).iter().chain(&tensors("exp_avg.", 100)) {
        assert_eq!(&checkpoint.tensor(tensor.name()).unwrap(), tensor);
    }
    let entry = checkpoint.optimizer_tensors().next().unwrap();
    assert_eq!((entry.name, entry.dtype, entry.shape), ("exp_avg.0", HostDtype::F32, &[7][..]));
}

#[test]
fn wrong_requests_are_refused() {
    let (_folder, path) = saved(1);
    let checkpoint = open(&path).unwrap();
    let shown = path.display();
    assert_eq!(
        checkpoint.tensor("layers.9").unwrap_err().to_string(),
        format!(
            "{shown}: no tensor `layers.9` (did you mean `layers.4`?): continue with the model \
             config that made the checkpoint (its config.yaml)"
        )
    );
    assert!(checkpoint.tensor_of("layers.1", HostDtype::F32, &[7]).is_ok());
    assert_eq!(
        checkpoint.tensor_of("layers.1", HostDtype::BF16, &[7, 2]).unwrap_err().to_string(),
        format!(
            "{shown}: tensor `layers.1` is F32 [7], but BF16 [7, 2] is needed: continue with the \
             model config that made the checkpoint (its config.yaml)"
        )
    );
    let error = checkpoint.state::<Vec<u32>>().unwrap_err().to_string();
    assert!(error.starts_with(&format!("{shown}/state.json: invalid type: map")), "{error}");
}

/// A save of `model` and further files that must fail.
fn refusal(model: Vec<DeferredTensor>, further_files: &[(&str, &[u8])]) -> String {
    let folder = tempdir().unwrap();
    let content = CheckpointContent {
        step: 1,
        model,
        optimizer: Some(deferred(tensors("w", 0))),
        state: &json!(null),
        config_yaml: "",
        further_files,
        layout: Layout::default(),
    };
    let message = save(folder.path(), 0, content).unwrap_err().to_string();
    assert!(names_below(folder.path()).iter().all(|name| name == ".lock"));
    message
}

#[test]
fn a_name_given_twice_is_refused() {
    assert_eq!(
        refusal(deferred(tensors("w", 0)), &[]),
        "tensor `w0` is given twice: names must differ over model and optimizer"
    );
    for name in ["state.json", "index.json", "../x", "model.safetensors"] {
        assert_eq!(
            refusal(vec![], &[(name, b"")]),
            format!("`{name}` cannot be the name of a further file: choose another")
        );
    }
    assert!(refusal(vec![], &[("a", b""), ("a", b"")]).starts_with("`a` cannot be the name"));
}

#[test]
fn a_tensor_that_is_not_as_announced_leaves_nothing_behind() {
    let tensor = |shape: &[usize]| {
        let values = || Ok(HostTensor::from_f32("v", &[3], &[0.0; 3])?);
        DeferredTensor::new("v", HostDtype::F32, shape, values)
    };
    assert_eq!(
        refusal(vec![tensor(&[2]).unwrap()], &[]),
        "tensor `v` was announced as F32 [2], but is `v`, F32 [3]: this is a fault of the program"
    );
    let error = DeferredTensor::<CheckpointError>::f32("v", &[usize::MAX, 2], Vec::new);
    let overflow = "tensor `v`: shape [18446744073709551615, 2] of F32 overflows: check the shape";
    assert_eq!(error.unwrap_err().to_string(), overflow);
}

#[test]
fn tensors_are_made_when_they_are_written() {
    let folder = tempdir().unwrap();
    let made = std::cell::Cell::new(0);
    let model = (0..4).map(|i| {
        let (name, made) = (format!("w{i}"), &made);
        DeferredTensor::new(name.clone(), HostDtype::F32, &[2], move || {
            made.set(made.get() + 1);
            Ok(HostTensor::from_f32(name, &[2], &[i as f32; 2])?)
        })
    });
    let model: Vec<DeferredTensor> = model.collect::<Result<_, _>>().unwrap();
    assert_eq!(made.get(), 0, "nothing is made before it is written");
    let content = CheckpointContent {
        step: 1,
        model,
        optimizer: Some(vec![]),
        state: &json!(null),
        config_yaml: "",
        further_files: &[],
        layout: Layout::default(),
    };
    let path = save(folder.path(), 0, content).unwrap();
    assert_eq!(made.get(), 4);
    assert_eq!(open(&path).unwrap().tensor("w3").unwrap().to_f32().unwrap(), [3.0; 2]);
}

#[test]
fn a_crash_at_any_stage_leaves_the_previous_checkpoint() {
    // What a save leaves when it stops after each of its file operations.
    let (source, complete) = saved(20);
    let mut files = names_below(&complete);
    files.retain(|name| name != "index.json");
    files.push("index.json".into());
    for written in 0..=files.len() {
        let folder = tempdir().unwrap();
        save_step(folder.path(), 2, 10).unwrap();
        let partial = folder.path().join("step-00000020.partial-1");
        fs::create_dir(&partial).unwrap();
        for name in &files[..written] {
            fs::copy(complete.join(name), partial.join(name)).unwrap();
        }
        let resumed = resolve_resume(folder.path(), Resume::Auto).unwrap().unwrap();
        assert_eq!(resumed, folder.path().join("step-00000010"));
        load(&resumed).unwrap();
        save_step(folder.path(), 2, 20).unwrap();
        assert_eq!(names_below(folder.path()), [".lock", "step-00000010", "step-00000020"]);
    }
    drop(source);
}

#[test]
fn a_crash_while_replacing_keeps_the_old_one() {
    let (folder, path) = saved(10);
    let replaced = folder.path().join("step-00000010.replaced-1");
    fs::rename(&path, &replaced).unwrap();
    assert_eq!(latest(folder.path()).unwrap().unwrap().path, replaced);
    load(&replaced).unwrap();
    // The next save gives it its name back.
    save_step(folder.path(), 0, 11).unwrap();
    assert_eq!(names_below(folder.path()), [".lock", "step-00000010", "step-00000011"]);
    // Where the successor arrived, the replaced one goes.
    save_step(folder.path(), 0, 11).unwrap();
    fs::create_dir(&replaced).unwrap();
    assert_eq!(steps(folder.path()), [10, 11]);
    save_step(folder.path(), 0, 11).unwrap();
    assert_eq!(names_below(folder.path()), [".lock", "step-00000010", "step-00000011"]);
    load(&path).unwrap();
}

#[test]
fn a_crash_while_pruning_leaves_no_checkpoint_by_halves() {
    let (folder, path) = saved(10);
    let deleted = folder.path().join("step-00000010.deleted-1");
    fs::rename(&path, &deleted).unwrap();
    fs::remove_file(deleted.join("state.json")).unwrap();
    assert!(steps(folder.path()).is_empty());
    save_step(folder.path(), 1, 11).unwrap();
    assert_eq!(names_below(folder.path()), [".lock", "step-00000011"]);
}

#[test]
fn keeps_the_latest_k_by_number() {
    let folder = tempdir().unwrap();
    for step in [5, 99_999_999, 100_000_000, 20] {
        save_step(folder.path(), 0, step).unwrap();
    }
    assert_eq!(steps(folder.path()), [5, 20, 99_999_999, 100_000_000]);
    assert_eq!(latest(folder.path()).unwrap().unwrap().step, 100_000_000);
    fs::create_dir(folder.path().join("notes")).unwrap();
    save_step(folder.path(), 2, 100_000_001).unwrap();
    assert_eq!(steps(folder.path()), [100_000_000, 100_000_001]);
    assert!(folder.path().join("notes").exists());
    // What was just saved stays, even where it is not among the newest.
    save_step(folder.path(), 1, 30).unwrap();
    assert_eq!(steps(folder.path()), [30, 100_000_001]);
}

#[test]
fn a_folder_has_one_writer() {
    let (folder, _path) = saved(1);
    let lock = fs::File::open(folder.path().join(".lock")).unwrap();
    lock.lock().unwrap();
    assert_eq!(
        save_step(folder.path(), 0, 2).unwrap_err().to_string(),
        format!(
            "{}: another process is saving to this folder: give each run its own `run.output_dir`",
            folder.path().display()
        )
    );
    drop(lock);
    save_step(folder.path(), 0, 2).unwrap();
}

#[test]
fn resume_follows_its_rules() {
    let run = tempdir().unwrap();
    let folder = run.path().join("checkpoint");
    let shown = folder.display();
    let message = |resume| resolve_resume(&folder, resume).unwrap_err().to_string();
    let remedy = "to start from step 0, remove the folder and set `checkpoint.resume: auto`";
    assert_eq!(resolve_resume(&folder, Resume::Auto).unwrap(), None);
    assert_eq!(resolve_resume(&folder, Resume::Never).unwrap(), None);
    assert_eq!(
        message(Resume::Require),
        format!("no complete checkpoint in {shown}: no such folder: {remedy}")
    );
    fs::create_dir(&folder).unwrap();
    let empty = "the folder holds no checkpoint";
    for resume in [Resume::Auto, Resume::Require] {
        assert_eq!(
            message(resume),
            format!("no complete checkpoint in {shown}: {empty}: {remedy}")
        );
    }
    assert_eq!(resolve_resume(&folder, Resume::Never).unwrap(), None);
    fs::create_dir(folder.join("step-00000010.partial-1")).unwrap();
    assert!(message(Resume::Auto).contains("the folder holds only an unfinished save"));
    let path = save_step(&folder, 0, 10).unwrap();
    for resume in [Resume::Auto, Resume::Require] {
        assert_eq!(resolve_resume(&folder, resume).unwrap().as_ref(), Some(&path));
    }
    assert_eq!(
        message(Resume::Never),
        format!(
            "{shown}: the folder already holds checkpoints (newest: step 10), but \
             `checkpoint.resume` is `never`: choose another `run.output_dir`, or set \
             `checkpoint.resume: auto`"
        )
    );
}

#[test]
fn a_users_folder_is_understood() {
    let run = tempdir().unwrap();
    let folder = run.path().join("checkpoint");
    assert_eq!(
        locate(run.path()).unwrap_err().to_string(),
        format!(
            "no complete checkpoint found; looked at: {} (the folder holds no checkpoint), {} (no \
             such folder): give a folder like `step-00000100`, the checkpoint folder, or the run's \
             output folder",
            run.path().display(),
            folder.display()
        )
    );
    let old = save_step(&folder, 0, 9).unwrap();
    let new = save_step(&folder, 0, 10).unwrap();
    for given in [run.path(), &folder, &new] {
        assert_eq!(locate(given).unwrap(), new);
    }
    assert_eq!(locate(&old).unwrap(), old);
    let file = run.path().join("file");
    fs::write(&file, "").unwrap();
    let message = locate(&file).unwrap_err().to_string();
    assert!(message.starts_with(&format!("{}: cannot list the folder: ", file.display())));
}

#[test]
fn a_runs_own_folder_of_checkpoints_is_found() {
    let run = tempdir().unwrap();
    let config = run.path().join("config.yaml");
    let elsewhere = tempdir().unwrap();
    for (name, folder) in [
        ("saved", run.path().join("saved")),
        (elsewhere.path().to_str().unwrap(), elsewhere.path().to_path_buf()),
    ] {
        fs::write(&config, format!("unknown: 1\ncheckpoint: {{folder: '{name}'}}\n")).unwrap();
        let newest = save_step(&folder, 0, 3).unwrap();
        assert_eq!(locate(run.path()).unwrap(), newest);
    }
    fs::write(&config, "checkpoint: [").unwrap();
    assert!(locate(run.path()).unwrap_err().to_string().contains("/checkpoint (no such folder)"));
}
