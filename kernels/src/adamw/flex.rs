//! AdamW on the CPU, in place.

use burn::tensor::DType;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::{AdamwStep, Numbers};
use crate::flex::{F32View, convert, owned, simd_fn, values_mut, with_number, zeros};

/// Elements of a task: few enough that the copy finds the new parameter in the cache.
const CHUNK: usize = 32 * 1024;

pub(super) fn adamw(
    state: [FlexTensor; 3],
    gradient: &FlexTensor,
    step: AdamwStep,
) -> [FlexTensor; 3] {
    let numbers = Numbers::from(step);
    let mut state = state.map(owned::<f32>);
    let gradient = F32View::new(gradient);
    chunks(&mut state, &gradient).for_each(|chunk| {
        chunk.update(&numbers);
    });
    state
}

/// The same, and the new parameter in the dtype `copy`.
pub(super) fn adamw_with_copy(
    state: [FlexTensor; 3],
    gradient: &FlexTensor,
    step: AdamwStep,
    copy: DType,
) -> ([FlexTensor; 3], FlexTensor) {
    let numbers = Numbers::from(step);
    let mut state = state.map(owned::<f32>);
    let mut low = zeros(state[0].layout().shape().clone(), copy);
    let gradient = F32View::new(gradient);
    with_number!(copy, E => {
        let low = values_mut::<E>(&mut low).par_chunks_mut(CHUNK);
        chunks(&mut state, &gradient).zip(low).for_each(|(chunk, low)| {
            convert(chunk.update(&numbers), low);
        });
    });
    (state, low)
}

struct Chunk<'a> {
    parameter: &'a mut [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
    gradient: &'a [f32],
}

fn chunks<'a>(
    [parameter, first, second]: &'a mut [FlexTensor; 3],
    gradient: &'a [f32],
) -> impl IndexedParallelIterator<Item = Chunk<'a>> {
    let state = values_mut(parameter)
        .par_chunks_mut(CHUNK)
        .zip(values_mut(first).par_chunks_mut(CHUNK).zip(values_mut(second).par_chunks_mut(CHUNK)));
    state.zip(gradient.par_chunks(CHUNK)).map(|((parameter, (first, second)), gradient)| Chunk {
        parameter,
        first,
        second,
        gradient,
    })
}

impl<'a> Chunk<'a> {
    /// Returns the new parameter.
    fn update(self, numbers: &Numbers) -> &'a [f32] {
        update(&mut *self.parameter, self.first, self.second, self.gradient, numbers);
        self.parameter
    }
}

simd_fn! {
    fn update(
        parameter: &'a mut [f32],
        first: &'a mut [f32],
        second: &'a mut [f32],
        gradient: &'a [f32],
        n: &'a Numbers,
    ) -> () {
        for (((p, m), v), g) in parameter.iter_mut().zip(first).zip(second).zip(gradient) {
            let g = g * n.gradient_scale;
            *m = n.beta1 * *m + n.rest1 * g;
            *v = n.beta2 * *v + n.rest2 * g * g;
            *p = *p * n.keep - n.step_size * *m / (v.sqrt() * n.root_correction + n.eps);
        }
    }
}
