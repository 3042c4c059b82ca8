//! The choice of experts on CubeCL devices: a unit a token. The order is that of `flex.rs`.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::Choice;
use crate::cube::{element, elementwise, empty, into_contiguous};

pub(super) fn choose(scores: CubeTensor, bias: CubeTensor, choice: Choice) -> CubeTensor {
    let (scores, bias) = (into_contiguous(scores), into_contiguous(bias));
    let [tokens, experts] = scores.shape().dims();
    let chosen = empty(&scores, [tokens, choice.top_k], DType::I32);
    if tokens > 0 {
        let (count, units) = elementwise(tokens);
        let types = [element(&scores), element(&bias)];
        kernel::choose::launch(
            &chosen.client,
            count,
            units,
            scores.into_tensor_arg(),
            bias.into_tensor_arg(),
            chosen.clone().into_tensor_arg(),
            tokens,
            experts,
            f32::NEG_INFINITY,
            choice.top_k,
            choice.groups,
            choice.chosen_groups,
            choice.best_of_group,
            types,
        );
    }
    chosen
}

mod kernel {
    use super::*;
    use burn_cubecl::cubecl::ir::ElemType;

    /// Adds a value to the `count` of `limit` largest, behind those that are not smaller, and drops the last if there
    /// are more than `limit` then. Gives how many there are.
    #[cube]
    fn insert(
        values: &mut Array<f32>,
        ids: &mut Array<u32>,
        count: usize,
        value: f32,
        id: usize,
        #[comptime] limit: usize,
    ) -> usize {
        let mut place = 0_usize;
        for i in 0..count {
            if values[i] >= value {
                place = i + 1;
            }
        }
        if place < limit {
            let mut i = comptime!(limit - 1).runtime();
            while i > place {
                values[i] = values[i - 1];
                ids[i] = ids[i - 1];
                i -= 1;
            }
            values[place] = value;
            ids[place] = id as u32;
        }
        min(count + 1, limit)
    }

    /// The score of an expert in the choice.
    #[cube]
    fn biased<F: Float, B: Float>(
        scores: &Tensor<F>,
        bias: &Tensor<B>,
        first: usize,
        expert: usize,
        minus_infinity: f32,
    ) -> f32 {
        let score = f32::cast_from(scores[first + expert]) + f32::cast_from(bias[expert]);
        number(score, minus_infinity)
    }

    #[cube]
    fn number(value: f32, minus_infinity: f32) -> f32 {
        if value.is_nan() { minus_infinity } else { value }
    }

    /// Sorts ids in ascending order.
    #[cube]
    fn sort(ids: &mut Array<u32>, #[comptime] length: usize) {
        for end in 1..length {
            let id = ids[end];
            let mut place = end;
            while place > 0 && ids[max(place, 1) - 1] > id {
                ids[place] = ids[place - 1];
                place -= 1;
            }
            ids[place] = id;
        }
    }

    #[cube(launch)]
    pub(super) fn choose<F: Float, B: Float>(
        scores: &Tensor<F>,
        bias: &Tensor<B>,
        chosen: &mut Tensor<i32>,
        tokens: usize,
        experts: usize,
        minus_infinity: f32,
        #[comptime] top_k: usize,
        #[comptime] groups: usize,
        #[comptime] chosen_groups: usize,
        #[comptime] best_of_group: usize,
        #[define(F, B)] _types: [ElemType; 2],
    ) {
        let token = ABSOLUTE_POS;
        if token >= tokens {
            terminate!();
        }
        let first = token * experts;
        let group_size = experts / groups;
        let mut group_values = Array::<f32>::new(chosen_groups);
        let mut group_ids = Array::<u32>::new(chosen_groups);
        let mut group_count = 0_usize;
        let mut best_values = Array::<f32>::new(best_of_group);
        let mut best_ids = Array::<u32>::new(best_of_group);
        for group in 0..groups {
            let mut count = 0_usize;
            for expert in group * group_size..(group + 1) * group_size {
                let score = biased::<F, B>(scores, bias, first, expert, minus_infinity);
                count =
                    insert(&mut best_values, &mut best_ids, count, score, expert, best_of_group);
            }
            let mut score = 0.0_f32;
            for i in 0..count {
                score += best_values[i];
            }
            let score = number(score, minus_infinity);
            group_count =
                insert(&mut group_values, &mut group_ids, group_count, score, group, chosen_groups);
        }
        // Among equal scores the expert that was inserted first stays.
        sort(&mut group_ids, chosen_groups);
        let mut values = Array::<f32>::new(top_k);
        let mut ids = Array::<u32>::new(top_k);
        let mut count = 0_usize;
        for i in 0..chosen_groups {
            let group = group_ids[i] as usize;
            for expert in group * group_size..(group + 1) * group_size {
                let score = biased::<F, B>(scores, bias, first, expert, minus_infinity);
                count = insert(&mut values, &mut ids, count, score, expert, top_k);
            }
        }
        sort(&mut ids, top_k);
        for i in 0..top_k {
            chosen[token * top_k + i] = ids[i] as i32;
        }
    }
}
