//! What `bench` understands.

use std::path::PathBuf;

use burn::tensor::DType;
use clap::{Args, Subcommand, ValueEnum};

use crate::arguments::{ConfigArguments, threads};

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Causal attention, forward alone and with its backward
    Attention(AttentionArguments),
    /// Exchanges between ranks of this host
    Collective(CollectiveArguments),
    /// Whether two runs have the same losses
    Compare(CompareArguments),
    /// Products of rows with the matrix of their expert, beside one dense product of as many rows
    Grouped(GroupedArguments),
    /// The linear layer to the vocabulary with its cross-entropy, forward alone and with its backward
    Loss(LossArguments),
    /// Matrix products
    Matmul(MatmulArguments),
    /// The AdamW update, and the sum of squares that clipping takes
    Optimizer(OptimizerArguments),
    /// Training steps of a config
    Step(StepArguments),
    /// One report of what scripts/gpu-check has measured
    Summary(SummaryArguments),
}

/// How to measure operations.
#[derive(Debug, Args)]
pub struct MeasureArguments {
    /// flex, wgpu or cuda
    #[arg(long, default_value = "flex")]
    pub device: String,
    /// Runs of each operation at most, after two to warm up
    #[arg(long, default_value = "20", value_parser = positive)]
    pub repeat: usize,
    /// Seconds for each operation; at least three runs are made
    #[arg(long, default_value = "3", value_parser = seconds)]
    pub seconds: f64,
    /// Write the numbers to this file, too
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Options of `bench attention`.
#[derive(Debug, Args)]
pub struct AttentionArguments {
    /// Tokens in a sequence, one measurement each
    #[arg(long, default_value = "512,2048", value_delimiter = ',', value_parser = positive)]
    pub seq: Vec<usize>,
    /// Sequences
    #[arg(long, default_value = "1", value_parser = positive)]
    pub batch: usize,
    /// As many sequences as have so many tokens together, at least one, instead of --batch
    #[arg(long, conflicts_with = "batch", value_parser = positive)]
    pub tokens: Option<usize>,
    /// Query heads
    #[arg(long, default_value = "12", value_parser = positive)]
    pub heads: usize,
    /// Key and value heads; as many as query heads, if it is not given
    #[arg(long, value_parser = positive)]
    pub kv_heads: Option<usize>,
    /// Width of a head
    #[arg(long, default_value = "64", value_parser = positive)]
    pub head_dim: usize,
    /// Tokens of each of the documents that are packed into a sequence; one document, if it is not given
    #[arg(long, value_parser = positive)]
    pub document_length: Option<usize>,
    /// Tokens that a token sees, itself included; all earlier ones, if it is not given
    #[arg(long, value_parser = positive)]
    pub window: Option<usize>,
    /// f32, bf16 or f16
    #[arg(long, default_value = "f32", value_parser = dtype)]
    pub dtype: DType,
    /// How to measure.
    #[command(flatten)]
    pub measure: MeasureArguments,
}

/// What connects the ranks of `bench collective`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CollectiveKind {
    /// Threads of this process
    Local,
    /// Processes
    Tcp,
    /// Processes that mpirun has started, by MPI itself
    #[cfg(feature = "mpi")]
    Mpi,
}

/// Options of `bench collective`.
#[derive(Debug, Args)]
pub struct CollectiveArguments {
    /// What connects the ranks
    #[arg(long, value_enum, default_value = "tcp")]
    pub communicator: CollectiveKind,
    /// Ranks, all on this host
    #[arg(long, default_value = "2", value_parser = threads)]
    pub ranks: usize,
    /// Bytes of the tensor, one measurement each
    #[arg(long, default_value = "1024,1048576,16777216", value_delimiter = ',', value_parser = positive)]
    pub bytes: Vec<usize>,
    /// Runs of each operation, after three to warm up
    #[arg(long, default_value = "20", value_parser = positive)]
    pub repeat: usize,
    /// Write the numbers to this file, too
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Options of `bench compare`.
#[derive(Debug, Args)]
pub struct CompareArguments {
    /// Output folder of a run
    pub first: PathBuf,
    /// Output folder of the other
    pub second: PathBuf,
    /// By how much the losses of a step may differ, relative to the first run's
    #[arg(long, default_value = "1e-4", value_parser = share)]
    pub within: f64,
    /// Write the numbers to this file, too
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Options of `bench grouped`.
#[derive(Debug, Args)]
pub struct GroupedArguments {
    /// Products of m rows with matrices `[k, n]`, one measurement each
    #[arg(
        long = "shape",
        value_name = "MxNxK",
        default_value = "4096x384x256,4096x256x384,4096x768x256,4096x512x512",
        value_delimiter = ',',
        value_parser = shape
    )]
    pub shapes: Vec<[usize; 3]>,
    /// Matrices, one measurement each
    #[arg(long, default_value = "8,32,128", value_delimiter = ',', value_parser = positive)]
    pub experts: Vec<usize>,
    /// Give the experts the more rows the higher their number, the last twice the mean
    #[arg(long)]
    pub uneven: bool,
    /// f32, bf16 or f16
    #[arg(long, default_value = "f32", value_parser = dtype)]
    pub dtype: DType,
    /// How to measure.
    #[command(flatten)]
    pub measure: MeasureArguments,
}

/// Options of `bench loss`.
#[derive(Debug, Args)]
pub struct LossArguments {
    /// Tokens, words of the vocabulary and width of the hidden states, one measurement each
    #[arg(
        long = "shape",
        value_name = "TxVxD",
        default_value = "512x2048x256,512x32000x768",
        value_delimiter = ',',
        value_parser = shape
    )]
    pub shapes: Vec<[usize; 3]>,
    /// f32, bf16 or f16
    #[arg(long, default_value = "f32", value_parser = dtype)]
    pub dtype: DType,
    /// How to measure.
    #[command(flatten)]
    pub measure: MeasureArguments,
}

/// Options of `bench matmul`.
#[derive(Debug, Args)]
pub struct MatmulArguments {
    /// Products `[m, k] [k, n]`, one measurement each
    #[arg(
        long = "shape",
        value_name = "MxNxK",
        default_value = "512x512x512,1024x1024x1024,2048x2048x2048,512x2048x768,512x32000x768",
        value_delimiter = ',',
        value_parser = shape
    )]
    pub shapes: Vec<[usize; 3]>,
    /// f32, bf16 or f16
    #[arg(long, default_value = "f32", value_parser = dtype)]
    pub dtype: DType,
    /// How to measure.
    #[command(flatten)]
    pub measure: MeasureArguments,
}

/// Options of `bench optimizer`.
#[derive(Debug, Args)]
pub struct OptimizerArguments {
    /// Elements of a flat f32 parameter, one measurement each
    #[arg(long, default_value = "1000000,32000000", value_delimiter = ',', value_parser = positive)]
    pub elements: Vec<usize>,
    /// How to measure.
    #[command(flatten)]
    pub measure: MeasureArguments,
}

/// Options of `bench step`.
#[derive(Debug, Args)]
pub struct StepArguments {
    /// The config.
    #[command(flatten)]
    pub config: ConfigArguments,
    /// Steps to train; the first is not counted
    #[arg(long, default_value = "10", value_parser = at_least_two)]
    pub steps: usize,
    /// Say what a step's time is made of, by kinds of kernels; trains some more steps. Not on flex
    #[arg(long)]
    pub profile: bool,
    /// Write the numbers to this file, too
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Options of `bench summary`.
#[derive(Debug, Args)]
pub struct SummaryArguments {
    /// The output folder of scripts/gpu-check; report.json and report.md are written there
    pub folder: PathBuf,
}

/// Sizes stay below 2^31, so that a position or an index fits into 32 bits on every device.
fn positive(word: &str) -> Result<usize, String> {
    match word.parse() {
        Ok(number) if (1..=i32::MAX as usize).contains(&number) => Ok(number),
        _ => Err(format!("expected a whole number from 1 to {}", i32::MAX)),
    }
}

fn at_least_two(word: &str) -> Result<usize, String> {
    match positive(word)? {
        1 => Err("expected at least 2 steps: the first is not counted".into()),
        steps => Ok(steps),
    }
}

fn seconds(word: &str) -> Result<f64, String> {
    match word.parse() {
        Ok(seconds) if (0.0..=1e6).contains(&seconds) => Ok(seconds),
        _ => Err("expected a number of seconds from 0 to 1000000".into()),
    }
}

fn share(word: &str) -> Result<f64, String> {
    match word.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("expected a number from 0 to 1".into()),
    }
}

fn shape(word: &str) -> Result<[usize; 3], String> {
    let sizes: Option<Vec<usize>> = word.split('x').map(|size| positive(size).ok()).collect();
    sizes
        .and_then(|sizes| sizes.try_into().ok())
        .ok_or_else(|| "expected three sizes m, n and k, for example 512x2048x768".into())
}

/// A format of tensors.
///
/// # Errors
/// If it is none that kernels compute in.
pub fn dtype(word: &str) -> Result<DType, String> {
    match word {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::BF16),
        "f16" => Ok(DType::F16),
        _ => Err("expected f32, bf16 or f16".into()),
    }
}
