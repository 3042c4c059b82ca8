//! The choice of experts on the CPU.

use burn::backend::TensorMetadata;
use burn::tensor::{Bytes, DType, Shape};
use burn_flex::{FlexTensor, Layout};
use rayon::prelude::*;

use super::Choice;
use crate::flex::F32View;

/// Least tokens that a task takes.
const TOKENS_A_TASK: usize = 64;

pub(super) fn choose(scores: &FlexTensor, bias: &FlexTensor, choice: Choice) -> FlexTensor {
    let [tokens, experts] = scores.shape().dims();
    let (scores, bias) = (F32View::new(scores), F32View::new(bias));
    let mut chosen = vec![0_i64; tokens * choice.top_k];
    let rows = chosen.par_chunks_mut(choice.top_k).zip(scores.par_chunks(experts));
    rows.with_min_len(TOKENS_A_TASK).for_each_init(
        Chooser::default,
        |chooser, (chosen, scores)| {
            chooser.choose(scores, &bias, choice, chosen);
        },
    );
    let layout = Layout::contiguous(Shape::new([tokens, choice.top_k]));
    FlexTensor::new(Bytes::from_elems(chosen), layout, DType::I64)
}

/// The largest of some values and whose they are, in descending order.
type Largest = Vec<(f32, usize)>;

/// What the choice of a token needs, kept for the next.
#[derive(Default)]
struct Chooser {
    /// Scores and biases.
    biased: Vec<f32>,
    of_group: Largest,
    groups: Largest,
    experts: Largest,
}

impl Chooser {
    fn choose(&mut self, scores: &[f32], bias: &[f32], choice: Choice, chosen: &mut [i64]) {
        let Self { biased, of_group, groups, experts } = self;
        biased.clear();
        biased.extend(scores.iter().zip(bias).map(|(score, bias)| score + bias));
        let group = biased.len() / choice.groups;
        groups.clear();
        for (id, scores) in biased.chunks(group).enumerate() {
            of_group.clear();
            for (expert, score) in scores.iter().enumerate() {
                insert(of_group, choice.best_of_group, *score, expert);
            }
            let score = of_group.iter().map(|(score, _)| score).sum();
            insert(groups, choice.chosen_groups, score, id);
        }
        // Among equal scores the expert that was inserted first stays.
        groups.sort_unstable_by_key(|(_, id)| *id);
        experts.clear();
        for (_, id) in groups.iter() {
            let first = id * group;
            for (expert, score) in biased[first..first + group].iter().enumerate() {
                insert(experts, choice.top_k, *score, first + expert);
            }
        }
        experts.sort_unstable_by_key(|(_, id)| *id);
        for (chosen, (_, id)) in chosen.iter_mut().zip(experts) {
            *chosen = *id as i64;
        }
    }
}

/// Adds a value, behind those that are not smaller, and drops the last if there are more than `limit` then.
fn insert(largest: &mut Largest, limit: usize, value: f32, id: usize) {
    let value = if value.is_nan() { f32::NEG_INFINITY } else { value };
    let place = largest.iter().rposition(|(other, _)| *other >= value).map_or(0, |last| last + 1);
    if place < limit {
        largest.truncate(limit - 1);
        largest.insert(place, (value, id));
    }
}
