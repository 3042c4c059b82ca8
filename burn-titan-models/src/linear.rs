//! The matrix product of a linear layer.

use burn::tensor::Tensor;

/// `x weight`: `[batch, seq, in]` and `[in, out]` to `[batch, seq, out]`, one product over all tokens.
///
/// Burn 0.22's `Linear::forward` multiplies sequence by sequence: its backward then holds a gradient of the weight for
/// each sequence before it adds them up.
pub fn linear(x: Tensor<3>, weight: Tensor<2>) -> Tensor<3> {
    let [batch, seq, inputs] = x.dims();
    let [_, outputs] = weight.dims();
    burn_titan_kernels::linear(x.reshape([batch * seq, inputs]), weight)
        .reshape([batch, seq, outputs])
}
