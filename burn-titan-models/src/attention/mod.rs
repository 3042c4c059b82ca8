//! Attention as a module that a block can exchange.
//!
//! A custom attention is a plain Burn module: implement [`Attention`] and register it under a name
//! with [`crate::Llama3::with_attention`]; `model.attention` in the YAML then picks it.

mod plan;

use burn::module::{Module, ModuleDisplay};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use burn_titan_core::model::{Activations, Context, Line, PlanError, Site, Split, Workload};
use burn_titan_kernels::Scores;

use crate::linear::linear;
use crate::norm::RmsNorm;
use crate::rotary::Rotary;
use crate::tape::{AttentionWidths, Tape, single};

/// The sizes that a block gives its attention.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionConfig {
    /// Width of the residual stream.
    pub dim: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// The rotation of queries and keys.
    pub rotary: Rotary,
}

/// What a block needs of its attention.
pub trait Attention: Module + ModuleDisplay + Sync + 'static {
    /// The module for these sizes. Parameters must be lazy (as those of `burn::nn` are): the module
    /// is made to know its shapes, and gets its values later.
    fn new(config: &AttentionConfig, device: &Device) -> Self;

    /// The same, where queries and keys are normalised head by head (RMSNorm with `eps`) before they are turned, as
    /// Qwen3's are. By default the module as it is; one that has parameters for it says [`Attention::plan`] itself.
    fn with_query_key_norm(self, _eps: f64, _device: &Device) -> Self {
        self
    }

    /// `[batch, seq, dim]` to `[batch, seq, dim]`. A token must see only tokens of its own document,
    /// from `context.first_key` to itself.
    fn forward(&self, x: Tensor<3>, context: &Context) -> Tensor<3>;

    /// Whether it may run where ranks share each sequence: it then meets the keys of other ranks through
    /// [`Context::attention`], and mixes tokens by nothing else.
    const SHARES_SEQUENCES: bool = false;

    /// How its parameters are split over the ranks that split matrix products: their names here, and of each what a
    /// rank has. A rank runs the module with some of the heads, and the sum of what all ranks give is the result.
    /// Told from the shapes of the parameters, where nothing else is said: the module is made for other numbers of
    /// heads then. Shapes do not tell of a norm over all heads together, nor of one behind the last product, where
    /// there is only a summand: such an attention cannot be split. Allocates nothing.
    ///
    /// # Errors
    /// Why it cannot be split.
    fn plan(config: &AttentionConfig, device: &Device) -> Result<Vec<Line>, PlanError> {
        plan::lines::<Self>(config, device)
    }

    /// The memory that it takes on a micro-batch, for `burn-titan plan`: as of a unit whose input is `x`. `None` if
    /// it does not know; the plan then says that the activations of its blocks are not counted. Allocates nothing.
    fn activations(&self, _: &Workload) -> Option<Activations> {
        None
    }

    /// Its calls of [`Context::attention`], for `burn-titan plan`; `None` if it does not know. Allocates nothing.
    fn sites(&self) -> Option<Vec<Site>> {
        if Self::SHARES_SEQUENCES { None } else { Some(vec![]) }
    }
}

/// Causal attention with grouped key and value heads and RoPE, by the fused kernel; with norms of queries and keys if
/// it was asked for them.
#[derive(Module, Debug)]
pub struct FusedAttention {
    /// Queries: `[dim, n_heads * head_dim]`.
    pub wq: Linear,
    /// Keys: `[dim, n_kv_heads * head_dim]`.
    pub wk: Linear,
    /// Values: `[dim, n_kv_heads * head_dim]`.
    pub wv: Linear,
    /// Back to the residual stream: `[n_heads * head_dim, dim]`.
    pub wo: Linear,
    /// Of each head's queries: `[head_dim]`.
    pub q_norm: Option<RmsNorm>,
    /// Of each head's keys: `[head_dim]`.
    pub k_norm: Option<RmsNorm>,
    #[module(skip)]
    rotary: Rotary,
}

impl Attention for FusedAttention {
    const SHARES_SEQUENCES: bool = true;

    fn plan(_: &AttentionConfig, _: &Device) -> Result<Vec<Line>, PlanError> {
        let lines = [
            ("wq.weight", Split::QueryHeads(1)),
            ("{wk,wv}.weight", Split::KeyHeads(1)),
            ("wo.weight", Split::QueryHeads(0)),
            ("{q_norm,k_norm}.weight", Split::ReplicateInSite),
        ];
        Ok(lines.map(|(name, split)| (name.to_string(), split)).to_vec())
    }

    fn new(config: &AttentionConfig, device: &Device) -> Self {
        let AttentionConfig { dim, n_heads, n_kv_heads, head_dim, rotary } = config;
        let linear =
            |from: usize, to: usize| LinearConfig::new(from, to).with_bias(false).init(device);
        Self {
            wq: linear(*dim, n_heads * head_dim),
            wk: linear(*dim, n_kv_heads * head_dim),
            wv: linear(*dim, n_kv_heads * head_dim),
            wo: linear(n_heads * head_dim, *dim),
            q_norm: None,
            k_norm: None,
            rotary: rotary.clone(),
        }
    }

    fn with_query_key_norm(self, eps: f64, device: &Device) -> Self {
        let norm = || Some(RmsNorm::new(self.rotary.head_dim, eps, device));
        Self { q_norm: norm(), k_norm: norm(), ..self }
    }

    fn forward(&self, x: Tensor<3>, context: &Context) -> Tensor<3> {
        let [batch, seq, _] = x.dims();
        let head_dim = self.rotary.head_dim;
        // Head counts come from the weights, so that a shard of them is the same module.
        let heads = |y: Tensor<3>| {
            let n = y.dims()[2] / head_dim;
            y.reshape([batch, seq, n, head_dim])
        };
        let query = heads(linear(x.clone(), self.wq.weight.val()));
        let key = heads(linear(x.clone(), self.wk.weight.val()));
        let value = heads(linear(x, self.wv.weight.val()));
        let turned = |y: Tensor<4>, norm: &Option<RmsNorm>| {
            let y = match norm {
                Some(norm) => norm.forward(y),
                None => y,
            };
            self.rotary.forward(y, context)
        };
        let [query, key] = [turned(query, &self.q_norm), turned(key, &self.k_norm)];
        let [query, key, value] = [query, key, value].map(|y| y.swap_dims(1, 2));
        let output = context.attention(query, key, value, None, Scores::scaled(head_dim));
        let [_, n, _, _] = output.dims();
        let output = output.swap_dims(1, 2).reshape([batch, seq, n * head_dim]);
        linear(output, self.wo.weight.val())
    }

    fn activations(&self, workload: &Workload) -> Option<Activations> {
        let [dim, queries] = self.wq.weight.lazy_shape().dims();
        let [_, keys] = self.wk.weight.lazy_shape().dims();
        let widths = AttentionWidths { queries, keys, head_dim: self.rotary.head_dim };
        Some(Sizes { dim, widths, normed: self.q_norm.is_some() }.activations(workload))
    }

    fn sites(&self) -> Option<Vec<Site>> {
        let [_, keys] = self.wk.weight.lazy_shape().dims();
        let head_dim = self.rotary.head_dim;
        Some(vec![Site::Attention { key_heads: keys / head_dim, head_dim }])
    }
}

/// The width of the residual stream, and those of queries, keys and values.
struct Sizes {
    dim: usize,
    widths: AttentionWidths,
    /// Whether queries and keys are normalised.
    normed: bool,
}

impl Sizes {
    /// The graph keeps queries and keys after RoPE, and before their norms, the values, the output before `wo`, and each
    /// head's log-sum-exp.
    fn activations(&self, workload: &Workload) -> Activations {
        let tokens = workload.tokens();
        let output = workload.bytes(tokens * self.dim);
        let kept = self.forward(workload, true);
        let plain = self.forward(workload, false);
        let graph = kept.live() - output;
        // Angles of each token; where its first key is and where its last, among the keys of each rank and of all.
        let masks = match workload.sharing.context_ranks() {
            1 => single(workload.seq),
            ranks => 2 * (ranks as u64 + 1) * single(tokens),
        };
        Activations {
            output,
            graph,
            forward: kept.most() - graph - output,
            plain_forward: plain.most() - output,
            backward: self.backward(workload, graph).most(),
            // What each product reads, and the gradient of what it makes.
            put_off: workload
                .bytes(2 * tokens * (self.dim + self.widths.queries + self.widths.keys)),
            shared: single(tokens * self.widths.head_dim) + masks,
        }
    }

    fn forward(&self, workload: &Workload, keep: bool) -> Tape {
        let Self { dim, widths, normed } = self;
        let tokens = workload.tokens();
        let (queries, keys) = (tokens * widths.queries, tokens * widths.keys);
        let mut tape = Tape::new(workload);
        tape.product(tokens, *dim, widths.queries);
        tape.product(tokens, *dim, widths.keys);
        tape.product(tokens, *dim, widths.keys);
        for elements in [queries, keys] {
            if *normed {
                tape.kernel(elements, [elements]);
                tape.free(if keep { 0 } else { elements });
            }
            tape.kernel(elements, [elements]); // RoPE
            tape.free(elements);
        }
        tape.attention(widths);
        let copy = tape.attention_copy(widths);
        tape.hold(copy); // tokens before heads
        if !keep {
            tape.free(queries + 2 * keys + copy);
            tape.free_bytes(single(queries / widths.head_dim));
        }
        tape.product(tokens, widths.queries, *dim);
        if !keep {
            tape.free(queries);
        }
        tape
    }

    fn backward(&self, workload: &Workload, graph: u64) -> Tape {
        let Self { dim, widths, normed } = self;
        let tokens = workload.tokens();
        let (queries, keys) = (tokens * widths.queries, tokens * widths.keys);
        let mut tape = Tape::new(workload);
        tape.product(tokens, *dim, widths.queries); // the gradient of the output before `wo`
        tape.product(widths.queries, tokens, *dim); // and of `wo`
        tape.gradient_used(tokens * dim);
        let copy = tape.attention_copy(widths);
        tape.free(copy);
        tape.attention_backward(widths);
        tape.free(queries);
        tape.free_bytes(graph);
        tape.hold(copy); // it was of the graph
        let normed = if *normed { [queries, keys] } else { [0; 2] };
        tape.hold(normed.iter().sum()); // and what the norms took
        for elements in [queries, keys] {
            tape.kernel(elements, [elements]); // RoPE
            tape.free(elements);
        }
        for elements in normed {
            tape.kernel(2 * elements, [elements, widths.head_dim]); // the norm's input and weight
            tape.free(2 * elements); // what it took; its output's gradient
        }
        for (count, width) in [widths.queries, widths.keys, widths.keys].into_iter().enumerate() {
            tape.product(tokens, width, *dim); // the gradient of the input
            tape.product(*dim, tokens, width); // and of the weight
            tape.free(tokens * width);
            if count > 0 {
                tape.free(tokens * dim); // added to the one before
            }
        }
        tape
    }
}
