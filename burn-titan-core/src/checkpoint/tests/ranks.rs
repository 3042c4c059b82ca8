//! Several ranks write one checkpoint, and any other number reads it.

use super::super::index::Index;
use super::spread::{SPREADS, Spread, ThreadWriter, check_on, parts, save_on, save_with};
use super::*;

#[test]
fn what_n_ranks_save_m_ranks_read() {
    for n in 1..=4 {
        for spread in SPREADS {
            let folder = tempdir().unwrap();
            let path = folder.path().join("step-00000007");
            for saved in save_on(folder.path(), 7, spread, n) {
                assert_eq!(saved.unwrap(), path);
            }
            assert_eq!(names_below(folder.path()), [".lock", "step-00000007"]);
            open(&path).unwrap().verify().unwrap();
            for m in 1..=4 {
                for other in SPREADS {
                    check_on(&path, 7, other, m);
                }
            }
        }
    }
}

#[test]
fn each_rank_has_files_of_its_own() {
    let folder = tempdir().unwrap();
    let saved = save_on(folder.path(), 1, Spread::Flat, 2);
    let path = saved[0].as_ref().unwrap();
    assert_eq!(
        names_below(path),
        [
            "config.yaml",
            "index.json",
            "model-rank-00000-00001-of-00002.safetensors",
            "model-rank-00000-00002-of-00002.safetensors",
            "model-rank-00001-00001-of-00003.safetensors",
            "model-rank-00001-00002-of-00003.safetensors",
            "model-rank-00001-00003-of-00003.safetensors",
            "optimizer-rank-00000-00001-of-00002.safetensors",
            "optimizer-rank-00000-00002-of-00002.safetensors",
            "optimizer-rank-00001-00001-of-00003.safetensors",
            "optimizer-rank-00001-00002-of-00003.safetensors",
            "optimizer-rank-00001-00003-of-00003.safetensors",
            "state.json",
        ]
    );
    let file = TensorFile::open(&path.join("model-rank-00000-00001-of-00002.safetensors")).unwrap();
    assert_eq!(file.view("a").unwrap().shape, [30], "a third of the elements, flat");
}

#[test]
fn one_rank_writes_a_standard_folder() {
    let folder = tempdir().unwrap();
    let model = || deferred(tensors("layers.", 1));
    let content = CheckpointContent::<CheckpointError> {
        step: 1,
        model: model(),
        optimizer: None,
        state: &json!(null),
        config_yaml: "",
        further_files: &[],
        layout: Layout::default(),
    };
    let path = save(folder.path(), 0, content).unwrap();
    let names = ["config.yaml", "index.json", "model.safetensors", "state.json"];
    assert_eq!(names_below(&path), names);
    let file = TensorFile::open(&path.join("model.safetensors")).unwrap();
    for tensor in tensors("layers.", 1) {
        assert_eq!(file.view(tensor.name()).unwrap().to_tensor(), tensor);
    }
    assert_eq!(
        open(&path).unwrap().require_resumable().unwrap_err().to_string(),
        format!(
            "{}: the checkpoint holds only the model (`checkpoint.last_save_model_only`), so no run \
             can continue from it: delete the folder to continue from an older step, or use it with \
             `generate`, `eval` or `convert`",
            path.display()
        )
    );
}

#[test]
fn where_a_rank_fails_all_do() {
    for culprit in 0..3 {
        let folder = tempdir().unwrap();
        save_on(folder.path(), 10, Spread::Flat, 3)
            .into_iter()
            .for_each(|path| drop(path.unwrap()));
        let results = save_with(folder.path(), 20, Spread::Flat, 3, |rank| {
            let mut model = parts(TensorGroup::Model, 20, Spread::Flat, rank, 3);
            if rank == culprit {
                let short = Region::flat(&[5], 1..3).unwrap();
                model[1] = DeferredTensor::f32_region("b", &[5], short, || vec![0.0; 3]).unwrap();
            }
            model
        });
        let cause = "tensor `b`: 12 bytes of data, but shape [2] of F32 needs 8: pass the data that \
                     belongs to this shape";
        for (rank, result) in results.into_iter().enumerate() {
            let message = result.unwrap_err().to_string();
            if rank == culprit {
                assert_eq!(message, cause);
            } else {
                assert_eq!(message, format!("rank {culprit} could not save its part: {cause}"));
            }
        }
        assert_eq!(names_below(folder.path()), [".lock", "step-00000010"]);
        check_on(&folder.path().join("step-00000010"), 10, Spread::Columns, 2);
        save_on(folder.path(), 20, Spread::Flat, 3)
            .into_iter()
            .for_each(|path| drop(path.unwrap()));
    }
}

#[test]
fn parts_that_are_no_whole_are_refused_on_all_ranks() {
    let message = |model: &(dyn Fn(usize) -> Vec<DeferredTensor<'static>> + Sync)| {
        let folder = tempdir().unwrap();
        let results = save_with(folder.path(), 20, Spread::Flat, 2, model);
        assert_eq!(names_below(folder.path()), [".lock"]);
        let messages: Vec<String> =
            results.into_iter().map(|result| result.unwrap_err().to_string()).collect();
        assert_eq!(messages[1], format!("rank 0 could not save its part: {}", messages[0]));
        messages[0].clone()
    };
    let part = |range| {
        let region = Region::flat(&[5], range).unwrap();
        let elements = region.elements();
        DeferredTensor::f32_region("b", &[5], region, move || vec![0.0; elements]).unwrap()
    };
    let rest = "this is a fault of the program; older checkpoints are as they were";
    assert_eq!(
        message(&|rank| vec![part(rank * 3..rank * 3 + 2)]),
        format!(
            "what the ranks wrote is no checkpoint: tensor `b`: its pieces have 4 of 5 elements: {rest}"
        )
    );
    assert_eq!(
        message(&|rank| vec![part(rank..rank + 3)]),
        format!(
            "what the ranks wrote is no checkpoint: tensor `b`: its pieces in \
             `model-rank-00000.safetensors` and `model-rank-00001.safetensors` overlap: {rest}"
        )
    );
    let other_shape = |rank: usize| {
        let tensor = HostTensor::from_f32("b", &[1, 5 + rank], &vec![0.0; 5 + rank]).unwrap();
        vec![DeferredTensor::from(tensor)]
    };
    assert!(message(&other_shape).contains("tensor `b`: one rank has (Model, F32, [1, 5])"));
}

#[test]
fn a_lost_rank_fails_the_save() {
    let folder = tempdir().unwrap();
    let mut world = ThreadWriter::world(2);
    drop(world.pop());
    let content = CheckpointContent::<CheckpointError> {
        step: 1,
        model: vec![],
        optimizer: None,
        state: &json!(null),
        config_yaml: "",
        further_files: &[],
        layout: Layout::default(),
    };
    let error = save_among(&world[0], folder.path(), 0, content).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the ranks could not agree on the checkpoint, which was given up: a rank is lost"
    );
    assert_eq!(names_below(folder.path()), [".lock"]);
}

#[test]
fn only_the_chunks_that_are_needed_are_read() {
    let folder = tempdir().unwrap();
    let whole: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    let content = CheckpointContent::<CheckpointError> {
        step: 1,
        model: vec![HostTensor::from_f32("w", &[100, 10], &whole).unwrap().into()],
        optimizer: None,
        state: &json!(null),
        config_yaml: "",
        further_files: &[],
        layout: Layout { chunk_bytes: 64, ..Layout::default() },
    };
    let path = save(folder.path(), 0, content).unwrap();
    let file = path.join("model.safetensors");
    let data = TensorFile::open(&file).unwrap();
    let start = data.bytes().len() - 4000;
    drop(data);
    // Elements 480 on, and those of a chunk before and after, are well.
    let mut bytes = fs::read(&file).unwrap();
    let damaged = start + 500 * 4 + 64;
    bytes[damaged] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let checkpoint = open(&path).unwrap();
    let read = |range: std::ops::Range<usize>| {
        checkpoint.region_f32("w", &[100, 10], &Region::flat(&[100, 10], range).unwrap())
    };
    assert_eq!(read(0..490).unwrap(), whole[..490]);
    assert_eq!(read(540..1000).unwrap(), whole[540..]);
    let chunk = damaged as u64 / 64 * 64;
    let message = read(490..540).unwrap_err().to_string();
    let place = format!(" of bytes {chunk} to {}, but ", chunk + 64);
    assert!(message.starts_with(&format!("{}: checksum ", file.display())), "{message}");
    assert!(message.contains(&place), "{message}");
    assert!(checkpoint.verify().is_err());
    assert_eq!(read(0..490).unwrap(), whole[..490], "what was verified stays so");
    let elsewhere = Region::of_box(&[99, 8], &[1, 3]).unwrap();
    assert_eq!(
        checkpoint.region_f32("w", &[100, 10], &elsewhere).unwrap_err().to_string(),
        "tensor `w`: the box from [99, 8] of [1, 3] is not in a tensor of [100, 10]: this is a fault \
         of the program"
    );
}

#[test]
fn an_index_with_a_hole_or_an_overlap_is_refused() {
    let folder = tempdir().unwrap();
    save_on(folder.path(), 1, Spread::Flat, 3).into_iter().for_each(|path| drop(path.unwrap()));
    let path = folder.path().join("step-00000001");
    let index = Index::read(&path).unwrap();
    let refusal = |change: &dyn Fn(&mut Index)| {
        let mut index = index.clone();
        change(&mut index);
        index.write(&path).unwrap();
        let message = open(&path).unwrap_err().to_string();
        let begin = format!("{}: ", path.join("index.json").display());
        message.strip_prefix(&begin).expect(&message).split(": restore").next().unwrap().to_string()
    };
    fn pieces(index: &mut Index) -> &mut Vec<super::super::record::PieceRecord> {
        &mut index.tensors.get_mut("a").unwrap().pieces
    }
    assert_eq!(
        refusal(&|index| drop(pieces(index).remove(1))),
        "tensor `a`: its pieces have 61 of 91 elements"
    );
    assert_eq!(
        refusal(&|index| {
            let again = pieces(index)[2].clone();
            pieces(index).push(again);
        }),
        "tensor `a`: its pieces in `model-rank-00002-00001-of-00003.safetensors` and \
         `model-rank-00002-00001-of-00003.safetensors` overlap"
    );
    assert_eq!(
        refusal(&|index| pieces(index)[0].offset = Some(u64::MAX - 3)),
        "tensor `a`: it does not end within the file `model-rank-00000.safetensors`"
    );
    assert_eq!(
        refusal(&|index| pieces(index)[0].file = "elsewhere".into()),
        "tensor `a`: it is in no file (`elsewhere`)"
    );
    assert_eq!(
        refusal(&|index| index.tensors.get_mut("a").unwrap().shape = vec![13, 6]),
        "tensor `a`: elements 45 to 91 are not in a box of [13, 6]"
    );
    assert!(refusal(&|index| index.chunk_bytes = 100).contains(" checksums, but "));
    assert_eq!(refusal(&|index| index.chunk_bytes = 0), "its `chunk_bytes` are 0");
    index.clone().write(&path).unwrap();
    open(&path).unwrap().verify().unwrap();
}
