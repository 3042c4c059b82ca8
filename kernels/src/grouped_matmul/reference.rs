//! Products of rows with the matrix of their expert by plain tensor operations.

use burn::tensor::Tensor;

/// See [`super::grouped_matmul`].
pub fn grouped_matmul(x: Tensor<2>, weights: Tensor<3>, counts: &[usize]) -> Tensor<2> {
    let [_, inputs, outputs] = weights.dims();
    let mut first = 0;
    let mut products = Vec::new();
    for (expert, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let rows = x.clone().narrow(0, first, *count);
        let weight = weights.clone().narrow(0, expert, 1).reshape([inputs, outputs]);
        products.push(rows.matmul(weight));
        first += count;
    }
    if products.is_empty() {
        return x.narrow(0, 0, 0).matmul(weights.sum_dim(0).reshape([inputs, outputs]));
    }
    Tensor::cat(products, 0)
}
