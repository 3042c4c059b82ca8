//! Small training runs, driven as a user drives them: by a config file and words that change it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use burn_titan_core::checkpoint::TensorFile;
use burn_titan_core::metrics::{StepMetrics, read_metrics};
use burn_titan_core::trainer::{TrainError, TrainSummary, prepare, train};
use burn_titan_parallel::World;
use tempfile::TempDir;

/// A llama3 of 2 layers and 340 thousand parameters, 20 steps on the bundled held-out text.
///
/// `HERE` stands for the run's own folder, `DATA` for the repository's `data`.
pub const SMALL: &str = "
run: {output_dir: HERE/out}
model:
  overrides: {n_layers: 2, dim: 64, n_heads: 4, n_kv_heads: 2, head_dim: 16, ffn_dim: 128}
data:
  train: [{path: DATA/shakespeare/validation.jsonl}]
  tokenizer: DATA/tokenizer.json
  bos_token: <|begin_of_text|>
  eos_token: <|end_of_text|>
training: {steps: 20, seq_len: 64, local_batch_size: 2}
checkpoint: {interval: 10, keep_latest_k: 0}
metrics: {tensorboard: false, peak_tflops: 1, log_interval: 1000}
";

/// A size in which nothing is a multiple of a vector's width: a prime vocabulary, an odd length. Its
/// data is a file `HERE/tokens.bin`, see [`random_tokens`].
pub const ODD: &str = "
run: {output_dir: HERE/out}
model:
  overrides:
    {n_layers: 2, dim: 60, n_heads: 6, n_kv_heads: 3, head_dim: 10, ffn_dim: 77, vocab_size: 331}
data: {train: [{path: HERE/tokens.bin}]}
training: {steps: 20, seq_len: 37, local_batch_size: 3}
checkpoint: {interval: 10, keep_latest_k: 0}
metrics: {tensorboard: false, peak_tflops: 1, log_interval: 1000}
";

/// Vocabulary of [`ODD`].
pub const ODD_VOCABULARY: u16 = 331;

/// The repository's root.
pub fn repository() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

/// A run in a temporary folder of its own, which goes with the value.
pub struct Run {
    folder: TempDir,
}

impl Run {
    /// Writes `config` to the run's folder, with `HERE` and `DATA` replaced as in [`SMALL`].
    pub fn new(config: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let run = Self { folder };
        run.write("run.yaml", run.placed(config).as_bytes());
        run
    }

    /// `text` with `HERE` and `DATA` replaced.
    fn placed(&self, text: &str) -> String {
        let data = repository().join("data").display().to_string();
        text.replace("HERE", &self.folder.path().display().to_string()).replace("DATA", &data)
    }

    /// As [`Run::new`], with [`ODD`] and its tokens, which 20 steps read more than twice.
    pub fn odd() -> Self {
        let run = Self::new(ODD);
        run.write("tokens.bin", &random_tokens(7, 1009, ODD_VOCABULARY));
        run
    }

    /// A path in the run's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file in the run's folder.
    pub fn write(&self, name: &str, contents: &[u8]) {
        fs::write(self.path(name), contents).expect("the temporary folder can be written");
    }

    /// Trains with `words` (`section.key=value`) put into the config; in them, too, `HERE` and `DATA`
    /// stand for the folders.
    pub fn try_train(&self, words: &[&str]) -> Result<TrainSummary, TrainError> {
        let registry = burn_titan_models::registry();
        let words: Vec<String> = words.iter().map(|word| self.placed(word)).collect();
        let prepared = prepare(&self.path("run.yaml"), &words, &registry, Some(1))?;
        train(prepared, &registry, World::alone())
    }

    /// As [`Run::try_train`], by so many ranks, which are threads; gives what the first rank reached, or the
    /// error of the first rank that is no victim of another.
    pub fn try_simulate(&self, ranks: usize, words: &[&str]) -> Result<TrainSummary, TrainError> {
        self.try_train_on(World::local(ranks, Duration::from_secs(120)), words)
    }

    /// As [`Run::try_simulate`], by these ranks, which are all of a world.
    pub fn try_train_on(
        &self,
        worlds: Vec<World>,
        words: &[&str],
    ) -> Result<TrainSummary, TrainError> {
        let ranks = worlds.len();
        let registry = &burn_titan_models::registry();
        let words: &Vec<String> = &words.iter().map(|word| self.placed(word)).collect();
        let results: Vec<_> = std::thread::scope(|scope| {
            let rank = |world: World| {
                scope.spawn(move || {
                    let config = &self.path("run.yaml");
                    let result = prepare(config, words, registry, Some(ranks))
                        .map_err(TrainError::from)
                        .and_then(|prepared| train(prepared, registry, world.clone()));
                    result.inspect_err(|error| world.abort(&error.to_string()))
                })
            };
            let ranks: Vec<_> = worlds.into_iter().map(rank).collect();
            ranks.into_iter().map(|rank| rank.join().expect("no rank panics")).collect()
        });
        let is_victim = |error: &TrainError| matches!(error, TrainError::Communication(_));
        let (mut errors, mut done) = (Vec::new(), Vec::new());
        for result in results {
            match result {
                Ok(summary) => done.push(summary),
                Err(error) => errors.push(error),
            }
        }
        errors.sort_by_key(is_victim);
        match errors.into_iter().next() {
            Some(error) => Err(error),
            None => Ok(done.swap_remove(0)),
        }
    }

    /// As [`Run::try_simulate`], and it must succeed.
    pub fn simulate(&self, ranks: usize, words: &[&str]) -> TrainSummary {
        self.try_simulate(ranks, words).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Run::try_train`], and it must succeed.
    pub fn train(&self, words: &[&str]) -> TrainSummary {
        self.try_train(words).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The message of a run that must fail, with the run's folder as `HERE`.
    pub fn refusal(&self, words: &[&str]) -> String {
        match self.try_train(words) {
            Ok(summary) => panic!("the run succeeded: {summary:?}"),
            Err(error) => error.to_string().replace(&self.path("").display().to_string(), "HERE/"),
        }
    }

    /// What `metrics.jsonl` says.
    pub fn metrics(&self) -> Vec<StepMetrics> {
        read_metrics(&self.path("out/metrics.jsonl")).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The loss of every step.
    pub fn losses(&self) -> Vec<f64> {
        self.metrics().iter().map(|metrics| metrics.loss).collect()
    }

    /// Step, and the bits of loss and gradient norm, of every line of `metrics.jsonl`.
    pub fn curve(&self) -> Vec<(u64, u64, u64)> {
        let bits = |m: &StepMetrics| (m.step, m.loss.to_bits(), m.grad_norm.to_bits());
        self.metrics().iter().map(bits).collect()
    }

    /// A file of the checkpoint of `step`.
    pub fn checkpoint_file(&self, step: u64, name: &str) -> Vec<u8> {
        let path = self.path(&format!("out/checkpoint/step-{step:08}/{name}"));
        fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Makes this run's output that of `other` as it was after `step`: later checkpoints are left out,
    /// though not the lines of `metrics.jsonl`.
    pub fn continue_from(&self, other: &Run, step: u64) {
        let name = format!("out/checkpoint/step-{step:08}");
        copy_folder(&other.path(&name), &self.path(&name));
        fs::copy(other.path("out/metrics.jsonl"), self.path("out/metrics.jsonl"))
            .expect("metrics.jsonl can be copied");
    }
}

/// A safetensors file; panics if it cannot be read.
pub fn tensor_file(path: &Path) -> TensorFile {
    TensorFile::open(path).unwrap_or_else(|error| panic!("{error}"))
}

/// A `.bin` of little-endian 16-bit tokens below `vocabulary`, from a linear congruential generator
/// (Knuth's MMIX constants).
pub fn random_tokens(seed: u64, length: usize, vocabulary: u16) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 33) % u64::from(vocabulary)) as u16
    };
    (0..length).flat_map(|_| next().to_le_bytes()).collect()
}

/// Copies a folder and all in it.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the folder can be made");
    for entry in fs::read_dir(from).expect("the folder can be listed") {
        let entry = entry.expect("the folder can be listed").path();
        let target = to.join(entry.file_name().unwrap_or_default());
        if entry.is_dir() {
            copy_folder(&entry, &target);
        } else {
            fs::copy(&entry, &target).expect("the file can be copied");
        }
    }
}
