//! Sub-modules of which every token meets a part: experts.

use burn::tensor::Tensor;
use burn_titan_kernels::{ExpertOrder, Routed, permute, unpermute};

use super::Context;

impl Context {
    /// Experts: each token of `x`, hidden states of the residual stream, meets those that a router chooses for it, and
    /// gets the sum of what they give, weighted by the router.
    ///
    /// `layer` counts the layers that have experts, of which this one has so many. `route` gets the tokens that this
    /// rank routes, `[tokens, dim]`, and chooses. `compute` is what this rank's experts do with the rows that were sent
    /// to them, `[rows, dim]`, in the order of experts, with the rows of each. With `tensor` parallelism alone, every
    /// rank has a part of each expert, and routes all tokens, to the same experts; where experts are dealt out, the mesh
    /// puts its exchanges around `compute`, and every rank routes tokens of its own.
    pub fn experts(
        &self,
        x: Tensor<3>,
        layer: usize,
        experts: usize,
        route: impl FnOnce(Tensor<2>) -> Routed,
        compute: impl FnOnce(Tensor<2>, &[usize]) -> Tensor<2>,
    ) -> Tensor<3> {
        let (tensor, expert) = (&self.parallel.tensor, &self.parallel.expert);
        let dims @ [batch, seq] = self.tokens.dims();
        let dealt = expert.peers().several();
        let tokens = match dealt {
            true => tensor.share(x, dims),
            false => {
                let x = tensor.enter(x, dims);
                let dim = x.dims()[2];
                x.reshape([batch * seq, dim])
            }
        };
        let Routed { chosen, weights, .. } = route(tokens.clone());
        let order = ExpertOrder::new(&chosen, experts);
        if dealt || tensor.peers().rank() == 0 {
            // A forward that is repeated for the backward counts once.
            let counts = || order.counts().to_vec();
            self.loads.borrow_mut().entry(layer).or_insert_with(counts);
        }
        let rows = permute(tokens, &order);
        let rows = if dealt {
            let arrival = expert.arrival(order.counts(), &rows.device());
            let rows = expert.dispatch(rows, &arrival);
            expert.combine(compute(rows, arrival.counts()), &arrival)
        } else {
            compute(rows, order.counts())
        };
        let y = unpermute(rows, weights, &order);
        match dealt {
            true => tensor.unite(y, dims),
            false => {
                let dim = y.dims()[1];
                tensor.leave(y.reshape([batch, seq, dim]))
            }
        }
    }
}
