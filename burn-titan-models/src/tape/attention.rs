//! What the attention of [`Context`](burn_titan_core::model::Context) holds, where a rank has whole sequences, and where
//! ranks share them.

use burn_titan_kernels::attention::working_elements;

use super::{Tape, single};

/// The widths of what meets in an attention, on this rank: heads times the width of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionWidths {
    /// Of queries.
    pub queries: usize,
    /// Of keys, and of values.
    pub keys: usize,
    /// Of a head.
    pub head_dim: usize,
}

/// Elements of what an attention handles.
#[derive(Clone, Copy)]
struct Elements {
    /// Of this rank's queries.
    queries: usize,
    /// Of its keys and values.
    pairs: usize,
    /// Of the keys and values of whole sequences.
    all_pairs: usize,
    /// Log-sum-exps.
    sums: usize,
    /// What the native code holds in f32, forward and backward.
    working: [usize; 2],
    /// Ranks that share each sequence.
    ranks: usize,
}

impl Tape {
    fn elements(&self, widths: &AttentionWidths) -> Elements {
        let AttentionWidths { queries, keys, head_dim } = *widths;
        let [heads, kv_heads] = [queries, keys].map(|width| width / head_dim);
        let (batch, tokens) = (self.workload.batch, self.workload.tokens());
        let (sharing, all) = (&self.workload.sharing, self.workload.whole_seq());
        let ranks = sharing.context_ranks();
        let native = |seq| match self.workload.native {
            true => working_elements(batch, heads, kv_heads, seq, head_dim),
            false => [0; 2],
        };
        let mut working = native(self.workload.seq);
        if sharing.sequences.is_some() && sharing.gathers_keys {
            // Of all keys. Backward, what is not the queries' grows as they do.
            let ([own, backward], [forward, _]) = (working, native(all));
            let of_queries = backward.min(tokens * queries);
            working = [forward, of_queries + (backward - of_queries) * forward / own.max(1)];
        }
        Elements {
            queries: tokens * queries,
            pairs: 2 * tokens * keys,
            all_pairs: 2 * batch * all * keys,
            sums: tokens * heads,
            working,
            ranks,
        }
    }

    /// Elements that lie in memory twice, once as attention's output and once as the projection behind it reads it:
    /// what is merged out of the results over several ranks' keys has heads before tokens.
    pub fn attention_copy(&self, widths: &AttentionWidths) -> usize {
        if self.hands_keys_around() { self.elements(widths).queries } else { 0 }
    }

    /// Attention: the output and the log-sum-exps are held from now on, beside queries, keys and values.
    pub fn attention(&mut self, widths: &AttentionWidths) {
        let sizes = self.elements(widths);
        if self.hands_keys_around() {
            return self.ring(&sizes);
        }
        if sizes.ranks > 1 {
            self.gather_pairs(&sizes);
        }
        self.attend(&sizes);
        if sizes.ranks > 1 {
            self.free(sizes.all_pairs);
        }
    }

    /// Its backward: the gradients of queries, keys and values are held from now on.
    pub fn attention_backward(&mut self, widths: &AttentionWidths) {
        let sizes = self.elements(widths);
        if self.hands_keys_around() {
            return self.ring_backward(&sizes);
        }
        if sizes.ranks > 1 {
            self.gather_pairs(&sizes);
            self.attend_backward(&sizes, sizes.all_pairs);
            self.free(sizes.all_pairs);
            return self.scatter_pairs(&sizes);
        }
        self.attend_backward(&sizes, sizes.pairs);
    }

    fn hands_keys_around(&self) -> bool {
        let sharing = &self.workload.sharing;
        sharing.sequences.is_some() && !sharing.gathers_keys
    }

    /// One call of the kernel.
    fn attend(&mut self, sizes: &Elements) {
        let Elements { queries, sums, working: [working, _], .. } = *sizes;
        self.hold_bytes(single(sums));
        self.pass_bytes(single(working) + self.workload.bytes(queries) + self.copy(queries));
        self.hold(queries);
    }

    /// One call of its backward, with so many elements of keys and values.
    fn attend_backward(&mut self, sizes: &Elements, pairs: usize) {
        let results = sizes.queries + pairs;
        // What the tasks hold in f32 is at least as much as the results in it, which come when it goes; then one result
        // after the other is rounded.
        let rounded = self.copy(sizes.queries.max(pairs / 2)) + self.workload.bytes(results);
        self.pass_bytes(single(sizes.working[1]) + self.copy(results).max(rounded));
        self.hold(results);
    }

    /// The keys and values of whole sequences.
    fn gather_pairs(&mut self, sizes: &Elements) {
        let Elements { pairs, all_pairs, ranks, .. } = *sizes;
        self.hold(pairs); // keys and values as one message
        self.pass_bytes(self.workload.messages(ranks, self.workload.bytes(pairs)));
        self.hold(all_pairs);
        self.free(pairs);
        self.hold(all_pairs); // in the order of the sequence
        self.free(all_pairs);
    }

    /// The gradients of the keys and values of whole sequences become the sum of this rank's.
    fn scatter_pairs(&mut self, sizes: &Elements) {
        let Elements { pairs, all_pairs, ranks, .. } = *sizes;
        self.hold_bytes(single(all_pairs)); // in the order of ranks, one after the other
        self.pass_bytes(single(all_pairs));
        let messages = self.workload.messages(ranks, single(pairs));
        self.pass_bytes(single(pairs) + messages);
        self.hold_bytes(single(pairs));
        self.free_bytes(single(all_pairs));
        self.free(all_pairs);
        self.round(pairs);
    }

    /// Blocks of keys and values go around, and the results are merged in f32.
    fn ring(&mut self, sizes: &Elements) {
        let Elements { queries, pairs, sums, ranks, .. } = *sizes;
        self.hold(pairs); // the block at hand
        for step in 0..ranks {
            let next = if step + 1 < ranks { pairs } else { 0 };
            self.hold(next); // what is sent
            self.hold(next); // and what arrives
            self.attend(sizes);
            self.free(pairs);
            self.widen(queries);
            if step > 0 {
                self.free_bytes(single(queries + sums)); // added to those before
            }
            self.free(next);
        }
        self.round(queries);
    }

    /// Blocks go around again, and their gradients behind them.
    fn ring_backward(&mut self, sizes: &Elements) {
        let Elements { queries, pairs, ranks, .. } = *sizes;
        self.hold(pairs); // the block at hand
        self.hold_bytes(single(queries)); // the sum of the queries' gradients
        for step in 0..ranks {
            let next = if step + 1 < ranks { pairs } else { 0 };
            let others = if step > 0 { single(pairs) } else { 0 };
            self.hold_bytes(others); // what the ranks before have summed
            self.hold(next); // what is sent
            self.hold(next); // and what arrives
            self.attend_backward(sizes, pairs);
            self.free(pairs);
            self.widen(queries);
            self.hold_bytes(single(queries)); // the new sum
            self.free_bytes(2 * single(queries));
            self.widen(pairs);
            self.hold_bytes(single(pairs)); // as one message
            self.free_bytes(single(pairs) + others);
            self.free(next);
            self.free_bytes(single(pairs)); // sent
        }
        self.hold_bytes(single(pairs)); // what has come home
        self.round(queries);
        self.round(pairs);
    }

    /// Elements of the compute dtype become such of f32.
    fn widen(&mut self, elements: usize) {
        if !self.is_single() {
            self.hold_bytes(single(elements));
            self.free(elements);
        }
    }

    /// Elements of f32 become such of the compute dtype.
    fn round(&mut self, elements: usize) {
        if !self.is_single() {
            self.hold(elements);
            self.free_bytes(single(elements));
        }
    }
}
