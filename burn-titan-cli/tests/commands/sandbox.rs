//! A folder to run the binary in, with a small run prepared.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

/// The config `run.yaml` of every sandbox.
pub const RUN: &str = "\
run: {name: small, output_dir: out}
model:
  overrides: {n_layers: 2, dim: 64, n_heads: 4, n_kv_heads: 2, head_dim: 16, ffn_dim: 128}
data:
  train:
    - path: data.jsonl
  validation:
    - path: data.jsonl
  tokenizer: tokenizer.json
  bos_token: <|begin_of_text|>
  eos_token: <|end_of_text|>
training: {steps: 4, seq_len: 32, local_batch_size: 2}
checkpoint: {interval: 2}
validation: {enable: true, interval: 4, steps: 2}
metrics: {peak_tflops: 1}
";

/// The working folder of commands; it goes with the value.
pub struct Sandbox {
    folder: TempDir,
}

/// How a command ended.
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Sandbox {
    /// With `run.yaml`, `data.jsonl`, `tokens.bin` and `tokenizer.json`.
    pub fn new() -> Self {
        let sandbox = Self { folder: tempfile::tempdir().expect("a temporary folder can be made") };
        sandbox.write("run.yaml", RUN.as_bytes());
        let documents: Vec<String> = (0..40_u32)
            .map(|n| format!("{{\"text\": \"Document {n} of the sandbox, {}.\"}}\n", n * n))
            .collect();
        sandbox.write("data.jsonl", documents.concat().as_bytes());
        let tokens: Vec<u8> =
            (0..2000_u32).flat_map(|n| ((n * n % 251) as u16).to_le_bytes()).collect();
        sandbox.write("tokens.bin", &tokens);
        copy(&repository().join("data/tokenizer.json"), &sandbox.path("tokenizer.json"));
        sandbox
    }

    /// As [`Sandbox::new`], with the output of the run in `out`: trained once for all tests.
    pub fn trained() -> Self {
        static TRAINED: OnceLock<Sandbox> = OnceLock::new();
        let trained = TRAINED.get_or_init(|| {
            let sandbox = Self::new();
            let ended = sandbox.run(&["train", "run.yaml"]);
            assert_eq!(ended.code, Some(0), "{}", ended.stderr);
            sandbox
        });
        let sandbox = Self::new();
        copy(&trained.path("out"), &sandbox.path("out"));
        sandbox
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The folder, as the binary sees its working directory.
    pub fn here(&self) -> String {
        let here = self.folder.path().canonicalize();
        here.expect("the sandbox is there").display().to_string()
    }

    /// Writes a file, and the folders that lead to it.
    pub fn write(&self, name: &str, contents: &[u8]) {
        let path = self.path(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).expect("the sandbox can be written");
        }
        fs::write(path, contents).expect("the sandbox can be written");
    }

    /// Reads a file.
    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The binary, about to run here.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_burn-titan"));
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    /// Runs the binary to its end; it must never panic.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        let output = self.command(arguments).output().expect("the binary runs");
        let Output { status, stdout, stderr } = output;
        let text = |bytes| String::from_utf8(bytes).expect("the binary writes UTF-8");
        let ended = Ended { code: status.code(), stdout: text(stdout), stderr: text(stderr) };
        assert!(!ended.stderr.contains("panicked at"), "{arguments:?}: {}", ended.stderr);
        ended
    }

    /// As [`Sandbox::run`], and the command must succeed. Gives what it wrote to standard output.
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments);
        assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.stderr);
        ended.stdout
    }
}

/// The repository's root.
pub fn repository() -> &'static Path {
    let cli = Path::new(env!("CARGO_MANIFEST_DIR"));
    cli.parent().unwrap_or(cli)
}

/// Copies a file, or a folder and all in it.
pub fn copy(from: &Path, to: &Path) {
    if !from.is_dir() {
        fs::copy(from, to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        return;
    }
    fs::create_dir_all(to).expect("the folder can be made");
    for entry in fs::read_dir(from).expect("the folder can be listed") {
        let entry = entry.expect("the folder can be listed").path();
        copy(&entry, &to.join(entry.file_name().unwrap_or_default()));
    }
}
