//! What a run tells about itself: `metrics.jsonl`, TensorBoard events, `loss.svg`, the terminal.
//!
//! All of them take one [`StepMetrics`] a step. `metrics.jsonl` is the record; the others can be made
//! from it.

mod jsonl;
mod loss_svg;
mod memory;
mod progress;
mod tensorboard;

pub use jsonl::{MetricsError, MetricsLog, StepMetrics, read_metrics};
pub use loss_svg::{render_loss_svg, write_loss_svg};
pub use memory::{MemoryUse, memory_use, physical_memory};
pub use progress::Progress;
pub use tensorboard::EventWriter;
