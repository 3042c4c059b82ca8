//! What a mixture of experts holds, where all experts are equally busy.

use burn_titan_core::model::Workload;

use super::{MixtureOfExperts, MoeConfig};
use crate::tape::{Tape, single};

/// Numbers of 32 bits that are held of each row: its expert, its place there and back, and its weight on the way to
/// what it is in the end.
const NUMBERS_OF_A_ROW: usize = 6;

/// The sizes of a mixture on a rank.
pub(super) struct Sizes {
    /// Width of the residual stream.
    dim: usize,
    /// Experts that the router chooses from.
    scored: usize,
    /// Experts of this rank.
    experts: usize,
    /// Width of their middle on this rank.
    middle: usize,
    /// Tokens that this rank routes.
    tokens: usize,
    /// Rows that these become. Where experts are dealt out, this rank's meet as many: of all ranks.
    rows: usize,
    /// Ranks that have all experts together.
    ranks: usize,
    /// Whether shared experts take the input too.
    shared: bool,
    /// Numbers that losses keep of each score.
    of_losses: usize,
}

impl Sizes {
    pub(super) fn new(mixture: &MixtureOfExperts, workload: &Workload) -> Self {
        let MixtureOfExperts { experts, shared_experts, config, .. } = mixture;
        let MoeConfig { dim, experts: scored, routing, losses, .. } = config;
        let of_loss = |factor: f64, numbers: usize| if factor > 0.0 { numbers } else { 0 };
        let ranks = workload.sharing.expert_ranks;
        let tokens = match ranks {
            1 => workload.tokens(),
            _ => workload.tokens().div_ceil(workload.sharing.tensor.ranks),
        };
        let [experts, middle] = experts.sizes();
        Self {
            dim: *dim,
            scored: *scored,
            experts,
            middle,
            tokens,
            rows: tokens * routing.top_k,
            ranks,
            shared: shared_experts.is_some(),
            // Shares and loads; exponentials of the logits.
            of_losses: of_loss(losses.sequence_balance, 2) + of_loss(losses.router_z, 1),
        }
    }

    /// Elements of the tokens that are routed.
    fn routed(&self) -> usize {
        self.tokens * self.dim
    }

    /// Elements of their rows, outside of experts.
    fn outside(&self) -> usize {
        self.rows * self.dim
    }

    /// Elements of their rows in the middle of experts.
    fn inside(&self) -> usize {
        self.rows * self.middle
    }

    /// Whether each rank has some of the experts, in place of a part of each.
    fn dealt(&self) -> bool {
        self.ranks > 1
    }

    /// Bytes of what the router computes and keeps: a score of each expert for every token, and numbers of each row.
    fn scores(&self) -> [u64; 2] {
        [self.tokens * self.scored, self.rows * NUMBERS_OF_A_ROW].map(single)
    }

    /// Bytes of what the router reads in f32, where that is not the dtype: its matrix and its tokens.
    fn read_by_router(&self, tape: &Tape) -> [u64; 2] {
        match tape.is_single() {
            true => [0; 2],
            false => [self.dim * self.scored, self.routed()].map(single),
        }
    }

    /// Whether the input is in memory of its own, which goes when this is done with it.
    fn owns_input(&self, tape: &Tape) -> bool {
        !self.shared || (tape.cuts_stream() && !self.dealt())
    }

    /// Elements of the input, as the router takes it or a part of it.
    fn input(&self, tape: &Tape) -> usize {
        if self.dealt() { tape.stream(self.dim) } else { tape.inside(self.dim) }
    }

    /// What of the graph is the experts', as [`crate::block::Sublayer::hold_forward`].
    pub(super) fn hold_forward(&self, tape: &mut Tape, keep: bool) {
        let Self { dim, middle, .. } = *self;
        let (outside, inside) = (self.outside(), self.inside());
        let not_kept = |elements: usize| if keep { 0 } else { elements };
        if !self.dealt() {
            let others = if self.shared && tape.cuts_stream() { tape.stream(dim) } else { 0 };
            tape.hold(others); // which take the input too
            tape.enter(dim);
        }
        self.hold_routing(tape, keep);
        tape.hold(outside); // a row for each expert of a token
        if self.owns_input(tape) && !(keep && tape.is_single()) {
            tape.free(self.input(tape)); // which the router keeps, if it has not made a copy
        }
        self.exchange(tape);
        self.product(tape, dim, middle); // the gate
        self.product(tape, dim, middle); // what goes through it
        tape.free(not_kept(outside));
        tape.kernel(2 * inside, [inside]);
        tape.free(not_kept(2 * inside));
        self.product(tape, middle, dim);
        tape.free(not_kept(inside));
        self.exchange(tape);
        tape.hold(self.routed()); // the sum of each token
        let [scores, numbers] = self.scores();
        if keep {
            tape.hold_bytes(self.of_losses as u64 * scores);
        } else {
            tape.free(outside);
            tape.free_bytes(numbers);
        }
        self.hold_united(tape);
    }

    /// The choice of experts: scores, and where rows go.
    fn hold_routing(&self, tape: &mut Tape, keep: bool) {
        let [scores, numbers] = self.scores();
        let read: u64 = self.read_by_router(tape).into_iter().sum();
        tape.hold_bytes(read);
        tape.pass_bytes(3 * scores); // of logits, their exponentials and scores
        tape.hold_bytes(scores + numbers);
        if !keep {
            tape.free_bytes(scores + read);
        }
    }

    /// The sums of this rank's tokens become the summand of the stream.
    fn hold_united(&self, tape: &mut Tape) {
        if !self.dealt() {
            return tape.leave(self.dim);
        }
        let stream = tape.stream(self.dim);
        if stream > self.routed() {
            tape.hold(stream); // zeros for tokens of other ranks
            tape.free(self.routed());
            tape.leave(self.dim);
        }
    }

    /// As [`crate::block::Sublayer::hold_backward`]. What reads the tokens last is the router, whose part of the graph
    /// is the shorter way to them.
    pub(super) fn hold_backward(&self, tape: &mut Tape) {
        let Self { dim, middle, .. } = *self;
        let (outside, inside) = (self.outside(), self.inside());
        if !self.dealt() {
            tape.leave_backward(dim, true);
        }
        tape.hold(outside); // the gradient of what experts gave
        tape.pass_bytes(tape.copy(self.routed())); // that of the weights reads the sum's
        if !self.dealt() {
            tape.gradient_used(self.routed());
        }
        tape.free(outside); // what they gave
        self.exchange(tape);
        self.product(tape, dim, middle); // the gradient of the gated middle
        self.weights(tape, middle, dim); // and of w2
        tape.free(outside + inside); // that of what experts gave, and the gated middle
        tape.kernel(3 * inside, [inside; 2]); // the gradients of gate and up
        tape.free(3 * inside); // gate, up, and the gradient of what they made
        for _ in 0..2 {
            self.product(tape, middle, dim); // the gradient of the rows
            self.weights(tape, dim, middle); // and of w3, then w1
            tape.free(inside); // that of up, then of the gate
        }
        tape.free(2 * outside); // one of the two gradients is added to the other; the rows
        self.exchange(tape);
        self.hold_routing_backward(tape);
        tape.hold(self.routed()); // the gradient of the tokens out of that of their rows
        tape.free(outside + self.routed()); // added to that by the router
        if tape.is_single() && self.owns_input(tape) {
            tape.free(self.input(tape));
        }
        self.hold_taken_apart(tape);
    }

    /// The gradients of the router's matrix and of its tokens.
    fn hold_routing_backward(&self, tape: &mut Tape) {
        let (tokens, matrix) = (self.routed(), self.dim * self.scored);
        let [scores, numbers] = self.scores();
        tape.pass_bytes(3 * scores); // the gradients of scores, exponentials and logits
        tape.hold_bytes(scores); // that of the logits
        for elements in [tokens, matrix] {
            let results = if tape.workload().native { 2 } else { 1 };
            tape.pass_bytes(results * single(elements));
            tape.hold_bytes(single(elements));
        }
        tape.free_bytes((2 + self.of_losses as u64) * scores + numbers);
        if !tape.is_single() {
            for (elements, read) in [matrix, tokens].into_iter().zip(self.read_by_router(tape)) {
                tape.free_bytes(read);
                tape.hold(elements);
                tape.free_bytes(single(elements));
            }
        }
    }

    /// The gradient of this rank's tokens becomes that of the stream.
    fn hold_taken_apart(&self, tape: &mut Tape) {
        if !self.dealt() {
            return tape.enter_backward(self.dim);
        }
        let stream = tape.stream(self.dim);
        if stream > self.routed() {
            tape.hold(stream); // zeros for tokens of other ranks
            tape.free(self.routed());
            tape.enter_backward(self.dim);
        }
    }

    /// Bytes that wait for the gradients of the weights: what the products read, and the gradients of what they make.
    pub(super) fn put_off(&self, workload: &Workload) -> u64 {
        let router = self.tokens * (self.dim + self.scored);
        let matrix = if workload.compute.size() == 4 { 0 } else { self.dim * self.scored };
        workload.bytes(2 * self.outside() + 3 * self.inside()) + single(router + matrix)
    }

    /// A product of all rows with the matrices of their experts.
    fn product(&self, tape: &mut Tape, inputs: usize, outputs: usize) {
        let result = self.rows * outputs;
        tape.pass_bytes(tape.copy(self.rows * inputs) + tape.workload().bytes(result));
        tape.hold(result);
    }

    /// The gradient of the matrices, out of the rows that they took and the gradients of those that they gave.
    fn weights(&self, tape: &mut Tape, inputs: usize, outputs: usize) {
        let (read, result) = (self.rows * (inputs + outputs), self.experts * inputs * outputs);
        tape.pass_bytes(tape.copy(read) + tape.workload().bytes(result));
        tape.hold(result);
    }

    /// Rows go to the ranks that have their experts, or come back, and are put in order.
    fn exchange(&self, tape: &mut Tape) {
        if self.dealt() {
            let rows = tape.workload().bytes(self.outside());
            let messages = tape.workload().messages(self.ranks, rows / self.ranks as u64);
            tape.pass_bytes(rows + messages);
        }
    }
}
