use super::*;
use crate::testing::{assert_same_gradients, noise};
use burn::tensor::Device;

/// Starts of documents from their lengths, one row.
fn first_keys(batch: usize, seq: usize, lengths: &[usize]) -> Tensor<2, Int> {
    let mut row = Vec::new();
    for length in lengths.iter().cycle() {
        let start = row.len() as i64;
        row.extend(std::iter::repeat_n(start, *length));
        if row.len() >= seq {
            break;
        }
    }
    row.truncate(seq);
    let rows: Vec<i64> = row.iter().copied().cycle().take(batch * seq).collect();
    Tensor::<1, Int>::from_data(rows.as_slice(), &Device::flex()).reshape([batch, seq])
}

fn check(batch: usize, heads: usize, kv_heads: usize, seq: usize, dim: usize, documents: &[usize]) {
    let first_key = first_keys(batch, seq, documents);
    let (q, kv) = ([batch, seq, heads, dim], [batch, seq, kv_heads, dim]);
    let scale = (dim as f32).powf(-0.5);
    type Attention = fn(Tensor<4>, Tensor<4>, Tensor<4>, Tensor<2, Int>, f32) -> Tensor<4>;
    // The heads are views of `[batch, seq, heads, dim]`, as a model gives them.
    let run = |[query, key, value]: [Tensor<1>; 3], f: Attention| {
        let query = query.reshape(q).swap_dims(1, 2);
        let (key, value) = (key.reshape(kv).swap_dims(1, 2), value.reshape(kv).swap_dims(1, 2));
        f(query, key, value, first_key.clone(), scale)
    };
    let n = |shape: [usize; 4]| shape.iter().product::<usize>();
    assert_same_gradients(
        [noise([n(q)], 0) * 3.0, noise([n(kv)], 1) * 3.0, noise([n(kv)], 2)],
        |inputs| run(inputs, attention),
        |inputs| run(inputs, reference::attention),
        3e-6,
    );
}

#[test]
fn equals_the_reference_at_odd_sizes() {
    check(1, 1, 1, 1, 2, &[1]);
    check(2, 4, 2, 33, 16, &[33]);
    check(1, 3, 1, 129, 24, &[129]);
    check(1, 2, 2, 307, 16, &[307]);
    check(1, 5, 5, 67, 40, &[67]);
}

#[test]
fn documents_see_only_themselves() {
    check(2, 2, 1, 131, 16, &[1, 5, 40]);
    check(1, 2, 2, 40, 8, &[1]);
    check(1, 1, 1, 300, 16, &[140, 160]);
}
