//! The golden models on the executor, and micro-batches made by hand.

use std::sync::Arc;

use burn::tensor::Device;
use burn_titan_core::checkpoint::HostTensor;
use burn_titan_core::data::{Batch, Cursor, IGNORE, StreamIdentity};
use burn_titan_core::executor::{Executor, Groups, Layout, ParameterStore, Precision};
use burn_titan_core::hf::HfFolder;
use burn_titan_core::model::{Context, HeadOutput, Model, ModelFamily};
use burn_titan_models::hf::{HuggingFace, Names};
use burn_titan_models::{DeepSeekV3, Llama3, LlamaConfig, Qwen3, Qwen3Moe};

use crate::golden;

/// An executor on flex in f32, of one rank.
pub fn executor(model: Model, parameters: ParameterStore) -> Executor {
    Executor::new(model, parameters, Device::flex(), Precision::F32, Groups::one())
}

/// The Llama of `golden/llama_tiny` with its weights: dim 64, 2 blocks, 256 tokens.
///
/// # Panics
/// If the folder cannot be read.
pub fn llama() -> Executor {
    golden(&Llama3::default(), "llama_tiny")
}

/// The Qwen3 of `golden/qwen3_tiny` with its weights: dim 64, 2 blocks, heads of 32, 256 tokens, tied.
///
/// # Panics
/// If the folder cannot be read.
pub fn qwen3() -> Executor {
    golden(&Qwen3::default(), "qwen3_tiny")
}

/// The Qwen3 with experts of `golden/qwen3_moe_tiny` with its weights: as [`qwen3`], but with 8 experts of 32, of which a
/// token meets 2, and not tied.
///
/// # Panics
/// If the folder cannot be read.
pub fn qwen3_moe() -> Executor {
    golden(&Qwen3Moe::default(), "qwen3_moe_tiny")
}

/// The DeepSeek-V3 of `golden/deepseek_v3_tiny` with its weights: dim 64, 3 blocks, of which the first is dense, 8 experts
/// of 32 in 4 groups, of which a token meets 2 of 2, and a shared one.
///
/// # Panics
/// If the folder cannot be read.
pub fn deepseek_v3() -> Executor {
    golden(&DeepSeekV3::default(), "deepseek_v3_tiny")
}

/// The model of a Hugging Face folder in `golden`.
fn golden(family: &dyn ModelFamily, folder: &str) -> Executor {
    let folder = HfFolder::open(&golden::path(folder)).expect("the golden folder");
    let config = family.config_from_hf(&folder).expect("a config of the family");
    let model = family.build(&config, "fused").expect("a model");
    let weights = family.weights_from_hf(&config, &folder).expect("its weights");
    let weights = weights.map(|weight| weight.expect("a weight"));
    let parameters = parameters(&model, &weights.collect::<Vec<_>>());
    executor(model, parameters)
}

/// The parameters of a model out of host tensors of the same names.
///
/// # Panics
/// If one is missing.
pub fn parameters(model: &Model, tensors: &[HostTensor]) -> ParameterStore {
    ParameterStore::read(Layout::flat(model, 0, 1), &Device::flex(), |spec, _| {
        let found = tensors.iter().find(|tensor| tensor.name() == spec.name);
        found.expect("a tensor for each parameter").to_f32()
    })
    .expect("tensors of floats")
}

/// One of a Llama's tensors, flat, as Hugging Face has it: its name there and its values in that layout.
///
/// # Panics
/// If it is not a parameter of a Llama.
pub fn hugging_face(name: &str, shape: &[usize], values: &[f32]) -> (String, Vec<f32>) {
    named(&LlamaConfig::NAMES, name, shape, values).remove(0)
}

/// A tensor of any family, flat, as the tensors that it is at Hugging Face.
///
/// # Panics
/// If it is not a parameter of the family.
pub fn named(
    names: &Names,
    name: &str,
    shape: &[usize],
    values: &[f32],
) -> Vec<(String, Vec<f32>)> {
    let ours = HostTensor::from_f32(name, shape, values).expect("values of that shape");
    let theirs = names.to_hf(ours).expect("a parameter of the family");
    let tensor = |tensor: HostTensor| (tensor.name().to_string(), tensor.to_f32().expect("floats"));
    theirs.map(|theirs| tensor(theirs.expect("a matrix of an expert"))).collect()
}

/// A micro-batch of rows of `seq` tokens, each row one document.
pub fn batch(seq: usize, tokens: &[i64], targets: &[i64]) -> Batch {
    documents(&[seq], tokens, targets)
}

/// A micro-batch whose rows are packed documents of these lengths. A negative target does not count.
pub fn documents(lengths: &[usize], tokens: &[i64], targets: &[i64]) -> Batch {
    let seq: usize = lengths.iter().sum();
    let rows = tokens.len() / seq;
    assert_eq!([rows * seq; 2], [tokens.len(), targets.len()]);
    let positions: Vec<u32> = lengths.iter().flat_map(|length| 0..*length as u32).collect();
    let ids: Vec<u32> = lengths
        .iter()
        .zip(0..)
        .flat_map(|(length, document)| std::iter::repeat_n(document, *length))
        .collect();
    Batch {
        batch: rows,
        seq,
        tokens: tokens.iter().map(|token| *token as u32).collect(),
        targets: targets.iter().map(|t| u32::try_from(*t).unwrap_or(IGNORE)).collect(),
        positions: positions.repeat(rows),
        document_ids: ids.repeat(rows),
        valid_tokens: targets.iter().filter(|target| **target >= 0).count(),
        cursor_after: Cursor {
            samples: 0,
            sources: vec![],
            identity: Arc::new(StreamIdentity {
                seed: 0,
                seq_len: seq,
                pack: true,
                shuffle_buffer: None,
                bos: None,
                eos: None,
                tokenizer: None,
                sources: vec![],
            }),
        },
        documents: vec![],
    }
}

/// The next token of each token in rows of `seq`, and no target for a row's last.
pub fn next_tokens(seq: usize, tokens: &[i64]) -> Vec<i64> {
    let next = |row: &[i64]| [&row[1..], &[-1]].concat();
    tokens.chunks(seq).flat_map(next).collect()
}

/// A micro-batch on flex.
pub fn context(batch: &Batch, head: HeadOutput) -> Context {
    Context::new(batch, head, &Device::flex())
}
