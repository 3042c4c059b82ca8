//! Checkpoints of format version 1 are still read.

use super::*;

macro_rules! written_by_version_1 {
    ($($name:literal)*) => {
        [$(($name, include_bytes!(concat!("version1/step-00000003/", $name)).as_slice())),*]
    };
}

/// A copy of a checkpoint that version 1 wrote.
fn copy() -> (TempDir, PathBuf) {
    let folder = tempdir().unwrap();
    let path = folder.path().join("step-00000003");
    fs::create_dir(&path).unwrap();
    for (name, contents) in written_by_version_1![
        "config.yaml"
        "index.json"
        "model-00001-of-00002.safetensors"
        "model-00002-of-00002.safetensors"
        "optimizer-00001-of-00002.safetensors"
        "optimizer-00002-of-00002.safetensors"
        "state.json"
        "tokenizer.json"
    ] {
        fs::write(path.join(name), contents).unwrap();
    }
    (folder, path)
}

#[test]
fn what_version_1_wrote_is_read() {
    let (folder, path) = copy();
    assert_eq!(latest(folder.path()).unwrap().unwrap().path, path);
    let checkpoint = open(&path).unwrap();
    checkpoint.verify().unwrap();
    checkpoint.require_resumable().unwrap();
    assert_eq!(checkpoint.state::<serde_json::Value>().unwrap(), json!({"cursor": 24}));
    assert_eq!(checkpoint.further_file("tokenizer.json").unwrap().unwrap(), b"a further file");
    let model: Vec<_> = checkpoint.model_tensors().map(|entry| entry.name).collect();
    assert_eq!(model, ["embed", "head", "norm"]);
    for (name, shape, first) in [
        ("embed", vec![3, 5], 1.0f32),
        ("norm", vec![7], 2.0),
        ("head", vec![2, 2, 3], -3.0),
        ("embed.exp_avg", vec![3, 5], 4.0),
        ("norm.exp_avg", vec![7], 5.0),
    ] {
        let elements: usize = shape.iter().product();
        let values: Vec<f32> = (0..elements).map(|i| first + i as f32 * 0.25).collect();
        let tensor = checkpoint.tensor_of(name, HostDtype::F32, &shape).unwrap();
        assert_eq!(tensor.to_f32().unwrap(), values);
        let region = Region::flat(&shape, 2..6).unwrap();
        assert_eq!(checkpoint.region_f32(name, &shape, &region).unwrap(), values[2..6]);
    }
}

#[test]
fn what_was_altered_since_is_refused_by_name() {
    let (_folder, path) = copy();
    for name in names_below(&path) {
        let file = path.join(&name);
        let whole = fs::read(&file).unwrap();
        for position in (0..whole.len()).step_by(11) {
            let mut altered = whole.clone();
            altered[position] ^= 0x04;
            fs::write(&file, &altered).unwrap();
            let error = load(&path).expect_err(&format!("{name}: byte {position}"));
            assert!(error.to_string().starts_with(&format!("{}: ", file.display())), "{error}");
        }
        fs::write(&file, &whole).unwrap();
    }
    load(&path).unwrap();
}
