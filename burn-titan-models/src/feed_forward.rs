//! The dense feed-forward: SwiGLU (Shazeer, 2020).

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use burn_titan_core::model::{Context, Line, Site, Split, Workload};
use burn_titan_kernels::swiglu;

use crate::block::Sublayer;
use crate::linear::linear;
use crate::tape::Tape;

/// `w2(silu(w1 x) * (w3 x))`. Weights are `[in, out]`.
#[derive(Module, Debug)]
pub struct FeedForward {
    w1: Linear,
    w2: Linear,
    w3: Linear,
}

impl FeedForward {
    /// From `dim` through `ffn_dim` and back. Allocates nothing.
    pub fn new(dim: usize, ffn_dim: usize, device: &Device) -> Self {
        let linear = |from, to| LinearConfig::new(from, to).with_bias(false).init(device);
        Self { w1: linear(dim, ffn_dim), w2: linear(ffn_dim, dim), w3: linear(dim, ffn_dim) }
    }

    /// How its parameters are split over the ranks that split matrix products: by the columns of the middle.
    pub fn plan() -> Vec<Line> {
        let lines = [("{w1,w3}.weight", Split::Shard(1)), ("w2.weight", Split::Shard(0))];
        lines.map(|(name, split)| (name.to_string(), split)).to_vec()
    }

    /// `[batch, seq, dim]` to `[batch, seq, dim]`.
    fn apply(&self, x: Tensor<3>) -> Tensor<3> {
        let gate = linear(x.clone(), self.w1.weight.val());
        let up = linear(x, self.w3.weight.val());
        linear(swiglu(gate, up), self.w2.weight.val())
    }

    /// Width of the middle on this rank.
    fn middle(&self) -> usize {
        let [_, ffn_dim] = self.w1.weight.lazy_shape().dims();
        ffn_dim
    }
}

impl Sublayer for FeedForward {
    fn forward(&self, x: Tensor<3>, context: &Context) -> Tensor<3> {
        context.site_by_token(x, |x| self.apply(x))
    }

    fn sites(&self, dim: usize) -> Option<Vec<Site>> {
        Some(vec![Site::ByToken { dim }])
    }

    /// The graph keeps gate, up and their product.
    fn hold_forward(&self, tape: &mut Tape, dim: usize, keep: bool) -> Option<()> {
        let ffn_dim = self.middle();
        tape.by_token(dim, |tape, tokens| hold_forward(tape, [tokens, dim, ffn_dim], keep));
        Some(())
    }

    fn hold_backward(&self, tape: &mut Tape, dim: usize) -> Option<()> {
        let ffn_dim = self.middle();
        tape.by_token_backward(dim, |tape, tokens, first| {
            hold_backward(tape, [tokens, dim, ffn_dim], first);
        });
        Some(())
    }

    fn shared(&self, _: &Workload) -> Option<u64> {
        Some(0)
    }

    fn put_off(&self, dim: usize, workload: &Workload) -> Option<u64> {
        Some(workload.bytes(workload.tokens() * (2 * dim + 3 * self.middle())))
    }
}

fn hold_forward(tape: &mut Tape, [tokens, dim, ffn_dim]: [usize; 3], keep: bool) {
    let middle = tokens * ffn_dim;
    tape.product(tokens, dim, ffn_dim); // the gate
    tape.product(tokens, dim, ffn_dim); // what goes through it
    if !keep {
        tape.free(tokens * dim); // the norm's output
    }
    tape.kernel(2 * middle, [middle]);
    if !keep {
        tape.free(2 * middle);
    }
    tape.product(tokens, ffn_dim, dim);
    if !keep {
        tape.free(middle);
    }
}

fn hold_backward(tape: &mut Tape, [tokens, dim, ffn_dim]: [usize; 3], first: bool) {
    let (hidden, middle) = (tokens * dim, tokens * ffn_dim);
    // The gradient of a weight is added to that of the chunks before.
    let added = if first { 0 } else { dim * ffn_dim };
    tape.product(tokens, dim, ffn_dim); // the gradient of the gated middle
    tape.product(ffn_dim, tokens, dim); // and of w2
    tape.free(added);
    tape.gradient_used(hidden);
    tape.free(middle); // the gated middle
    tape.kernel(3 * middle, [middle; 2]); // the gradients of gate and up
    tape.free(3 * middle); // gate, up, and the gradient of what they made
    for _ in 0..2 {
        tape.product(tokens, ffn_dim, dim); // the gradient of the norm's output
        tape.product(dim, tokens, ffn_dim); // and of w3, then w1
        tape.free(middle + added); // that of up, then of the gate
    }
    tape.free(2 * hidden); // one of the two gradients is added to the other; the norm's output
}
