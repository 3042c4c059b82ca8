//! Losses that layers add to that of the model.

use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_titan_kernels::{
    Routed, differentiable, router_z_loss, sequence_balance_loss, sequence_loads,
};
use burn_titan_parallel::Reduction;

use super::Context;
use super::routed::ExpertLayer;

impl Context {
    /// Says that the micro-batch is this part of a training step, over all ranks: layers may add to the loss.
    pub(crate) fn trains(&self, share: f64) {
        self.share.set(Some(share));
    }

    /// What layers have added to the loss of the step, as this rank's summand: `[1]`, or nothing.
    pub(crate) fn auxiliary_loss(&self) -> Option<Tensor<1>> {
        self.auxiliary.borrow().values().cloned().reduce(|a, b| a + b)
    }

    /// `y`, what a layer gives of this rank's tokens, as it is; in the backward, what the layer's choice adds to the
    /// loss has its gradient.
    ///
    /// Where the ranks of `tp` share what each expert computes, all have made the same choice: the first one's counts.
    pub(super) fn with_losses(
        &self,
        y: Tensor<2>,
        routed: Routed,
        layer: &ExpertLayer,
        dealt: bool,
    ) -> Tensor<2> {
        let ExpertLayer { layer, experts, losses } = *layer;
        let Some(share) = self.share.get().filter(|_| losses.any()) else { return y };
        let [batch, seq] = self.tokens.dims();
        let length = self.whole.as_ref().map_or(seq, |(_, positions)| positions.len() / batch);
        let Routed { chosen, scores, logits, .. } = routed;
        let top_k = chosen.dims()[1];
        let mut added = Vec::new();
        if losses.sequence_balance > 0.0 {
            let sequence = self.sequences(dealt);
            let loads =
                self.whole_sequences(sequence_loads(&chosen, &sequence, batch, experts), dealt);
            let alpha = losses.sequence_balance * share / batch as f64;
            added.push(sequence_balance_loss(scores, loads, &sequence, [length, top_k], alpha));
        }
        if losses.router_z > 0.0 {
            let factor = losses.router_z * share / (batch * length) as f64;
            added.push(router_z_loss(logits) * factor);
        }
        let counts = dealt || self.parallel.tensor.peers().rank() == 0;
        let added = added.into_iter().reduce(|a, b| a + b).filter(|_| counts);
        let Some(loss) = added else { return y };
        // A forward that is repeated for the backward counts once.
        let value = || loss.clone().inner();
        self.auxiliary.borrow_mut().entry(layer).or_insert_with(value);
        differentiable([y, loss.reshape([1, 1])], |[y, loss]| {
            let (device, dtype) = (loss.device(), loss.dtype());
            (y, Box::new(move |dy| [dy, Tensor::ones([1, 1], (&device, dtype))]))
        })
    }

    /// Of each token that this rank routes, the sequence of the micro-batch.
    fn sequences(&self, dealt: bool) -> Tensor<1, Int> {
        let ([batch, seq], tensor) = (self.tokens.dims(), &self.parallel.tensor);
        let tokens = batch * seq;
        let own = match dealt && tensor.peers().several() {
            true => {
                let shares = tensor.shares(tokens);
                let start: usize = shares[..tensor.peers().rank()].iter().sum();
                start..start + shares[tensor.peers().rank()]
            }
            false => 0..tokens,
        };
        self.shared(&format!("sequences of tokens {own:?}"), || {
            let sequences: Vec<i32> = own.clone().map(|token| (token / seq) as i32).collect();
            let data = TensorData::new(sequences, [own.len()]);
            Tensor::<1, Int>::from_data(data, (&self.tokens.device(), DType::I32))
        })
    }

    /// The loads of this rank's tokens, summed over the ranks that have others of the same sequences.
    fn whole_sequences(&self, loads: Tensor<2>, dealt: bool) -> Tensor<2> {
        let dims = loads.dims();
        let (context, tensor) = (self.parallel.context.peers(), self.parallel.tensor.peers());
        let mut sums = loads.reshape([dims[0] * dims[1]]);
        for peers in [Some(context), dealt.then_some(tensor)].into_iter().flatten() {
            if peers.several() {
                let own = sums.clone();
                let work =
                    peers.begin(|peers| peers.all_reduce(own.clone().into(), Reduction::Sum));
                sums = peers.settle(work, || own.clone().into()).float();
            }
        }
        sums.reshape(dims)
    }
}
