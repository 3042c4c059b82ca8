//! Multi-head latent attention (DeepSeek-V2, <https://arxiv.org/abs/2405.04434>, section 2.1).
//!
//! Keys and values of all heads are made of one narrow vector a token, and queries of another, or of the stream itself.
//! A part of each query and key is rotated by its position; that of the keys all heads share:
//!
//! ```text
//! q_h = [q_nope_h, rope(q_rope_h)]      of  wq_b norm(wq_a x), or of wq x
//! k_h = [k_nope_h, rope(k_rope)]        k_nope_h and v_h of  wkv_b norm(c),  where  [c, k_rope] = wkv_a x
//! y   = wo [.. softmax(s q_h k_h) v_h ..]
//! ```
//!
//! The attention kernel takes values of the width of keys: narrower ones get zeros behind them, and what comes out of
//! these is dropped. Inference would not make keys and values at all (it would absorb `wkv_b` into the projections beside
//! it); training has no use for that.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use burn_titan_core::model::{
    Activations, Context, Line, Site, Split, Workload, parameter_elements,
};
use burn_titan_kernels::Scores;

use super::activations::Sizes;
use super::config::DeepSeekV3Config;
use crate::block::{Sublayer, attention_backward, attention_forward};
use crate::linear::linear;
use crate::norm::RmsNorm;
use crate::rotary::InterleavedRotary;
use crate::tape::Tape;

/// Causal attention over keys and values of a low rank. Weights are `[in, out]`; of queries, either `wq` is there, or the
/// three others.
#[derive(Module, Debug)]
pub struct LatentAttention {
    /// Queries: `[dim, heads * (nope + rope)]`.
    pub wq: Option<Linear>,
    /// What queries are made of: `[dim, q_lora_rank]`.
    pub wq_a: Option<Linear>,
    /// Its norm.
    pub q_norm: Option<RmsNorm>,
    /// Queries: `[q_lora_rank, heads * (nope + rope)]`.
    pub wq_b: Option<Linear>,
    /// What keys and values are made of, and the rotated part of the keys: `[dim, kv_lora_rank + rope]`.
    pub wkv_a: Linear,
    /// The norm of the first.
    pub kv_norm: RmsNorm,
    /// Keys and values of each head: `[kv_lora_rank, heads * (nope + value)]`.
    pub wkv_b: Linear,
    /// Back to the residual stream: `[heads * value, dim]`.
    pub wo: Linear,
    #[module(skip)]
    rotary: InterleavedRotary,
    /// Elements of a head's query and key that are not rotated.
    nope: usize,
    /// Width of a head's values.
    value: usize,
}

impl LatentAttention {
    /// The module for these sizes. Allocates nothing.
    pub fn new(config: &DeepSeekV3Config, device: &Device) -> Self {
        let DeepSeekV3Config { dim, n_heads, q_lora_rank, kv_lora_rank, norm_eps, .. } = *config;
        let linear = |from, to| LinearConfig::new(from, to).with_bias(false).init(device);
        let queries = n_heads * config.qk_head_dim();
        let pairs = n_heads * (config.qk_nope_head_dim + config.v_head_dim);
        Self {
            wq: q_lora_rank.is_none().then(|| linear(dim, queries)),
            wq_a: q_lora_rank.map(|rank| linear(dim, rank)),
            q_norm: q_lora_rank.map(|rank| RmsNorm::new(rank, norm_eps, device)),
            wq_b: q_lora_rank.map(|rank| linear(rank, queries)),
            wkv_a: linear(dim, kv_lora_rank + config.qk_rope_head_dim),
            kv_norm: RmsNorm::new(kv_lora_rank, norm_eps, device),
            wkv_b: linear(kv_lora_rank, pairs),
            wo: linear(n_heads * config.v_head_dim, dim),
            rotary: config.rotary(),
            nope: config.qk_nope_head_dim,
            value: config.v_head_dim,
        }
    }

    /// How its parameters are split over the ranks that split matrix products: by heads, of which each has its keys
    /// and values. What heads are made of, every rank makes whole, and sees only the gradients of its heads.
    pub fn plan() -> Vec<Line> {
        let lines = [
            ("{wq,wq_b,wkv_b}.weight", Split::QueryHeads(1)),
            ("wo.weight", Split::QueryHeads(0)),
            ("{wq_a,q_norm,wkv_a,kv_norm}.weight", Split::ReplicateInSite),
        ];
        lines.map(|(name, split)| (name.to_string(), split)).to_vec()
    }

    /// `[batch, seq, dim]` to `[batch, seq, dim]`; on ranks that split matrix products, a summand of it.
    pub fn attend(&self, x: Tensor<3>, context: &Context) -> Tensor<3> {
        let [batch, seq, _] = x.dims();
        let query = self.query(x.clone(), context);
        let [key, value] = self.key_and_value(x, context);
        let [query, key, value] = [query, key, value].map(|y| y.swap_dims(1, 2));
        let output = context.attention(query, key, value, None, self.scores());
        let output = narrowed(output.swap_dims(1, 2), self.value);
        let output = output.reshape([batch, seq, self.heads() * self.value]);
        linear(output, self.wo.weight.val())
    }

    /// `[batch, seq, heads, nope + rope]`.
    fn query(&self, x: Tensor<3>, context: &Context) -> Tensor<4> {
        let [batch, seq, _] = x.dims();
        let product = |x, weight: &Option<Linear>| match weight {
            Some(weight) => linear(x, weight.weight.val()),
            None => x,
        };
        let x = product(x, &self.wq_a);
        let x = match &self.q_norm {
            Some(norm) => norm.forward(x),
            None => x,
        };
        let query = product(product(x, &self.wq_b), &self.wq);
        let query = query.reshape([batch, seq, self.heads(), self.qk_width()]);
        let (nope, rope) = (self.nope, self.rotary.width);
        let rotated = self.rotary.forward(query.clone().narrow(3, nope, rope), context);
        Tensor::cat(vec![query.narrow(3, 0, nope), rotated], 3)
    }

    /// Each `[batch, seq, heads, nope + rope]`: behind the values there are zeros.
    fn key_and_value(&self, x: Tensor<3>, context: &Context) -> [Tensor<4>; 2] {
        let [batch, seq, _] = x.dims();
        let (nope, rope, heads) = (self.nope, self.rotary.width, self.heads());
        let [rank] = self.kv_norm.weight.lazy_shape().dims();
        let both = linear(x, self.wkv_a.weight.val());
        let shared = both.clone().narrow(2, rank, rope).reshape([batch, seq, 1, rope]);
        let shared = self.rotary.forward(shared, context).expand([batch, seq, heads, rope]);
        let latent = self.kv_norm.forward(both.narrow(2, 0, rank));
        let pair = linear(latent, self.wkv_b.weight.val());
        let pair = pair.reshape([batch, seq, heads, nope + self.value]);
        let key = Tensor::cat(vec![pair.clone().narrow(3, 0, nope), shared], 3);
        let value = pair.narrow(3, nope, self.value);
        [key, widened(value, self.qk_width())]
    }

    /// Heads of this rank.
    fn heads(&self) -> usize {
        let [values, _] = self.wo.weight.lazy_shape().dims();
        values / self.value
    }

    /// Width of a head's queries and keys.
    fn qk_width(&self) -> usize {
        self.nope + self.rotary.width
    }

    fn scores(&self) -> Scores {
        let magnitude = self.rotary.yarn.map_or(1.0, |yarn| yarn.score_factor());
        let scale = magnitude / (self.qk_width() as f64).sqrt();
        Scores { scale: scale as f32, softcap: None }
    }

    fn activations(&self, workload: &Workload) -> Activations {
        let [dim, _] = self.wkv_a.weight.lazy_shape().dims();
        let q_rank = self.q_norm.as_ref().map(|norm| norm.weight.lazy_shape()[0]);
        let sizes = Sizes {
            dim,
            q_rank,
            kv_rank: self.kv_norm.weight.lazy_shape()[0],
            heads: self.heads(),
            nope: self.nope,
            rope: self.rotary.width,
            value: self.value,
        };
        sizes.activations(workload)
    }
}

/// The last dim, up to this width.
fn narrowed(x: Tensor<4>, width: usize) -> Tensor<4> {
    if x.dims()[3] == width { x } else { x.narrow(3, 0, width) }
}

/// The last dim gets zeros behind it, up to this width.
fn widened(x: Tensor<4>, width: usize) -> Tensor<4> {
    let [batch, seq, heads, own] = x.dims();
    if own == width {
        return x;
    }
    let shape = [batch, seq, heads, width - own];
    let zeros = Tensor::zeros(shape, (&x.device(), x.dtype()));
    Tensor::cat(vec![x, zeros], 3)
}

impl Sublayer for LatentAttention {
    fn forward(&self, x: Tensor<3>, context: &Context) -> Tensor<3> {
        context.site(x, |x| self.attend(x, context))
    }

    fn sites(&self, dim: usize) -> Option<Vec<Site>> {
        let attention = Site::Attention { key_heads: self.heads(), head_dim: self.qk_width() };
        Some(vec![Site::Enter { dim }, attention, Site::Leave { dim }])
    }

    fn hold_forward(&self, tape: &mut Tape, dim: usize, keep: bool) -> Option<()> {
        attention_forward(tape, &self.activations(tape.workload()), dim, keep);
        Some(())
    }

    fn hold_backward(&self, tape: &mut Tape, dim: usize) -> Option<()> {
        let activations = self.activations(tape.workload());
        attention_backward(tape, &activations, parameter_elements(self), dim);
        Some(())
    }

    fn shared(&self, workload: &Workload) -> Option<u64> {
        Some(self.activations(workload).shared)
    }

    fn put_off(&self, _: usize, workload: &Workload) -> Option<u64> {
        Some(self.activations(workload).put_off)
    }
}
