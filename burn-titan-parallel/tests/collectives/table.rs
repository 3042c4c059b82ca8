//! The table: what is checked of a communicator, whichever it is.

use std::ops::Range;

use burn::tensor::DType;
use burn_titan_parallel::{Buffer, Communicator, Reduction, Work, World};

use crate::reference::{Combined, DTYPES, buffer, counts, data};

/// An operation and the checksum of what it gave this rank.
pub type Outcome = (String, u32);

/// How the elements are shared out: uneven, and one rank of three or more has none.
const WEIGHTS: [usize; 7] = [3, 1, 0, 5, 2, 7, 1];

/// Checks all ranks of a world, and two groups of some of them, twice; and ends it.
pub fn check_world(world: &World) -> Vec<Outcome> {
    let (rank, size) = (world.rank(), world.size());
    let all: Vec<usize> = (0..size).collect();
    let ranks = world.communicator("all", &all).unwrap();
    assert_eq!((ranks.rank(), ranks.size()), (rank, size));
    let mut outcomes = check_all(&*ranks);
    assert_eq!(outcomes, check_all(&*ranks), "from run to run");

    // Ranks of the same parity, the last of them first.
    let members: Vec<usize> = all.into_iter().rev().filter(|r| r % 2 == rank % 2).collect();
    let group = world.communicator("parity", &members).unwrap();
    assert_eq!(members[group.rank()], rank);
    assert_eq!(members.len(), group.size());
    outcomes.extend(check(&*group, DType::BF16, 10_007));
    ranks.barrier().wait().unwrap();
    drop((ranks, group));
    world.close().unwrap();
    outcomes
}

/// Every operation of a communicator, in every dtype and size.
pub fn check_all(ranks: &dyn Communicator) -> Vec<Outcome> {
    let cases = DTYPES.into_iter().flat_map(|dtype| counts(dtype).map(|count| (dtype, count)));
    cases.flat_map(|(dtype, count)| check(ranks, dtype, count)).collect()
}

/// Looks at the values of a result; the text says whose.
type Check = Box<dyn Fn(&[f64], &str)>;

/// An operation under way, and how its result is checked.
struct Case {
    name: String,
    work: Work<Buffer>,
    check: Check,
}

/// Every operation of a communicator at one size. All are begun before the first is waited for, in another
/// order.
fn check(ranks: &dyn Communicator, dtype: DType, count: usize) -> Vec<Outcome> {
    let mut cases = reductions(ranks, dtype, count);
    cases.extend(moves(ranks, dtype, count));
    let messages = messages(ranks, dtype, count);
    let barrier = ranks.barrier();
    let outcomes = cases.into_iter().rev().map(|case| {
        let place = format!("rank {} of {}", ranks.rank(), ranks.size());
        let name = format!("{} of {count} x {dtype:?}, {place}", case.name);
        let result = case.work.wait().unwrap_or_else(|error| panic!("{name}: {error}"));
        let (values, checksum) = read(result, dtype);
        (case.check)(&values, &name);
        (name, checksum)
    });
    let outcomes = outcomes.collect();
    barrier.wait().unwrap();
    messages.into_iter().for_each(|sent| sent.wait().unwrap());
    outcomes
}

fn reductions(ranks: &dyn Communicator, dtype: DType, count: usize) -> Vec<Case> {
    let whole = || buffer(dtype, &data(dtype, ranks.rank(), 0..count));
    let (lengths, own) = shares(count, ranks);
    let mut cases = Vec::new();
    for reduction in Reduction::ALL {
        let combined = Combined::of(dtype, count, ranks.size());
        cases.push(Case {
            name: format!("all_reduce ({reduction})"),
            work: ranks.all_reduce(whole(), reduction),
            check: Box::new(move |got, case| {
                assert_eq!(got.len(), count, "{case}");
                combined.check(reduction, got, 0, case);
            }),
        });
        let (own, combined) = (own.clone(), Combined::of(dtype, count, ranks.size()));
        cases.push(Case {
            name: format!("reduce_scatter ({reduction})"),
            work: ranks.reduce_scatter(whole(), &lengths, reduction),
            check: Box::new(move |got, case| {
                assert_eq!(got.len(), own.len(), "{case}");
                combined.check(reduction, got, own.start, case);
            }),
        });
    }
    cases
}

fn moves(ranks: &dyn Communicator, dtype: DType, count: usize) -> Vec<Case> {
    let (rank, size) = (ranks.rank(), ranks.size());
    let (lengths, _) = shares(count, ranks);
    let mut cases = Vec::new();
    let mut case = |name: &str, work, want: Vec<f64>| {
        let check = Box::new(move |got: &[f64], case: &str| assert!(got == want, "{case}"));
        cases.push(Case { name: name.to_string(), work, check });
    };

    let shard = data(dtype, rank, 0..lengths[rank]);
    let all = (0..size).flat_map(|r| data(dtype, r, 0..lengths[r])).collect();
    case("all_gather", ranks.all_gather(buffer(dtype, &shard), &lengths), all);

    // What goes from one rank to another has a length of its own.
    let length = |from: usize, to: usize| count * WEIGHTS[(from + 2 * to) % 7] / 20;
    let range = |from: usize, to: usize| {
        let start: usize = (0..to).map(|to| length(from, to)).sum();
        start..start + length(from, to)
    };
    let send: Vec<usize> = (0..size).map(|to| length(rank, to)).collect();
    let receive: Vec<usize> = (0..size).map(|from| length(from, rank)).collect();
    let x = buffer(dtype, &data(dtype, rank, 0..send.iter().sum()));
    let received = (0..size).flat_map(|from| data(dtype, from, range(from, rank))).collect();
    case("all_to_all", ranks.all_to_all(x, &send, &receive), received);

    let root = count % size;
    let x = buffer(dtype, &data(dtype, rank, 0..count));
    case("broadcast", ranks.broadcast(x, root), data(dtype, root, 0..count));
    if size > 1 {
        let previous = (rank + size - 1) % size;
        let like = || buffer(dtype, &vec![0.0; count]);
        case("receive", ranks.receive(like(), previous), data(dtype, previous, 0..count));
        case("second receive", ranks.receive(like(), previous), data(dtype, rank, 0..count));
    }
    cases
}

/// Two messages to the next rank: what is this rank's, and what is the next one's.
fn messages(ranks: &dyn Communicator, dtype: DType, count: usize) -> Vec<Work<()>> {
    if ranks.size() == 1 {
        return Vec::new();
    }
    let (rank, next) = (ranks.rank(), (ranks.rank() + 1) % ranks.size());
    let send = |of: usize| ranks.send(buffer(dtype, &data(dtype, of, 0..count)), next);
    vec![send(rank), send(next)]
}

/// The lengths of the ranks' shards, and this rank's range.
fn shares(count: usize, ranks: &dyn Communicator) -> (Vec<usize>, Range<usize>) {
    let weights = &WEIGHTS[..ranks.size()];
    let total: usize = weights.iter().sum();
    let end = |rank: usize| count * weights[..rank].iter().sum::<usize>() / total;
    let lengths = (0..weights.len()).map(|rank| end(rank + 1) - end(rank)).collect();
    (lengths, end(ranks.rank())..end(ranks.rank() + 1))
}

/// The values of a result, and a checksum of its bits.
fn read(result: Buffer, dtype: DType) -> (Vec<f64>, u32) {
    let data = match result {
        Buffer::Float(x) => x.into_data(),
        Buffer::Int(x) => x.into_data(),
    };
    assert_eq!(data.dtype(), dtype);
    let checksum = crc32c::crc32c(data.as_bytes());
    (data.iter::<f64>().collect(), checksum)
}
