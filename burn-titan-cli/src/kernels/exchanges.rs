//! NCCL in a world of one: every operation goes through the library, and gives back what it was given.

use burn::tensor::{DType, Device};
use burn_titan_core::trainer::TrainError;
use burn_titan_kernels::device::is_cuda;
use burn_titan_parallel::{Buffer, Reduction, Work, World, nccl};

use super::Checker;
use super::compare::{Difference, distance, noise, values};

/// Elements of what is exchanged.
const LENGTH: usize = 1009;

/// Checks nothing where there is no NCCL.
pub fn check(checker: &mut Checker) -> Result<(), TrainError> {
    if !is_cuda(&checker.device) || nccl::version().is_err() {
        return Ok(());
    }
    for dtype in checker.dtypes.clone() {
        checker.check("nccl", "a world of one", dtype, |device| {
            operations(dtype, device).unwrap_or_else(|cause| panic!("{cause}"))
        })?;
    }
    Ok(())
}

fn operations(
    dtype: DType,
    device: &Device,
) -> Result<Vec<Difference>, Box<dyn std::error::Error>> {
    let world = World::alone().with_nccl(device)?;
    let one = world.communicator("check", &[0])?;
    let x = noise([LENGTH], 0).to_device(device).cast(dtype);
    let given = || Buffer::from(x.clone());
    let results = [
        ("all_reduce", one.all_reduce(given(), Reduction::Sum)),
        ("largest", one.all_reduce(given(), Reduction::Max)),
        ("all_gather", one.all_gather(given(), &[LENGTH])),
        ("reduce_scatter", one.reduce_scatter(given(), &[LENGTH], Reduction::Sum)),
        ("all_to_all", one.all_to_all(given(), &[LENGTH], &[LENGTH])),
        ("broadcast", one.broadcast(given(), 0)),
    ];
    let want = values(x.clone());
    let difference = |(of, result): (_, Work<Buffer>)| {
        let error = distance(&values(result.wait()?.float()), &want);
        Ok(Difference { of, error, bound: 0.0 })
    };
    results.into_iter().map(difference).collect()
}
