//! What flows between units, and what every unit sees of a micro-batch.

mod auxiliary;
mod routed;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use burn::tensor::{Device, Int, Tensor};
use burn_titan_kernels::{AttentionMask, Scores, attention};
use burn_titan_parallel::Peers;
use burn_titan_parallel::context_parallel::{ContextParallel, Method, SequenceShards, Visible};
use burn_titan_parallel::expert_parallel::ExpertParallel;
use burn_titan_parallel::tensor_parallel::TensorParallel;

use crate::data::{Batch, IGNORE};

pub use routed::{Agree, Beside, ExpertLayer, Mixture};

/// What flows from one unit to the next.
#[derive(Debug, Clone)]
pub enum Stream {
    /// Into the first unit: token ids `[batch, seq]`.
    Tokens(Tensor<2, Int>),
    /// Between units: hidden states `[batch, seq, dim]`.
    Hidden(Tensor<3>),
    /// Out of the last unit: the summed cross-entropy of the valid tokens in nats, `[1]` in f32.
    Loss(Tensor<1>),
    /// Out of the last unit when asked for: `[batch, seq, vocab]`.
    Logits(Tensor<3>),
}

impl Stream {
    /// The hidden states.
    ///
    /// # Panics
    /// If the stream is something else: units are in the wrong order.
    pub fn hidden(self) -> Tensor<3> {
        match self {
            Self::Hidden(hidden) => hidden,
            other => panic!("a unit expected hidden states, but got {other:?}"),
        }
    }

    /// The token ids.
    ///
    /// # Panics
    /// If the stream is something else: units are in the wrong order.
    pub fn tokens(self) -> Tensor<2, Int> {
        match self {
            Self::Tokens(tokens) => tokens,
            other => panic!("the first unit expected tokens, but got {other:?}"),
        }
    }
}

/// What the last unit returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadOutput {
    /// [`Stream::Loss`].
    Loss,
    /// [`Stream::Logits`].
    Logits,
}

/// How the ranks of `tp`, `cp` and `ep` share what modules compute.
#[derive(Debug, Clone)]
pub struct Parallel {
    /// Each matrix product.
    pub tensor: TensorParallel,
    /// Chunks in which the ranks of `tp` run what treats every token alone.
    pub chunks: usize,
    /// Each sequence.
    pub context: ContextParallel,
    /// The experts.
    pub expert: ExpertParallel,
}

impl Parallel {
    /// There is no other rank.
    pub fn alone() -> Self {
        Self {
            tensor: TensorParallel::alone(),
            chunks: 1,
            context: ContextParallel::new(Peers::alone(), Method::Ring),
            expert: ExpertParallel::alone(),
        }
    }
}

/// What every unit sees of a micro-batch: where ranks share each sequence, of the tokens of this one.
pub struct Context {
    /// Token ids, `[batch, seq]`.
    pub tokens: Tensor<2, Int>,
    /// Target of each token, `[batch * seq]`, or -1 where there is none.
    pub targets: Tensor<1, Int>,
    /// The first token that each token may attend to, by its place in the whole sequence: the start of its document,
    /// `[batch, seq]`.
    pub first_key: Tensor<2, Int>,
    /// Position of each token in its document, `[batch * seq]`, on the host.
    pub positions: Vec<u32>,
    /// What the last unit returns.
    pub head: HeadOutput,
    parallel: Parallel,
    /// Where ranks share each sequence: positions of all tokens of it, `[batch * whole sequence]`.
    whole: Option<(SequenceShards, Vec<u32>)>,
    memo: RefCell<HashMap<String, Rc<dyn Any>>>,
    /// By layer, the tokens that each expert has met.
    loads: RefCell<BTreeMap<usize, Vec<usize>>>,
    /// What this micro-batch is of a step, over all ranks; none outside of training.
    share: Cell<Option<f64>>,
    /// By layer, this rank's summand of what the step adds to the model's loss.
    auxiliary: RefCell<BTreeMap<usize, Tensor<1>>>,
}

impl Context {
    /// Puts a micro-batch on a device.
    pub fn new(batch: &Batch, head: HeadOutput, device: &Device) -> Self {
        Self::shared_by(batch, head, device, &Parallel::alone())
    }

    /// Puts this rank's share of a micro-batch, of which each rank has all, on a device.
    ///
    /// # Panics
    /// If the sequences are too short to be shared, which the check of the config has refused.
    pub fn shared_by(
        batch: &Batch,
        head: HeadOutput,
        device: &Device,
        parallel: &Parallel,
    ) -> Self {
        let peers = parallel.context.peers();
        let shards = peers.several().then(|| {
            let shards = SequenceShards::new(batch.seq, peers.size());
            shards.expect("a checked config has sequences that are long enough")
        });
        let places: Vec<i32> = match &shards {
            Some(shards) => shards.positions(peers.rank()).map(|place| place as i32).collect(),
            None => (0..batch.seq as i32).collect(),
        };
        let (rows, seq) = (batch.batch, places.len());
        let ints = |values: Vec<i32>| Tensor::<1, Int>::from_data(values.as_slice(), device);
        let own = |values: &[u32]| match &shards {
            Some(shards) => shards.take(peers.rank(), values),
            None => values.to_vec(),
        };
        let target = |t: u32| if t == IGNORE { -1 } else { t as i32 };
        let positions = own(&batch.positions);
        let first_key = |(i, position): (usize, &u32)| places[i % seq] - *position as i32;
        Self {
            tokens: ints(own(&batch.tokens).into_iter().map(|t| t as i32).collect())
                .reshape([rows, seq]),
            targets: ints(own(&batch.targets).into_iter().map(target).collect()),
            first_key: ints(positions.iter().enumerate().map(first_key).collect())
                .reshape([rows, seq]),
            positions,
            head,
            parallel: parallel.clone(),
            whole: shards.map(|shards| (shards, batch.positions.clone())),
            memo: RefCell::default(),
            loads: RefCell::default(),
            share: Cell::new(None),
            auxiliary: RefCell::default(),
        }
    }

    /// Dims of the hidden states of the residual stream of this width, on this rank.
    pub fn stream_shape(&self, dim: usize) -> [usize; 3] {
        let ([batch, seq], tensor) = (self.tokens.dims(), &self.parallel.tensor);
        match tensor.cuts_stream() {
            true => [1, tensor.shares(batch * seq)[tensor.peers().rank()], dim],
            false => [batch, seq, dim],
        }
    }

    /// A sub-module that computes with split weights: `f` of `x`, a part of the residual stream. The mesh puts its
    /// exchanges here: what `f` gives on the ranks of `tp` is summed.
    ///
    /// `x` and the result are hidden states of the residual stream, `f` takes and gives `[batch, seq, dim]`.
    pub fn site(&self, x: Tensor<3>, f: impl FnOnce(Tensor<3>) -> Tensor<3>) -> Tensor<3> {
        let tensor = &self.parallel.tensor;
        tensor.leave(f(tensor.enter(x, self.tokens.dims())))
    }

    /// As [`Context::site`], for a sub-module that treats every token alone, as a feed-forward does. The mesh may give it
    /// the tokens by chunks, `[1, tokens of the chunk, dim]`.
    pub fn site_by_token(&self, x: Tensor<3>, f: impl Fn(Tensor<3>) -> Tensor<3>) -> Tensor<3> {
        let Parallel { tensor, chunks, .. } = &self.parallel;
        tensor.by_chunks(x, self.tokens.dims(), *chunks, f)
    }

    /// The tokens that experts have met in the forward: layer, expert, and how many.
    pub fn expert_loads(&self) -> Vec<(usize, usize, usize)> {
        let loads = self.loads.borrow();
        let layer = |(layer, counts): (&usize, &Vec<usize>)| {
            let layer = *layer;
            let counts = counts.clone().into_iter().enumerate();
            counts.map(move |(expert, count)| (layer, expert, count))
        };
        loads.iter().flat_map(layer).collect()
    }

    /// The embeddings of tokens `[batch, seq]`, rows of `weight` (`[vocab, dim]`), as hidden states of the residual
    /// stream.
    pub fn embedding(&self, weight: Tensor<2>, tokens: Tensor<2, Int>) -> Tensor<3> {
        self.parallel.tensor.embed(weight, tokens)
    }

    /// Attention of each token to its document, from its start, or from `window` tokens back, up to itself.
    ///
    /// # Shapes
    /// - `query`: `[batch, heads, seq, head_dim]`
    /// - `key`, `value`: `[batch, kv_heads, seq, head_dim]`
    /// - result: as `query`
    pub fn attention(
        &self,
        query: Tensor<4>,
        key: Tensor<4>,
        value: Tensor<4>,
        window: Option<usize>,
        scores: Scores,
    ) -> Tensor<4> {
        let memo = format!("attention to {window:?}");
        if let Some((shards, positions)) = &self.whole {
            let device = self.tokens.device();
            let rank = self.parallel.context.peers().rank();
            let visible = self
                .shared(&memo, || Rc::new(Visible::new(*shards, rank, positions, window, &device)));
            return self.parallel.context.attention(query, key, value, &visible, scores);
        }
        let mask = self.shared(&memo, || {
            let documents = AttentionMask::documents(self.first_key.clone());
            window.map_or(documents.clone(), |width| documents.window(width))
        });
        attention(query, key, value, &mask, scores).output
    }

    /// What the last unit gives, of the hidden states of the residual stream after the last norm and the output
    /// matrix `[dim, vocab]`.
    pub fn output(&self, hidden: Tensor<3>, weight: Tensor<2>) -> Stream {
        let tensor = &self.parallel.tensor;
        match self.head {
            HeadOutput::Loss => Stream::Loss(tensor.loss(hidden, weight, self.targets.clone())),
            HeadOutput::Logits => Stream::Logits(tensor.logits(hidden, weight, self.tokens.dims())),
        }
    }

    /// A value that all units of the micro-batch share, made by the first that asks for it.
    pub fn shared<T: Clone + 'static>(&self, key: &str, make: impl FnOnce() -> T) -> T {
        if let Some(value) = self.memo.borrow().get(key).and_then(|v| v.downcast_ref::<T>()) {
            return value.clone();
        }
        let value = make();
        self.memo.borrow_mut().insert(key.to_string(), Rc::new(value.clone()));
        value
    }
}
