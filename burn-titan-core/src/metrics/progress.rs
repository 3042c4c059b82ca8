//! Progress on the terminal: a bar, or plain lines where there is no terminal.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::jsonl::StepMetrics;

/// Weight of the newest step in the mean step time.
const NEWEST: f64 = 0.1;

/// Shows how far a run is, on stderr.
#[derive(Debug)]
pub struct Progress {
    total_steps: u64,
    log_interval: u64,
    /// `None` where stderr is not a terminal.
    bar: Option<ProgressBar>,
    /// Mean time of a step, newer ones weighing more.
    mean_step_seconds: Option<f64>,
}

impl Progress {
    /// Progress of a run of `total_steps` that continues after `resumed_step`. On a terminal the bar
    /// shows every step; elsewhere every `log_interval`-th step is a line.
    pub fn new(total_steps: u64, resumed_step: u64, log_interval: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let target = ProgressDrawTarget::stderr();
            let bar = ProgressBar::with_draw_target(Some(total_steps), target);
            let template = "{bar:24.cyan/dim} {msg}";
            let style = ProgressStyle::with_template(template);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_position(resumed_step);
            bar
        });
        Self { total_steps, log_interval: log_interval.max(1), bar, mean_step_seconds: None }
    }

    /// Shows a step that is done.
    pub fn step(&mut self, metrics: &StepMetrics) {
        let left = self.remaining(metrics);
        let text = describe(metrics, self.total_steps, left);
        match &self.bar {
            Some(bar) => {
                bar.set_position(metrics.step);
                bar.set_message(text);
            }
            None if self.is_due(metrics) => write_line(&text),
            None => {}
        }
    }

    /// Shows a message above the bar.
    pub fn message(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| write_line(text)),
            None => write_line(text),
        }
    }

    /// Leaves the bar as it is.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }

    fn is_due(&self, metrics: &StepMetrics) -> bool {
        metrics.step == 1
            || metrics.step == self.total_steps
            || metrics.step.is_multiple_of(self.log_interval)
            || metrics.validation_loss.is_some()
    }

    /// Time left, from the mean step time. The first step is left out of the mean, for it warms up.
    fn remaining(&mut self, metrics: &StepMetrics) -> Option<Duration> {
        let seconds = metrics.step_seconds;
        let mean = self.mean_step_seconds.map(|mean| mean + NEWEST * (seconds - mean));
        if metrics.step > 1 && seconds.is_finite() {
            self.mean_step_seconds = Some(mean.unwrap_or(seconds));
        }
        let steps = self.total_steps.saturating_sub(metrics.step);
        Duration::try_from_secs_f64(self.mean_step_seconds? * steps as f64).ok()
    }
}

/// A closed stderr is no reason to end a run.
fn write_line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn describe(metrics: &StepMetrics, total_steps: u64, left: Option<Duration>) -> String {
    let width = total_steps.to_string().len();
    let mut text = format!(
        "step {:>width$}/{total_steps}  loss {:.4}  grad {:.3}  {} tok/s  MFU {:.1}%",
        metrics.step,
        metrics.loss,
        metrics.grad_norm,
        thousands(metrics.tokens_per_second),
        100.0 * metrics.mfu,
    );
    if let Some(loss) = metrics.validation_loss {
        text += &format!("  validation {loss:.4}");
    }
    if let Some(left) = left {
        text += &format!("  {} left", clock(left));
    }
    text
}

/// `1,234,567`.
fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    if !value.is_finite() || digits.len() <= 3 {
        return format!("{value:.0}");
    }
    let head = digits.len() % 3;
    let groups = digits.as_bytes()[head..].chunks(3).map(String::from_utf8_lossy);
    let head = (head > 0).then(|| digits[..head].into());
    let sign = if value < 0.0 { "-" } else { "" };
    sign.to_string() + &head.into_iter().chain(groups).collect::<Vec<_>>().join(",")
}

/// `59s`, `3m05s`, `2h07m`, `4d03h`.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if days > 0 => format!("{days}d{:02}h", hours % 24),
        () if hours > 0 => format!("{hours}h{:02}m", minutes % 60),
        () if minutes > 0 => format!("{minutes}m{:02}s", seconds % 60),
        () => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(step: u64, step_seconds: f64) -> StepMetrics {
        StepMetrics {
            step,
            loss: 7.123456,
            grad_norm: 1.0,
            tokens_per_second: 4321.4,
            mfu: 0.345,
            step_seconds,
            ..Default::default()
        }
    }

    #[test]
    fn a_line_says_it_all() {
        let mut step = metrics(7, 1.0);
        assert_eq!(
            describe(&step, 300, Some(Duration::from_secs(125))),
            "step   7/300  loss 7.1235  grad 1.000  4,321 tok/s  MFU 34.5%  2m05s left"
        );
        step.validation_loss = Some(f64::NAN);
        step.loss = f64::INFINITY;
        assert_eq!(
            describe(&step, 7, None),
            "step 7/7  loss inf  grad 1.000  4,321 tok/s  MFU 34.5%  validation NaN"
        );
    }

    #[test]
    fn numbers_and_times_are_readable() {
        for (value, text) in [
            (0.0, "0"),
            (999.4, "999"),
            (999.6, "1,000"),
            (12_345_678.0, "12,345,678"),
            (123_456.0, "123,456"),
            (-1234.0, "-1,234"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(thousands(value), text);
        }
        for (seconds, text) in [(0, "0s"), (59, "59s"), (185, "3m05s"), (7650, "2h07m")] {
            assert_eq!(clock(Duration::from_secs(seconds)), text);
        }
        assert_eq!(clock(Duration::from_secs(4 * 86_400 + 3 * 3600)), "4d03h");
    }

    #[test]
    fn the_first_step_does_not_spoil_the_estimate() {
        let mut progress = Progress::new(11, 0, 5);
        assert_eq!(progress.remaining(&metrics(1, 100.0)), None);
        assert_eq!(progress.remaining(&metrics(2, 2.0)), Some(Duration::from_secs(18)));
        assert_eq!(progress.remaining(&metrics(3, f64::NAN)), Some(Duration::from_secs(16)));
        assert_eq!(progress.remaining(&metrics(12, 2.0)), Some(Duration::ZERO));
    }

    #[test]
    fn lines_come_at_the_interval() {
        let progress = Progress::new(12, 0, 5);
        let due: Vec<u64> = (1..=12).filter(|&step| progress.is_due(&metrics(step, 1.0))).collect();
        assert_eq!(due, [1, 5, 10, 12]);
        assert!(Progress::new(0, 0, 0).is_due(&metrics(3, 1.0)));
    }
}
