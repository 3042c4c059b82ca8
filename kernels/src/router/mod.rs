//! The router of a mixture of experts: which experts a token goes to, and with which weights.
//!
//! The scores `s` of a token are the softmax of its logits, or their sigmoid. The `k` experts with the largest
//! `s + bias` are chosen; the bias (DeepSeek-V3 balances loads with it instead of a loss) has no other effect. With
//! groups, experts are chosen of the best groups alone. The weights are `w_i = scale * s_i`, or, renormalised,
//! `w_i = scale * s_i / (sum over the chosen of s_j + 1e-20)`. A choice is no function to differentiate: gradients
//! reach the logits through scores and weights.
//!
//! Shazeer et al., "Outrageously Large Neural Networks", 2017; DeepSeek-AI, "DeepSeek-V2" and "DeepSeek-V3 Technical
//! Report", 2024; the order of ties, and 1e-20, as in their code.

mod balance;
#[cfg(feature = "cube")]
mod cube;
mod flex;
pub mod reference;

use std::fmt;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::tensor::activation::{sigmoid, softmax};
use burn::tensor::{Int, Tensor};

pub use balance::{router_z_loss, sequence_balance_loss, sequence_loads};

/// What the sum of the chosen scores is increased by before it divides them.
const LEAST_SUM: f64 = 1e-20;

/// Which function of its logits scores the experts of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterScores {
    /// Over all experts.
    Softmax,
    /// Of each logit alone.
    Sigmoid,
}

/// How good a group of experts is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupScore {
    /// As its best expert (DeepSeek-V2).
    Best,
    /// As the sum of its best two (DeepSeek-V3).
    BestTwo,
}

/// Restricts the choice of a token to some groups of experts, which follow each other and are of equal size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertGroups {
    /// Groups that there are.
    pub groups: usize,
    /// Groups that a token chooses.
    pub chosen: usize,
    /// By what it chooses them.
    pub by: GroupScore,
}

/// How a router chooses.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// Experts of a token.
    pub top_k: usize,
    /// What scores them.
    pub scores: RouterScores,
    /// Whether the weights of a token add up to `scale`.
    pub renormalise: bool,
    /// What weights are multiplied by (DeepSeek's `routed_scaling_factor`).
    pub scale: f64,
    /// Groups, where there are some.
    pub groups: Option<ExpertGroups>,
}

/// Why a router cannot choose so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutingError(String);

impl fmt::Display for RoutingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for RoutingError {}

impl Routing {
    /// Whether a router can choose so among `experts`.
    ///
    /// # Errors
    /// If there are too few experts or groups, or groups of unequal sizes.
    pub fn check(&self, experts: usize) -> Result<(), RoutingError> {
        let refuse = |why: String| Err(RoutingError(why));
        if self.top_k == 0 || self.top_k > experts {
            return refuse(format!(
                "a token goes to {} of {experts} experts: it has to be one at least, and no more than there are",
                self.top_k
            ));
        }
        let Some(ExpertGroups { groups, chosen, .. }) = self.groups else { return Ok(()) };
        if groups == 0 || !experts.is_multiple_of(groups) {
            return refuse(format!("{experts} experts are not cut evenly into {groups} groups"));
        }
        if chosen == 0 || chosen > groups {
            return refuse(format!(
                "a token chooses {chosen} of {groups} groups of experts: it has to be one at least, and no more than \
                 there are"
            ));
        }
        let eligible = experts / groups * chosen;
        if self.top_k > eligible {
            return refuse(format!(
                "a token goes to {} experts, but the {chosen} groups that it chooses have {eligible}: choose more \
                 groups, or fewer experts",
                self.top_k
            ));
        }
        Ok(())
    }

    fn choice(&self) -> Choice {
        let groups =
            self.groups.unwrap_or(ExpertGroups { groups: 1, chosen: 1, by: GroupScore::Best });
        let best_of_group = match groups.by {
            GroupScore::Best => 1,
            GroupScore::BestTwo => 2,
        };
        Choice {
            top_k: self.top_k,
            groups: groups.groups,
            chosen_groups: groups.chosen,
            best_of_group,
        }
    }
}

/// What [`RouterOps`] needs to know of a [`Routing`].
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    top_k: usize,
    /// One where there are none.
    groups: usize,
    chosen_groups: usize,
    /// Experts whose scores add up to that of their group.
    best_of_group: usize,
}

/// What a router chose.
#[derive(Debug, Clone)]
pub struct Routed {
    /// `[tokens, k]`: the experts of each token, in ascending order; not tracked.
    pub chosen: Tensor<2, Int>,
    /// `[tokens, k]`: their weights.
    pub weights: Tensor<2>,
    /// `[tokens, experts]`: the scores, without bias, for losses that balance loads.
    pub scores: Tensor<2>,
    /// `[tokens, experts]`: what the scores are made of, for a loss that keeps it small.
    pub logits: Tensor<2>,
}

/// The dispatched choice of [`route`].
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Fusion: cfg(feature = "tuned"))]
pub trait RouterOps: Backend {
    /// The experts of each token in ascending order, `[tokens, k]`, by `scores + bias`, of `[tokens, experts]` and
    /// `[experts]`. Of equal experts or groups the lower id is chosen; NaN counts as the least.
    #[fusion(dtype = burn::tensor::DType::I32, shape = [scores[0], choice.top_k].into())]
    fn choose_experts(
        scores: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        choice: Choice,
    ) -> IntTensor<Self>;
}

impl RouterOps for Flex {
    fn choose_experts(
        scores: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        choice: Choice,
    ) -> IntTensor<Self> {
        flex::choose(&scores, &bias, choice)
    }
}

#[cfg(feature = "cube")]
impl RouterOps for burn_cubecl::CubeBackend {
    fn choose_experts(
        scores: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        choice: Choice,
    ) -> IntTensor<Self> {
        cube::choose(scores, bias, choice)
    }
}

/// Chooses the experts of each token. Differentiable in the logits, through weights and scores. Logits that are NaN
/// choose some experts, and give weights that are NaN.
///
/// # Shapes
/// - `logits`: `[tokens, experts]` in f32
/// - `bias`: `[experts]` in f32, for the choice alone
///
/// # Panics
/// If [`Routing::check`] refuses the routing, or the bias is not one an expert.
pub fn route(logits: Tensor<2>, bias: Option<Tensor<1>>, routing: &Routing) -> Routed {
    route_agreed(logits, bias, routing, |chosen| chosen)
}

/// As [`route`], with the experts that others agree on: `agree` is given those that it chooses, and gives those that
/// count. Logits that differ in their last bits choose others where scores are close.
///
/// # Shapes
/// - as [`route`]; `agree` gives what it is given the shape of
///
/// # Panics
/// As [`route`].
pub fn route_agreed(
    logits: Tensor<2>,
    bias: Option<Tensor<1>>,
    routing: &Routing,
    agree: impl FnOnce(Tensor<2, Int>) -> Tensor<2, Int>,
) -> Routed {
    let experts = logits.dims()[1];
    if let Err(error) = routing.check(experts) {
        panic!("{error}");
    }
    let scores = match routing.scores {
        RouterScores::Softmax => softmax(logits.clone(), 1),
        RouterScores::Sigmoid => sigmoid(logits.clone()),
    };
    let plain = scores.clone().inner();
    let bias = bias.map_or_else(
        || Tensor::zeros([experts], (&plain.device(), plain.dtype())),
        |bias| bias.inner(),
    );
    assert_eq!(bias.dims(), [experts], "a bias for each expert");
    let chosen: Tensor<2, Int> = Tensor::from_dispatch(<Dispatch as RouterOps>::choose_experts(
        plain.into_dispatch(),
        bias.into_dispatch(),
        routing.choice(),
    ));
    let chosen = agree(chosen);
    let weights = weights(scores.clone(), chosen.clone(), routing);
    Routed { chosen, weights, scores, logits }
}

/// The weights of the chosen experts.
fn weights(scores: Tensor<2>, chosen: Tensor<2, Int>, routing: &Routing) -> Tensor<2> {
    let mut weights = scores.gather(1, chosen);
    if routing.renormalise {
        let sum = weights.clone().sum_dim(1) + LEAST_SUM;
        weights = weights / sum;
    }
    if routing.scale == 1.0 { weights } else { weights * routing.scale }
}
