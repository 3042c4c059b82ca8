//! Grouped products on CubeCL devices: the backend's product for each expert.

use std::ops::Range;

use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{Shape, Slice};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;

use crate::cube::zeros;

pub(super) fn product(x: CubeTensor, weights: CubeTensor, counts: &[usize]) -> CubeTensor {
    let width = weights.shape()[2];
    by_expert(x, weights, counts, width)
}

pub(super) fn input_gradient(
    gradient: CubeTensor,
    weights: CubeTensor,
    counts: &[usize],
) -> CubeTensor {
    let width = weights.shape()[1];
    by_expert(gradient, CubeBackend::float_swap_dims(weights, 1, 2), counts, width)
}

fn by_expert(x: CubeTensor, weights: CubeTensor, counts: &[usize], width: usize) -> CubeTensor {
    let [_, inner, outer] = weights.shape().dims();
    let mut products = vec![zeros(&x, [0, width], x.dtype())];
    for (expert, rows) in rows_of_experts(counts).filter(|(_, rows)| !rows.is_empty()) {
        let weight = [Slice::from(expert..expert + 1), Slice::full(), Slice::full()];
        let weight = CubeBackend::float_slice(weights.clone(), &weight);
        let weight = CubeBackend::float_reshape(weight, Shape::new([inner, outer]));
        products.push(CubeBackend::float_matmul(part(&x, rows), weight));
    }
    CubeBackend::float_cat(products, 0)
}

pub(super) fn weight_gradient(x: CubeTensor, gradient: CubeTensor, counts: &[usize]) -> CubeTensor {
    let (inputs, outputs) = (x.shape()[1], gradient.shape()[1]);
    let products = rows_of_experts(counts).map(|(_, rows)| {
        let product = if rows.is_empty() {
            zeros(&x, [inputs, outputs], x.dtype())
        } else {
            let x = CubeBackend::float_swap_dims(part(&x, rows.clone()), 0, 1);
            CubeBackend::float_matmul(x, part(&gradient, rows))
        };
        CubeBackend::float_reshape(product, Shape::new([1, inputs, outputs]))
    });
    CubeBackend::float_cat(products.collect(), 0)
}

fn rows_of_experts(counts: &[usize]) -> impl Iterator<Item = (usize, Range<usize>)> {
    counts.iter().enumerate().scan(0, |next, (expert, count)| {
        let first = *next;
        *next += count;
        Some((expert, first..*next))
    })
}

fn part(tensor: &CubeTensor, rows: Range<usize>) -> CubeTensor {
    CubeBackend::float_slice(tensor.clone(), &[Slice::from(rows), Slice::full()])
}
