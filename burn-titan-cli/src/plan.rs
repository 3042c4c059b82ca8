//! `plan`: the numbers of [`burn_titan_core::plan`] as text or JSON.

use std::fmt::Write;
use std::path::Path;

use burn_titan_core::model::Registry;
use burn_titan_core::plan::{
    Estimate, Hardware, PipelinePlan, PipelineRank, Plan, StagePlan, fewest_ranks, plan,
};
use burn_titan_core::trainer::{TrainError, prepare};

use crate::arguments::ConfigArguments;
use crate::output;

/// Prints the plan of a config, for `ranks` ranks or for as few as its degrees make, and what it comes to on hardware.
pub fn print(
    registry: &Registry,
    arguments: &ConfigArguments,
    ranks: Option<usize>,
    hardware: Option<Hardware>,
    json: bool,
    svg: Option<&Path>,
) -> Result<(), TrainError> {
    let prepared = prepare(&arguments.config, &arguments.overrides, registry, ranks)?;
    let ranks = ranks.unwrap_or_else(|| fewest_ranks(&prepared.config));
    let plan = plan(&prepared, ranks)?;
    if let Some(path) = svg {
        draw(&plan, path)?;
    }
    let compute = prepared.config.precision.compute;
    let estimate = hardware.map(|hardware| Estimate::new(&plan, hardware, compute));
    if json {
        let mut value = serde_json::to_value(&plan).unwrap_or_default();
        if let Some(estimate) = estimate {
            value["estimate"] = serde_json::to_value(estimate).unwrap_or_default();
        }
        return output::line(&format!("{value:#}"));
    }
    output::write(&text(&plan, estimate.as_ref()))
}

/// Writes the picture of the pipeline's time line.
fn draw(plan: &Plan, path: &Path) -> Result<(), TrainError> {
    let failed = |cause: String| TrainError::File { path: path.display().to_string(), cause };
    let Some(pipeline) = &plan.pipeline else {
        let cause = "there is no pipeline to draw: parallelism.pipeline_parallel_degree is 1";
        return Err(failed(cause.into()));
    };
    std::fs::write(path, &pipeline.svg).map_err(|error| failed(error.to_string()))
}

fn text(plan: &Plan, estimate: Option<&Estimate>) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_plan(&mut text, plan);
    if let Some(estimate) = estimate {
        let _ = write_estimate(&mut text, plan, estimate);
    }
    text
}

fn write_estimate(out: &mut String, plan: &Plan, estimate: &Estimate) -> std::fmt::Result {
    let Estimate { hardware, fits, compute_seconds, bubble_seconds, exchanges } = estimate;
    writeln!(
        out,
        "\n{}, at rates that no program reaches: {} TFLOP/s in bf16, {} GB/s to the {} GPUs of a host, {} GB/s to others",
        hardware.name,
        hardware.bfloat16_tflops,
        hardware.inside_gb_per_second,
        hardware.host_gpus,
        hardware.outside_gb_per_second
    )?;
    let (peak, memory) = (bytes(plan.memory.peak.bytes), bytes(hardware.memory));
    let verdict = if *fits { "fits into" } else { "DOES NOT FIT into" };
    writeln!(out, "memory        {peak} {verdict} {memory}")?;
    writeln!(out, "compute       {compute_seconds:.3} s; with the bubble {bubble_seconds:.3} s")?;
    for exchange in exchanges {
        let place = if exchange.inside { "in a host" } else { "between hosts" };
        writeln!(out, "{:<14}{:.3} s {place}", exchange.axis, exchange.seconds)?;
    }
    let [least, most] = estimate.seconds();
    writeln!(
        out,
        "step          {least:.3} s where computation waits for no exchange, {most:.3} s where it waits for all"
    )
}

fn write_plan(out: &mut String, plan: &Plan) -> std::fmt::Result {
    let Plan { model, ranks, mesh, step, memory, sent, pipeline } = plan;
    writeln!(
        out,
        "{} {}: {} parameters in {} units, on {}\n",
        model.name,
        model.flavor,
        grouped(model.parameters),
        model.units,
        counted(*ranks, "rank")
    )?;
    writeln!(out, "{:<14}{:>8}   its ranks", "axis", "degree")?;
    for axis in mesh {
        writeln!(out, "{:<14}{:>8}   {}", axis.axis, axis.degree, axis.purpose)?;
    }
    writeln!(
        out,
        "\nstep: {} of {} x {} tokens a rank, {} tokens together; {} a rank; {:.3e} FLOP together, \
         {:.3e} a rank\n",
        counted(step.micro_batches, "micro-batch"),
        step.sequences,
        step.seq_len,
        grouped(step.tokens),
        counted(step.actions, "action"),
        step.flops,
        step.flops / *ranks as f64
    )?;
    let offload = memory.host.total() > 0;
    let host = if offload { format!("{:>14}", "on the host") } else { String::new() };
    writeln!(out, "{:<22}{:>14}{:>14}{host}", "memory of a rank", "at most", "at the peak")?;
    let rows = memory.most.each().zip(memory.peak.memory.each()).zip(memory.host.each());
    for (((name, most), (_, peak)), (_, host)) in rows {
        write!(out, "{name:<22}{:>14}{:>14}", bytes(most), bytes(peak))?;
        writeln!(out, "{}", if offload { format!("{:>14}", bytes(host)) } else { String::new() })?;
    }
    let peak = &memory.peak;
    writeln!(
        out,
        "{:<22}{:>14}{:>14}   at action {} of {}, {}",
        "peak",
        "",
        bytes(peak.bytes),
        peak.index,
        step.actions,
        peak.action
    )?;
    if let [first, rest @ ..] = memory.not_counted.as_slice() {
        let others = match rest {
            [] => String::new(),
            [.., last] => format!(" to {last} ({} units)", rest.len() + 1),
        };
        writeln!(
            out,
            "not counted: the activations of {first}{others}, which do not say what they take; the peak \
             is higher"
        )?;
    }
    if !sent.is_empty() {
        writeln!(
            out,
            "\n{:<14}{:>8}{:>14}{:>14}",
            "sent by a rank", "ranks", "operations", "a step"
        )?;
    }
    for along in sent {
        let (axis, sent) = (&along.axis, bytes(along.bytes));
        writeln!(out, "{axis:<14}{:>8}{:>14}{sent:>14}", along.ranks, along.operations)?;
    }
    pipeline.as_ref().map_or(Ok(()), |pipeline| write_pipeline(out, pipeline))
}

fn write_pipeline(out: &mut String, pipeline: &PipelinePlan) -> std::fmt::Result {
    let PipelinePlan { schedule, stages, ranks, not_split, drawing, .. } = pipeline;
    writeln!(out, "\npipeline {schedule}: {}", counted(stages.len(), "stage"))?;
    for (number, stage) in stages.iter().enumerate() {
        let StagePlan { rank, first, last, work } = stage;
        let units = if first == last { first.clone() } else { format!("{first} to {last}") };
        writeln!(
            out,
            "stage {number:<3} rank {rank:<3} {:>5.1}% of the work   {units}",
            100.0 * work
        )?;
    }
    for (number, rank) in ranks.iter().enumerate() {
        let PipelineRank { peak, activations } = rank;
        let (peak, activations) = (bytes(*peak), bytes(*activations));
        writeln!(out, "rank {number:<3} at most {peak}, of activations {activations}")?;
    }
    if !not_split.is_empty() {
        let units = not_split.join(", ");
        writeln!(out, "not split: the backward of {units}, which runs whole with its first half")?;
    }
    write!(out, "{drawing}")
}

/// A count with its noun.
fn counted(count: usize, noun: &str) -> String {
    let plural = match noun {
        _ if count == 1 => "",
        noun if noun.ends_with('h') => "es",
        _ => "s",
    };
    format!("{} {noun}{plural}", grouped(count as u64))
}

/// A number in groups of three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the largest unit of which they are at least one.
fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // What would be shown as 1024.0 is one of the next.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_exact() {
        assert_eq!(
            [0, 999, 1000, 405_853_388_800].map(grouped),
            ["0", "999", "1,000", "405,853,388,800"]
        );
        assert_eq!(
            [0, 1023, 1024, 1_048_524, 1_048_576, 5 << 40, u64::MAX].map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "1023.9 KiB", "1.0 MiB", "5.0 TiB", "16384.0 PiB"]
        );
        assert_eq!(counted(1, "micro-batch"), "1 micro-batch");
        assert_eq!(counted(3000, "micro-batch"), "3,000 micro-batches");
    }
}
