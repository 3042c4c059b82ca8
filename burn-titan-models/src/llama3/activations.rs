//! The memory that the units of a Llama take, operation by operation, as their forwards are written and as autodiff
//! runs them backwards.
//!
//! The graph of a block of `n` tokens keeps, in the compute dtype: the two norms' outputs, the sum before the second
//! norm, and what the attention keeps (`4 n dim` with its output, which is the sum's memory); gate, up and their
//! product (`3 n ffn_dim`). Additions and reshapes keep nothing; a weight is kept by its unit.

use burn_titan_core::model::{Activations, Workload};
use burn_titan_kernels::cross_entropy::logits_held;

use crate::tape::{Tape, single};

/// The sizes of a block's feed-forward and its norms.
pub(super) struct BlockSizes {
    pub(super) dim: usize,
    pub(super) ffn_dim: usize,
    /// Elements of the attention's parameters.
    pub(super) attention_parameters: usize,
}

/// The token embedding.
pub(super) fn embedding(vocab: usize, dim: usize, workload: &Workload) -> Activations {
    let hidden = workload.tokens() * dim;
    let mut backward = Tape::new(workload);
    // Burn starts every backward from ones.
    backward.pass_bytes(workload.bytes(hidden));
    backward.hold(vocab * dim);
    backward.pass_bytes(backward.copy(hidden));
    Activations {
        output: workload.bytes(hidden),
        // Token ids in 64 bits.
        plain_forward: if workload.native { 8 * workload.tokens() as u64 } else { 0 },
        backward: backward.most(),
        ..Activations::default()
    }
}

/// A block.
pub(super) fn block(
    sizes: &BlockSizes,
    attention: &Activations,
    workload: &Workload,
) -> Activations {
    let output = workload.bytes(workload.tokens() * sizes.dim);
    let kept = forward(sizes, attention, workload, true);
    let plain = forward(sizes, attention, workload, false);
    Activations {
        output,
        graph: kept.live() - output,
        forward: kept.most() - kept.live(),
        plain_forward: plain.most() - plain.live(),
        backward: backward(sizes, attention, workload).most(),
        shared: attention.shared,
    }
}

/// A forward, and whether its graph is kept.
fn forward(sizes: &BlockSizes, attention: &Activations, workload: &Workload, keep: bool) -> Tape {
    let BlockSizes { dim, ffn_dim, .. } = *sizes;
    let tokens = workload.tokens();
    let (hidden, middle) = (tokens * dim, tokens * ffn_dim);
    let mut tape = Tape::new(workload);
    tape.kernel(hidden, [hidden]); // the first norm
    if keep {
        tape.hold_bytes(attention.graph);
        tape.pass_bytes(attention.output + attention.forward);
    } else {
        tape.pass_bytes(attention.output + attention.plain_forward);
        tape.free(hidden); // its output
    }
    tape.hold_bytes(attention.output); // the residual is added to it in place
    tape.kernel(hidden, [hidden]); // the second norm
    tape.product(tokens, dim, ffn_dim); // the gate
    tape.product(tokens, dim, ffn_dim); // what goes through it
    if !keep {
        tape.free(hidden); // the norm's output
    }
    tape.kernel(2 * middle, [middle]);
    if !keep {
        tape.free(2 * middle);
    }
    tape.product(tokens, ffn_dim, dim); // the residual is added to it in place
    if !keep {
        tape.free(middle + hidden);
    }
    tape
}

fn backward(sizes: &BlockSizes, attention: &Activations, workload: &Workload) -> Tape {
    let BlockSizes { dim, ffn_dim, attention_parameters } = *sizes;
    let tokens = workload.tokens();
    let (hidden, middle) = (tokens * dim, tokens * ffn_dim);
    let mut tape = Tape::new(workload);
    // Burn starts every backward from ones.
    tape.pass_bytes(workload.bytes(hidden));
    tape.product(tokens, dim, ffn_dim); // the gradient of the gated middle
    tape.product(ffn_dim, tokens, dim); // and of w2
    tape.free(middle); // the gated middle
    tape.kernel(3 * middle, [middle; 2]); // the gradients of gate and up
    tape.free(3 * middle); // gate, up, and the gradient of what they made
    for _ in 0..2 {
        tape.product(tokens, ffn_dim, dim); // the gradient of the norm's output
        tape.product(dim, tokens, ffn_dim); // and of w3, then w1
        tape.free(middle); // that of up, then of the gate
    }
    tape.free(2 * hidden); // one of the two gradients is added to the other; the norm's output
    tape.kernel(2 * hidden, [hidden, dim]); // the second norm's input and weight
    tape.free(3 * hidden); // added to the residual's gradient; the norm's input; its output's gradient
    tape.pass_bytes(attention.backward);
    tape.hold(attention_parameters + hidden); // the gradients of its parameters and its input
    tape.free_bytes(attention.graph);
    tape.kernel(2 * hidden, [hidden, dim]); // the first norm's input and weight
    tape.free(3 * hidden); // as after the second
    tape
}

/// The last unit: norm, output matrix and loss. `tied` if the matrix is the embedding's.
pub(super) fn head(vocab: usize, dim: usize, tied: bool, workload: &Workload) -> Activations {
    let tokens = workload.tokens();
    let (hidden, weight) = (tokens * dim, vocab * dim);
    let logits = single(logits_held(tokens, vocab));
    let mut plain = Tape::new(workload);
    plain.kernel(hidden, [hidden]); // the norm
    plain.pass_bytes(logits + plain.copy(hidden + weight));
    // With the loss come the gradients of the norm's output and of the matrix, which are kept.
    let mut kept = Tape::new(workload);
    kept.kernel(hidden, [hidden]);
    let gradients = workload.bytes(hidden + weight);
    let sums = if workload.native { single(hidden + weight) } else { gradients };
    kept.pass_bytes(sums + logits + kept.copy(hidden + weight));
    kept.pass_bytes(gradients + kept.copy(hidden + weight));
    let mut backward = Tape::new(workload);
    backward.kernel(2 * hidden, [hidden, dim]); // the norm's input and weight
    backward.free(hidden); // its output's gradient, which the graph had kept
    if tied {
        backward.pass_bytes(workload.bytes(weight)); // the matrix's gradient is transposed
    }
    Activations {
        output: 0,
        graph: gradients,
        forward: kept.most() - gradients,
        plain_forward: plain.most(),
        backward: backward.most(),
        shared: 0,
    }
}
