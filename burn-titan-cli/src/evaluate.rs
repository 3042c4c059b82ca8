//! `eval`.

use burn_titan_core::checkpoint::{CheckpointError, write_tensor_file};
use burn_titan_core::inference::eval::{EvalData, Reading, evaluate as run};
use burn_titan_core::model::Registry;
use burn_titan_core::trainer::TrainError;

use crate::arguments::EvalArguments;
use crate::generate::load;
use crate::output;

pub fn evaluate(registry: &Registry, arguments: &EvalArguments) -> Result<(), TrainError> {
    let data = match (&arguments.token_ids, &arguments.data) {
        (Some(path), _) => EvalData::TokenIds(path),
        (None, Some(path)) => {
            let reading = Reading {
                format: arguments.format,
                text_key: arguments.text_key.clone(),
                token_dtype: arguments.token_dtype,
            };
            EvalData::File { path, reading, tokenizer: arguments.tokenizer.as_deref() }
        }
        (None, None) => {
            return Err(TrainError::File {
                path: "eval".into(),
                cause: "give --data or --token-ids".into(),
            });
        }
    };
    if let Some(path) = &arguments.logits {
        output::check_folder(path)?;
    }
    let model = load(registry, &arguments.model, &arguments.device)?;
    let (result, logits) = run(&model, &data, arguments.logits.is_some())?;
    if let Some(path) = &arguments.logits {
        write_tensor_file(path, &logits, &[]).map_err(CheckpointError::from)?;
    }
    let result = serde_json::json!({
        "loss": result.loss,
        "perplexity": result.perplexity,
        "tokens": result.tokens,
    });
    output::line(&result.to_string())
}
