//! The loads of experts: how many tokens each has met in a step, and what they do to the choice.

use burn_titan_parallel::CommError;

use super::{Groups, ParameterStore, on_device, scalar};
use crate::model::{Context, Experts};

/// How many tokens each expert has met in a step, over all ranks; layer by layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExpertLoads(Vec<Vec<u64>>);

impl ExpertLoads {
    /// The sums of what this rank's micro-batches have counted, over all ranks.
    ///
    /// # Errors
    /// If the exchange fails.
    pub(super) fn sum(
        experts: &Experts,
        contexts: &[Context],
        groups: &Groups,
    ) -> Result<Self, CommError> {
        let Experts { each, layers, .. } = *experts;
        let mut counts = vec![0_i32; each * layers];
        for (layer, expert, count) in contexts.iter().flat_map(Context::expert_loads) {
            counts[layer * each + expert] += count as i32;
        }
        let sums = match contexts.first() {
            Some(context) => groups.sums(&counts, &context.tokens.device())?,
            None => counts,
        };
        let layer = |sums: &[i32]| sums.iter().map(|sum| (*sum).max(0) as u64).collect();
        Ok(Self(sums.chunks_exact(each.max(1)).map(layer).collect()))
    }

    /// The tokens of each expert, layer by layer.
    pub fn layers(&self) -> &[Vec<u64>] {
        &self.0
    }

    /// Of each layer, the tokens of the busiest expert over the mean: 1 where all are as busy.
    pub fn imbalance(&self) -> Vec<f64> {
        let layer = |counts: &Vec<u64>| {
            let most = counts.iter().max().copied().unwrap_or(0);
            let sum: u64 = counts.iter().sum();
            most as f64 * counts.len() as f64 / sum.max(1) as f64
        };
        self.0.iter().map(layer).collect()
    }

    /// Of what tokens have chosen, `each` a layer, how much the experts' counts are off; nothing where no layer was
    /// counted.
    pub fn dropped(&self, each: u64) -> Option<u64> {
        let met = |counts: &Vec<u64>| counts.iter().sum::<u64>();
        (!self.0.is_empty()).then(|| self.0.iter().map(|counts| each.abs_diff(met(counts))).sum())
    }

    /// Moves what balances the choice: up for experts that met fewer tokens than the mean, down for those that met
    /// more (Wang et al., 2024; DeepSeek-AI, 2024). A step moves it by the rate where the load is off by the mean or
    /// more, as the papers do it always, and by less where it is off by less, so that it comes to rest. Every rank does
    /// the same.
    pub(super) fn balance(&self, experts: &Experts, parameters: &mut ParameterStore) {
        let device = parameters.device().clone();
        for (counts, name) in self.0.iter().zip(&experts.biases) {
            let Some(bias) = parameters.get_mut(name) else { continue };
            let moved = on_device(moves(counts, experts.bias_rate), &device);
            bias.update(|value| value + moved);
        }
    }
}

/// What the layers have added to the loss of a step, over all ranks; nothing where the model has none.
///
/// # Errors
/// If the exchange fails.
pub(super) fn auxiliary_loss(
    experts: &Experts,
    contexts: &[Context],
    groups: &Groups,
) -> Result<Option<f64>, CommError> {
    let Some(first) = contexts.first().filter(|_| experts.losses.any()) else { return Ok(None) };
    let own = contexts.iter().filter_map(Context::auxiliary_loss).reduce(|a, b| a + b);
    groups.sum(own.map_or(0.0, scalar), &first.tokens.device()).map(Some)
}

/// How far loads move what balances them.
fn moves(counts: &[u64], rate: f64) -> Vec<f32> {
    let all = counts.iter().sum::<u64>() as f64;
    let mean = (all / counts.len() as f64).max(1.0);
    let short = |count: &u64| ((mean - *count as f64) / mean).clamp(-1.0, 1.0);
    counts.iter().map(|count| (rate * short(count)) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_uneven_loads_are() {
        let loads = ExpertLoads(vec![vec![2, 2, 2], vec![6, 0, 0], vec![0, 0, 0]]);
        assert_eq!(loads.imbalance(), [1.0, 3.0, 0.0]);
    }

    #[test]
    fn what_no_expert_has_met_is_counted() {
        let loads = ExpertLoads(vec![vec![2, 2, 2], vec![5, 0, 0]]);
        assert_eq!((loads.dropped(6), ExpertLoads::default().dropped(6)), (Some(1), None));
    }

    #[test]
    fn loads_move_their_balance() {
        assert_eq!(moves(&[4, 4, 4], 0.5), [0.0; 3]);
        assert_eq!(moves(&[0, 2, 10], 0.5), [0.5, 0.25, -0.5]);
    }
}
