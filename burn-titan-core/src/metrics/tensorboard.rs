//! TensorBoard event files, written by hand.
//!
//! A file is a sequence of records framed as in
//! [TFRecord](https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details): the
//! length (8 bytes, little-endian), its masked CRC-32C, the data, the data's masked CRC-32C. Each
//! record is an
//! [`Event`](https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/util/event.proto)
//! in [protobuf's encoding](https://protobuf.dev/programming-guides/encoding/).

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::jsonl::{MetricsError, StepMetrics};
use crate::checkpoint::FileError;

/// Writes one event file of a run.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Begins a new event file in `folder`, for a run that continues after `resumed_step` (0: from the
    /// start). A resumed run tells TensorBoard to forget the later steps of older files.
    ///
    /// # Errors
    /// [`MetricsError::File`].
    pub fn create(folder: &Path, resumed_step: u64) -> Result<Self, MetricsError> {
        fs::create_dir_all(folder).map_err(|e| FileError::new(folder, "create the folder", e))?;
        let (path, file) = create_file(folder)?;
        let mut writer = Self { path, file };
        let mut version = event(now(), 0);
        bytes_field(&mut version, EVENT_FILE_VERSION, b"brain.Event:2");
        let mut records = record(&version);
        if resumed_step > 0 {
            let mut restart = event(now(), resumed_step.saturating_add(1));
            let mut session = vec![];
            varint_field(&mut session, SESSION_STATUS, SESSION_START);
            bytes_field(&mut restart, EVENT_SESSION_LOG, &session);
            records.extend(record(&restart));
        }
        writer.write(&records)?;
        Ok(writer)
    }

    /// The event file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the scalars of one step.
    ///
    /// # Errors
    /// [`MetricsError::File`].
    pub fn write_step(&mut self, metrics: &StepMetrics) -> Result<(), MetricsError> {
        let mut scalars = vec![
            ("loss/train", metrics.loss),
            ("optimizer/grad_norm", metrics.grad_norm),
            ("optimizer/lr", metrics.lr),
            ("speed/tokens_per_second", metrics.tokens_per_second),
            ("speed/tflops", metrics.tflops),
            ("speed/mfu", metrics.mfu),
            ("memory/peak_gib", metrics.memory_gib),
            ("time/data_seconds", metrics.data_seconds),
            ("time/step_seconds", metrics.step_seconds),
        ];
        scalars.extend(metrics.validation_loss.map(|loss| ("loss/validation", loss)));
        self.write(&record(&scalars_event(now(), metrics.step, &scalars)))
    }

    fn write(&mut self, records: &[u8]) -> Result<(), MetricsError> {
        let written = self.file.write_all(records);
        Ok(written.map_err(|error| FileError::new(&self.path, "write the file", error))?)
    }
}

/// Names sort by time, then by number, which is the order in which TensorBoard reads the files.
fn create_file(folder: &Path) -> Result<(PathBuf, File), FileError> {
    let (seconds, process) = (now() as u64, std::process::id());
    let mut number = 0;
    loop {
        let name = format!("events.out.tfevents.{seconds:010}.burn-titan.{process}.{number}");
        let path = folder.join(name);
        match File::options().create_new(true).append(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(FileError::new(&path, "create the file", error)),
        }
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

// Field numbers of event.proto and summary.proto.
const EVENT_WALL_TIME: u64 = 1;
const EVENT_STEP: u64 = 2;
const EVENT_FILE_VERSION: u64 = 3;
const EVENT_SUMMARY: u64 = 5;
const EVENT_SESSION_LOG: u64 = 7;
const SESSION_STATUS: u64 = 1;
const SESSION_START: u64 = 1;
const SUMMARY_VALUE: u64 = 1;
const VALUE_TAG: u64 = 1;
const VALUE_SIMPLE_VALUE: u64 = 2;

// Wire types of protobuf's encoding.
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;
const FIXED_32: u64 = 5;

fn event(wall_time: f64, step: u64) -> Vec<u8> {
    let mut event = vec![];
    varint(&mut event, EVENT_WALL_TIME << 3 | FIXED_64);
    event.extend(wall_time.to_le_bytes());
    varint_field(&mut event, EVENT_STEP, step);
    event
}

fn scalars_event(wall_time: f64, step: u64, scalars: &[(&str, f64)]) -> Vec<u8> {
    let mut summary = vec![];
    for (tag, scalar) in scalars {
        let mut value = vec![];
        bytes_field(&mut value, VALUE_TAG, tag.as_bytes());
        varint(&mut value, VALUE_SIMPLE_VALUE << 3 | FIXED_32);
        value.extend((*scalar as f32).to_le_bytes());
        bytes_field(&mut summary, SUMMARY_VALUE, &value);
    }
    let mut event = event(wall_time, step);
    bytes_field(&mut event, EVENT_SUMMARY, &summary);
    event
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint_field(out: &mut Vec<u8>, field: u64, value: u64) {
    varint(out, field << 3 | VARINT);
    varint(out, value);
}

fn bytes_field(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    varint(out, field << 3 | LENGTH_DELIMITED);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend_from_slice(data);
    record.extend(masked_crc(data).to_le_bytes());
    record
}

/// Rotated and shifted, so that the CRC of data that holds CRCs stays useful.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRC-32C bit by bit (reflected Castagnoli polynomial), independent of the crate.
    fn slow_crc(data: &[u8]) -> u32 {
        !data.iter().fold(!0, |crc: u32, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
            })
        })
    }

    fn check(data: &[u8], stored: &[u8]) {
        let crc = slow_crc(data);
        let masked = crc.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(stored, masked.to_le_bytes());
    }

    fn records(mut bytes: &[u8]) -> Vec<&[u8]> {
        let mut records = vec![];
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            check(&bytes[..8], &bytes[8..12]);
            let data = &bytes[12..12 + length];
            check(data, &bytes[12 + length..16 + length]);
            records.push(data);
            bytes = &bytes[16 + length..];
        }
        records
    }

    /// (field, wire type, value): varints and fixed numbers as their bits, the rest as bytes.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, u64, &[u8])> {
        fn take_varint(bytes: &mut &[u8]) -> u64 {
            let length = bytes.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
            let (head, tail) = bytes.split_at(length);
            *bytes = tail;
            head.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f))
        }
        let mut fields = vec![];
        while !bytes.is_empty() {
            let key = take_varint(&mut bytes);
            let length = match key & 7 {
                0 => {
                    fields.push((key >> 3, 0, take_varint(&mut bytes), &[][..]));
                    continue;
                }
                1 => 8,
                2 => take_varint(&mut bytes) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            let (value, tail) = bytes.split_at(length);
            bytes = tail;
            let mut bits = [0; 8];
            let number = length.min(8);
            bits[..number].copy_from_slice(&value[..number]);
            fields.push((key >> 3, key & 7, u64::from_le_bytes(bits), value));
        }
        fields
    }

    #[test]
    fn an_independent_reader_understands_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path(), 300).unwrap();
        let metrics = StepMetrics {
            step: 301,
            loss: 4.25,
            mfu: f64::NAN,
            validation_loss: Some(5.5),
            ..Default::default()
        };
        writer.write_step(&metrics).unwrap();
        let bytes = fs::read(writer.path()).unwrap();
        let records = records(&bytes);
        assert_eq!(records.len(), 3);
        let version = fields(records[0]);
        assert_eq!((version[0].0, version[0].1), (1, 1));
        assert!((f64::from_bits(version[0].2) - now()).abs() < 60.0);
        assert_eq!(version[2], (3, 2, u64::from_le_bytes(*b"brain.Ev"), &b"brain.Event:2"[..]));
        let restart = fields(records[1]);
        assert_eq!(restart[1].2, 301);
        assert_eq!(restart[2].0, 7);
        assert_eq!(fields(restart[2].3), [(1, 0, 1, &[][..])]);
        let step = fields(records[2]);
        assert_eq!((step[1].0, step[1].2), (2, 301));
        assert_eq!(step[2].0, 5);
        let scalars: Vec<(String, f32)> = fields(step[2].3)
            .iter()
            .map(|value| {
                let value = fields(value.3);
                assert_eq!((value[0].0, value[1].0, value[1].1), (1, 2, 5));
                let tag = String::from_utf8(value[0].3.to_vec()).unwrap();
                (tag, f32::from_bits(value[1].2 as u32))
            })
            .collect();
        assert_eq!(scalars.len(), 10);
        assert_eq!(scalars[0], ("loss/train".into(), 4.25));
        assert_eq!(scalars[9], ("loss/validation".into(), 5.5));
        assert!(scalars.iter().any(|(tag, value)| tag == "speed/mfu" && value.is_nan()));
    }

    #[test]
    fn two_files_of_one_second_do_not_meet() {
        let folder = tempfile::tempdir().unwrap();
        let first = EventWriter::create(folder.path(), 0).unwrap();
        let second = EventWriter::create(folder.path(), 0).unwrap();
        assert_ne!(first.path(), second.path());
        assert_eq!(records(&fs::read(first.path()).unwrap()).len(), 1);
    }

    #[test]
    fn crc_is_that_of_the_specification() {
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(slow_crc(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
    }
}
