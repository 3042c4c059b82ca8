//! `bench collective`: how fast ranks of this host exchange f32 tensors.
//!
//! `local`: the ranks are threads. `tcp`: they are processes, which this one starts: each runs the same
//! command, finds in its environment which rank it is, and measures; rank 0 prints. `mpi`: as `tcp`, but mpirun
//! starts them, and MPI exchanges. A rate is the bytes of the whole tensor over the time until this rank has the
//! result.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Tensor};
use burn_titan_core::trainer::TrainError;
use burn_titan_parallel::launch::{self, Flags, Place, Variables};
use burn_titan_parallel::placement::shard_range;
use burn_titan_parallel::{CommError, Reduction, World, WorldOptions};
use serde_json::{Value, json};

use super::arguments::{CollectiveArguments, CollectiveKind};
use super::measure::Timing;
use super::report;
use crate::output;

/// Runs that are not counted.
const WARM_UP: usize = 3;
/// How long a rank waits for another one.
const TIMEOUT: Duration = Duration::from_secs(60);

pub fn run(arguments: &CollectiveArguments) -> Result<(), TrainError> {
    #[cfg(feature = "mpi")]
    if arguments.communicator == CollectiveKind::Mpi {
        return mpi(arguments);
    }
    if arguments.communicator == CollectiveKind::Local || arguments.ranks == 1 {
        return local(arguments);
    }
    let flags = Flags { ranks: Some(arguments.ranks), ..Flags::default() };
    match launch::read(&flags, &Variables::of_process())? {
        Place::Host(host) => crate::ranks::run(&host),
        Place::Rank(launch) => one_of_many("tcp", &World::join(&launch, &options())?, arguments),
    }
}

/// One of the ranks that mpirun has started.
#[cfg(feature = "mpi")]
fn mpi(arguments: &CollectiveArguments) -> Result<(), TrainError> {
    match launch::read(&Flags::default(), &Variables::of_process())? {
        Place::Host(host) => crate::ranks::run(&host),
        Place::Rank(launch) => {
            one_of_many("mpi", &World::over_mpi(&launch, &options())?, arguments)
        }
    }
}

fn options() -> WorldOptions {
    WorldOptions { timeout: TIMEOUT, join_timeout: TIMEOUT, ..WorldOptions::default() }
}

/// Measures as one of the processes of a world.
fn one_of_many(
    communicator: &str,
    world: &World,
    arguments: &CollectiveArguments,
) -> Result<(), TrainError> {
    let rows = measure(world, arguments)?;
    world.close()?;
    let ranks = world.size();
    if world.rank() == 0 { print(communicator, ranks, arguments, &rows) } else { Ok(()) }
}

fn local(arguments: &CollectiveArguments) -> Result<(), TrainError> {
    let rows = std::thread::scope(|scope| {
        let rank = |world: World| scope.spawn(move || measure(&world, arguments));
        let ranks: Vec<_> = World::local(arguments.ranks, TIMEOUT).into_iter().map(rank).collect();
        let results = ranks
            .into_iter()
            .map(|rank| rank.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        results.collect::<Result<Vec<_>, _>>()
    })?;
    print("local", arguments.ranks, arguments, &rows[0])
}

struct Row {
    operation: &'static str,
    bytes: usize,
    timing: Timing,
}

/// Measures every operation at every size. All ranks do the same runs.
fn measure(world: &World, arguments: &CollectiveArguments) -> Result<Vec<Row>, TrainError> {
    let size = world.size();
    let ranks = world.communicator("bench", &Vec::from_iter(0..size))?;
    let mut rows = Vec::new();
    for bytes in &arguments.bytes {
        let elements = bytes.div_ceil(4);
        let lengths: Vec<usize> =
            (0..size).map(|rank| shard_range(elements, size, rank).len()).collect();
        let whole = Tensor::<1>::ones([elements], (&Device::flex(), DType::F32));
        let shard = whole.clone().slice(0..lengths[ranks.rank()]);
        // Reduced over and over, as gradients are: the buffer is given away.
        let reduced = RefCell::new(Some(whole.clone() * 1.0));
        type Operation<'a> = &'a dyn Fn() -> Result<(), CommError>;
        let operations: [(&str, Operation); 3] = [
            ("all_reduce", &|| {
                let Some(x) = reduced.take() else { return Ok(()) };
                let sum = ranks.all_reduce(x.into(), Reduction::Sum).wait()?;
                reduced.replace(Some(sum.float()));
                Ok(())
            }),
            ("reduce_scatter", &|| {
                let whole = whole.clone().into();
                ranks.reduce_scatter(whole, &lengths, Reduction::Sum).wait().map(drop)
            }),
            ("all_gather", &|| ranks.all_gather(shard.clone().into(), &lengths).wait().map(drop)),
        ];
        for (operation, run) in operations {
            let mut seconds = Vec::new();
            for i in 0..WARM_UP + arguments.repeat {
                ranks.barrier().wait()?;
                let start = Instant::now();
                run()?;
                if i >= WARM_UP {
                    seconds.push(start.elapsed().as_secs_f64());
                }
            }
            if let Some(timing) = Timing::of(seconds) {
                rows.push(Row { operation, bytes: 4 * elements, timing });
            }
        }
    }
    Ok(rows)
}

fn print(
    communicator: &str,
    ranks: usize,
    arguments: &CollectiveArguments,
    rows: &[Row],
) -> Result<(), TrainError> {
    let rate = |row: &Row| row.bytes as f64 / row.timing.median / 1e9;
    output::line(&format!("{communicator}, {ranks} ranks on this host, f32"))?;
    let header = ["operation", "bytes", "median us", "best us", "GB/s"].map(str::to_owned);
    let mut lines = vec![header.to_vec()];
    lines.extend(rows.iter().map(|row| {
        vec![
            row.operation.to_owned(),
            row.bytes.to_string(),
            format!("{:.1}", row.timing.median * 1e6),
            format!("{:.1}", row.timing.best * 1e6),
            format!("{:.2}", rate(row)),
        ]
    }));
    output::write(&report::table(&lines))?;
    let json = |row: &Row| -> Value {
        json!({
            "operation": row.operation,
            "bytes": row.bytes,
            "seconds_median": row.timing.median,
            "seconds_best": row.timing.best,
            "runs": row.timing.runs,
            "gb_per_second": rate(row),
        })
    };
    report::write_json(
        arguments.json.as_deref(),
        &json!({
            "subject": "collective",
            "communicator": communicator,
            "ranks": ranks,
            "rows": rows.iter().map(json).collect::<Vec<_>>(),
        }),
    )
}
