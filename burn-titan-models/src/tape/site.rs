//! What the operations of [`Context`](burn_titan_core::model::Context) around a sub-module hold, where ranks share its
//! matrix products.
//!
//! With sequence parallelism the stream is this rank's share of the tokens, and a sub-module works on all of them: each
//! exchange holds both at once. Without it an exchange is a sum, in the memory of what is summed.

use super::Tape;

impl Tape {
    /// Elements of the residual stream on this rank, for hidden states of this width.
    pub fn stream(&self, dim: usize) -> usize {
        self.workload.stream_tokens() * dim
    }

    /// Elements of hidden states of this width inside of sites.
    pub fn inside(&self, dim: usize) -> usize {
        self.workload.tokens() * dim
    }

    /// Before a sub-module: the stream, which is held, becomes what the sub-module takes.
    pub fn enter(&mut self, dim: usize) {
        if self.cuts_stream() {
            self.exchange(self.stream(dim), self.inside(dim), 0);
        }
    }

    /// Behind a sub-module: what it gives, which is held, becomes the stream.
    pub fn leave(&mut self, dim: usize) {
        if self.cuts_stream() {
            self.exchange(self.inside(dim), self.stream(dim), 0);
        } else {
            self.sum(self.inside(dim));
        }
    }

    /// The backward of [`Tape::leave`], from the gradient of the stream to that of what the sub-module gives. `shared`:
    /// others hold the gradient of the stream too, as the residual does.
    pub fn leave_backward(&mut self, dim: usize, shared: bool) {
        if self.cuts_stream() {
            let copy = if shared { self.stream(dim) } else { 0 };
            self.exchange(self.stream(dim), self.inside(dim), copy);
            self.hold(copy);
        }
    }

    /// What [`Tape::leave_backward`] made is no longer needed, of so many elements. Where the stream is whole it made
    /// nothing.
    pub fn gradient_used(&mut self, elements: usize) {
        if self.cuts_stream() {
            self.free(elements);
        }
    }

    /// The backward of [`Tape::enter`], from the gradient of what the sub-module took, which is held, to that of the
    /// stream.
    pub fn enter_backward(&mut self, dim: usize) {
        if self.cuts_stream() {
            self.exchange(self.inside(dim), self.stream(dim), 0);
        } else {
            self.sum(self.inside(dim));
        }
    }

    /// A sub-module that treats every token alone. `each` counts what it does with so many tokens: of these, it finds
    /// what it takes, and leaves what it gives.
    pub fn by_token(&mut self, dim: usize, each: impl Fn(&mut Self, usize)) {
        let Some(chunks) = self.chunks() else {
            self.enter(dim);
            each(self, self.workload.tokens());
            return self.leave(dim);
        };
        self.open(dim);
        self.run_chunks(dim, chunks, |tape, tokens, _| each(tape, tokens));
    }

    /// The backward of [`Tape::by_token`]. `each` finds the gradient of what the sub-module gives (see
    /// [`Tape::gradient_used`]) and leaves that of what it takes, and those of the parameters if it is the first.
    pub fn by_token_backward(&mut self, dim: usize, each: impl Fn(&mut Self, usize, bool)) {
        let Some(chunks) = self.chunks() else {
            self.leave_backward(dim, true);
            each(self, self.workload.tokens(), true);
            return self.enter_backward(dim);
        };
        if self.cuts_stream() {
            self.hold(self.stream(dim)); // the residual has it too
        }
        self.open(dim);
        self.run_chunks(dim, chunks, each);
    }

    /// The stream becomes what all chunks take: exchanges of all of them are begun at once, of copies of their parts.
    fn open(&mut self, dim: usize) {
        if self.cuts_stream() {
            self.exchange(self.stream(dim), self.inside(dim), self.stream(dim));
        }
    }

    /// Chunk after chunk, each of which becomes a part of the stream while the next is computed.
    fn run_chunks(&mut self, dim: usize, chunks: usize, each: impl Fn(&mut Self, usize, bool)) {
        let (tokens, own) = (self.workload.tokens(), self.workload.stream_tokens());
        let mut leaving = 0;
        for chunk in 0..chunks {
            let given = part(tokens, chunks, chunk);
            each(self, given, chunk == 0);
            if self.cuts_stream() {
                self.free(leaving);
                leaving = given * dim;
                self.hold(part(own, chunks, chunk) * dim);
            }
        }
        self.free(leaving);
        self.hold(own * dim); // put together
        self.free(own * dim);
    }

    /// Chunks of what treats every token alone; `None` where it runs at once.
    fn chunks(&self) -> Option<usize> {
        let chunks = self.workload.sharing.chunks.min(self.workload.stream_tokens());
        (self.splits_products() && chunks > 1).then_some(chunks)
    }

    fn splits_products(&self) -> bool {
        self.workload.sharing.splits_products()
    }

    /// Whether each rank has its share of the tokens between sub-modules.
    pub(crate) fn cuts_stream(&self) -> bool {
        self.workload.sharing.tensor.sequence
    }

    /// Elements become others: all, of one rank's, or one rank's, of all. `copy`: elements that are copied first,
    /// because somebody else holds them.
    pub(crate) fn exchange(&mut self, from: usize, into: usize, copy: usize) {
        let own = self.workload.bytes(from.min(into));
        let messages = self.workload.messages(self.workload.sharing.tensor.ranks, own);
        self.pass_bytes(self.workload.bytes(copy + into) + messages);
        self.hold(into);
        self.free(from);
    }

    /// Elements become the sum of those of all ranks.
    fn sum(&mut self, elements: usize) {
        if self.splits_products() {
            let ranks = self.workload.sharing.tensor.ranks;
            // Summands of this rank's piece, and sums of the others'.
            let piece = self.workload.bytes(elements.div_ceil(ranks));
            let messages = 2 * self.workload.messages(ranks, piece);
            self.pass_bytes(messages);
        }
    }
}

/// Tokens of a chunk.
fn part(tokens: usize, chunks: usize, chunk: usize) -> usize {
    tokens * (chunk + 1) / chunks - tokens * chunk / chunks
}
