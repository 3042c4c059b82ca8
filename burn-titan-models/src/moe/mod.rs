//! Mixture of experts: a feed-forward of which every token meets a part (Shazeer et al., 2017).
//!
//! A router scores all experts for each token; the token meets the best few, and gets the sum of what they give,
//! weighted by their scores. Shared experts (Dai et al., 2024) are an ordinary feed-forward beside it, for all tokens.
//! No token is dropped, and no row is padded. Written for one device: the mesh puts its exchanges into
//! [`Context::experts`].

mod experts;
mod router;
mod tape;

pub use experts::Experts;
pub use router::Router;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use burn_titan_core::model::{
    Agree, AuxiliaryLosses, Beside, Context, ExpertLayer, Line, Mixture, ParameterRole, Site,
    Split, Workload,
};
use burn_titan_kernels::{Routed, Routing};

use crate::block::Sublayer;
use crate::feed_forward::FeedForward;
use crate::tape::Tape;
use tape::Sizes;

/// The sizes of a mixture.
#[derive(Debug, Clone, PartialEq)]
pub struct MoeConfig {
    /// Width of the residual stream.
    pub dim: usize,
    /// Experts that the router chooses from.
    pub experts: usize,
    /// Width of the middle of each.
    pub expert_dim: usize,
    /// Width of the middle of the shared experts together; 0 for none.
    pub shared_dim: usize,
    /// How the router chooses.
    pub routing: Routing,
    /// Whether a number for each expert balances the choice.
    pub balanced: bool,
    /// What the choice adds to the loss.
    pub losses: AuxiliaryLosses,
    /// The how-manieth layer with experts it is, from 0.
    pub layer: usize,
}

/// Experts, the router that chooses among them, and those that all tokens meet.
#[derive(Module, Debug)]
pub struct MixtureOfExperts {
    router: Router,
    experts: Experts,
    shared_experts: Option<FeedForward>,
    #[module(skip)]
    config: MoeConfig,
}

impl MixtureOfExperts {
    /// Allocates nothing.
    pub fn new(config: &MoeConfig, device: &Device) -> Self {
        let MoeConfig { dim, experts, expert_dim, shared_dim, balanced, .. } = *config;
        let shared = (shared_dim > 0).then(|| FeedForward::new(dim, shared_dim, device));
        Self {
            router: Router::new(dim, experts, balanced, device),
            experts: Experts::new(experts, dim, expert_dim, device),
            shared_experts: shared,
            config: config.clone(),
        }
    }

    /// How its parameters are split over the ranks that split matrix products, where experts are not dealt out: every
    /// expert by the columns of its middle. The router is whole, and its gradient a summand, since each rank weighs its
    /// part of what experts give.
    pub fn plan(shared: bool) -> Vec<Line> {
        let lines = [
            ("router.weight", Split::ReplicateInSite),
            ("experts.{w1,w3}", Split::Shard(2)),
            ("experts.w2", Split::Shard(1)),
        ];
        let lines = lines.into_iter().map(|(name, split)| (name.to_string(), split));
        let beside = if shared { FeedForward::plan() } else { vec![] };
        let beside = beside.into_iter();
        lines.chain(beside.map(|(name, split)| (format!("shared_experts.{name}"), split))).collect()
    }
}

/// Fields of such a model's sizes that say how it is trained.
pub const TRAINING_FIELDS: &[&str] =
    &["load_balance_rate", "sequence_balance_loss", "router_z_loss"];

/// What a parameter of a model with experts is for, told from its name.
pub fn role(name: &str) -> ParameterRole {
    if name.contains(".experts.") {
        ParameterRole::Expert
    } else if name.ends_with(".router.bias") {
        ParameterRole::RouterBias
    } else {
        ParameterRole::Dense
    }
}

impl Mixture for MixtureOfExperts {
    fn layer(&self) -> ExpertLayer {
        let MoeConfig { layer, experts, losses, .. } = self.config;
        ExpertLayer { layer, experts, losses }
    }

    fn route(&self, tokens: Tensor<2>, agree: Agree<'_>) -> Routed {
        self.router.forward(tokens, &self.config.routing, agree)
    }

    fn compute(&self, rows: Tensor<2>, counts: &[usize]) -> Tensor<2> {
        self.experts.forward(rows, counts)
    }

    fn beside(&self) -> Option<Beside<'_>> {
        let shared = self.shared_experts.as_ref()?;
        Some(Box::new(|x, context| shared.forward(x, context)))
    }
}

impl Sublayer for MixtureOfExperts {
    fn forward(&self, x: Tensor<3>, context: &Context) -> Tensor<3> {
        context.experts(x, self)
    }

    fn sites(&self, dim: usize) -> Option<Vec<Site>> {
        let MoeConfig { experts, routing, losses, .. } = &self.config;
        let mut sites = vec![Site::Experts {
            dim,
            experts: *experts,
            top_k: routing.top_k,
            balance: losses.sequence_balance > 0.0,
        }];
        if let Some(shared) = &self.shared_experts {
            sites.extend(shared.sites(dim)?);
        }
        Some(sites)
    }

    /// The graph keeps the router's scores, every row before and after its expert, and gate, up and their product.
    fn hold_forward(&self, tape: &mut Tape, dim: usize, keep: bool) -> Option<()> {
        Sizes::new(self, tape.workload()).hold_forward(tape, keep);
        if let Some(shared) = &self.shared_experts {
            shared.hold_forward(tape, dim, keep)?;
            tape.free(tape.stream(dim)); // one of the two is added to the other
        }
        Some(())
    }

    fn hold_backward(&self, tape: &mut Tape, dim: usize) -> Option<()> {
        Sizes::new(self, tape.workload()).hold_backward(tape);
        if let Some(shared) = &self.shared_experts {
            shared.hold_backward(tape, dim)?;
            tape.free(tape.stream(dim)); // one of the two gradients is added to the other
        }
        Some(())
    }

    fn shared(&self, _: &Workload) -> Option<u64> {
        Some(0)
    }

    fn put_off(&self, dim: usize, workload: &Workload) -> Option<u64> {
        let shared = match &self.shared_experts {
            Some(shared) => shared.put_off(dim, workload)?,
            None => 0,
        };
        Some(Sizes::new(self, workload).put_off(workload) + shared)
    }
}
