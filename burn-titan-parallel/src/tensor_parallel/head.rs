//! The head and the loss, over words that are shared among the ranks.

use burn::tensor::{DType, Int, Tensor};
use burn_titan_kernels::cross_entropy::{
    VocabularyStatistics, vocabulary_gradients, vocabulary_statistics,
};
use burn_titan_kernels::{differentiable, linear_cross_entropy, reduce_chunks};

use super::{TensorParallel, parts, rows};
use crate::peers::Peers;
use crate::placement::shard_range;

impl TensorParallel {
    /// The summed cross-entropy of a micro-batch, in nats: the same bits on every rank. Its backward takes it for one
    /// loss, not for one of each rank.
    ///
    /// # Shapes
    /// - `hidden`: the stream
    /// - `weight`: `[dim, own words]`
    /// - `targets`: `[batch * seq]`, words of the whole vocabulary, or
    ///   [`IGNORE`](burn_titan_kernels::cross_entropy::IGNORE)
    /// - result: `[1]`, in f32
    ///
    /// # Panics
    /// If the shapes do not fit together.
    pub fn loss(&self, hidden: Tensor<3>, weight: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
        if !self.peers.several() {
            return linear_cross_entropy(hidden.flatten(0, 1), weight, targets);
        }
        let words = self.words();
        assert_eq!(weight.dims()[1], words.len(), "columns of {words:?}");
        if self.loss {
            let [tokens] = targets.dims();
            let hidden = self.enter(hidden, [1, tokens]).flatten(0, 1);
            return self.loss_by_words(hidden, weight, targets.inner());
        }
        let weight = self.whole_head(weight);
        if !self.sequence {
            return linear_cross_entropy(hidden.flatten(0, 1), weight, targets);
        }
        let own = shard_range(targets.dims()[0], self.peers.size(), self.peers.rank());
        let loss = linear_cross_entropy(hidden.squeeze_dim(0), weight, targets.slice(own));
        let peers = self.peers.clone();
        differentiable([loss], |[loss]| {
            (rows::sum(&peers, loss).wait(), Box::new(|gradient| [gradient]))
        })
    }

    /// The loss of all tokens, of whose logits this rank has those of its words.
    fn loss_by_words(
        &self,
        hidden: Tensor<2>,
        weight: Tensor<2>,
        targets: Tensor<1, Int>,
    ) -> Tensor<1> {
        let (peers, first) = (self.peers.clone(), self.words().start);
        differentiable([hidden, weight], |[hidden, weight]| {
            let own = vocabulary_statistics(hidden.clone(), weight.clone(), targets.clone(), first);
            let VocabularyStatistics { log_sum_exp, target_logit } = of_all_words(&peers, own);
            let losses = log_sum_exp.clone() - target_logit;
            let loss = losses.mask_fill(targets.clone().lower_elem(0), 0.0).sum();
            let backward = move |gradient| {
                vocabulary_gradients(hidden, weight, targets, first, log_sum_exp, gradient)
            };
            (loss, Box::new(backward))
        })
    }

    /// The head's weight for all words, `[dim, vocabulary]`. Where the stream is cut, each rank's gradient of it is a
    /// summand; else every rank has the whole one.
    fn whole_head(&self, weight: Tensor<2>) -> Tensor<2> {
        let (peers, words, sequence) = (self.peers.clone(), self.words(), self.sequence);
        let shares = parts(self.vocabulary, self.peers.size());
        let [dim, own] = weight.dims();
        differentiable([weight], |[weight]| {
            let whole =
                rows::gather(&peers, weight.transpose(), &shares, [self.vocabulary, dim]).wait();
            let backward = move |gradient: Tensor<2>| {
                if !sequence {
                    return [gradient.slice([0..dim, words])];
                }
                [rows::sum_own(&peers, gradient.transpose(), &shares, [own, dim])
                    .wait()
                    .transpose()]
            };
            (whole.transpose(), Box::new(backward))
        })
    }

    /// The logits of all words, on every rank. Not differentiable.
    ///
    /// # Shapes
    /// - `hidden`: the stream
    /// - `weight`: `[dim, own words]`
    /// - result: `[batch, seq, vocabulary]`
    pub fn logits(
        &self,
        hidden: Tensor<3>,
        weight: Tensor<2>,
        [batch, seq]: [usize; 2],
    ) -> Tensor<3> {
        let hidden = self.enter(hidden.inner(), [batch, seq]).flatten::<2>(0, 1);
        let logits = hidden.matmul(weight.inner());
        if !self.peers.several() {
            let [_, words] = logits.dims();
            return logits.reshape([batch, seq, words]);
        }
        let shape = [batch, seq, self.vocabulary];
        let shares = parts(self.vocabulary, self.peers.size());
        let words_first = [self.vocabulary, batch * seq];
        rows::gather::<2, 2>(&self.peers, logits.transpose(), &shares, words_first)
            .wait()
            .transpose()
            .reshape(shape)
    }
}

/// What the slices of all ranks say together: the log-sum-exp of log-sum-exps, and the target logit of the one rank
/// that has the target. In the order of ranks, so that every rank has the same bits.
fn of_all_words(peers: &Peers, own: VocabularyStatistics) -> VocabularyStatistics {
    let [tokens] = own.log_sum_exp.dims();
    let (ranks, own) = (peers.size(), Tensor::cat(vec![own.log_sum_exp, own.target_logit], 0));
    let all: Tensor<3> = rows::gather(peers, own, &vec![1; ranks], [ranks, 2, tokens]).wait();
    let [sums, target_logits] =
        [0, 1].map(|kind| all.clone().narrow(1, kind, 1).squeeze_dim::<2>(1));
    let top = sums.clone().max_dim(0);
    let total = reduce_chunks((sums - top.clone()).exp(), 1.0, DType::F32);
    VocabularyStatistics {
        log_sum_exp: total.log() + top.squeeze_dim(0),
        target_logit: reduce_chunks(target_logits, 1.0, DType::F32),
    }
}
