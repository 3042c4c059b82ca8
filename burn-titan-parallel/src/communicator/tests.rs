//! Tensors between ranks that are threads.

use std::sync::Arc;
use std::time::Duration;

use burn::tensor::{DType, Device, Int, Tensor};

use super::*;
use crate::host::{Group, LocalLinks, Queue};

fn on_ranks<T: Send>(size: usize, f: impl Fn(HostCommunicator) -> T + Sync) -> Vec<T> {
    let f = &f;
    std::thread::scope(|scope| {
        let rank = |links: LocalLinks| {
            let timeout = Duration::from_secs(20);
            let group = Group::new(Arc::new(links), (0..size).collect(), 1, timeout);
            scope.spawn(move || f(HostCommunicator::new(Queue::new(group).unwrap())))
        };
        let ranks: Vec<_> = LocalLinks::world(size).into_iter().map(rank).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn floats(rank: usize, count: usize, dtype: DType) -> Tensor<1> {
    let values: Vec<f32> = (0..count).map(|i| (i + 10 * rank) as f32 * 0.25).collect();
    Tensor::<1>::from_floats(values.as_slice(), &Device::flex()).cast(dtype)
}

fn ints(rank: usize, count: usize) -> Tensor<1, Int> {
    let values: Vec<i32> = (0..count as i32).map(|i| i * (rank as i32 + 1)).collect();
    Tensor::<1, Int>::from_data(values.as_slice(), (&Device::flex(), DType::I32))
}

fn values(x: Tensor<1>) -> Vec<f32> {
    x.into_data().convert::<f32>().try_into_vec::<f32>().unwrap()
}

#[test]
fn floats_of_every_dtype_and_integers() {
    for (size, count) in [(1, 3), (2, 0), (2, 1), (3, 331), (4, 40_001)] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let got = on_ranks(size, |ranks| {
                let x = floats(ranks.rank(), count, dtype);
                let lengths: Vec<usize> = (0..size)
                    .map(|r| crate::placement::shard_range(count, size, r).len())
                    .collect();
                let communicator: &dyn Communicator = &ranks;
                let sum = communicator.all_reduce_sum(x.clone()).wait().unwrap();
                let shard = communicator.reduce_scatter_sum(x, &lengths).wait().unwrap();
                let all = communicator.all_gather_floats(shard, &lengths).wait().unwrap();
                assert_eq!((sum.dtype(), all.dtype()), (dtype, dtype));
                (values(sum), values(all))
            });
            let inputs: Vec<Vec<f32>> =
                (0..size).map(|r| values(floats(r, count, dtype))).collect();
            let want: Vec<f32> = (0..count).map(|i| inputs.iter().map(|x| x[i]).sum()).collect();
            let want = Tensor::<1>::from_floats(want.as_slice(), &Device::flex()).cast(dtype);
            let want = values(want);
            assert!(got.iter().all(|(sum, all)| *sum == want && *all == want), "{size} {count}");
        }
    }
    let got = on_ranks(3, |ranks| {
        let x = Buffer::from(ints(ranks.rank(), 7));
        let most = ranks.all_reduce(x, Reduction::Max).wait().unwrap().int();
        most.into_data().try_into_vec::<i32>().unwrap()
    });
    assert!(got.iter().all(|x| *x == [0, 3, 6, 9, 12, 15, 18]));
}

#[test]
fn messages_between_two_ranks_overtake_nothing() {
    let got = on_ranks(3, |ranks| {
        let (rank, like) = (ranks.rank(), || Buffer::from(floats(0, 5, DType::F32)));
        // Everybody waits for a message before it sends one, while a collective is under way.
        let sum = ranks.all_reduce(like(), Reduction::Sum);
        let (next, previous) = ((rank + 1) % 3, (rank + 2) % 3);
        let received = ranks.receive(like(), previous);
        let sent = ranks.send(floats(rank, 5, DType::F32).into(), next);
        let second = ranks.send(floats(rank + 7, 5, DType::F32).into(), next);
        let received = [received.wait().unwrap(), ranks.receive(like(), previous).wait().unwrap()];
        sent.wait().unwrap();
        second.wait().unwrap();
        ranks.barrier().wait().unwrap();
        assert_eq!(values(sum.wait().unwrap().float())[4], 3.0);
        received.map(|x| values(x.float())[0])
    });
    assert_eq!(got, [[5.0, 22.5], [0.0, 17.5], [2.5, 20.0]]);
}

#[test]
fn what_cannot_be_exchanged_is_refused() {
    let errors = on_ranks(2, |ranks| {
        let wide = floats(0, 2, DType::F64);
        let dtype = ranks.all_reduce(wide.into(), Reduction::Sum).wait().unwrap_err();
        let rank = ranks.send(floats(0, 2, DType::F32).into(), 2).wait().unwrap_err();
        [dtype.to_string(), rank.to_string()]
    });
    assert_eq!(
        errors[0],
        [
            "tensors of F64 are not exchanged: cast them to f32, f16, bf16, i32 or u8",
            "rank 2 is no peer in a group of 2 ranks"
        ]
    );
}

#[test]
fn int8_blocks_are_off_by_half_a_scale_for_each_rank() {
    let block = 32;
    for (size, count) in [(1, 70), (2, 1), (3, 331), (4, 3), (4, 10_007)] {
        let lengths: Vec<usize> =
            (0..size).map(|r| crate::placement::shard_range(count, size, r).len()).collect();
        let whole = |rank: usize| {
            let x =
                |i: usize| ((i * 37 + rank * 101) as f32 * 0.61).sin() * (1.0 + (i % 97) as f32);
            Tensor::<1>::from_floats(
                (0..count).map(x).collect::<Vec<_>>().as_slice(),
                &Device::flex(),
            )
        };
        let got = on_ranks(size, |ranks| {
            let rank = ranks.rank();
            let range = crate::placement::shard_range(count, size, rank);
            let shard = whole(0).slice(range);
            let all = all_gather_quantized(&ranks, shard, &lengths, block);
            let sum = reduce_scatter_quantized(&ranks, whole(rank), &lengths, block);
            (values(all.wait().unwrap()), values(sum.wait().unwrap()))
        });
        // The largest magnitude of the block of each element, in each rank's range, over 127.
        let scale = |x: &[f32], i: usize| {
            let mut start = 0;
            let length = lengths.iter().find(|length| {
                start += **length;
                i < start
            });
            let start = start - length.unwrap();
            let first = start + (i - start) / block * block;
            let end = (first + block).min(start + length.unwrap());
            x[first..end].iter().fold(0.0_f32, |m, x| m.max(x.abs())) / 127.0
        };
        let inputs: Vec<Vec<f32>> = (0..size).map(|rank| values(whole(rank))).collect();
        let sums: Vec<f32> = got.iter().flat_map(|(_, sum)| sum.clone()).collect();
        assert_eq!(sums.len(), count);
        let mut worst = 0.0_f32;
        for i in 0..count {
            for (all, _) in &got {
                assert_eq!(all[i].to_bits(), got[0].0[i].to_bits());
                assert!((all[i] - inputs[0][i]).abs() <= 0.501 * scale(&inputs[0], i));
            }
            let want: f32 = inputs.iter().map(|x| x[i]).sum();
            let bound: f32 = inputs.iter().map(|x| 0.501 * scale(x, i)).sum::<f32>() + 1e-4;
            assert!((sums[i] - want).abs() <= bound, "{size} {count} {i}");
            worst = worst.max((sums[i] - want).abs() / bound);
        }
        assert!(count < 100 || worst > 0.2, "int8 numbers were sent: {worst}");
    }
}
