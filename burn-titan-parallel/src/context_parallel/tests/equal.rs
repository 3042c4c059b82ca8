//! Outputs and gradients are those of one rank.

use std::iter::zip;

use super::*;

/// Documents, windows and caps for a sequence that is cut into chunks by so many ranks.
fn variants(case: &Case) -> Vec<Case> {
    let seq = case.seq;
    let border = case.shards().ranges(0)[0].end;
    let second = case.shards().ranges(case.ranks - 1)[0].end;
    // Documents of one token; some that begin exactly at the border of a chunk; a long one.
    let rows = [vec![border, 1, 1], vec![second - 1, 1, 2, seq / 4]];
    let documents = packed(&[&rows[0], &rows[1]], seq);
    let of_one = packed(&[&vec![1; seq], &[seq / 2]], seq);
    let with = |positions: &Vec<u32>, window, softcap| Case {
        positions: positions.clone(),
        window,
        softcap,
        ..case.clone()
    };
    vec![
        case.clone(),
        with(&documents, None, Some(2.0)),
        with(&of_one, None, None),
        with(&documents, Some(7), None),
        with(&case.positions, Some(seq / 3), None),
        with(&case.positions, Some(1), None),
        with(&case.positions, Some(0), None),
    ]
}

fn cases(ranks: impl Iterator<Item = usize>) -> Vec<Case> {
    let sizes = ranks.flat_map(|ranks| [129, 37, 16].map(|seq| (ranks, seq)));
    let cases = sizes.flat_map(|(ranks, seq)| {
        [(10, 5), (4, 1)].map(|(heads, kv_heads)| Case::new(ranks, seq, heads, kv_heads))
    });
    cases.flat_map(|case| variants(&case)).collect()
}

#[test]
fn many_ranks_compute_what_one_does() {
    let (mut worst, mut skipped) = (0.0_f32, 0);
    for case in cases(2..6) {
        let want = case.alone(case.inputs());
        for method in METHODS {
            for (rank, got) in case.on_ranks(method).iter().enumerate() {
                for (i, (got, want)) in zip(got, &want).enumerate() {
                    let (got, most) = (values(got), largest(want));
                    let want = values(&part(want, &case.shards(), rank));
                    assert_eq!(got.len(), want.len());
                    for (got, want) in zip(got, want) {
                        let off = (got - want).abs();
                        assert!(off <= 1e-5 * most, "{i}: {got} for {want}: {method:?} {case:?}");
                        worst = worst.max(off / most.max(f32::MIN_POSITIVE));
                    }
                }
            }
        }
        let ranks = || 0..case.ranks;
        let seen =
            |rank: usize| ranks().filter(|of| case.visible(rank).keys_of(*of).is_some()).count();
        skipped += ranks().map(|rank| case.ranks - seen(rank)).sum::<usize>();
    }
    assert!(skipped > 500, "{skipped} blocks");
}

#[test]
fn a_rank_alone_changes_no_bit() {
    for case in cases(1..2) {
        let want = case.alone(case.inputs()).map(|x| values(&x));
        for method in METHODS {
            let got = case.on_rank(&Peers::alone(), method).map(|x| values(&x));
            assert!(zip(&got, &want).all(|(a, b)| same_bits(a, b)), "{case:?}");
        }
    }
}

#[test]
fn two_runs_are_bitwise_equal() {
    let cases = [Case::new(3, 129, 10, 5), Case::new(4, 37, 4, 1)];
    for case in cases.iter().flat_map(|case| variants(case).into_iter().take(4)) {
        for dtype in [DType::F32, DType::BF16] {
            let case = Case { dtype, ..case.clone() };
            for method in METHODS {
                let bits = |results: Vec<Results>| -> Vec<u32> {
                    results.iter().flatten().flat_map(values).map(f32::to_bits).collect()
                };
                assert!(bits(case.on_ranks(method)) == bits(case.on_ranks(method)), "{case:?}");
            }
        }
    }
}

/// Numbers are rounded to bf16, by `u = 2^-8` of themselves at most, only as follows; all else is f32. `V`, `K` are
/// the largest magnitudes of values and keys, `G` is the largest sum of the magnitudes of a query's gradient,
/// `P` are the exact probabilities.
///
/// - The output: once in each block, and once merged, each by `u V` at most, since weights of blocks sum to 1.
/// - So `D = rowsum(dO O)` is off by `2 u G V`, and with it `dS = P (dO V^T - D)` by `2 u G V P`; besides, `|dS|` is
///   `2 G V P` at most.
/// - `dQ`, `dK`: once in each block or rank, and once summed: by `4 u G V scale` times `P K`, which is `K` at most, or
///   `P^T |Q|`, and by what comes from `dS`, half as much.
/// - `dV`: once in each block, and once summed, by `2 u P^T |dO|`.
///
/// `P^T |x|` is the gradient of the values that belongs to the output's gradient `|x|`.
#[test]
fn bf16_is_off_by_its_roundings() {
    const SLACK: f32 = 1.01;
    let u = 2.0_f32.powi(-8) * SLACK;
    let mut worst = [0.0_f32; 4];
    let cases = [Case::new(2, 37, 10, 5), Case::new(3, 129, 4, 1), Case::new(5, 129, 10, 5)];
    for case in cases.iter().flat_map(|case| variants(case).into_iter().take(5)) {
        let rounded = Case { dtype: DType::BF16, ..case };
        let exact = rounded.inputs().map(|x| x.cast(DType::F32));
        let case = Case { dtype: DType::F32, ..rounded.clone() };
        let want = case.alone(exact.clone());
        let [query, key, value, gradient] = exact;
        let probabilities_times = |x: &Tensor<4>| {
            let [_, _, _, d_value] =
                case.alone([query.clone(), key.clone(), value.clone(), x.clone().abs()]);
            d_value
        };
        let v = largest(&value);
        let g = gradient.clone().abs().sum_dim(3).max().into_scalar::<f32>();
        let scale = case.scores().scale;
        let ones = want.each_ref().map(Tensor::ones_like);
        let bounds = [
            ones[0].clone() * (2.0 * u * v),
            ones[1].clone() * (6.0 * u * g * v * scale * largest(&key)),
            probabilities_times(&query) * (6.0 * u * g * v * scale),
            probabilities_times(&gradient) * (2.0 * u),
        ];
        for method in METHODS {
            for (rank, got) in rounded.on_ranks(method).iter().enumerate() {
                for (i, got) in got.iter().enumerate() {
                    assert_eq!(got.dtype(), DType::BF16);
                    let own = |x: &Tensor<4>| values(&part(x, &case.shards(), rank));
                    for ((got, want), bound) in
                        zip(zip(values(got), own(&want[i])), own(&bounds[i]))
                    {
                        let off = (got - want).abs();
                        assert!(
                            off <= bound + 1e-6,
                            "{i}: {got} for {want}, {bound}: {method:?} {case:?}"
                        );
                        worst[i] = worst[i].max(off / (bound + 1e-6));
                    }
                }
            }
        }
    }
    assert!(worst.iter().all(|worst| *worst > 0.01), "the bounds say something: {worst:?}");
}

fn largest(x: &Tensor<4>) -> f32 {
    values(x).into_iter().fold(0.0, |most, x| most.max(x.abs()))
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && zip(a, b).all(|(a, b)| a.to_bits() == b.to_bits())
}
