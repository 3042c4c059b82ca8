//! `bench attention`: the fused attention, as the models use it.
//!
//! Operations are counted as in Dao et al., 2022: `4 heads head_dim` for each pair of a query and a key
//! that it sees, and 2.5 times as much in the backward, which computes the scores again.

use burn::tensor::{Device, Int, Tensor, TensorData};
use burn_titan_core::trainer::TrainError;
use burn_titan_kernels::attention::MAX_HEAD_DIM;
use burn_titan_kernels::{AttentionMask, Scores, attention, inject_gradient};

use super::arguments::AttentionArguments;
use super::ceilings::Ceilings;
use super::measure::{Stopwatch, Timing};
use super::report::{self, Row};

pub fn run(arguments: &AttentionArguments) -> Result<(), TrainError> {
    let kv_heads = arguments.kv_heads.unwrap_or(arguments.heads);
    if !arguments.heads.is_multiple_of(kv_heads) {
        return Err(TrainError::File {
            path: format!("--kv-heads {kv_heads}"),
            cause: format!("{} query heads cannot share them evenly", arguments.heads),
        });
    }
    let head_dim = arguments.head_dim;
    if arguments.measure.device != "flex" && head_dim > MAX_HEAD_DIM {
        return Err(TrainError::File {
            path: format!("--head-dim {head_dim}"),
            cause: format!(
                "the kernels for {} take at most {MAX_HEAD_DIM}",
                arguments.measure.device
            ),
        });
    }
    let stopwatch = Stopwatch::new(&arguments.measure, arguments.dtype)?;
    let problems: Vec<Problem> = arguments
        .seq
        .iter()
        .map(|seq| Problem { arguments, stopwatch: &stopwatch, kv_heads, seq: *seq })
        .collect();
    for problem in &problems {
        stopwatch.fits(problem.bytes(Pass::Both), "--seq")?;
    }
    let ceilings = Ceilings::measure(&stopwatch)?;
    let mut rows = Vec::new();
    for problem in &problems {
        rows.push(problem.forward()?);
        rows.push(problem.forward_and_backward()?);
    }
    report::print("attention", &stopwatch, &ceilings, &rows, arguments.measure.json.as_deref())
}

#[derive(Clone, Copy)]
enum Pass {
    Forward,
    Both,
}

/// Attention at one length.
struct Problem<'a> {
    arguments: &'a AttentionArguments,
    stopwatch: &'a Stopwatch,
    kv_heads: usize,
    seq: usize,
}

impl Problem<'_> {
    fn forward(&self) -> Result<Row, TrainError> {
        let [query, key, value] = self.inputs();
        let mask = self.mask(&self.stopwatch.device);
        let scores = Scores::scaled(self.arguments.head_dim);
        let run = || attention(query.clone(), key.clone(), value.clone(), &mask, scores).output;
        self.stopwatch.check(run())?;
        let timing = self.stopwatch.time(run)?;
        Ok(self.row("forward", timing, Pass::Forward))
    }

    /// Through Burn's autodiff, as in training.
    fn forward_and_backward(&self) -> Result<Row, TrainError> {
        let leaves = self.inputs().map(|input| input.autodiff().require_grad());
        let [query, ..] = &leaves;
        let gradient = self.stopwatch.noise(query.dims());
        let mask = self.mask(&self.stopwatch.device);
        let scores = Scores::scaled(self.arguments.head_dim);
        let run = || {
            let [query, key, value] = leaves.clone();
            let output = attention(query, key, value, &mask, scores).output;
            inject_gradient(output, gradient.clone()).backward()
        };
        if let Some(gradient) = query.grad(&run()) {
            self.stopwatch.check(gradient)?;
        }
        let timing = self.stopwatch.time(run)?;
        Ok(self.row("forward+backward", timing, Pass::Both))
    }

    /// Query, key and value.
    fn inputs(&self) -> [Tensor<4>; 3] {
        let AttentionArguments { heads, head_dim, .. } = *self.arguments;
        [heads, self.kv_heads, self.kv_heads]
            .map(|heads| self.stopwatch.noise([self.batch(), heads, self.seq, head_dim]))
    }

    fn mask(&self, device: &Device) -> AttentionMask {
        let batch = self.batch();
        let document = self.arguments.document_length.unwrap_or(self.seq);
        let row = (0..self.seq).map(|position| (position - position % document) as i32);
        let first_key = TensorData::new(row.collect::<Vec<_>>(), [1, self.seq]);
        let first_key = Tensor::<2, Int>::from_data(first_key, device).expand([batch, self.seq]);
        let mask = AttentionMask::documents(first_key);
        match self.arguments.window {
            Some(window) => mask.window(window),
            None => mask,
        }
    }

    /// Sequences.
    fn batch(&self) -> usize {
        self.arguments.tokens.map_or(self.arguments.batch, |tokens| (tokens / self.seq).max(1))
    }

    /// Pairs of a query and a key that it sees, in one sequence.
    fn pairs(&self) -> f64 {
        let document = self.arguments.document_length.unwrap_or(self.seq);
        let window = self.arguments.window.unwrap_or(self.seq);
        (0..self.seq).map(|position| (position % document + 1).min(window) as f64).sum()
    }

    fn row(&self, operation: &'static str, timing: Timing, pass: Pass) -> Row {
        let AttentionArguments { heads, head_dim, .. } = *self.arguments;
        let forward = 4.0 * (self.batch() * heads * head_dim) as f64 * self.pairs();
        let flops = match pass {
            Pass::Forward => forward,
            Pass::Both => 3.5 * forward,
        };
        let mut sizes = vec![
            ("batch", self.batch()),
            ("heads", heads),
            ("kv_heads", self.kv_heads),
            ("seq", self.seq),
            ("head_dim", head_dim),
        ];
        sizes.extend(self.arguments.document_length.map(|length| ("document_length", length)));
        sizes.extend(self.arguments.window.map(|window| ("window", window)));
        Row { operation, sizes, timing, flops: Some(flops), bytes: self.bytes(pass) }
    }

    /// Each tensor of a pass is read or written once: query, key, value and output in the forward; those,
    /// and the gradients of all, in the backward.
    fn bytes(&self, pass: Pass) -> f64 {
        let AttentionArguments { heads, head_dim, .. } = *self.arguments;
        let [batch, heads, kv_heads, head_dim, seq] =
            [self.batch(), heads, self.kv_heads, head_dim, self.seq].map(|size| size as f64);
        let tensors = 2.0 * (heads + kv_heads) * batch * seq * head_dim;
        let once = tensors * self.stopwatch.dtype.size() as f64;
        match pass {
            Pass::Forward => once,
            Pass::Both => 3.0 * once,
        }
    }
}
