//! Keys and values, or their gradients, as they travel.

use burn::tensor::{DType, Device, Tensor};

/// The sizes of keys and values of any number of tokens.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) batch: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) dtype: DType,
    pub(super) device: Device,
}

impl Layout {
    /// Of keys `[batch, kv_heads, _, head_dim]`.
    pub(super) fn of(key: &Tensor<4>) -> Self {
        let [batch, kv_heads, _, head_dim] = key.dims();
        Self { batch, kv_heads, head_dim, dtype: key.dtype(), device: key.device() }
    }

    /// The same sizes in another dtype.
    pub(super) fn cast(&self, dtype: DType) -> Self {
        Self { dtype, ..self.clone() }
    }

    /// Elements of the message with the keys and values of so many tokens.
    pub(super) fn elements(&self, tokens: usize) -> usize {
        message_elements(self.batch, self.kv_heads, self.head_dim, tokens)
    }

    /// Keys and values, `[batch, kv_heads, tokens, head_dim]`, as a flat message: `[key or value, batch, tokens,
    /// kv_heads, head_dim]`, the order in which projections write them.
    pub(super) fn message(&self, pair: [Tensor<4>; 2]) -> Tensor<1> {
        let flat = |x: Tensor<4>| x.swap_dims(1, 2).flatten::<1>(0, 3);
        Tensor::cat(pair.map(flat).to_vec(), 0).cast(self.dtype)
    }

    /// The message as one tensor, `[2 batch, tokens, kv_heads, head_dim]`: all keys before all values.
    pub(super) fn rows(&self, message: Tensor<1>, tokens: usize) -> Tensor<4> {
        message.reshape([2 * self.batch, tokens, self.kv_heads, self.head_dim])
    }

    /// Keys and values, `[batch, kv_heads, tokens, head_dim]`, of the [`Layout::rows`] of a message.
    pub(super) fn pair(&self, rows: Tensor<4>) -> [Tensor<4>; 2] {
        let values = rows.clone().slice_dim(0, self.batch..2 * self.batch);
        [rows.slice_dim(0, 0..self.batch), values].map(|x| x.swap_dims(1, 2))
    }

    /// A message of zeros, where none has come.
    pub(super) fn zeros(&self, tokens: usize) -> Tensor<1> {
        Tensor::zeros([self.elements(tokens)], (&self.device, self.dtype))
    }
}

/// Elements of the message with the keys and values of so many tokens.
pub(super) fn message_elements(
    batch: usize,
    kv_heads: usize,
    head_dim: usize,
    tokens: usize,
) -> usize {
    2 * batch * kv_heads * tokens * head_dim
}
