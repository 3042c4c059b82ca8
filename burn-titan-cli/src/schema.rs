//! `schema`.

use burn_titan_core::config::{json_schema, markdown};
use burn_titan_core::trainer::TrainError;

use crate::output;

pub fn print(as_markdown: bool) -> Result<(), TrainError> {
    if as_markdown {
        output::write(&markdown())
    } else {
        output::line(&format!("{:#}", json_schema()))
    }
}
