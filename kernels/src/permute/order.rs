//! Which row of the experts each slot of a token becomes.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

/// The slots of some tokens, sorted by expert: a stable counting sort on the host.
#[derive(Clone, Debug)]
pub struct ExpertOrder {
    counts: Vec<usize>,
    /// The slot of each row.
    pub(super) slots: Tensor<1, Int>,
    /// The row of each slot.
    pub(super) row_of_slot: Tensor<1, Int>,
    /// The weights of sums without weights, `[tokens, k]`.
    pub(super) ones: Tensor<2>,
}

impl ExpertOrder {
    /// The order of the experts that tokens chose: `chosen` is `[tokens, k]`, of ids below `experts`. Reads the choice
    /// back from its device.
    ///
    /// # Panics
    /// If an id names no expert.
    pub fn new(chosen: &Tensor<2, Int>, experts: usize) -> Self {
        let ids = chosen.clone().into_data().convert::<i64>();
        let ids = ids.iter::<i64>().map(|id| {
            let expert = usize::try_from(id).ok().filter(|expert| *expert < experts);
            expert.unwrap_or_else(|| panic!("a choice of expert {id} among {experts}"))
        });
        let ids: Vec<usize> = ids.collect();
        let mut counts = vec![0; experts];
        for expert in &ids {
            counts[*expert] += 1;
        }
        let mut next: Vec<usize> = counts
            .iter()
            .scan(0, |end, count| {
                *end += count;
                Some(*end - count)
            })
            .collect();
        let row_of_slot: Vec<usize> = ids
            .iter()
            .map(|expert| {
                next[*expert] += 1;
                next[*expert] - 1
            })
            .collect();
        let device = chosen.device().inner();
        Self {
            counts,
            slots: int_tensor(&inverse(&row_of_slot), &device),
            row_of_slot: int_tensor(&row_of_slot, &device),
            ones: Tensor::ones(chosen.dims(), (&device, DType::F32)),
        }
    }

    /// The rows of each expert.
    pub fn counts(&self) -> &[usize] {
        &self.counts
    }

    /// The tokens that chose.
    pub fn tokens(&self) -> usize {
        self.ones.dims()[0]
    }
}

/// The inverse of a permutation.
///
/// # Panics
/// If it is none.
pub(super) fn inverse(permutation: &[usize]) -> Vec<usize> {
    let mut inverse = vec![usize::MAX; permutation.len()];
    for (from, to) in permutation.iter().enumerate() {
        assert!(inverse.get(*to) == Some(&usize::MAX), "each of {} rows once", inverse.len());
        inverse[*to] = from;
    }
    inverse
}

pub(super) fn int_tensor(values: &[usize], device: &Device) -> Tensor<1, Int> {
    let values: Vec<i64> = values.iter().map(|value| *value as i64).collect();
    let length = values.len();
    Tensor::from_data(TensorData::new(values, [length]), device)
}
