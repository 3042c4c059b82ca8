//! Sub-modules of which every token meets a part: experts.

use burn::tensor::{Int, Tensor};
use burn_titan_kernels::{ExpertOrder, Routed, permute, unpermute};

use super::Context;
use crate::model::AuxiliaryLosses;

/// A layer with experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertLayer {
    /// The how-manieth layer with experts it is, from 0.
    pub layer: usize,
    /// Experts that its router chooses from.
    pub experts: usize,
    /// What its choice adds to the loss.
    pub losses: AuxiliaryLosses,
}

/// Experts and who chooses among them, as [`Context::experts`] runs them.
pub trait Mixture {
    /// Which layer it is.
    fn layer(&self) -> ExpertLayer;

    /// Chooses the experts of the tokens that this rank routes, `[tokens, dim]`. Of those that it would choose, `agree`
    /// makes those that count.
    fn route(&self, tokens: Tensor<2>, agree: Agree<'_>) -> Routed;

    /// What this rank's experts make of the rows that were sent to them, `[rows, dim]`, in the order of experts, with
    /// the rows of each.
    fn compute(&self, rows: Tensor<2>, counts: &[usize]) -> Tensor<2>;

    /// What every token of the residual stream gets besides, if anything. It runs while rows travel to their experts.
    fn beside(&self) -> Option<Beside<'_>> {
        None
    }
}

/// What makes one choice of experts, `[tokens, k]`, of those of all ranks that have the same tokens.
pub type Agree<'a> = &'a dyn Fn(Tensor<2, Int>) -> Tensor<2, Int>;

/// A sub-module of the residual stream.
pub type Beside<'a> = Box<dyn FnOnce(Tensor<3>, &Context) -> Tensor<3> + 'a>;

impl Context {
    /// Experts: each token of `x`, hidden states of the residual stream, meets those that a router chooses for it, and
    /// gets the sum of what they give, weighted by the router.
    ///
    /// With `tensor` parallelism alone, every rank has a part of each expert, and routes all tokens, to the experts that
    /// the first rank chose: scores may differ in their last bits, and half of one expert is no expert. Where experts are dealt out, the mesh puts its exchanges around what they compute, and every rank routes
    /// tokens of its own.
    pub fn experts(&self, x: Tensor<3>, mixture: &impl Mixture) -> Tensor<3> {
        let (tensor, expert) = (&self.parallel.tensor, &self.parallel.expert);
        let layer = mixture.layer();
        let dims @ [batch, seq] = self.tokens.dims();
        let dealt = expert.peers().several();
        let mut beside = mixture.beside().map(|beside| (beside, x.clone()));
        let tokens = match dealt {
            true => tensor.share(x, dims),
            false => {
                let x = tensor.enter(x, dims);
                let dim = x.dims()[2];
                x.reshape([batch * seq, dim])
            }
        };
        let agree = |chosen| if dealt { chosen } else { tensor.of_first(chosen) };
        let routed = mixture.route(tokens.clone(), &agree);
        let scored = layer.losses.any().then(|| routed.clone());
        let Routed { chosen, weights, .. } = routed;
        let order = ExpertOrder::new(&chosen, layer.experts);
        if dealt || tensor.peers().rank() == 0 {
            // A forward that is repeated for the backward counts once.
            let counts = || order.counts().to_vec();
            self.loads.borrow_mut().entry(layer.layer).or_insert_with(counts);
        }
        let rows = permute(tokens, &order);
        let run = |beside: Option<(Beside, Tensor<3>)>| beside.map(|(beside, x)| beside(x, self));
        let (rows, done) = if dealt {
            let arrival = expert.arrival(order.counts(), &rows.device());
            let beside = beside.take();
            let (rows, done) = expert.dispatch(rows, &arrival, || run(beside));
            (expert.combine(mixture.compute(rows, arrival.counts()), &arrival), done)
        } else {
            (mixture.compute(rows, order.counts()), None)
        };
        let y = unpermute(rows, weights, &order);
        let y = match scored {
            Some(routed) => self.with_losses(y, routed, &layer, dealt),
            None => y,
        };
        let y = match dealt {
            true => tensor.unite(y, dims),
            false => {
                let dim = y.dims()[1];
                tensor.leave(y.reshape([batch, seq, dim]))
            }
        };
        match done.or_else(|| run(beside)) {
            Some(beside) => y + beside,
            None => y,
        }
    }
}
