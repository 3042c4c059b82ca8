//! Large tensors, and many files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use super::super::durable::checksum;
use super::super::index::Index;
use super::super::record::{Checksum, FileRecord, PieceRecord, TensorRecord};
use super::*;

fn file_record(path: &Path) -> FileRecord {
    let contents = fs::read(path).unwrap();
    FileRecord { bytes: contents.len() as u64, chunks: vec![Checksum(checksum(&contents))] }
}

/// Writes the files that every checkpoint has.
fn plain_files(folder: &Path) -> BTreeMap<String, FileRecord> {
    let written = ["state.json", "config.yaml"].map(|name| {
        fs::write(folder.join(name), "null").unwrap();
        (name.to_string(), file_record(&folder.join(name)))
    });
    written.into()
}

#[test]
fn a_tensor_of_100_gb_is_read_where_it_is_needed() {
    const CHUNK: u64 = 16 << 20;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("step-00000001");
    fs::create_dir(&path).unwrap();
    // A sparse file of zeros, but for the last chunk: it takes no room on the disk.
    let shape = [250_000, 100_003];
    let (offset, bytes) = (4096, 4 * 250_000 * 100_003u64);
    let last: Vec<f32> = (1..=1000).map(|i| i as f32).collect();
    let mut file = File::create(path.join("model.safetensors")).unwrap();
    file.set_len(offset + bytes).expect("the file system of temporary files has sparse files");
    file.seek(SeekFrom::End(-4000)).unwrap();
    file.write_all(&last.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()).unwrap();
    drop(file);
    let count = (offset + bytes).div_ceil(CHUNK) as usize;
    assert!(count > 5900);
    let mut chunks = vec![Checksum(checksum(&vec![0; CHUNK as usize])); count];
    let mut end = vec![0u8; ((offset + bytes) % CHUNK) as usize - 4000];
    end.extend(last.iter().flat_map(|v| v.to_le_bytes()));
    chunks[count - 1] = Checksum(checksum(&end));
    let mut files = plain_files(&path);
    files.insert("model.safetensors".into(), FileRecord { bytes: offset + bytes, chunks });
    let pieces = vec![PieceRecord::whole("model.safetensors".into(), Some(offset))];
    let record = TensorRecord {
        group: TensorGroup::Model,
        dtype: HostDtype::F32,
        shape: shape.into(),
        pieces,
    };
    Index::new(1, true, CHUNK, files, [("w".to_string(), record)].into()).write(&path).unwrap();

    let checkpoint = open(&path).unwrap();
    let elements = shape[0] * shape[1];
    let read = |region: Region| checkpoint.region_f32("w", &shape, &region).unwrap();
    let end = Region::flat(&shape, elements - 1500..elements).unwrap();
    assert_eq!(read(end), [vec![0.0; 500], last].concat());
    let column = Region::of_box(&[249_990, 100_002], &[10, 1]).unwrap();
    assert_eq!(read(column), [[0.0; 9].as_slice(), &[1000.0]].concat());
}

#[test]
fn ten_thousand_files_are_read() {
    const FILES: usize = 10_000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("step-00000001");
    fs::create_dir(&path).unwrap();
    let mut files = plain_files(&path);
    let mut pieces = Vec::new();
    let shape = [FILES, 3];
    for number in 0..FILES {
        let name = format!("model-rank-{number:05}.safetensors");
        let values = [0, 1, 2].map(|i| (number * 3 + i) as f32);
        let tensor = HostTensor::from_f32("w", &[3], &values).unwrap();
        fs::write(path.join(&name), tensor.data()).unwrap();
        files.insert(name.clone(), file_record(&path.join(&name)));
        let region = Region::flat(&shape, number * 3..number * 3 + 3).unwrap();
        pieces.push(PieceRecord::new(name, 0, &shape, &region));
    }
    let record = TensorRecord {
        group: TensorGroup::Model,
        dtype: HostDtype::F32,
        shape: shape.into(),
        pieces,
    };
    Index::new(1, true, 1 << 20, files, [("w".to_string(), record)].into()).write(&path).unwrap();
    let checkpoint = open(&path).unwrap();
    checkpoint.verify().unwrap();
    let whole = checkpoint.tensor("w").unwrap().to_f32().unwrap();
    assert!(whole.iter().enumerate().all(|(i, value)| *value == i as f32));
    let part = Region::flat(&shape, 14_999..15_002).unwrap();
    let wanted = [14_999.0, 15_000.0, 15_001.0];
    assert_eq!(checkpoint.region_f32("w", &shape, &part).unwrap(), wanted);
}
