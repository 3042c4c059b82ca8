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

/// The token embedding: `vocab` words of this rank.
pub(super) fn embedding(vocab: usize, dim: usize, workload: &Workload) -> Activations {
    let plain = embed(dim, workload, false);
    let kept = embed(dim, workload, true);
    let mut backward = Tape::new(workload);
    let hidden = backward.stream(dim);
    // Burn starts every backward from ones.
    backward.pass_bytes(workload.bytes(hidden));
    backward.leave_backward(dim, false);
    backward.hold(vocab * dim);
    backward.pass_bytes(backward.copy(workload.tokens() * dim));
    let output = workload.bytes(hidden);
    Activations {
        output,
        graph: kept.live() - output,
        forward: kept.most() - kept.live(),
        plain_forward: plain.most() - output,
        backward: backward.most(),
        put_off: 0,
        shared: 0,
    }
}

fn embed(dim: usize, workload: &Workload, keep: bool) -> Tape {
    let mut tape = Tape::new(workload);
    tape.hold(tape.inside(dim));
    if workload.native && !keep {
        tape.pass_bytes(8 * workload.tokens() as u64); // token ids in 64 bits
    }
    tape.leave(dim);
    tape
}

/// A block.
pub(super) fn block(
    sizes: &BlockSizes,
    attention: &Activations,
    workload: &Workload,
) -> Activations {
    let output = workload.bytes(workload.stream_tokens() * sizes.dim);
    let kept = forward(sizes, attention, workload, true);
    let plain = forward(sizes, attention, workload, false);
    Activations {
        output,
        graph: kept.live() - output,
        forward: kept.most() - kept.live(),
        plain_forward: plain.most() - plain.live(),
        backward: backward(sizes, attention, workload).most(),
        // What each product of the feed-forward reads, and the gradient of what it makes.
        put_off: attention.put_off
            + workload.bytes(workload.tokens() * (2 * sizes.dim + 3 * sizes.ffn_dim)),
        shared: attention.shared,
    }
}

/// A forward, and whether its graph is kept.
fn forward(sizes: &BlockSizes, attention: &Activations, workload: &Workload, keep: bool) -> Tape {
    let dim = sizes.dim;
    let mut tape = Tape::new(workload);
    let (stream, inside) = (tape.stream(dim), tape.inside(dim));
    tape.kernel(stream, [stream]); // the first norm
    tape.enter(dim);
    if keep {
        tape.hold_bytes(attention.graph);
        tape.pass_bytes(attention.output + attention.forward);
    } else {
        tape.pass_bytes(attention.output + attention.plain_forward);
        tape.free(inside); // the norm's output
    }
    tape.hold_bytes(attention.output);
    tape.leave(dim); // the residual is added to it in place
    tape.kernel(stream, [stream]); // the second norm
    tape.by_token(dim, |tape, tokens| feed_forward(tape, sizes, tokens, keep));
    // The residual is added to it in place.
    if !keep {
        tape.free(stream);
    }
    tape
}

fn feed_forward(tape: &mut Tape, sizes: &BlockSizes, tokens: usize, keep: bool) {
    let BlockSizes { dim, ffn_dim, .. } = *sizes;
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

fn backward(sizes: &BlockSizes, attention: &Activations, workload: &Workload) -> Tape {
    let BlockSizes { dim, attention_parameters, .. } = *sizes;
    let mut tape = Tape::new(workload);
    let (stream, inside) = (tape.stream(dim), tape.inside(dim));
    // Burn starts every backward from ones.
    tape.pass_bytes(workload.bytes(stream));
    tape.by_token_backward(dim, |tape, tokens, first| {
        feed_forward_backward(tape, sizes, tokens, first);
    });
    tape.kernel(2 * stream, [stream, dim]); // the second norm's input and weight
    tape.free(3 * stream); // added to the residual's gradient; the norm's input; its output's gradient
    tape.leave_backward(dim, true);
    tape.pass_bytes(attention.backward);
    tape.gradient_used(inside);
    tape.hold(attention_parameters + inside); // the gradients of its parameters and its input
    tape.free_bytes(attention.graph);
    tape.free(inside); // its input
    tape.enter_backward(dim);
    tape.kernel(2 * stream, [stream, dim]); // the first norm's input and weight
    tape.free(2 * stream); // added to the residual's gradient; its output's gradient
    tape
}

fn feed_forward_backward(tape: &mut Tape, sizes: &BlockSizes, tokens: usize, first: bool) {
    let BlockSizes { dim, ffn_dim, .. } = *sizes;
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

/// The sizes of the last unit.
pub(super) struct HeadSizes {
    /// Words of this rank.
    pub(super) words: usize,
    pub(super) dim: usize,
    /// Whether the output matrix is the embedding's.
    pub(super) tied: bool,
}

/// The last unit: norm, output matrix and loss.
pub(super) fn head(sizes: &HeadSizes, workload: &Workload) -> Activations {
    let (plain, kept, backward) = if workload.sharing.splits_products() && workload.sharing.loss {
        let [plain, kept] = [false, true].map(|keep| loss_by_words(sizes, workload, keep));
        (plain, kept, loss_by_words_backward(sizes, workload))
    } else {
        let [plain, kept] = [false, true].map(|keep| whole_loss(sizes, workload, keep));
        (plain, kept, whole_loss_backward(sizes, workload))
    };
    Activations {
        output: 0,
        graph: kept.live(),
        forward: kept.most() - kept.live(),
        plain_forward: plain.most(),
        backward: backward.most(),
        put_off: 0,
        shared: 0,
    }
}

/// The loss of this rank's tokens of the stream, over all words.
fn whole_loss(sizes: &HeadSizes, workload: &Workload, keep: bool) -> Tape {
    let HeadSizes { words, dim, .. } = *sizes;
    let mut tape = Tape::new(workload);
    let hidden = tape.stream(dim);
    let (vocabulary, gathered) = whole_vocabulary(sizes, workload);
    let weight = vocabulary * dim;
    tape.kernel(hidden, [hidden]); // the norm
    if gathered {
        tape.hold(words * dim); // with words before columns
        tape.exchange(words * dim, weight, 0);
    }
    let logits = single(logits_held(workload.stream_tokens(), vocabulary));
    let copies = tape.copy(hidden + weight);
    if keep {
        // With the loss come the gradients of the norm's output and of the matrix, which are kept.
        let gradients = workload.bytes(hidden + weight);
        let sums = if workload.native { single(hidden + weight) } else { gradients };
        tape.pass_bytes(sums + logits + copies);
        tape.pass_bytes(gradients + copies);
        tape.hold_bytes(gradients);
    } else {
        tape.pass_bytes(logits + copies);
    }
    tape.free(hidden);
    if gathered {
        tape.free(weight);
    }
    tape
}

fn whole_loss_backward(sizes: &HeadSizes, workload: &Workload) -> Tape {
    let HeadSizes { words, dim, tied } = *sizes;
    let mut tape = Tape::new(workload);
    let hidden = tape.stream(dim);
    let (vocabulary, gathered) = whole_vocabulary(sizes, workload);
    if gathered && tape.cuts_stream() {
        tape.pass_bytes(workload.bytes(vocabulary * dim)); // with words before columns
        tape.exchange(vocabulary * dim, words * dim, 0);
    }
    tape.kernel(2 * hidden, [hidden, dim]); // the norm's input and weight
    tape.free(hidden); // its output's gradient, which the graph had kept
    if gathered || tied {
        tape.pass_bytes(workload.bytes(words * dim)); // the matrix's gradient is put in the order of the parameter
    }
    tape
}

/// How many words' logits a loss over all words takes, and whether ranks gather the matrix for it.
fn whole_vocabulary(sizes: &HeadSizes, workload: &Workload) -> (usize, bool) {
    let gathered = workload.sharing.splits_products();
    (if gathered { workload.sharing.vocabulary } else { sizes.words }, gathered)
}

/// The loss of all tokens, out of what the words of each rank say about them.
fn loss_by_words(sizes: &HeadSizes, workload: &Workload, keep: bool) -> Tape {
    let HeadSizes { words, dim, .. } = *sizes;
    let mut tape = Tape::new(workload);
    let (stream, inside) = (tape.stream(dim), tape.inside(dim));
    tape.kernel(stream, [stream]); // the norm
    tape.enter(dim);
    let tokens = workload.tokens();
    let logits = single(logits_held(tokens, words));
    tape.pass_bytes(logits + tape.copy(inside + words * dim));
    // A log-sum-exp and a target logit of each token, from every rank.
    tape.pass_bytes(single(2 * tokens * (workload.sharing.tensor.ranks + 1)));
    if keep {
        tape.hold_bytes(single(tokens));
    } else {
        tape.free(inside);
    }
    tape
}

/// The logits are computed again, and the gradients with them.
fn loss_by_words_backward(sizes: &HeadSizes, workload: &Workload) -> Tape {
    let HeadSizes { words, dim, tied } = *sizes;
    let mut tape = Tape::new(workload);
    let (stream, inside, weight) = (tape.stream(dim), tape.inside(dim), words * dim);
    let gradients = workload.bytes(inside + weight);
    let sums = if workload.native { single(inside + weight) } else { gradients };
    let copies = tape.copy(inside + weight);
    tape.pass_bytes(sums + single(logits_held(workload.tokens(), words)) + copies);
    tape.pass_bytes(gradients + copies);
    tape.hold_bytes(gradients);
    tape.free(inside); // what the graph had kept
    tape.enter_backward(dim);
    tape.kernel(2 * stream, [stream, dim]); // the norm's input and weight
    tape.free(stream);
    if tied {
        tape.pass_bytes(workload.bytes(weight)); // the matrix's gradient is transposed
    }
    tape
}
