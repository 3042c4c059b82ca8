//! The memory that latent attention takes, operation by operation, as its forward is written and as autodiff runs it
//! backwards.
//!
//! The graph keeps queries, keys and padded values, the padded output, its part that `wo` reads, and each head's
//! log-sum-exp; and, as what heads are made of, both sides of each norm.

use burn_titan_core::model::{Activations, Workload};

use crate::tape::{AttentionWidths, Tape, single};

/// The sizes of a latent attention on this rank.
pub(super) struct Sizes {
    pub(super) dim: usize,
    pub(super) q_rank: Option<usize>,
    pub(super) kv_rank: usize,
    pub(super) heads: usize,
    pub(super) nope: usize,
    pub(super) rope: usize,
    pub(super) value: usize,
}

/// Elements of all tokens.
struct Elements {
    tokens: usize,
    /// Queries, or keys, or padded values.
    queries: usize,
    /// Their parts that are not rotated, and that are.
    nope: usize,
    rope: usize,
    /// Values, and what these and keys come from.
    values: usize,
    pairs: usize,
    /// What comes of `wkv_a`: the latent and the shared part of the keys.
    both: usize,
    latent: usize,
    /// What queries are made of.
    low: usize,
}

impl Sizes {
    fn elements(&self, tokens: usize) -> Elements {
        let all = tokens * self.heads;
        Elements {
            tokens,
            queries: all * (self.nope + self.rope),
            nope: all * self.nope,
            rope: all * self.rope,
            values: all * self.value,
            pairs: all * (self.nope + self.value),
            both: tokens * (self.kv_rank + self.rope),
            latent: tokens * self.kv_rank,
            low: tokens * self.q_rank.unwrap_or(0),
        }
    }

    fn widths(&self) -> AttentionWidths {
        let head_dim = self.nope + self.rope;
        let all = self.heads * head_dim;
        AttentionWidths { queries: all, keys: all, head_dim }
    }

    /// Whether values are as wide as keys: then nothing is padded.
    fn unpadded(&self) -> bool {
        self.value == self.nope + self.rope
    }

    /// What the attention takes on a micro-batch.
    pub(super) fn activations(&self, workload: &Workload) -> Activations {
        let tokens = workload.tokens();
        let output = workload.bytes(tokens * self.dim);
        let kept = self.forward(workload, true);
        let plain = self.forward(workload, false);
        let graph = kept.live() - output;
        // As of other attentions: angles of each token, and which keys it sees.
        let masks = match workload.sharing.context_ranks() {
            1 => single(workload.seq),
            ranks => 2 * (ranks as u64 + 1) * single(tokens),
        };
        Activations {
            output,
            graph,
            forward: kept.most() - graph - output,
            plain_forward: plain.most() - output,
            backward: self.backward(workload).most(),
            // What each product reads, and the gradient of what it makes.
            put_off: {
                let e = self.elements(tokens);
                let made = e.queries + e.low + e.both + e.pairs;
                workload.bytes(2 * tokens * self.dim + e.low + e.latent + e.values + made)
            },
            shared: single(tokens * self.rope) + masks,
        }
    }

    fn forward(&self, workload: &Workload, keep: bool) -> Tape {
        let e = self.elements(workload.tokens());
        let mut tape = Tape::new(workload);
        self.queries(&mut tape, &e, keep);
        self.keys_and_values(&mut tape, &e, keep);
        let widths = self.widths();
        tape.attention(&widths);
        if !keep {
            tape.free(2 * e.queries + self.kept_values(&e));
            tape.free_bytes(single(e.tokens * self.heads));
        }
        let read = self.read_by_output(&tape, &e);
        tape.hold(read);
        if !keep {
            tape.free(e.queries); // the padded output
        }
        tape.product(e.tokens, self.heads * self.value, self.dim);
        if !keep {
            tape.free(read);
        }
        tape
    }

    /// Elements of the memory that values lie in: where they are not padded, that of what they come from.
    fn kept_values(&self, e: &Elements) -> usize {
        if self.unpadded() { e.pairs } else { e.queries }
    }

    /// Elements of the attention's output that `wo` reads in memory of their own.
    fn read_by_output(&self, tape: &Tape, e: &Elements) -> usize {
        if self.unpadded() { tape.attention_copy(&self.widths()) } else { e.values }
    }

    fn queries(&self, tape: &mut Tape, e: &Elements, keep: bool) {
        let width = self.heads * (self.nope + self.rope);
        match self.q_rank {
            Some(rank) => {
                tape.product(e.tokens, self.dim, rank);
                tape.kernel(e.low, [e.low]); // the norm
                tape.free(if keep { 0 } else { e.low });
                tape.product(e.tokens, rank, width);
                tape.free(if keep { 0 } else { e.low });
            }
            None => tape.product(e.tokens, self.dim, width),
        }
        tape.hold(e.rope); // the part that is rotated
        rotate(tape, e.rope);
        cat(tape, e.nope, e.queries);
        tape.free(e.rope + e.queries);
    }

    fn keys_and_values(&self, tape: &mut Tape, e: &Elements, keep: bool) {
        let shared = e.tokens * self.rope;
        tape.product(e.tokens, self.dim, self.kv_rank + self.rope);
        tape.hold(shared);
        rotate(tape, shared);
        strided_norm(tape, e.latent, e.latent);
        tape.kernel(e.latent, [e.latent]);
        tape.free(if keep { 0 } else { e.both });
        tape.product(e.tokens, self.kv_rank, self.heads * (self.nope + self.value));
        tape.free(if keep { 0 } else { e.latent });
        cat(tape, e.queries, e.queries); // the keys
        tape.free(shared);
        if !self.unpadded() {
            tape.hold(e.queries - e.values); // the zeros
            cat(tape, e.values, e.queries);
            tape.free(e.queries - e.values + e.pairs);
        }
    }

    fn backward(&self, workload: &Workload) -> Tape {
        let e = self.elements(workload.tokens());
        let (values, queries) = (self.heads * self.value, self.heads * (self.nope + self.rope));
        let mut tape = Tape::new(workload);
        tape.product(e.tokens, self.dim, values); // the gradient of what `wo` read
        tape.product(values, e.tokens, self.dim); // and of `wo`
        tape.gradient_used(e.tokens * self.dim);
        let read = self.read_by_output(&tape, &e);
        tape.free(read);
        if !self.unpadded() {
            tape.hold(e.queries); // padded
            tape.free(e.values);
        }
        tape.attention_backward(&self.widths());
        tape.free(e.queries);
        // The gradients of queries, keys and values are there; what they were of is not needed.
        tape.free(3 * e.queries + self.kept_values(&e));
        tape.free_bytes(single(e.tokens * self.heads));
        tape.hold(e.rope);
        rotate(&mut tape, e.rope);
        let slices = |tape: &mut Tape, whole: usize, parts: [usize; 2]| {
            tape.pass_bytes(workload.bytes(whole + parts[0]));
            tape.hold(whole);
            tape.pass_bytes(workload.bytes(whole + parts[1]));
            tape.hold(whole);
            tape.free(whole); // one is added to the other
        };
        slices(&mut tape, e.pairs, [e.values, e.nope]);
        tape.free(2 * e.queries); // the gradients of keys and values
        tape.hold(e.tokens * self.rope); // of what all heads share
        slices(&mut tape, e.queries, [0, e.nope]);
        tape.free(e.queries + e.rope);
        self.products_backward(&mut tape, &e, queries);
        tape
    }

    /// From the gradients of queries, and of what keys and values come from, to that of the input.
    fn products_backward(&self, tape: &mut Tape, e: &Elements, queries: usize) {
        let (rank, pairs) = (self.kv_rank, self.heads * (self.nope + self.value));
        tape.product(e.tokens, pairs, rank);
        tape.product(rank, e.tokens, pairs);
        tape.free(e.pairs + e.latent);
        if let Some(low) = self.q_rank {
            tape.product(e.tokens, queries, low);
            tape.product(low, e.tokens, queries);
            tape.free(e.queries + e.low);
            tape.kernel(2 * e.low, [e.low, low]); // the norm's input and weight
            tape.free(2 * e.low);
        }
        strided_norm(tape, e.latent, e.latent);
        tape.kernel(2 * e.latent, [e.latent, rank]); // the norm's input and weight
        tape.free(e.latent + e.both); // its output's gradient; what it read
        tape.hold(2 * e.both); // the two parts, each among zeros
        tape.free(e.both + e.latent + e.tokens * self.rope);
        tape.product(e.tokens, rank + self.rope, self.dim);
        tape.product(self.dim, e.tokens, rank + self.rope);
        tape.free(e.both);
        let (width, gradient) = match self.q_rank {
            Some(low) => (low, e.low),
            None => (queries, e.queries),
        };
        tape.product(e.tokens, width, self.dim);
        tape.product(self.dim, e.tokens, width);
        tape.free(gradient + e.tokens * self.dim); // one gradient of the input is added to the other
    }
}

/// A rotation of neighbours: they are put apart, and rotated. What was there is not needed.
fn rotate(tape: &mut Tape, elements: usize) {
    tape.hold(elements);
    tape.free(elements);
    tape.kernel(elements, [elements]);
    tape.free(elements);
}

/// Parts of rows become whole rows; `copied` elements of them do not lie one after the other.
fn cat(tape: &mut Tape, copied: usize, result: usize) {
    if tape.workload().native {
        tape.pass_bytes(tape.workload().bytes(copied + result));
    }
    tape.hold(result);
}

/// The native code of a norm copies rows that are parts of others.
fn strided_norm(tape: &mut Tape, rows: usize, result: usize) {
    if tape.workload().native {
        tape.pass_bytes(tape.workload().bytes(rows + result));
    }
}
