//! Token embedding by plain tensor operations.

use burn::tensor::{Int, Tensor};

/// See [`super::embedding`]; every id is in `0..vocab`.
pub fn embedding(weight: Tensor<2>, ids: Tensor<2, Int>) -> Tensor<3> {
    let ([batch, seq], [_, dim]) = (ids.dims(), weight.dims());
    weight.select(0, ids.reshape([batch * seq])).reshape([batch, seq, dim])
}
