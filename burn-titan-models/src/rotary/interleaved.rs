//! Rotation of neighbours, as DeepSeek's checkpoints have it.

use burn::tensor::Tensor;
use burn_titan_core::model::Context;

use super::{Yarn, frequencies, turned};

/// Base, width and scaling of a rotation whose pairs are neighbours, `(2 i, 2 i + 1)`.
#[derive(Debug, Clone, PartialEq)]
pub struct InterleavedRotary {
    /// Elements that are rotated, an even number.
    pub width: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// Stretching of the low frequencies.
    pub yarn: Option<Yarn>,
}

impl InterleavedRotary {
    /// The frequency of each pair, in radians a position.
    pub fn frequencies(&self) -> Vec<f64> {
        let plain: Vec<f64> = frequencies(self.width, self.theta).collect();
        match &self.yarn {
            Some(yarn) => yarn.scaled(&plain, self.theta),
            None => plain,
        }
    }

    /// Rotates queries or keys by their positions in their documents. The result has the first elements of all pairs,
    /// then the second ones: scores of queries against keys do not depend on the order.
    ///
    /// `x` and the result are `[batch, seq, heads, width]`.
    pub fn forward(&self, x: Tensor<4>, context: &Context) -> Tensor<4> {
        let [batch, seq, heads, width] = x.dims();
        let pairs = x.reshape([batch, seq, heads, width / 2, 2]);
        let halves = pairs.swap_dims(3, 4).reshape([batch, seq, heads, width]);
        let factor = self.yarn.map_or(1.0, |yarn| yarn.rotation_factor());
        turned(halves, context, &format!("{self:?}"), || (self.frequencies(), factor))
    }
}
