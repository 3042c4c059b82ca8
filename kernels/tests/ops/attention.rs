use burn::tensor::{DType, Device, Int, Tensor};
use burn_titan_kernels::attention::{
    Attention, AttentionMask, Scores, attention, attention_backward, reference,
};
use proptest::prelude::*;

use crate::support::{check, check_half, devices, distance, noise, values};

/// The sizes of a case, and what its queries see.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) seq: usize,
    pub(crate) head_dim: usize,
    /// Lengths of documents; they repeat until the row is full.
    pub(crate) documents: Vec<usize>,
    pub(crate) window: Option<usize>,
    pub(crate) softcap: Option<f32>,
}

impl Case {
    pub(crate) fn causal([batch, heads, kv_heads, seq, head_dim]: [usize; 5]) -> Self {
        let documents = vec![seq];
        Self { batch, heads, kv_heads, seq, head_dim, documents, window: None, softcap: None }
    }

    fn mask(&self, device: &Device) -> AttentionMask {
        let mut first = Vec::new();
        for length in self.documents.iter().cycle() {
            if first.len() >= self.seq {
                break;
            }
            first.extend(std::iter::repeat_n(first.len() as i32, *length));
        }
        first.truncate(self.seq);
        let first = Tensor::<1, Int>::from_data(first.repeat(self.batch).as_slice(), device);
        let mask = AttentionMask::documents(first.reshape([self.batch, self.seq]));
        match self.window {
            Some(width) => mask.window(width),
            None => mask,
        }
    }

    fn scores(&self) -> Scores {
        // Large enough for the softmax to be uneven and for a cap to bend.
        Scores { scale: 3.0 * (self.head_dim as f32).powf(-0.5), softcap: self.softcap }
    }

    fn query_shape(&self) -> [usize; 4] {
        [self.batch, self.heads, self.seq, self.head_dim]
    }

    fn key_shape(&self) -> [usize; 4] {
        [self.batch, self.kv_heads, self.seq, self.head_dim]
    }

    pub(crate) fn inputs(&self) -> [Tensor<1>; 3] {
        let [q, k] = [self.query_shape(), self.key_shape()].map(|s| s.iter().product());
        [noise([q], 1), noise([k], 2), noise([k], 3)]
    }

    pub(crate) fn run(
        &self,
        f: fn(Tensor<4>, Tensor<4>, Tensor<4>, &AttentionMask, Scores) -> Attention,
        [q, k, v]: [Tensor<1>; 3],
    ) -> Attention {
        let mask = self.mask(&q.device().inner());
        let [q, k, v] = [
            q.reshape(self.query_shape()),
            k.reshape(self.key_shape()),
            v.reshape(self.key_shape()),
        ];
        f(q, k, v, &mask, self.scores())
    }

    fn check(&self) {
        check(
            &format!("{self:?}"),
            self.inputs(),
            |inputs| self.run(attention, inputs).output,
            |inputs| self.run(reference::attention, inputs).output,
            2e-6,
        );
    }
}

#[test]
fn odd_sizes() {
    for sizes in [
        [1, 1, 1, 1, 16],
        [2, 4, 2, 67, 16],
        [1, 6, 1, 131, 24],
        [1, 2, 2, 257, 64],
        [1, 1, 1, 129, 128],
        [1, 2, 1, 70, 256],
        [1, 3, 3, 37, 5],
    ] {
        Case::causal(sizes).check();
    }
}

#[test]
fn documents() {
    let base = Case::causal([2, 4, 2, 200, 16]);
    for documents in [vec![1], vec![5], vec![1, 199], vec![3, 1, 70, 1, 40], vec![128, 72]] {
        Case { documents, ..base.clone() }.check();
    }
    Case { documents: vec![10], ..Case::causal([1, 2, 1, 400, 16]) }.check();
}

#[test]
fn windows_and_caps() {
    let base = Case::causal([1, 4, 2, 150, 24]);
    for window in [1, 7, 64, 149, 1000] {
        Case { window: Some(window), ..base.clone() }.check();
    }
    Case { softcap: Some(2.5), ..base.clone() }.check();
    Case { softcap: Some(50.0), window: Some(33), documents: vec![60, 1], ..base }.check();
}

#[test]
fn half_precision() {
    // Output: rounded once. Gradients: the forward's output and their own last step are rounded.
    for sizes in [[1, 4, 2, 67, 16], [1, 2, 1, 130, 64]] {
        let case = Case::causal(sizes);
        check_half(
            &format!("{case:?}"),
            case.inputs(),
            |inputs| case.run(attention, inputs).output,
            |inputs| case.run(reference::attention, inputs).output,
            2.0,
        );
    }
}

#[test]
fn log_sum_exp_and_rows_that_see_nothing() {
    let [batch, heads, queries, keys, head_dim] = [2, 2, 70, 140, 16];
    let int = |values: Vec<i32>, device: &Device| {
        Tensor::<1, Int>::from_data(values.as_slice(), device).reshape([batch, queries])
    };
    for device in devices() {
        // Every third query sees nothing; others see up to 50 keys somewhere in the middle.
        let rows = || (0..(batch * queries) as i32).map(|i| (i, i % 3 == 0));
        let first = rows().map(|(i, _)| i % 90).collect();
        let end_of = |(i, empty)| if empty { i % 90 } else { i % 90 + 1 + i % 50 };
        let end = rows().map(end_of).collect();
        let mask = AttentionMask::new(int(first, &device), int(end, &device));
        let x = |seq, seed| noise([batch, heads, seq, head_dim], seed).to_device(&device);
        let (q, k, v) = (x(queries, 1), x(keys, 2), x(keys, 3));
        let scores = Scores::scaled(head_dim);
        let got = attention(q.clone(), k.clone(), v.clone(), &mask, scores);
        let want = reference::attention(q.clone(), k.clone(), v.clone(), &mask, scores);
        assert!(distance(&values(got.output.clone()), &values(want.output)) < 2e-6);
        let sums = values(got.log_sum_exp.clone());
        for (got, want) in sums.iter().zip(values(want.log_sum_exp)) {
            assert!(*got == want || (got - want).abs() < 1e-5, "{got} instead of {want}");
        }
        assert!(sums.contains(&f64::NEG_INFINITY));
        let d_out = x(queries, 4);
        let got = attention_backward(q, k, v, &mask, scores, got, d_out);
        let wide =
            |seq, seed| noise([batch, heads, seq, head_dim], seed).cast(DType::F64).autodiff();
        let leaves = [(queries, 1), (keys, 2), (keys, 3)].map(|(n, s)| wide(n, s).require_grad());
        let [q, k, v] = leaves.clone();
        let mask = AttentionMask::new(
            int(rows().map(|(i, _)| i % 90).collect(), &Device::flex()),
            int(rows().map(end_of).collect(), &Device::flex()),
        );
        let output = reference::attention(q, k, v, &mask, scores).output;
        let grads = (output * wide(queries, 4)).sum().backward();
        for (got, leaf) in got.into_iter().zip(leaves) {
            let d = distance(&values(got), &values(leaf.grad(&grads).unwrap()));
            assert!(d < 1e-5, "{device:?}: a gradient differs by {d:e}");
        }
    }
}

/// Attention over two halves of the keys, merged by the log-sum-exp, is attention over all of them;
/// so are the gradients, from the merged output and log-sum-exp.
#[test]
fn parts_merge_to_the_whole() {
    let [heads, seq, head_dim, half] = [2, 150, 16, 70];
    for device in devices() {
        let x = |seed| noise([1, heads, seq, head_dim], seed).to_device(&device);
        let (q, k, v, d_out) = (x(1), x(2), x(3), x(4));
        let scores = Scores::scaled(head_dim);
        let causal = AttentionMask::causal(1, seq, &device);
        let whole = attention(q.clone(), k.clone(), v.clone(), &causal, scores);
        let ranges = [0..half, half..seq];
        let masks = ranges.clone().map(|keys| {
            let shifted = causal.end_key() - keys.start as i64;
            AttentionMask::new(causal.first_key(), shifted.clamp(0, keys.len() as i64))
        });
        let part = |x: &Tensor<4>, i: usize| x.clone().slice([0..1, 0..heads, ranges[i].clone()]);
        let [a, b] =
            [0, 1].map(|i| attention(q.clone(), part(&k, i), part(&v, i), &masks[i], scores));
        let lse = (a.log_sum_exp.clone().exp() + b.log_sum_exp.clone().exp()).log();
        let weight =
            |part: &Attention| (part.log_sum_exp.clone() - lse.clone()).exp().unsqueeze_dim(3);
        let output = a.output.clone() * weight(&a) + b.output.clone() * weight(&b);
        let want = values(whole.output.clone());
        assert!(distance(&values(output.clone()), &want) < 2e-6);
        let merged = Attention { output, log_sum_exp: lse };
        let backward = |i: usize| {
            let [k, v] = [part(&k, i), part(&v, i)];
            attention_backward(q.clone(), k, v, &masks[i], scores, merged.clone(), d_out.clone())
        };
        let ([dq_a, dk_a, dv_a], [dq_b, dk_b, dv_b]) = (backward(0), backward(1));
        let got = [dq_a + dq_b, Tensor::cat(vec![dk_a, dk_b], 2), Tensor::cat(vec![dv_a, dv_b], 2)];
        let want = attention_backward(q, k, v, &causal, scores, whole, d_out);
        for (got, want) in got.into_iter().zip(want) {
            assert!(distance(&values(got), &values(want)) < 1e-5);
        }
    }
}

#[test]
fn inputs_need_not_be_contiguous() {
    let case = Case::causal([2, 3, 3, 50, 16]);
    let swapped = |f: fn(Tensor<4>, Tensor<4>, Tensor<4>, &AttentionMask, Scores) -> Attention,
                   inputs: [Tensor<1>; 3]| {
        let mask = case.mask(&inputs[0].device().inner());
        let [q, k, v] = inputs.map(|x| x.reshape([2, 50, 16, 3]).swap_dims(1, 3).swap_dims(2, 3));
        f(q, k, v, &mask, case.scores()).output
    };
    check(
        "strided",
        case.inputs(),
        |inputs| swapped(attention, inputs),
        |inputs| swapped(reference::attention, inputs),
        2e-6,
    );
}

#[test]
fn same_bits_every_time() {
    for device in devices() {
        let case = Case::causal([1, 4, 1, 1100, 16]);
        let run = || {
            let leaves = case.inputs().map(|x| x.to_device(&device).autodiff().require_grad());
            let grads = case.run(attention, leaves.clone()).output.sum().backward();
            leaves.map(|x| values(x.grad(&grads).unwrap().cast(DType::F32)))
        };
        assert_eq!(run(), run());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_shape_and_layout(
        batch in 1_usize..3,
        kv_heads in 1_usize..3,
        group in 1_usize..4,
        seq in 1_usize..180,
        head_dim in prop::sample::select(vec![5_usize, 16, 24]),
        documents in prop::collection::vec(1_usize..60, 1..5),
        window in prop::option::of(1_usize..200),
        softcap in prop::option::weighted(0.3, 1.0_f32..30.0),
    ) {
        let heads = kv_heads * group;
        Case { batch, heads, kv_heads, seq, head_dim, documents, window, softcap }.check();
    }
}

#[test]
fn a_broken_row_is_not_taken_for_one_that_sees_nothing() {
    for device in devices() {
        let x = |seed| noise([1, 1, 3, 16], seed).to_device(&device);
        let broken = Tensor::<1>::from_floats([f32::NAN, 1.0, 1.0], &device).reshape([1, 1, 3, 1]);
        let mask = AttentionMask::causal(1, 3, &device);
        let got = attention(x(1) * broken, x(2), x(3), &mask, Scores::scaled(16));
        let sums = values(got.log_sum_exp);
        assert!(sums[0].is_nan() && sums[1].is_finite(), "{device:?}: {sums:?}");
        assert!(values(got.output)[0].is_nan());
    }
}
