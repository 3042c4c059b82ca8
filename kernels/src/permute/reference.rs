//! Rows by expert, by plain tensor operations.

use burn::tensor::{Int, Tensor};

/// See [`super::permute`]; `token_of_row` is `[tokens * k]`.
pub fn permute(x: Tensor<2>, token_of_row: Tensor<1, Int>) -> Tensor<2> {
    x.select(0, token_of_row)
}

/// See [`super::unpermute`]; `row_of_slot` is `[tokens * k]`.
pub fn unpermute(rows: Tensor<2>, weights: Tensor<2>, row_of_slot: Tensor<1, Int>) -> Tensor<2> {
    let ([_, dim], [tokens, top_k]) = (rows.dims(), weights.dims());
    let slots: Tensor<3> = rows.select(0, row_of_slot).reshape([tokens, top_k, dim]);
    (slots * weights.unsqueeze_dim(2)).sum_dim(1).squeeze_dim(1)
}
