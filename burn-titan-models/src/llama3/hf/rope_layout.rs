//! Query and key rows: Meta's order and Hugging Face's.
//!
//! RoPE turns pairs of a head's elements. Meta's weights pair neighbours, `(2i, 2i + 1)`; Hugging
//! Face's (and ours) pair the halves, `(i, i + head_dim / 2)`. As attention scores do not depend on
//! the order of a head's elements, reordering the rows of the projections turns one into the other.

use burn_titan_core::checkpoint::HostTensor;

use crate::hf::ModelFolderError;

/// The rows of a query or key projection `[n_heads * head_dim, in]` in Meta's order (neighbours are
/// pairs), reordered for half-split RoPE.
///
/// # Errors
/// [`ModelFolderError::Heads`] where the shape is not that of `n_heads` heads of an even `head_dim`.
pub fn meta_to_hf_rows(
    weight: &HostTensor,
    n_heads: usize,
    head_dim: usize,
) -> Result<HostTensor, ModelFolderError> {
    // Row `half * (head_dim / 2) + pair` of the result is row `2 * pair + half`.
    permute_rows(weight, n_heads, head_dim, |row| {
        let pairs = head_dim / 2;
        2 * (row % pairs) + row / pairs
    })
}

/// The inverse of [`meta_to_hf_rows`].
///
/// # Errors
/// [`ModelFolderError::Heads`] where the shape is not that of `n_heads` heads of an even `head_dim`.
pub fn hf_to_meta_rows(
    weight: &HostTensor,
    n_heads: usize,
    head_dim: usize,
) -> Result<HostTensor, ModelFolderError> {
    permute_rows(weight, n_heads, head_dim, |row| (row % 2) * (head_dim / 2) + row / 2)
}

/// Row `r` of each head of the result is row `source(r)` of that head.
fn permute_rows(
    weight: &HostTensor,
    n_heads: usize,
    head_dim: usize,
    source: impl Fn(usize) -> usize,
) -> Result<HostTensor, ModelFolderError> {
    let refused = || ModelFolderError::Heads {
        name: weight.name().into(),
        shape: weight.shape().to_vec(),
        n_heads,
        head_dim,
    };
    let rows = n_heads.checked_mul(head_dim);
    if weight.shape().len() != 2 || rows != Some(weight.shape()[0]) || !head_dim.is_multiple_of(2) {
        return Err(refused());
    }
    let row_bytes = weight.shape()[1] * weight.dtype().size();
    let mut data = Vec::with_capacity(weight.data().len());
    for head in 0..n_heads {
        for row in 0..head_dim {
            let start = (head * head_dim + source(row)) * row_bytes;
            data.extend_from_slice(&weight.data()[start..start + row_bytes]);
        }
    }
    Ok(HostTensor::from_bytes(weight.name(), weight.dtype(), weight.shape(), data)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: usize = 3;
    const HEAD_DIM: usize = 10;
    const WIDTH: usize = 7;
    const TOKENS: usize = 9;

    /// Numbers in [-1, 1) from a linear congruential generator.
    fn random(seed: u64, count: usize) -> Vec<f32> {
        let mut state = seed;
        (0..count)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn weight(seed: u64) -> HostTensor {
        let shape = [HEADS * HEAD_DIM, WIDTH];
        HostTensor::from_f32("wq", &shape, &random(seed, shape[0] * shape[1])).unwrap()
    }

    /// `weight x`, turned by RoPE at `position`; `pair(i)` are the elements that turn together.
    fn project(
        weight: &[f32],
        x: &[f32],
        position: usize,
        head: usize,
        pair: impl Fn(usize) -> (usize, usize),
    ) -> Vec<f64> {
        let row = |r: usize| -> f64 {
            let start = (head * HEAD_DIM + r) * WIDTH;
            let weights = &weight[start..start + WIDTH];
            weights.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum()
        };
        let mut result: Vec<f64> = (0..HEAD_DIM).map(row).collect();
        for i in 0..HEAD_DIM / 2 {
            let frequency = 500_000f64.powf(-2.0 * i as f64 / HEAD_DIM as f64);
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (a, b) = pair(i);
            let (x, y) = (result[a], result[b]);
            (result[a], result[b]) = (x * cos - y * sin, x * sin + y * cos);
        }
        result
    }

    #[test]
    fn both_layouts_give_the_same_attention_scores() {
        let (wq, wk) = (weight(1), weight(2));
        let hf = |w: &HostTensor| meta_to_hf_rows(w, HEADS, HEAD_DIM).unwrap().to_f32().unwrap();
        let (hf_q, hf_k) = (hf(&wq), hf(&wk));
        let (wq, wk) = (wq.to_f32().unwrap(), wk.to_f32().unwrap());
        assert_ne!(wq, hf_q);
        let x = random(3, TOKENS * WIDTH);
        let token = |t: usize| &x[t * WIDTH..(t + 1) * WIDTH];
        let neighbours = |i| (2 * i, 2 * i + 1);
        let halves = |i| (i, i + HEAD_DIM / 2);
        let dot = |a: Vec<f64>, b: Vec<f64>| -> f64 { a.iter().zip(&b).map(|(a, b)| a * b).sum() };
        for head in 0..HEADS {
            for (s, t) in (0..TOKENS).flat_map(|s| (0..TOKENS).map(move |t| (s, t))) {
                let meta = dot(
                    project(&wq, token(s), s, head, neighbours),
                    project(&wk, token(t), t, head, neighbours),
                );
                let ours = dot(
                    project(&hf_q, token(s), s, head, halves),
                    project(&hf_k, token(t), t, head, halves),
                );
                assert!((meta - ours).abs() < 1e-12, "head {head}, {s}, {t}: {meta} {ours}");
            }
        }
    }

    #[test]
    fn there_and_back() {
        let weight = weight(4);
        let there = meta_to_hf_rows(&weight, HEADS, HEAD_DIM).unwrap();
        assert_eq!(hf_to_meta_rows(&there, HEADS, HEAD_DIM).unwrap(), weight);
        assert_eq!(
            meta_to_hf_rows(&weight, 4, HEAD_DIM).unwrap_err().to_string(),
            "tensor `wq`: shape [30, 7] is not [4 heads x 10, in] with an even head_dim: give the \
             head counts of this model"
        );
        assert!(meta_to_hf_rows(&weight, 2, 15).is_err());
        assert!(meta_to_hf_rows(&weight, 30, 1).is_err());
    }
}
