//! What the command line understands.

use std::path::PathBuf;

use burn::tensor::DType;
use burn_titan_core::config::{SourceFormat, TokenDtype};
use burn_titan_core::plan::Hardware;
use burn_titan_parallel::launch::{Flags, MOST_RANKS, Rendezvous};
use clap::{Args, Parser, Subcommand};

use crate::bench::{self, Bench};

/// The version, as `scripts/build-cuda` says it with the commit.
const VERSION: &str = match option_env!("BURN_TITAN_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

/// Trains large generative models in pure Rust.
#[derive(Debug, Parser)]
#[command(name = "burn-titan", version = VERSION)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// A command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train the model of a config, or continue its training
    Train {
        /// The config.
        #[command(flatten)]
        config: ConfigArguments,
        /// Which ranks run.
        #[command(flatten)]
        ranks: RankArguments,
    },
    /// Check a config as a whole, without running anything
    Validate {
        /// The config.
        #[command(flatten)]
        config: ConfigArguments,
        /// Check it for so many ranks; without it, for any number that its degrees make
        #[arg(long, value_name = "N", value_parser = ranks)]
        ranks: Option<usize>,
    },
    /// Say what a step takes of memory, traffic and work on each rank, without running anything
    Plan {
        /// The config.
        #[command(flatten)]
        config: ConfigArguments,
        /// For so many ranks; without it, for as few as its degrees make
        #[arg(long, value_name = "N", value_parser = ranks)]
        ranks: Option<usize>,
        /// The least time of a step on GPUs of this name: a100, h100, h200
        #[arg(long, value_name = "NAME")]
        hardware: Option<Hardware>,
        /// Print JSON: bytes and counts, unrounded
        #[arg(long)]
        json: bool,
        /// Draw the time line of the pipeline into this file
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
    /// Continue a prompt
    Generate(GenerateArguments),
    /// Measure a model's loss on a file, as JSON
    Eval(EvalArguments),
    /// Convert between checkpoints and Hugging Face folders
    #[command(subcommand)]
    Convert(Convert),
    /// Work with tokenizers
    #[command(subcommand)]
    Tokenizer(TokenizerCommand),
    /// Measure the speed of operations, or of a config's training step, on this machine
    #[command(subcommand)]
    Bench(Bench),
    /// Print the JSON Schema of the config
    Schema {
        /// Print the reference page instead
        #[arg(long)]
        markdown: bool,
    },
    /// Say which devices, models and formats this build and this machine have
    Doctor {
        /// Instead check every kernel on this device (flex, wgpu or cuda) against its reference in float64
        #[arg(long, value_name = "DEVICE")]
        kernels: Option<String>,
        /// In these formats alone (f32, f16, bf16), of those that the device has
        #[arg(long, value_delimiter = ',', value_parser = bench::dtype, requires = "kernels")]
        dtype: Option<Vec<DType>>,
        /// Write what the checks found to this file, too
        #[arg(long, value_name = "FILE", requires = "kernels")]
        json: Option<PathBuf>,
    },
}

/// A config and changes to it.
#[derive(Debug, Args)]
pub struct ConfigArguments {
    /// The run's YAML file
    pub config: PathBuf,
    /// Changes to it, for example `training.steps=10`
    #[arg(value_name = "section.key=value")]
    pub overrides: Vec<String>,
}

/// Which ranks run, and which of them this process is. Without any of them the environment says it.
#[derive(Debug, Args)]
pub struct RankArguments {
    /// Start so many ranks on this host, each a process
    #[arg(long, value_name = "N", value_parser = ranks)]
    pub ranks: Option<usize>,
    /// Run so many ranks as threads of this process
    #[arg(
        long,
        value_name = "N",
        value_parser = threads,
        conflicts_with_all = ["ranks", "rank", "world_size", "local_rank", "rendezvous"]
    )]
    pub simulate: Option<usize>,
    /// Which rank this process is, from 0
    #[arg(long, value_name = "R")]
    pub rank: Option<usize>,
    /// How many ranks there are
    #[arg(long, value_name = "N")]
    pub world_size: Option<usize>,
    /// Which of the ranks of its host this process is, from 0
    #[arg(long, value_name = "L")]
    pub local_rank: Option<usize>,
    /// Where rank 0 listens
    #[arg(long, value_name = "HOST:PORT")]
    pub rendezvous: Option<Rendezvous>,
}

impl RankArguments {
    /// As the launcher takes them.
    pub fn flags(&self) -> Flags {
        Flags {
            ranks: self.ranks,
            rank: self.rank,
            world_size: self.world_size,
            local_rank: self.local_rank,
            rendezvous: self.rendezvous.clone(),
        }
    }
}

/// Where a model comes from.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct ModelSource {
    /// A step's folder, a folder of checkpoints, or a run's output folder (the newest step of it)
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<PathBuf>,
    /// A Hugging Face folder
    #[arg(long, value_name = "DIR")]
    pub hf: Option<PathBuf>,
}

/// Options of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArguments {
    /// The model.
    #[command(flatten)]
    pub model: ModelSource,
    /// Text to continue
    #[arg(long)]
    pub prompt: String,
    /// Tokens to add at most
    #[arg(long, default_value_t = 200)]
    pub max_tokens: usize,
    /// 0 takes the likeliest token, 1 samples as the model says
    #[arg(long, default_value_t = 0.8)]
    pub temperature: f64,
    /// Sample among so many likeliest tokens
    #[arg(long)]
    pub top_k: Option<usize>,
    /// Sample among the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f64,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// tokenizer.json, if it is not the one in the checkpoint or the folder
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// flex, wgpu or cuda
    #[arg(long, default_value = "flex")]
    pub device: String,
}

/// Options of `eval`.
#[derive(Debug, Args)]
pub struct EvalArguments {
    /// The model.
    #[command(flatten)]
    pub model: ModelSource,
    /// Documents to measure on (JSONL, text or tokens, as in `data.train`)
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "token_ids",
        conflicts_with = "token_ids"
    )]
    pub data: Option<PathBuf>,
    /// auto, jsonl, text or tokens; otherwise the ending of the file's name says it
    #[arg(long, requires = "data", value_parser = source_format)]
    pub format: Option<SourceFormat>,
    /// Key of a JSONL line that holds the text, if it is not the one of the run's data
    #[arg(long, value_name = "KEY", requires = "data")]
    pub text_key: Option<String>,
    /// u16 or u32, for a .bin file, if it is not as wide as the run's data
    #[arg(long, requires = "data", value_parser = token_dtype)]
    pub token_dtype: Option<TokenDtype>,
    /// A JSON list of lists of token ids, one sequence each; the loss is over all next tokens
    #[arg(long, value_name = "FILE")]
    pub token_ids: Option<PathBuf>,
    /// Write the logits to this safetensors file
    #[arg(long, value_name = "OUT")]
    pub logits: Option<PathBuf>,
    /// tokenizer.json, if it is not the one in the checkpoint or the folder
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// flex, wgpu or cuda
    #[arg(long, default_value = "flex")]
    pub device: String,
}

/// Commands of `convert`.
#[derive(Debug, Subcommand)]
pub enum Convert {
    /// Write a Hugging Face folder as a checkpoint
    FromHf {
        /// The Hugging Face folder
        folder: PathBuf,
        /// Folder of checkpoints to write to
        out: PathBuf,
    },
    /// Write a checkpoint as a Hugging Face folder
    ToHf {
        /// A step's folder, a folder of checkpoints, or a run's output folder
        checkpoint: PathBuf,
        /// Folder to make
        out: PathBuf,
        /// tokenizer.json to put there, if it is not the one in the checkpoint
        #[arg(long, value_name = "FILE")]
        tokenizer: Option<PathBuf>,
    },
}

/// Commands of `tokenizer`.
#[derive(Debug, Subcommand)]
pub enum TokenizerCommand {
    /// Train a byte-level BPE tokenizer on JSONL or text files
    Train {
        /// Tokens to learn, special ones included
        #[arg(long)]
        vocab_size: usize,
        /// tokenizer.json to write
        #[arg(long)]
        out: PathBuf,
        /// Files to learn from
        #[arg(required = true)]
        inputs: Vec<PathBuf>,
    },
}

fn source_format(word: &str) -> Result<SourceFormat, String> {
    serde_json::from_value(word.into()).map_err(|error| error.to_string())
}

fn token_dtype(word: &str) -> Result<TokenDtype, String> {
    serde_json::from_value(word.into()).map_err(|error| error.to_string())
}

fn ranks(word: &str) -> Result<usize, String> {
    match word.parse() {
        Ok(ranks) if (1..=MOST_RANKS).contains(&ranks) => Ok(ranks),
        _ => Err(format!("expected a whole number from 1 to {MOST_RANKS}")),
    }
}

/// Ranks of one process: each takes threads, and its share of the memory.
pub fn threads(word: &str) -> Result<usize, String> {
    match word.parse() {
        Ok(ranks @ 1..=64) => Ok(ranks),
        _ => Err("expected from 1 to 64 ranks".into()),
    }
}
