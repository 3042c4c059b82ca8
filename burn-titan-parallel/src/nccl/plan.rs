//! The calls of NCCL that an operation becomes.
//!
//! NCCL has no operations of uneven lengths. An uneven all-gather is a broadcast from every rank, an uneven
//! reduce-scatter a reduction to every rank, an all-to-all messages between all pairs; each is one group of calls,
//! which NCCL carries out together.

/// An operation, with lengths and counts in elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Everybody gets the reduction of this many elements.
    AllReduce(usize),
    /// Everybody gets all shards, of these lengths.
    AllGather(Vec<usize>),
    /// Everybody gets its range of the reduction; the lengths of the ranges.
    ReduceScatter(Vec<usize>),
    /// Everybody gets a range of every buffer; the lengths to send and to receive.
    AllToAll(Vec<usize>, Vec<usize>),
    /// Everybody gets so many elements of a rank.
    Broadcast {
        /// How many.
        count: usize,
        /// Whose.
        root: usize,
    },
}

/// A call of NCCL. `from` and `into` are the first elements in the input and in the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NcclCall {
    /// `ncclAllReduce`.
    AllReduce {
        /// Elements.
        count: usize,
    },
    /// `ncclAllGather`.
    AllGather {
        /// Elements of each rank.
        count: usize,
    },
    /// `ncclReduceScatter`.
    ReduceScatter {
        /// Elements for each rank.
        count: usize,
    },
    /// `ncclBroadcast`.
    Broadcast {
        /// In the root's input.
        from: usize,
        /// In everybody's output.
        into: usize,
        /// Elements.
        count: usize,
        /// Who sends.
        root: usize,
    },
    /// `ncclReduce`.
    Reduce {
        /// In everybody's input.
        from: usize,
        /// In the root's output.
        into: usize,
        /// Elements.
        count: usize,
        /// Who gets the result.
        root: usize,
    },
    /// `ncclSend`.
    Send {
        /// In the input.
        from: usize,
        /// Elements.
        count: usize,
        /// Who gets them.
        to: usize,
    },
    /// `ncclRecv`.
    Receive {
        /// In the output.
        into: usize,
        /// Elements.
        count: usize,
        /// Who sends them.
        sender: usize,
    },
}

/// The calls of a rank, all in one group; none where nothing is exchanged.
pub fn plan(operation: &Operation) -> Vec<NcclCall> {
    let calls = match operation {
        Operation::AllReduce(count) => vec![NcclCall::AllReduce { count: *count }],
        Operation::AllGather(lengths) => match even(lengths) {
            Some(count) => vec![NcclCall::AllGather { count }],
            None => ranges(lengths)
                .map(|(root, into, count)| NcclCall::Broadcast { from: 0, into, count, root })
                .collect(),
        },
        Operation::ReduceScatter(lengths) => match even(lengths) {
            Some(count) => vec![NcclCall::ReduceScatter { count }],
            None => ranges(lengths)
                .map(|(root, from, count)| NcclCall::Reduce { from, into: 0, count, root })
                .collect(),
        },
        Operation::AllToAll(send, receive) => {
            let sends = ranges(send).map(|(to, from, count)| NcclCall::Send { from, count, to });
            let receives = ranges(receive).map(|(sender, into, count)| NcclCall::Receive {
                into,
                count,
                sender,
            });
            sends.chain(receives).collect()
        }
        Operation::Broadcast { count, root } => {
            vec![NcclCall::Broadcast { from: 0, into: 0, count: *count, root: *root }]
        }
    };
    calls.into_iter().filter(|call| call.count() > 0).collect()
}

impl NcclCall {
    /// Elements.
    pub fn count(self) -> usize {
        match self {
            Self::AllReduce { count }
            | Self::AllGather { count }
            | Self::ReduceScatter { count }
            | Self::Broadcast { count, .. }
            | Self::Reduce { count, .. }
            | Self::Send { count, .. }
            | Self::Receive { count, .. } => count,
        }
    }
}

/// The length that all have, if they have the same.
fn even(lengths: &[usize]) -> Option<usize> {
    let first = *lengths.first()?;
    lengths.iter().all(|length| *length == first).then_some(first)
}

/// Rank, first element and length of each range.
fn ranges(lengths: &[usize]) -> impl Iterator<Item = (usize, usize, usize)> {
    let mut start = 0;
    lengths.iter().enumerate().map(move |(rank, length)| {
        start += length;
        (rank, start - length, *length)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What NCCL does with the calls of all ranks, on integers: sums, and messages in the order of each pair.
    fn run(operations: &[Operation], inputs: &[Vec<u64>], outputs: &[usize]) -> Vec<Vec<u64>> {
        let plans: Vec<Vec<NcclCall>> = operations.iter().map(plan).collect();
        let mut results: Vec<Vec<u64>> = outputs.iter().map(|count| vec![0; *count]).collect();
        let sum = |from: usize, i: usize| inputs.iter().map(|input| input[from + i]).sum::<u64>();
        let sends = |rank: usize, peer: usize| {
            plans[rank].iter().filter_map(move |call| match *call {
                NcclCall::Send { from, count, to } if to == peer => Some((from, count)),
                _ => None,
            })
        };
        for (rank, plan) in plans.iter().enumerate() {
            let mut taken = vec![0; plans.len()];
            // Ranks make the same collectives in the same order.
            let collectives = |plan: &[NcclCall]| {
                let message = |call: &&NcclCall| {
                    matches!(call, NcclCall::Send { .. } | NcclCall::Receive { .. })
                };
                plan.iter().filter(|call| !message(call)).copied().collect::<Vec<_>>()
            };
            assert_eq!(collectives(plan), collectives(&plans[0]));
            let result = &mut results[rank];
            for call in plan {
                match *call {
                    NcclCall::AllReduce { count } => (0..count).for_each(|i| result[i] = sum(0, i)),
                    NcclCall::AllGather { count } => {
                        for (r, input) in inputs.iter().enumerate() {
                            result[r * count..(r + 1) * count].copy_from_slice(&input[..count]);
                        }
                    }
                    NcclCall::ReduceScatter { count } => {
                        (0..count).for_each(|i| result[i] = sum(rank * count, i));
                    }
                    NcclCall::Broadcast { from, into, count, root } => {
                        let part = &inputs[root][from..from + count];
                        result[into..into + count].copy_from_slice(part);
                    }
                    NcclCall::Reduce { from, into, count, root } if root == rank => {
                        (0..count).for_each(|i| result[into + i] = sum(from, i));
                    }
                    NcclCall::Receive { into, count, sender } => {
                        let (from, sent) = sends(sender, rank).nth(taken[sender]).unwrap();
                        taken[sender] += 1;
                        assert_eq!(sent, count, "{sender} to {rank}");
                        let part = &inputs[sender][from..from + count];
                        result[into..into + count].copy_from_slice(part);
                    }
                    NcclCall::Reduce { .. } | NcclCall::Send { .. } => {}
                }
            }
            for (sender, taken) in taken.into_iter().enumerate() {
                assert_eq!(sends(sender, rank).count(), taken, "{sender} to {rank}");
            }
        }
        results
    }

    fn inputs(size: usize, count: impl Fn(usize) -> usize) -> Vec<Vec<u64>> {
        let element = |rank: usize, i: usize| (1000 * rank + i) as u64;
        (0..size).map(|rank| (0..count(rank)).map(|i| element(rank, i)).collect()).collect()
    }

    #[test]
    fn even_and_uneven_lengths_give_the_same_operation() {
        for lengths in [vec![4], vec![3, 3, 3], vec![3, 0, 5, 1], vec![0, 0], vec![0, 7, 0]] {
            let (size, total) = (lengths.len(), lengths.iter().sum::<usize>());
            let x = inputs(size, |rank| lengths[rank]);
            let gather = vec![Operation::AllGather(lengths.clone()); size];
            assert_eq!(run(&gather, &x, &vec![total; size]), vec![x.concat(); size]);

            let x = inputs(size, |_| total);
            let sums: Vec<u64> = (0..total).map(|i| x.iter().map(|rank| rank[i]).sum()).collect();
            let all_reduce = vec![Operation::AllReduce(total); size];
            assert_eq!(run(&all_reduce, &x, &vec![total; size]), vec![sums.clone(); size]);
            let scatter = vec![Operation::ReduceScatter(lengths.clone()); size];
            assert_eq!(run(&scatter, &x, &lengths).concat(), sums);
        }
    }

    #[test]
    fn messages_meet_and_empty_ones_are_not_sent() {
        let length = |from: usize, to: usize| (from * 5 + to * 3) % 4;
        let size = 4;
        let send = |rank| (0..size).map(|to| length(rank, to)).collect::<Vec<_>>();
        let receive = |rank| (0..size).map(|from| length(from, rank)).collect::<Vec<_>>();
        let x = inputs(size, |rank| send(rank).iter().sum());
        let operations: Vec<Operation> =
            (0..size).map(|rank| Operation::AllToAll(send(rank), receive(rank))).collect();
        let outputs: Vec<usize> = (0..size).map(|rank| receive(rank).iter().sum()).collect();
        let want = |rank: usize| -> Vec<u64> {
            let part = |from: usize| {
                let start: usize = send(from)[..rank].iter().sum();
                x[from][start..start + length(from, rank)].to_vec()
            };
            (0..size).flat_map(part).collect()
        };
        let want: Vec<Vec<u64>> = (0..size).map(want).collect();
        assert_eq!(run(&operations, &x, &outputs), want);
        assert_eq!(plan(&Operation::AllToAll(vec![0, 0], vec![0, 0])), []);

        let x = inputs(3, |_| 2);
        let broadcast = vec![Operation::Broadcast { count: 2, root: 1 }; 3];
        assert_eq!(run(&broadcast, &x, &[2; 3]), vec![x[1].clone(); 3]);
    }
}
