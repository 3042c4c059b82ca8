//! Which keys a query sees.

use burn::tensor::{Device, Int, Tensor};

/// The keys that each query sees: from its `first_key` up to, not including, its `end_key`.
///
/// An interval is all that causal attention, packed documents, sliding windows and shards of a sequence
/// need, and it costs two numbers a query instead of a row of a mask.
#[derive(Debug, Clone)]
pub struct AttentionMask {
    first_key: Tensor<2, Int>,
    end_key: Tensor<2, Int>,
}

impl AttentionMask {
    /// Query `i` sees the keys `first_key[i]..end_key[i]`, clamped to the keys there are; none if that is
    /// empty. Both are `[batch, queries]`.
    pub fn new(first_key: Tensor<2, Int>, end_key: Tensor<2, Int>) -> Self {
        assert_eq!(first_key.dims(), end_key.dims(), "first_key and end_key are [batch, queries]");
        Self { first_key, end_key }
    }

    /// Each query sees all keys up to its own position.
    pub fn causal(batch: usize, seq: usize, device: &Device) -> Self {
        Self::documents(Tensor::zeros([batch, seq], device))
    }

    /// Block-causal by document: each query sees the keys from the start of its document, `first_key`
    /// (`[batch, seq]`, at most the query's own position), up to itself.
    pub fn documents(first_key: Tensor<2, Int>) -> Self {
        let [batch, seq] = first_key.dims();
        let end = Tensor::<1, Int>::arange(1..seq as i64 + 1, &first_key.device());
        let end_key = end.reshape([1, seq]).expand([batch, seq]);
        Self { first_key, end_key }
    }

    /// Of what it sees, each query sees only the last `width` keys (itself one of them, if causal).
    pub fn window(self, width: usize) -> Self {
        let width = i64::try_from(width).unwrap_or(i64::MAX).min(i64::from(i32::MAX));
        let first_key = self.first_key.max_pair(self.end_key.clone() - width);
        Self { first_key, end_key: self.end_key }
    }

    /// The first key that each query sees, `[batch, queries]`.
    pub fn first_key(&self) -> Tensor<2, Int> {
        self.first_key.clone()
    }

    /// The key after the last that each query sees, `[batch, queries]`.
    pub fn end_key(&self) -> Tensor<2, Int> {
        self.end_key.clone()
    }

    pub(super) fn assert_fits(&self, query: &Tensor<4>, key: &Tensor<4>, value: &Tensor<4>) {
        let [batch, heads, queries, head_dim] = query.dims();
        let [_, kv_heads, keys, _] = key.dims();
        assert_eq!(
            key.dims(),
            [batch, kv_heads, keys, head_dim],
            "keys for query {:?}",
            query.dims()
        );
        assert_eq!(value.dims(), key.dims(), "values are shaped as the keys");
        let dtypes = [query.dtype(), key.dtype(), value.dtype()];
        assert_eq!(dtypes, [query.dtype(); 3], "query, key and value are of one dtype");
        assert!(
            kv_heads > 0 && heads % kv_heads == 0,
            "{heads} query heads cannot share {kv_heads} key heads evenly"
        );
        assert_eq!(self.first_key.dims(), [batch, queries], "the mask is [batch, queries]");
    }
}
