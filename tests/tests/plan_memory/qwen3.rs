//! Blocks with norms of queries and keys hold what is planned.

use std::sync::PoisonError;

use burn::tensor::{DType, Device};
use burn_titan_core::model::{Context, HeadOutput, ModelFamily, Sharing, Workload};
use burn_titan_models::Qwen3;
use burn_titan_tests::tiny;
use serde_json::json;

use super::units::{MEASURED, SMALL, Together, measured, said};
use super::{TURN, WIDER, compared, measured_and_planned};

const QWEN3: &str = "model.name=qwen3";

#[test]
fn a_run_holds_what_is_planned() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    // What is made once for the process is counted for none.
    measured_and_planned(2, &[QWEN3]);
    let full = "activation_checkpoint.mode=full";
    let bf16 = "precision.compute=bfloat16";
    let tensor = [&WIDER[..], &[QWEN3, "parallelism.tensor_parallel_degree=2"]].concat();
    let cases: [(&str, usize, &[&str]); 5] = [
        ("one rank", 1, &[QWEN3]),
        ("one rank, full", 1, &[QWEN3, full]),
        ("one rank, bfloat16", 1, &[QWEN3, bf16]),
        ("FSDP 2, full", 2, &[QWEN3, full]),
        ("TP 2", 2, &tensor),
    ];
    let results = cases.map(|(name, ranks, words)| compared(name, ranks, words));
    let wrong: Vec<String> =
        results.into_iter().filter(|(_, far)| *far).map(|(line, _)| line).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_block_holds_what_it_says() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (dim, batch, seq) = (128, 4, 256);
    let sizes = json!({"n_layers": 2, "dim": dim, "n_heads": 6, "n_kv_heads": 2, "head_dim": 48,
        "ffn_dim": 256, "vocab_size": 331});
    let family = Qwen3::default();
    let config = family.resolve("debug", sizes.as_object().expect("an object")).expect("sizes");
    let model = family.build(&config, "fused").expect("a model");
    let tokens: Vec<i64> = (0..batch * seq).map(|i| (i * 7 % 331) as i64).collect();
    let rows = tiny::batch(seq, &tokens, &tiny::next_tokens(seq, &tokens));
    let context = Context::new(&rows, HeadOutput::Loss, &Device::flex());
    for compute in [DType::F32, DType::BF16] {
        let workload = Workload { batch, seq, compute, native: true, sharing: Sharing::ALONE };
        // The first block makes what both share.
        let [_, found] = [1, 2]
            .map(|block| measured(&*model.units[block], &context, &workload, dim, Together::ALONE));
        let counted = said(&*model.units[2], &workload);
        for (i, what) in MEASURED.into_iter().enumerate() {
            let (found, said) = (found[i], counted[i]);
            println!("{compute:?}: {what} {found} bytes, said {said}");
            assert!(found <= said + said / 50 + SMALL && found >= said * 9 / 10, "{what}");
        }
    }
}
